"""Multi-step consistency sampling (arXiv 2507.03738, Eq. 19).

Published code (ali-vilab/FACM): draws one more noise after the last step and drops it. Here: no such draw.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from facm.flow.path import c_cm, check_conditioning, endpoint, interpolate


@dataclass(frozen=True)
class Consistency:
    """Jump to the data, go back with fresh noise to the next time, jump again (Eq. 19).

    Attributes:
        t_grid: times of the jumps, increasing in [0, 1), the first is 0. One network evaluation each.
        conditioning: of the network, see `facm.flow.path.c_cm`.

    Raises:
        ValueError: a grid that breaks these rules, or an unknown conditioning.
    """

    t_grid: tuple[float, ...] = (0.0,)
    conditioning: str = "expanded"

    length: ClassVar[str] = "t_grid"

    def __post_init__(self) -> None:
        grid = tuple(self.t_grid)
        object.__setattr__(self, "t_grid", grid)
        if not grid or grid[0] != 0 or not grid[-1] < 1 or any(not a < b for a, b in pairwise(grid)):
            raise ValueError(
                f"params.yaml, sample.t_grid: {list(grid)} must start at 0 (noise), increase and stay below 1 (data)"
            )
        check_conditioning(self.conditioning)

    @staticmethod
    def length_for(nfe: int) -> tuple[float, ...]:
        """The grid of `nfe` evaluations, `uniform_grid`.

        Raises:
            ValueError: an NFE below 1.
        """
        return uniform_grid(nfe)

    @property
    def draws(self) -> int:
        """Noises per picture: x0, and one for each time but the first."""
        return len(self.t_grid)

    @torch.no_grad()
    def __call__(
        self, F: Callable[..., Tensor], noise: Tensor, y: Tensor | None, null: Any = None
    ) -> tuple[Tensor, int]:
        """Draw pictures.

        Args:
            F: the student, asked at c_CM in float32.
            noise: (draws, B, ...) float64.
            y: (B,) int64 labels or None.
            null: has no part in it; guidance is in the student.

        Returns:
            x1 (B, ...) float64 and the NFE, len(t_grid).
        """
        x_t, x1 = noise[0], noise[0]
        for i, t_i in enumerate(self.t_grid):
            t = torch.full(x_t.shape[:1], t_i, dtype=x_t.dtype, device=x_t.device)
            if i > 0:
                x_t = interpolate(noise[i], x1, t)
            c = c_cm(t.float(), self.conditioning)
            x1 = endpoint(x_t, t, F(x_t.float(), c.t, y, c.r).to(x_t.dtype))
        return x1, len(self.t_grid)


def uniform_grid(n: int) -> tuple[float, ...]:
    """t_i = (i - 1) / n, i = 1 .. n (Eq. 19).

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"sample.nfe: {n} must be at least 1")
    return tuple(i / n for i in range(n))
