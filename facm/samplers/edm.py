"""EDM's deterministic sampler for teachers (Karras et al. 2022, arXiv 2206.00364, Algorithm 1) on its own noise levels.

Heun's rule in sigma = (1 - t) / t for x_t / t = data + sigma noise: d = (x - D) / sigma with the predicted data
D = x_t + (1 - t) v, over sigma_i = (80^(1/7) + i / (N - 1) (0.002^(1/7) - 80^(1/7)))^7 and, last, 0. Its state begins
at sigma = 80, t = 1/81, as noise without the data that a path has there by then (1/81 of it).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from facm.flow.time import karras
from facm.samplers.euler import Euler


@dataclass(frozen=True)
class EDM(Euler):
    """Heun's rule on EDM's noise levels; NFE 2 N - 1 for N steps (18 steps, 35).

    The fields are Euler's; `steps` is N, at least 2, and `shift` must be 0 or 1: the levels are EDM's.

    Raises:
        ValueError: as Euler, and for a shift.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift not in (0, 1):
            raise ValueError(f"params.yaml, baseline or sample: shift {self.shift} has no part in edm: set it to 0")
        if self.steps < 2:
            raise ValueError(f"params.yaml, baseline or sample: steps {self.steps} must be at least 2 for edm")

    @staticmethod
    def length_for(nfe: int) -> int:
        """Steps N of nfe = 2 N - 1 unguided evaluations.

        Raises:
            ValueError: an even NFE, or one below 3.
        """
        if nfe < 3 or nfe % 2 == 0:
            near = f"{nfe - 1} or {nfe + 1}" if nfe > 3 else "3"
            raise ValueError(f"sample.nfe: {nfe} is not 2 N - 1, what edm takes for N steps, at least 2: set {near}")
        return (nfe + 1) // 2

    @torch.no_grad()
    def __call__(
        self, F: Callable[..., Tensor], noise: Tensor, y: Tensor | None, null: int | None = None
    ) -> tuple[Tensor, int]:
        """Draw pictures; arguments and results as Euler's."""
        levels, nfe = [*karras(self.steps).tolist(), 0.0], 0
        x = levels[0] * noise[0]
        for sigma, sigma_next in pairwise(levels):
            d, evaluations = self.slope(F, x, sigma, y, null)
            x_next, nfe = x + (sigma_next - sigma) * d, nfe + evaluations
            if sigma_next > 0:
                d_next, evaluations = self.slope(F, x_next, sigma_next, y, null)
                x_next, nfe = x + (sigma_next - sigma) * (d + d_next) / 2, nfe + evaluations
            x = x_next
        return x, nfe

    def slope(
        self, F: Callable[..., Tensor], x: Tensor, sigma: float, y: Tensor | None, null: int | None
    ) -> tuple[Tensor, int]:
        """d = (x - D) / sigma, like x = data + sigma noise, and the evaluations it took."""
        t = 1 / (1 + sigma)
        v, evaluations = self.velocity(F, t * x, t, y, null)
        return (x - (t * x + (1 - t) * v)) / sigma, evaluations
