"""Easy Consistency Tuning (Geng et al. 2024, arXiv 2406.14548): consistency of two points whose distance shrinks.

    L = d(f(x_t, t), sg f(x_s, s)) / (sigma_t - sigma_s),    f(x, t) = x + (1 - t) F

on one trajectory, t < s, in EDM's noise level sigma = (1 - t) / t, with sigma_s = sigma_t (1 - q^-(a+1) n(sigma_t))
or 0, n(sigma) = 1 + k sigmoid(-b sigma), a the stage of training. At sigma_s = 0 the target is x_s itself, the data.

Source of the constants: its code (locuslab/ect, training/loss.py). There: both points from one noise, a distance
sqrt(|.|^2 + c^2) - c with c = 0, stages every 250 ticks, EDM's preconditioning (f is the identity at sigma = 0.002).
Here: x_s = x_t + (s - t) v, which from scratch is the same noise and when distilling an Euler step of the teacher; the
velocity head, whose f is the identity at t = 1; stages in equal shares of the training. Its law of sigma,
exp(-1.1 + 2 n), is distill.time with sampler logit_normal, mean -1.1, std 2.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import pseudo_huber, rms
from facm.flow.path import c_cm, endpoint, expand
from facm.flow.time import TimeSampler, sigma_of, time_of
from facm.objectives import check_fields
from facm.runtime.ranges import Conditioning, Count, NonNegative, Range

EDGE = 1e-4  # t is kept this far from both ends, where sigma is 0 or infinite
LEAST = 1e-4  # q^-stages: below, float32 does not tell the two points apart
GAP = 1e-6  # s - t, at least


@dataclass(frozen=True, kw_only=True)
class ECT(Objective):
    """The ECT loss.

    Attributes:
        conditioning: expanded or auxiliary; asked at c_CM.
        stages: the distance shrinks by q this many times less one, in equal shares of the training; at least 1.
        q: above 1.
        k: at least 0.
        b: at least 0.
        c: of the distance, at least 0.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    conditioning: Conditioning = "expanded"
    stages: Count = 8
    q: Annotated[float, Range(low=1, exclusive_low=True)] = 2.0
    k: NonNegative = 8.0
    b: NonNegative = 1.0
    c: NonNegative = 0.0

    normals = 1
    samplers = ("consistency",)
    terms = ("ct",)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.q**-self.stages < LEAST:
            raise ValueError(
                f"params.yaml, objectives.ect: q {self.q!r} in {self.stages} stages ends at a distance of "
                f"{self.q**-self.stages:.1g}, must be at least {LEAST:g}, what float32 can tell apart: fewer stages "
                "(1 with q 256), or a smaller q"
            )

    def stage(self, progress: Progress) -> int:
        """Stage 0 .. stages - 1."""
        return self.stages * (progress.step - 1) // progress.steps

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 1) -> t and s (B,), t < s <= 1."""
        t = time(n[:, 0]).clamp(EDGE, 1 - EDGE)
        sigma = sigma_of(t.double())
        ratio = 1 - self.q ** -(self.stage(progress) + 1) * (1 + self.k * torch.sigmoid(-self.b * sigma))
        s = time_of(sigma * ratio.clamp(min=0)).to(t.dtype)
        return {"t": t, "s": torch.maximum(s, t + GAP)}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return the loss per sample, (B,); the target carries no gradient.

        `point` has x_t (B, ...), t and s (B,) as `times` gave them, v like x_t, y (B,) or None.
        """
        t, s, x_t = point.t, point.times["s"], point.x_t
        dt = expand(s - t, x_t)
        x_s = x_t + dt * point.v
        here, there = c_cm(t, self.conditioning), c_cm(s, self.conditioning)
        F, F_s = F_theta(Query(x_t, here.t, point.y, here.r), Query(x_s, there.t, point.y, there.r, grad=False))
        f_t, f_s = endpoint(x_t, t, F), endpoint(x_s, s, F_s).detach()
        point.watch("g", rms((f_t - f_s) / dt))
        point.watch("tangent", rms((F_s - F) / dt))
        gap = sigma_of(t.double()) - sigma_of(s.double())
        return {"ct": pseudo_huber(f_t, f_s, self.c) / gap.to(x_t.dtype)}
