"""Points of a 2 x 2 grid of Gaussians, whose velocity and flow map are known exactly: no download, no folder.

Points are quantiles of levels in the unit square. Those to train on have the levels of a Hammersley set, which fills it
evenly: 65536 random ones weigh the modes wrong by .002, and a perfect learner of them would err by .03 and more, since
it would take points on the border between two modes to the wrong one (LOG.md). Held-out points are random, as samples.
All are rounded to multiples of 2^-16, so that last bits, in which machines differ, do not reach the fingerprint.

Path x_t = (1 - t) x0 + t x1, x0 ~ N(0, I), t = 0 noise, t = 1 data. The coordinates of x are independent and share one
law, so everything is elementwise. The marginal velocity is E[x1 - x0 | x_t] (Lipman et al. 2023, arXiv 2210.02747,
sec. 3); in one dimension trajectories cannot cross, so that the flow keeps quantiles: F_r(flow_map(x)) = F_t(x).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.data.images.images import Images

BITS = 16  # 2^BITS points to train on
HELDOUT = 2048
SEED = 738  # of Philox
GRID = 2.0**-16
LIMIT = 12.0  # all that is looked for lies in [-LIMIT, LIMIT]
HALVINGS = 60  # of that interval: to the last bit of float64


@dataclass(frozen=True)
class Mixture:
    """x1 ~ sum_k weights[k] N(means[k], stds[k]^2) in each coordinate: with two components, in 2-D, four modes.

    In what follows x is (N, ...), a time is (N,) in [0, 1].
    """

    weights: tuple[float, ...] = (0.4, 0.6)
    means: tuple[float, ...] = (-2.0, 1.5)
    stds: tuple[float, ...] = (0.5, 0.4)

    def normalised(self, mean: float, std: float) -> "Mixture":
        """The law of (x1 - mean) / std."""
        means, stds = tuple((m - mean) / std for m in self.means), tuple(s / std for s in self.stds)
        return Mixture(self.weights, means, stds)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t) = sum_k p(k | x) v_k(x, t), each v_k being a Gaussian's; like x."""
        t = _column(t, x)
        w, m, s = self._components(x)
        mean, spread = t * m, _spread(t, s)
        p = torch.softmax(w.log() - spread.log() - ((x - mean) / spread) ** 2 / 2, dim=0)
        return (p * (m + (t * s**2 - (1 - t)) / spread**2 * (x - mean))).sum(0)

    def cdf(self, x: Tensor, t: Tensor) -> Tensor:
        """F_t(x), of each coordinate; like x, in [0, 1]."""
        t = _column(t, x)
        w, m, s = self._components(x)
        return (w * torch.special.ndtr((x - t * m) / _spread(t, s))).sum(0)

    def quantile(self, level: Tensor, t: Tensor) -> Tensor:
        """F_t^-1, of levels (N, ...) in [0, 1], by bisection."""
        low, high = torch.full_like(level, -LIMIT), torch.full_like(level, LIMIT)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = self.cdf(middle, t) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def flow_map(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The point at time r of the trajectory through (x, t): F_r^-1(F_t(x)); like x."""
        return self.quantile(self.cdf(x, t), r)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """x1 (num, 2), float32."""
        k = torch.multinomial(torch.tensor(self.weights), 2 * num, True, generator=generator).reshape(num, 2)
        return torch.tensor(self.means)[k] + torch.tensor(self.stds)[k] * torch.randn(num, 2, generator=generator)

    def _components(self, x: Tensor) -> tuple[Tensor, ...]:
        """weights, means, stds at t = 1, with an axis for k in front of those of x."""
        shape = (-1, *[1] * x.ndim)
        return tuple(torch.tensor(v, dtype=x.dtype).reshape(shape) for v in (self.weights, self.means, self.stds))


LAW = Mixture()
"""The law of the data set `mixture`."""


def _column(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (x.ndim - 1))


def _spread(t: Tensor, s: Tensor) -> Tensor:
    """Standard deviation of a component at time t."""
    return ((1 - t) ** 2 + (t * s) ** 2).sqrt()


class MixturePoints:
    """Points float32 (N, 2) without classes: 65536 to train on, ordered by the first coordinate, and 2048 held out."""

    def __init__(self, root: Path | None = None):
        """Nothing to read; ValueError where a folder is given."""
        if root is not None:
            raise ValueError(f"params.yaml, data.root: 'mixture' is drawn from its law, got {root}; set it to null")

    def load(self, split: str) -> Images:
        levels = hammersley(BITS) if split == "train" else uniform(HELDOUT)
        points = LAW.quantile(levels, torch.ones(1, dtype=torch.float64))
        return Images(points.div(GRID).round().mul(GRID).float(), None, 0)


def hammersley(bits: int) -> Tensor:
    """(2^bits, 2) float64: number i over their count, and i with its binary digits reversed, both at mid-interval."""
    number = torch.arange(2**bits)
    reverse = torch.zeros_like(number)
    for bit in range(bits):
        reverse += ((number >> bit) & 1) << (bits - 1 - bit)
    return (torch.stack([number, reverse], dim=1).double() + 0.5) / 2**bits


def uniform(num: int) -> Tensor:
    """(num, 2) float64, random."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=[SEED, 0])).random((num, 2)))
