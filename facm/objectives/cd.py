"""Consistency distillation (Song et al. 2023, arXiv 2303.01469): neighbours on a fixed grid, a teacher's step apart.

    L = d(f(x_t, t), sg f_target(x_s, s)),    f(x, t) = x + (1 - t) F

with t and s neighbours among N of EDM's noise levels sigma = (1 - t) / t, evenly spaced in sigma^(1/7) from 0.002 to
80, and x_s one step of a solver from x_t along the guided velocity.

Sources: the paper's constants, not read again (N = 18 and, on CIFAR-10, mu = 0: the network itself is the target);
cm/karras_diffusion.py, cm/train_util.py and scripts/launch.sh of the published code (openai/consistency_models), read,
which have ImageNet-64 and LSUN only: N = 40, mu = 0.95, from the first weights on. There: Heun's rule in EDM's
variables; f is the identity at the least level. Here: the rule in x_t and t; the least level counts as 0, t = 1, where
our f is the identity. From scratch the velocity is the data's, and a step stays on the sample's own straight path:
consistency training.

Published code: d is LPIPS best, of pictures in pixels. Here: `distance: lpips`, see facm/networks/lpips.py, which is
handed in as `point.tools["lpips"]`; not the default, because it needs weights from outside and pictures.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import pseudo_huber, rms, squared_error
from facm.flow.path import c_cm, endpoint, expand
from facm.flow.time import TimeSampler, evenly, karras, time_of
from facm.objectives import check_fields
from facm.runtime.ranges import Conditioning, NonNegative, OneOf, Range

DISTANCES = ("l2", "pseudo_huber", "lpips")


@dataclass(frozen=True, kw_only=True)
class CD(Objective):
    """The CD loss.

    Attributes:
        conditioning: expanded or auxiliary; asked at c_CM.
        levels: noise levels N, at least 2.
        solver: euler | heun, the teacher's step: one or two guided velocities.
        target: online | ema | target, whose f is the target: the student's, the long average that is the result, or
            an average with a constant decay.
        decay: mu of `target: target`, 0 to 0.9999.
        distance: l2 (mean of squares) | pseudo_huber | lpips (of pictures; asks for a tool).
        c: of pseudo_huber, at least 0.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    conditioning: Conditioning = "expanded"
    levels: Annotated[int, Range(low=2)] = 18
    solver: Literal["euler", "heun"] = "heun"
    target: Literal["online", "ema", "target"] = "online"
    decay: Annotated[float, Range(0, 0.9999)] = 0.95
    distance: Annotated[str, OneOf(DISTANCES)] = "l2"
    c: NonNegative = 0.03

    normals = 1
    samplers = ("consistency",)
    terms = ("cd",)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def other_weights(self) -> tuple[str, ...]:
        return () if self.target == "online" else (self.target,)

    @property
    def target_decay(self) -> float | None:
        return self.decay if self.target == "target" else None

    @property
    def tools(self) -> tuple[str, ...]:
        return ("lpips",) if self.distance == "lpips" else ()

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 1) -> t and s (B,), neighbours on the grid, each pair as often; t < s <= 1."""
        sigma = karras(self.levels).flip(0).to(n.device)
        sigma[0] = 0.0
        i = evenly(n[:, 0], self.levels - 1).long()
        return {"t": time_of(sigma[i + 1]).to(n.dtype), "s": time_of(sigma[i]).to(n.dtype)}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return the loss per sample, (B,); the target carries no gradient.

        `point` has x_t (B, ...), t and s (B,) as `times` gave them, v like x_t, y (B,) or None.
        """
        t, s, x_t = point.t, point.times["s"], point.x_t
        dt, x_s = expand(s - t, x_t), self.solved(point)
        here, there = c_cm(t, self.conditioning), c_cm(s, self.conditioning)
        of = "student" if self.target == "online" else self.target
        asked = Query(x_s, there.t, point.y, there.r, grad=False, of=of)
        F, F_s = F_theta(Query(x_t, here.t, point.y, here.r), asked)
        f_t, f_s = endpoint(x_t, t, F), endpoint(x_s, s, F_s).detach()
        point.watch("g", rms((f_t - f_s) / dt))
        point.watch("tangent", rms((F_s - F) / dt))
        return {"cd": self.between(f_t, f_s, point)}

    def between(self, f_t: Tensor, f_s: Tensor, point: Point) -> Tensor:
        """d(f_t, f_s), (B,)."""
        if self.distance == "lpips":
            return point.tools["lpips"](f_t, f_s)
        return squared_error(f_t, f_s) if self.distance == "l2" else pseudo_huber(f_t, f_s, self.c)

    def solved(self, point: Point) -> Tensor:
        """x_s, one step of the solver from x_t, like x_t."""
        s, dt = point.times["s"], expand(point.times["s"] - point.t, point.x_t)
        x_s = point.x_t + dt * point.v
        if self.solver == "euler":
            return x_s
        return point.x_t + dt * (point.v + point.velocity(x_s, s, point.y)) / 2
