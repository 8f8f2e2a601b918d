"""TRACT: transitive closure time-distillation (Berthelot et al. 2023, arXiv 2303.04248).

Times 0, h, 2h, .. 1 are cut into equal segments. A student learns the jump from any of them to the end e of its
segment: one step of a teacher, x_s with s = t + h, then the student's own jump from there,

    x_e = x_s + (e - s) sg F(x_s, s),    x_s itself where s = e,

so that errors are passed on along one chain and not through many generations of students. The next phase starts with
that student as teacher, whose steps are the segments, and cuts them into fewer; the last has one, hence e = 1.

Time as everywhere: t = 1 is data. A DDIM step of a prediction of x1, s x1 + (1 - s) / (1 - t) (x - t x1), is on this
path the Euler step x + (s - t) F of its velocity F = (x1 - x) / (1 - t), so that everything is written with F.

A network of one time knows no e: in each phase it means the end of the segment in which t lies, and F(x, t) is the
average velocity to there. Only the last phase, whose one segment ends at the data, makes what one-step sampling asks
for. Students of earlier phases would be drawn with as many Euler steps as they have segments; they serve as teachers
only. F at c_FM is never trained.

Checked against the published code (apple/ml-tract, tc_distill.py).
Published code: times even in the angle of a cosine noise schedule. Here: even in t.
Published code: predictions of x1 clipped to [-1, 1]. Here: not, latents have no such bounds.
Published code (and lib/optim.py): the self-teacher is an average of weights with momentum 0.5, whose first update
copies, with the bias correction 1 - 0.5^k of step k. Here: the same average without that correction, from the first
weights on, which have a share of 0.5^k in it; with `self_teacher: online` none, with `ema` the long average.
Published code: errors are sums over the picture. Here: means, as everywhere.
Published code: distils from a teacher only. Here: from scratch too; the first phase's step is then interpolation.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import rms, squared_error
from facm.flow.path import c_cm, expand
from facm.flow.time import TimeSampler, evenly
from facm.objectives import check_fields
from facm.runtime.ranges import Conditioning, Count, Range


@dataclass(frozen=True, kw_only=True)
class TRACT(Objective):
    """The TRACT loss.

    Attributes:
        conditioning: expanded or auxiliary; the student is asked at c_CM, see `facm.flow.path`.
        grid: steps of the first phase's teacher from t = 0 to 1.
        segments: how many segments each phase has. Each number divides the one before (`grid` before the first) and
            is smaller; the last is 1. Phases have equal shares of the training's steps.
        self_teacher: target | online | ema, which weights jump from s to e: an average with a constant decay, the
            student's own, or the long average that is the result.
        decay: of the target's weights per step, 0 to 0.9999.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    conditioning: Conditioning = "expanded"
    grid: Count = 1024
    segments: tuple[Count, ...] = (32, 1)
    self_teacher: Literal["target", "online", "ema"] = "target"
    decay: Annotated[float, Range(0, 0.9999)] = 0.5

    normals = 1
    samplers = ("consistency",)
    terms = ("tract",)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "segments", tuple(self.segments))
        for before, number in pairwise((self.grid, *self.segments)):
            if before <= number or before % number:
                raise ValueError(
                    f"params.yaml, objectives.tract.segments: {number} must divide {before} and be smaller, as each "
                    f"number the one before it, the first objectives.tract.grid ({self.grid})"
                )
        if self.segments[-1] != 1:
            raise ValueError(
                f"params.yaml, objectives.tract.segments: {list(self.segments)} must end in 1, the map to the data"
            )

    @property
    def other_weights(self) -> tuple[str, ...]:
        return ("phase",) if self.self_teacher == "online" else ("phase", self.self_teacher)

    @property
    def target_decay(self) -> float | None:
        return self.decay if self.self_teacher == "target" else None

    def phase(self, progress: Progress) -> int:
        """The number of the phase, 0 .. len(segments) - 1, at a step of the training."""
        return (progress.step - 1) * len(self.segments) // progress.steps

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 1) -> the teacher's step t -> s and the segment's end e, each (B,), t < s <= e <= 1.

        t is uniform among the times at which the phase's teacher can be asked; `time` has no part in it.
        """
        phase = self.phase(progress)
        steps, segments = (self.grid, *self.segments)[phase : phase + 2]
        index = evenly(n[:, 0], steps)
        end = torch.div(index, steps // segments, rounding_mode="floor") + 1
        return {"t": index / steps, "s": (index + 1) / steps, "e": end / segments}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return max(1, SNR) |x1_hat - x1_tar|^2, (B,), of the predictions of x1 that lead to x_e.

        The weight grows like 1 / (1 - t)^2 towards the data, but x1_hat - x1_tar = (1 - t) (F - F_tar), and the product
        is max((1 - t)^2, t^2) |F - F_tar|^2: between 1/4 and 1 it needs no clamp.

        Args:
            F_theta: the student; its "phase" weights are the teacher of all phases but the first.
            point: x_t (B, ...), t, s, e (B,) as `times` gave them, v like x_t in the first phase, y (B,) or None.
        """
        t, s, e = (expand(point.times[name], point.x_t) for name in ("t", "s", "e"))
        x_s = point.x_t + (s - t) * self.teacher(F_theta, point)
        F, F_s = F_theta(self.query(point.x_t, point.t, point), self.self_query(x_s, point))
        x_e = x_s + (e - s) * F_s  # x_s itself at the end of a segment
        F_tar = ((x_e - point.x_t) / (e - t)).detach()
        self.watch(point, F, F_s, F_tar)
        return {"tract": torch.maximum((1 - point.t) ** 2, point.t**2) * squared_error(F, F_tar)}

    def teacher(self, F_theta: FTheta, point: Point) -> Tensor:
        """The average velocity from t to s, like x_t, without a graph."""
        if self.phase(point.progress) == 0:
            return point.v
        c = c_cm(point.t, self.conditioning)
        (F,) = F_theta(Query(point.x_t, c.t, point.y, c.r, grad=False, of="phase"))
        return F

    def query(self, x: Tensor, t: Tensor, point: Point) -> Query:
        """The student at c_CM."""
        c = c_cm(t, self.conditioning)
        return Query(x, c.t, point.y, c.r)

    def self_query(self, x_s: Tensor, point: Point) -> Query:
        """The self-teacher at (x_s, s), without a graph."""
        c = c_cm(point.times["s"], self.conditioning)
        of = "student" if self.self_teacher == "online" else self.self_teacher
        return Query(x_s, c.t, point.y, c.r, grad=False, of=of)

    def watch(self, point: Point, F: Tensor, F_s: Tensor, F_tar: Tensor) -> None:
        """Log g = (x_t + (e - t) F - x_e) / (s - t), how far both jumps to e differ, and (F_s - F) / (s - t).

        Where s = e the second has no meaning, F_s belonging to the next segment, and counts 0.
        """
        t, s, e = (expand(point.times[name], F) for name in ("t", "s", "e"))
        point.watch("g", rms((e - t) / (s - t) * (F - F_tar)))
        point.watch("tangent", rms(torch.where(s == e, 0.0, F_s - F) / (s - t)))
