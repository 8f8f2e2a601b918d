"""Heun's rule for the probability flow: second order, as teachers are drawn with (Karras et al. 2022, Algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from facm.samplers.euler import Euler


@dataclass(frozen=True)
class Heun(Euler):
    """Euler's step, then the mean of the velocities at both of its ends; the last step is Euler's.

    The fields are Euler's. Each velocity is guided or not by the time at which it is asked, the second one by t_{i+1}
    (REPA's sampler: both by t_i).
    """

    @staticmethod
    def length_for(nfe: int) -> int:
        """Steps N of nfe = 2 N - 1 unguided evaluations.

        Raises:
            ValueError: an even NFE, or one below 1.
        """
        if nfe < 1 or nfe % 2 == 0:
            near = f"{nfe - 1} or {nfe + 1}" if nfe > 1 else "1"
            raise ValueError(f"sample.nfe: {nfe} is not 2 N - 1, what Heun takes for N steps: set {near}")
        return (nfe + 1) // 2

    @torch.no_grad()
    def __call__(
        self, F: Callable[..., Tensor], noise: Tensor, y: Tensor | None, null: int | None = None
    ) -> tuple[Tensor, int]:
        """Draw pictures; arguments and results as Euler's."""
        x, nfe = noise[0], 0
        for t, t_next in pairwise(self.grid()):
            v, evaluations = self.velocity(F, x, t, y, null)
            x_next, nfe = x + (t_next - t) * v, nfe + evaluations
            if t_next < 1:
                v_next, evaluations = self.velocity(F, x_next, t_next, y, null)
                x_next, nfe = x + (t_next - t) * (v + v_next) / 2, nfe + evaluations
            x = x_next
        return x, nfe
