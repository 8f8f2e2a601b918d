"""Simple-EDM: the velocity with input and output of variance one (Zhou et al. 2025, arXiv 2503.07565, IMM's code).

    F(x, t) = (t sd^2 - (1 - t)) / S x - sd / sqrt(S) G(x / sqrt(S), c_noise),    S = t^2 sd^2 + (1 - t)^2

For data of std sd and noise of std 1, S is the variance of x_t, (t sd^2 - (1 - t))/S the linear-MMSE coefficient of the
velocity given x_t, sd^2/S the variance of what remains. With phi = atan2(1 - t, t sd) and x' = sd x / sqrt(S) it is
TrigFlow (Lu & Song 2024): x + (1 - t) F = cos(phi) x' - sin(phi) sd G(x'/sd, c_noise).

Paper: "Flow Scheduling", Table 5, not defined there. IMM: lumalabs/imm, training/preconds.py, has noise of the data's
std 0.5, and c_noise = 1000 t. Here: latents are normalised to std 1 and so is the noise, so sd = 1, in which the
formulas are IMM's, for x_imm = 0.5 x; and c_noise is the time argument, t or 2 - t, times the backbone's own scale.
"""

from typing import Any

from torch import Tensor, nn

from facm.flow.path import expand
from facm.networks.layers.precond import Wrapper, physical
from facm.runtime.ranges import Positive


class SimpleEDM(Wrapper):
    """The velocity network of a G; sigma_data: sd, std of the data where the noise has 1."""

    def __init__(self, model: nn.Module, *, sigma_data: Positive = 1.0) -> None:
        super().__init__(model)
        self.sigma_data = sigma_data

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Velocity like x; arguments as the backbone's, t (B,) in [0, 2]."""
        c_skip, c_out, c_in = (expand(c, x) for c in coefficients(physical(t), self.sigma_data))
        return c_skip * x + c_out * self.model(c_in * x, t, y, r, key)


def coefficients(t: Any, sd: float) -> tuple[Any, Any, Any]:
    """c_skip, c_out and c_in of the velocity at physical t (B,) in [0, 1] (module docstring)."""
    c_in = (sd**2 * t.square() + (1 - t).square()).rsqrt()
    return (sd**2 * t - (1 - t)) * c_in.square(), -sd * c_in, c_in
