"""DPM-Solver++(2M) for teachers (Lu et al. 2022, arXiv 2211.01095, Algorithm 2), in the package's time.

With alpha = t, sigma = 1 - t, lambda = ln(t / (1 - t)), h = lambda_{i+1} - lambda_i and x1_i = x_i + (1 - t_i) v_i:

    D = x1_i + (x1_i - x1_{i-1}) h / (2 h_{i-1})
    x_{i+1} = (1 - t_{i+1}) / (1 - t_i) x_i + t_{i+1} (1 - e^-h) D

Ours rather than diffusers' DPMSolverMultistepScheduler, which turns its state to float32, begins at a noise level below
one and builds its own time grids; where both are defined they agree (tests/samplers/test_samplers.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from facm.flow.time import shift
from facm.samplers.euler import Euler

END = 1e-3  # the log-SNR grid runs from END to 1 - END, with t = 0 and t = 1 beside


@dataclass(frozen=True)
class DPMpp(Euler):
    """Second-order multistep in the predicted data; one evaluation a step, the first and the last of first order.

    The fields are Euler's, whose `shift` acts on the grid below.
    """

    def grid(self) -> list[float]:
        """The steps + 1 times: 0, then evenly spaced in lambda between END and 1 - END, then 1."""
        inner = self.steps - 1
        if inner < 2:
            times = torch.tensor([0.5] * inner, dtype=torch.float64)
        else:
            edge = math.log((1 - END) / END)
            times = torch.sigmoid(torch.linspace(-edge, edge, inner, dtype=torch.float64))
        return [0.0, *shift(times, self.shift).tolist(), 1.0]

    @torch.no_grad()
    def __call__(
        self, F: Callable[..., Tensor], noise: Tensor, y: Tensor | None, null: int | None = None
    ) -> tuple[Tensor, int]:
        """Draw pictures; arguments and results as Euler's."""
        x, nfe, before, h_before = noise[0], 0, noise[0], math.inf
        for t, t_next in pairwise(self.grid()):
            v, evaluations = self.velocity(F, x, t, y, null)
            x1, nfe = x + (1 - t) * v, nfe + evaluations
            h = log_snr(t_next) - log_snr(t)
            D = x1 if math.isinf(h) else x1 + (x1 - before) * h / (2 * h_before)
            x = (1 - t_next) / (1 - t) * x - t_next * math.expm1(-h) * D
            before, h_before = x1, h
        return x, nfe


def log_snr(t: float) -> float:
    """lambda = ln(t / (1 - t)); -inf and inf at the ends."""
    if t in (0, 1):
        return math.inf if t else -math.inf
    return math.log(t / (1 - t))
