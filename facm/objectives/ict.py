"""Improved consistency training (Song & Dhariwal 2023, arXiv 2310.14189): neighbours on a grid that grows finer.

    L = d(f(x_{i+1}), sg f(x_i)) / (sigma_{i+1} - sigma_i),    f(x, t) = x + (1 - t) F

on EDM's noise levels sigma = (1 - t) / t, N(k) of them at step k, evenly spaced in sigma^(1/7) from 0.002 to 80. i is
drawn as often as ln sigma, normal with mean -1.1 and std 2, falls between the levels; d is the pseudo-Huber distance
with c = 0.00054 sqrt(D). The target is the network itself, without an average.

Source of the constants: the paper, not read again. There: f is the identity at the least level. Here: the least level
counts as 0, t = 1, where our f is the identity. x_s = x_t + (s - t) v, which from scratch is the same noise and when
distilling an Euler step of the teacher. distill.time has no part in it: the method brings its own law.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from facm.flow.interface import FTheta, Objective, Point, Progress, Query
from facm.flow.losses import pseudo_huber, rms
from facm.flow.path import c_cm, endpoint, expand
from facm.flow.time import TimeSampler, karras, sigma_of, time_of
from facm.objectives import check_fields
from facm.runtime.ranges import Conditioning, Count, Positive


@dataclass(frozen=True, kw_only=True)
class ICT(Objective):
    """The iCT loss.

    Attributes:
        conditioning: expanded or auxiliary; asked at c_CM.
        s0: intervals of the grid at first, at least 1.
        s1: at last, at least s0; they double in equal shares of the training.
        mean: of ln sigma.
        std: of ln sigma, above 0.
        huber: c of the distance over the root of the number of values in a sample, above 0.

    Raises:
        ValueError: a value that breaks its rule; the message names value, rule and key.
    """

    conditioning: Conditioning = "expanded"
    s0: Count = 10
    s1: Count = 1280
    mean: float = -1.1
    std: Positive = 2.0
    huber: Positive = 0.00054

    normals = 1
    samplers = ("consistency",)
    terms = ("ct",)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.s1 < self.s0:
            raise ValueError(f"params.yaml, objectives.ict.s1: {self.s1} must be at least s0 {self.s0}")

    def intervals(self, progress: Progress) -> int:
        """N(k) - 1 = min(s0 2^floor(k / K'), s1), K' = floor(K / (log2(s1 / s0) + 1)), k from 0."""
        each = max(1, math.floor(progress.steps / (math.log2(self.s1 / self.s0) + 1)))
        return int(min(self.s0 * 2 ** ((progress.step - 1) // each), self.s1))

    def levels(self, progress: Progress) -> Tensor:
        """The noise levels, rising from 0, float64."""
        levels = karras(self.intervals(progress) + 1).flip(0)
        levels[0] = 0.0
        return levels

    def times(self, n: Tensor, time: TimeSampler, progress: Progress) -> dict[str, Tensor]:
        """Standard normals n (B, 1) -> t and s (B,), neighbours on the grid, t < s <= 1."""
        levels = self.levels(progress).to(n.device)
        below = torch.special.ndtr((levels.log() - self.mean) / self.std)  # 0 at the least level
        share = torch.special.ndtr(n[:, 0].double()) * below[-1]
        i = torch.searchsorted(below[1:-1].contiguous(), share)
        return {"t": time_of(levels[i + 1]).to(n.dtype), "s": time_of(levels[i]).to(n.dtype)}

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
        c = self.huber * math.sqrt(x_t[0].numel())
        return {"ct": pseudo_huber(f_t, f_s, c) / gap.to(x_t.dtype)}
