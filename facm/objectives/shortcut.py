"""Shortcut models (Frans et al. 2024, arXiv 2410.12557): a jump of 2d is two jumps of d.

Time as everywhere and as in the paper: t = 1 is data. The paper's s(x, t, d) is F(x, t, r = t + d) here, the average
velocity from t to t + d; d = 0 is the velocity itself. Most samples learn it,

    F(x_t, t, t) = v,

the others, with d among 1/2, 1/4, .. 2^-levels, learn a jump from two jumps of half its length:

    F(x_t, t, t + 2d) = sg (s1 + s2) / 2,   s1 = F(x_t, t, t + d),   s2 = F(x_t + d s1, t + d, t + 2d).

The smallest d is no jump that is learned: both its halves are asked at d = 0.

Sources: the paper's rules on d and on the smallest d, as others quote them; targets_shortcut.py of the published code
(kvfrans/shortcut-models), read in a copy. The share of a quarter, AdamW's weight decay of 0.1 and the average of 0.999
are from the paper, not re-read; the last two are settings under `distill`. Copies of the code have 1/4 and 1/8.
Published code: equal numbers of each d in a batch. Here: d is drawn for each sample.
Published code: guides the jumps from d = 0, inside their targets. Here: v is guided (Eq. 9 of FACM's paper) and jumps
inherit it, so that no guidance is compounded, F(x, t, t) is guided too, and all methods are guided alike.
Published code: the smallest d and d = 0 are one condition, r = t + 2^-levels. Here, as in the paper: d = 0 is r = t.
Published code: clips x_t + d s1 and the target to [-4, 4]. Here: not.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import rms, squared_error
from facm.flow.path import expand
from facm.flow.time import TimeSampler, evenly
from facm.objectives import check_fields
from facm.runtime.ranges import Fraction, Range


@dataclass(frozen=True, kw_only=True)
class Shortcut(Objective):
    """The shortcut loss.

    Attributes:
        bootstrap: share of samples that learn a jump, 0 to 1.
        levels: d is 2^-k, k = 1 .. levels, each as often.
        target: ema | online, which weights make the two jumps.
        flow_times: grid | time: samples with d = 0 have t among the multiples of 2^-levels, or as distill.time says.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    bootstrap: Fraction = 0.25
    levels: Annotated[int, Range(1, 20)] = 7
    target: Literal["ema", "online"] = "ema"
    flow_times: Literal["grid", "time"] = "grid"

    conditioning = "auxiliary"
    ragged = True
    normals = 3
    samplers = ("consistency", "jumps", "euler", "heun")
    terms = ("fm", "bootstrap")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def other_weights(self) -> tuple[str, ...]:
        return ("ema",) if self.target == "ema" else ()

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 3) -> t and d, each (B,); d is 0 or a power of two, t then a multiple of 2d.

        The first normal decides whether d is 0, the second makes t, the third d.
        """
        bound = torch.special.ndtri(torch.tensor(self.bootstrap, dtype=torch.float64)).item()
        powers = torch.tensor([0.5**k for k in range(1, self.levels + 1)], dtype=n.dtype, device=n.device)
        d = powers[evenly(n[:, 2], self.levels).long()]
        t = evenly(n[:, 1], 0.5 / d) * 2 * d  # 1 / 2d jumps of 2d
        t_flow = evenly(n[:, 1], 2**self.levels) / 2**self.levels if self.flow_times == "grid" else time(n[:, 1])
        jumps = n[:, 0] < bound
        return {"t": torch.where(jumps, t, t_flow), "d": torch.where(jumps, d, 0.0)}

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return the mean squared errors of the velocity (d = 0) and of the jumps, each (B,), 0 for the other samples.

        `point` has x_t (B, ...), t and d (B,) as `times` gave them, v like x_t, y (B,) or None.
        """
        d = point.times["d"]
        rows = d > 0
        target, F_s = point.v.clone(), torch.zeros_like(point.v)
        if rows.any():
            target[rows], F_s[rows] = (F.to(target.dtype) for F in self.two_jumps(F_theta, point, rows))
        (F,) = F_theta(Query(point.x_t, point.t, point.y, point.t + 2 * d))
        self.watch(point, F, F_s, target)
        e = squared_error(F, target)
        return {"fm": torch.where(rows, 0.0, e), "bootstrap": torch.where(rows, e, 0.0)}

    def two_jumps(self, F_theta: FTheta, point: Point, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The target (s1 + s2) / 2 and s2, for the samples with d > 0 only, without a graph.

        Args:
            F_theta: the student.
            point: as `__call__` has it.
            rows: (B,) bool, not all False.
        """
        of = "ema" if self.target == "ema" else "student"
        x, t, d = point.x_t[rows], point.t[rows], point.times["d"][rows]
        y = None if point.y is None else point.y[rows]
        jump = torch.where(d > 2.0**-self.levels, d, 0.0)  # the smallest d is asked as d = 0
        (s1,) = F_theta(Query(x, t, y, t + jump, grad=False, of=of, rows=rows))
        x = x + expand(d, x) * s1
        (s2,) = F_theta(Query(x, t + d, y, t + d + jump, grad=False, of=of, rows=rows))
        return ((s1 + s2) / 2).detach(), s2.detach()

    def watch(self, point: Point, F: Tensor, F_s: Tensor, target: Tensor) -> None:
        """Log g = F - target and, of the jumps, (F(x_s, s, r) - F(x_t, t, r)) / (s - t) for s = t + d, r = t + 2d.

        The latter is 0 where d = 0, and is divided by the share of jumps, so that its mean is theirs; at the smallest d
        the first of both is asked at r = s.
        """
        d = point.times["d"]
        point.watch("g", rms(F - target))
        tangent = rms(F_s - F) / torch.where(d > 0, d, math.inf)
        point.watch("tangent", tangent / self.bootstrap if self.bootstrap > 0 else tangent)
