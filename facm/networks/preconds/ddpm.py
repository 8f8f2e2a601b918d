"""A noise prediction at discrete steps as a velocity (Ho et al. 2020, arXiv 2006.11239; DiT, Peebles & Xie 2023).

    x_k = sqrt(abar_k) x1_net + sqrt(1 - abar_k) eps,   abar_k = prod_{i <= k} (1 - beta_i),   eps_hat = G(x_k, k)

with betas linear from beta_start to beta_end in `steps` steps k = 0 .. steps - 1. In the network's units, in which
x1_net = a + b x1 (facm/networks/layers/precond.py), the same point is x' = (a t + b x_t) / d at the time t' = t / d,
d = t + b (1 - t), and with N = sqrt(t'^2 + (1 - t')^2)

    sqrt(abar) = t'/N,   sqrt(1 - abar) = (1 - t')/N,   x_k = x'/N
    x1_hat = (x' - (1 - t') eps_hat) / t',              v = (x1_hat - a)/b - eps_hat

which is (x_t - eps_hat)/t where a = 0, b = 1. k is a continuous function of t': the table of t'_k, interpolated
linearly. Outside of the table, which for DiT ends at t' = 0.0063 and 0.9901, t' is clamped everywhere: pure noise is
taken for the noisiest step's, as DDPM's own samplers do.

c_noise. CM format: k. FM format: -k, the mirror image (t' = 0.9901 and beyond: 0 in both). A DiT was never asked there:
as preconds/edm.py tells, it is a plain teacher. k runs a thousand times as fast as t, and so does dF/dt: a student
learns better from a DiT that was fine-tuned as a flow (precond none). Dividing by t' also enlarges the rounding of
eps_hat: under train.precision bfloat16, with random weights, v was off by .009 (rms) at t = .5, .1 at .05, .75 at .003.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.flow.path import expand
from facm.networks.layers.precond import Units, Wrapper, halves, physical
from facm.runtime.ranges import Count, Positive


class DDPM(Wrapper):
    """The velocity network of a noise prediction G.

    Args:
        mean, std: per channel, of the codec's output; one std for all channels, else ValueError.
    """

    knots: Tensor  # t'_k for k = steps - 1 .. 0, ascending, float64 (steps,), a buffer that is not saved.

    def __init__(
        self,
        model: nn.Module,  # G; of its channels those beyond x's (a learned sigma) are dropped
        *,
        mean: Sequence[float],
        std: Sequence[float],
        beta_start: Positive = 1e-4,  # beta_start, beta_end: first and last beta, rising and below 1, else ValueError
        beta_end: Positive = 2e-2,
        steps: Count = 1000,
        scale: Positive = 1.0,  # the network's data over the codec's output
    ) -> None:
        super().__init__(model)
        if not beta_start <= beta_end < 1 or steps < 2:
            raise ValueError(
                "params.yaml, preconds.ddpm: needs beta_start <= beta_end < 1 and two steps at least, got "
                f"{beta_start}, {beta_end} and {steps}"
            )
        self.units = Units(mean, std, scale, "ddpm")
        times = table(beta_start, beta_end, steps)
        self.low, self.high = float(times[-1]), float(times[0])
        self.register_buffer("knots", times.flip(0), persistent=False)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Velocity like x; arguments as the backbone's, t (B,) in [0, 2]."""
        s, a, b = expand(physical(t), x), self.units.a(x), self.units.b
        d = s + b * (1 - s)
        x_net, t_net = (a * s + b * x) / d, (s / d).clamp(self.low, self.high)
        scale = (t_net.square() + (1 - t_net).square()).rsqrt()
        eps = self.model(x_net * scale, self.c_noise(t), y, r, key)[:, : x.shape[1]]
        x1 = (x_net - (1 - t_net) * eps) / t_net
        return (x1 - a) / b - eps

    def c_noise(self, t: Any) -> Any:
        """Condition of G at the time argument (B,) in [0, 2]: k, or -k in the FM format; (B,)."""
        cm, fm = halves(t)
        return self.k(self._net(cm)) - self.k(self._net(fm))

    def k(self, t: Any) -> Any:
        """The step at t' (B,), clamped to the table, between its entries by linear interpolation; (B,)."""
        t = t.clamp(self.low, self.high)
        knots = self.knots.to(t.dtype)
        i = torch.bucketize(t, knots[1:-1])  # 0 .. steps - 2
        return len(knots) - 1 - i - (t - knots[i]) / (knots[i + 1] - knots[i])

    def _net(self, t: Any) -> Any:
        return t / (t + self.units.b * (1 - t))


def table(beta_start: float, beta_end: float, steps: int) -> Tensor:
    """t'_k = sqrt(abar_k) / (sqrt(abar_k) + sqrt(1 - abar_k)), k = 0 .. steps - 1, on the CPU; descending, float64."""
    abar = (1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64, device="cpu")).cumprod(0)
    return abar.sqrt() / (abar.sqrt() + (1 - abar).sqrt())
