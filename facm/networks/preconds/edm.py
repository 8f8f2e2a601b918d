"""EDM's denoiser as a velocity (Karras et al. 2022, arXiv 2206.00364, Table 1; NVlabs/edm, EDMPrecond).

    D(x; sigma) = c_skip x + c_out G(c_in x, ln(sigma)/4)
    c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2), c_in = 1 / sqrt(sigma^2 + sd^2)

EDM's data x1_edm = a + b x1 (facm/networks/layers/precond.py) with noise of level sigma are a + b x_t / t, with
sigma = b (1 - t)/t, and v = ((D - a)/b - x_t) / (1 - t). What divides by t and 1 - t cancels: with
Q = b^2 (1 - t)^2 + sd^2 t^2

    v(x, t) = ((sd^2 t - b^2 (1 - t)) x - a b (1 - t)) / Q + sd / sqrt(Q) G((a t + b x) / sqrt(Q), c_noise).

c_noise. CM format: ln(sigma)/4, sigma clamped to [sigma_min, sigma_max], outside of which EDM does not sample; the
coefficients are not clamped. FM format: the mirror image at sigma_min, 2 ln(sigma_min)/4 - ln(sigma)/4, so that both
formats meet at t = 1. An EDM network was never asked there: as a teacher it is plain, and a student of it starts from
an untrained FM format, unless it was fine-tuned with mixed conditioning (paper, A.3a) or its conditioning is
auxiliary, where the r embedder starts at zero.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from facm.flow.path import expand
from facm.networks.layers.precond import Units, Wrapper, halves, physical
from facm.runtime.ranges import Positive


class EDM(Wrapper):
    """The velocity network of an EDM's G.

    Args:
        mean, std: per channel, of the codec's output; one std for all channels, else ValueError.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        sigma_data: Positive = 0.5,  # sd, in EDM's units
        sigma_min: Positive = 0.002,  # sigma_min, sigma_max: range of sigma in c_noise, in EDM's units
        sigma_max: Positive = 80.0,
        scale: Positive = 1.0,  # EDM's data over the codec's output; 1 for pixels in [-1, 1]
    ) -> None:
        super().__init__(model)
        if sigma_min >= sigma_max:
            raise ValueError(f"params.yaml, preconds.edm: sigma_min {sigma_min} must be below sigma_max {sigma_max}")
        self.units, self.sigma_data = Units(mean, std, scale, "edm"), sigma_data
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Velocity like x; arguments as the backbone's, t (B,) in [0, 2]."""
        s, a, b, sd = expand(physical(t), x), self.units.a(x), self.units.b, self.sigma_data
        Q = b**2 * (1 - s).square() + sd**2 * s.square()
        linear = ((sd**2 * s - b**2 * (1 - s)) * x - a * b * (1 - s)) / Q
        scale = Q.rsqrt()
        return linear + sd * scale * self.model((a * s + b * x) * scale, self.c_noise(t), y, r, key)

    def c_noise(self, t: Any) -> Any:
        """Condition of G at the time argument (B,) in [0, 2] (module docstring); (B,)."""
        cm, fm = halves(t)
        return math.log(self.sigma_min) / 4 + self._above(cm) - self._above(fm)

    def _above(self, t: Any) -> Any:
        """ln(sigma/sigma_min)/4 at physical t (B,), sigma clamped; 0 at t = 1."""
        b = self.units.b
        t = t.clamp(b / (b + self.sigma_max), b / (b + self.sigma_min))
        return (b / self.sigma_min * (1 - t) / t).log() / 4
