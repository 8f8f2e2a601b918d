"""Jumps from time to time along the flow: MeanFlow's, Shortcut models' and IMM's sampling in several steps.

    x_r = x_t + (r - t) F(x_t, t, r)

for networks that know the average velocity between any two times (Geng et al. 2025, arXiv 2505.13447, Alg. 2; Frans et
al. 2024, arXiv 2410.12557; Zhou et al. 2025, arXiv 2503.07565). Unlike eq. 19 it draws no fresh noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Jumps:
    """Follow the flow by jumps, the last one to the data.

    Attributes:
        t_grid: times at which the jumps begin, increasing in [0, 1), the first is 0. One network evaluation each.
        conditioning: of the network, auxiliary.

    Raises:
        ValueError: a grid that breaks these rules, or a network without a second time.
    """

    t_grid: tuple[float, ...] = (0.0,)
    conditioning: str = "auxiliary"

    length: ClassVar[str] = "t_grid"
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        grid = tuple(self.t_grid)
        object.__setattr__(self, "t_grid", grid)
        if not grid or grid[0] != 0 or not grid[-1] < 1 or any(not a < b for a, b in pairwise(grid)):
            raise ValueError(
                f"params.yaml, sample.t_grid: {list(grid)} must start at 0 (noise), increase and stay below 1 (data)"
            )
        if self.conditioning != "auxiliary":
            raise ValueError(
                "params.yaml, sample.sampler: jumps ask for the average velocity between two times, which a network of "
                f"conditioning '{self.conditioning}' does not know: set consistency"
            )

    @staticmethod
    def length_for(nfe: int) -> tuple[float, ...]:
        """The grid of `nfe` equal jumps.

        Raises:
            ValueError: an NFE below 1.
        """
        if nfe < 1:
            raise ValueError(f"sample.nfe: {nfe} must be at least 1")
        return tuple(i / nfe for i in range(nfe))

    @torch.no_grad()
    def __call__(
        self, F: Callable[..., Tensor], noise: Tensor, y: Tensor | None, null: Any = None
    ) -> tuple[Tensor, int]:
        """Draw pictures.

        Args:
            F: the student, asked at (t, r) in float32.
            noise: (1, B, ...) float64.
            y: (B,) int64 labels or None.
            null: has no part in it; guidance is in the student.

        Returns:
            x1 (B, ...) float64 and the NFE, len(t_grid).
        """
        x = noise[0]
        for t, r in pairwise((*self.t_grid, 1.0)):
            times = (torch.full(x.shape[:1], time, dtype=torch.float32, device=x.device) for time in (t, r))
            x = x + (r - t) * F(x.float(), next(times), y, next(times)).to(x.dtype)
        return x, len(self.t_grid)
