"""Euler's rule for the probability flow dx/dt = v(x, t), with classifier-free guidance in an interval of time.

Guidance (Ho & Salimans 2022; Kynkaanniemi et al. 2024 for the interval): v = v_uncond + w (v_cond - v_uncond) on all
channels. LightningDiT's sampler guides the first three only and needs a larger w for the same effect.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from facm.flow.guidance import cond_and_uncond, guided, velocity_condition
from facm.flow.time import shift
from facm.runtime.ranges import Conditioning, Count, Fraction, NonNegative, Scale, check_fields


@dataclass(frozen=True)
class Euler:
    """x_{i+1} = x_i + (t_{i+1} - t_i) v(x_i, t_i).

    Attributes:
        steps: intervals of the time grid i / steps.
        w: guidance scale, at least 1; 1: none.
        t_low: guided where t_low <= t <= t_high only, t being the time at which v is asked.
        t_high: the upper end.
        shift: s of the time grid s t / (1 + (s - 1) t); s < 1 puts more steps near the noise, 0 and 1: uniform.
        conditioning: of the network, see `facm.flow.path`.
        condition: fm | t, see `facm.flow.guidance.velocity_condition`.

    Raises:
        ValueError: a value outside its range; the message names value and rule.
    """

    steps: Count = 50
    w: Scale = 1.0
    t_low: Fraction = 0.0
    t_high: Fraction = 1.0
    shift: NonNegative = 1.0
    conditioning: Conditioning = "expanded"
    condition: Literal["t", "fm"] = "t"

    length: ClassVar[str] = "steps"
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_fields(self, lambda field: f"baseline or sample, {field}")
        if self.t_low > self.t_high:
            raise ValueError(
                f"params.yaml, baseline or sample: t_low {self.t_low}, t_high {self.t_high} must satisfy "
                "0 <= t_low <= t_high <= 1"
            )

    @staticmethod
    def length_for(nfe: int) -> int:
        """Steps of `nfe` unguided evaluations: one each.

        Raises:
            ValueError: an NFE that the rule cannot have.
        """
        if nfe < 1:
            raise ValueError(f"sample.nfe: {nfe} must be at least 1")
        return nfe

    @torch.no_grad()
    def __call__(
        self, F: Callable[..., Tensor], noise: Tensor, y: Tensor | None, null: int | None = None
    ) -> tuple[Tensor, int]:
        """Draw pictures.

        Args:
            F: the network, asked in float32.
            noise: (1, B, ...) float64.
            y: (B,) int64 labels; None: no classes, hence no guidance.
            null: the label that stands for none.

        Returns:
            x1 (B, ...) float64 and the NFE, in which a guided evaluation counts two.
        """
        x, nfe = noise[0], 0
        for t, t_next in pairwise(self.grid()):
            v, evaluations = self.velocity(F, x, t, y, null)
            x, nfe = x + (t_next - t) * v, nfe + evaluations
        return x, nfe

    def grid(self) -> list[float]:
        """The steps + 1 times from 0 to 1."""
        return [*shift(torch.arange(self.steps, dtype=torch.float64) / self.steps, self.shift).tolist(), 1.0]

    def velocity(
        self, F: Callable[..., Tensor], x: Tensor, t: float, y: Tensor | None, null: int | None
    ) -> tuple[Tensor, int]:
        """v at (x, t), like x, and the evaluations it took: two where guided, in one call with rows [cond; uncond]."""
        t_rows = torch.full(x.shape[:1], t, dtype=torch.float32, device=x.device)
        c = velocity_condition(t_rows, self.conditioning, self.condition)
        if self.w == 1 or not self.t_low <= t <= self.t_high or y is None or null is None:
            return F(x.float(), c.t, y, c.r).to(x.dtype), 1
        v_cond, v_uncond = cond_and_uncond(F, x.float(), c, y, torch.full_like(y, null))
        return guided(v_cond.to(x.dtype), v_uncond.to(x.dtype), self.w), 2
