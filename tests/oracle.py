"""What is known exactly: velocities and flow maps in closed form, and the golden values of the published code.

Path x_t = (1 - t) x0 + t x1, x0 ~ N(0, I). Everything is elementwise: coordinates of x are independent, t broadcasts.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from facm.data.datasets.mixture import Mixture as Mixture
from facm.flow.path import expand
from facm.networks.backbones.lightningdit import LightningDiT

GOLDEN = Path(__file__).parent / "golden"


def golden(prefix: str = "") -> dict[str, Tensor]:
    """Golden tensors whose names start with `prefix`, without it."""
    tensors = load_file(GOLDEN / "facm_reference.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def golden_losses() -> dict[str, dict[str, float]]:
    """Golden losses by case: total, cm, fm."""
    return json.loads((GOLDEN / "facm_reference.json").read_text())["losses"]


def golden_network(case: str, role: str) -> LightningDiT:
    """The golden teacher or student of a case (expanded | aux), in eval mode."""
    network = LightningDiT(
        shape=(4, 4, 4), num_classes=1000, patch_size=1, hidden=32, depth=2, heads=2, auxiliary=case == "aux"
    )
    network.load_state_dict(golden(f"{case}/{role}/"))
    return network.eval()


@dataclass(frozen=True)
class Gaussian:
    """x1 ~ N(mean, std^2) in each coordinate."""

    mean: float = 0.7
    std: float = 0.4

    def spread(self, t: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return ((1 - t) ** 2 + (t * self.std) ** 2).sqrt()

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t) = m + (t s^2 - (1 - t)) / spread^2 (x - t m)."""
        t = expand(t, x)
        return self.mean + (t * self.std**2 - (1 - t)) / self.spread(t) ** 2 * (x - t * self.mean)

    def flow_map(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The point at time r of the trajectory through (x, t)."""
        t, r = expand(t, x), expand(r, x)
        return r * self.mean + self.spread(r) / self.spread(t) * (x - t * self.mean)

    def average_velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v_bar(x, t) = (flow_map(x, t, 1) - x) / (1 - t), without the division by 1 - t at t = 1."""
        t = expand(t, x)
        spread = self.spread(t)
        # (s / spread - 1) / (1 - t) = (s^2 - spread^2) / ((1 - t) spread (s + spread)), and s^2 - spread^2 holds 1 - t.
        slope = (self.std**2 * (1 + t) - (1 - t)) / (spread * (self.std + spread))
        return self.mean + slope * (x - t * self.mean)


def runge_kutta(velocity, x: Tensor, t: float, r: float, steps: int) -> Tensor:
    """The point at time r of the trajectory through (x, t), by the classical rule of order four."""
    h = (r - t) / steps
    for i in range(steps):
        at = [torch.full((x.shape[0],), t + (i + part) * h, dtype=x.dtype) for part in (0, 0.5, 1)]
        k1 = velocity(x, at[0])
        k2 = velocity(x + h / 2 * k1, at[1])
        k3 = velocity(x + h / 2 * k2, at[1])
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, at[2]))
    return x


@dataclass(frozen=True)
class Analytic:
    """The student and the teacher of the analytic golden cases (reference values computed in float64).

    student = sin(w0 x + w1 t) + w2 x t + w3 e[y] (+ 0.1 cos(w0 r) where there is an r)
    teacher = x / 2 - cos(t) + e[y]
    """

    w: Tensor

    @staticmethod
    def e(y: Tensor) -> Tensor:
        """Label embedding (B, 1, 1, 1): 1001 numbers from -1 to 1, the last for the null label."""
        return torch.linspace(-1, 1, 1001, dtype=torch.float64)[y][:, None, None, None]

    def __call__(self, x, t, y, r=None):
        out = torch.sin(self.w[0] * x + self.w[1] * expand(t, x)) + self.w[2] * x * expand(t, x)
        out = out + self.w[3] * self.e(y)
        return out if r is None else out + 0.1 * torch.cos(self.w[0] * expand(r, x))

    @classmethod
    def teacher(cls, x, t, y, r=None):
        """The frozen velocity."""
        return 0.5 * x - torch.cos(expand(t, x)) + cls.e(y)

    @staticmethod
    def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, x1 (6, 4, 3, 3), t (6,), y (6,)."""
        i = torch.arange(216, dtype=torch.float64)
        x1, x0 = torch.sin(0.37 * i).reshape(6, 4, 3, 3), 1.2 * torch.cos(1.7 * i + 0.3).reshape(6, 4, 3, 3)
        t = torch.tensor([0.05, 0.1, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)
        return x0, x1, t, torch.tensor([1, 5, 9, 400, 700, 999])


def uniform_grid(num: int) -> Tensor:
    """num quantile levels, strictly inside (0, 1), float64."""
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def normal_grid(num: int) -> Tensor:
    """Quantiles of the standard normal at `uniform_grid`, float64."""
    return math.sqrt(2) * torch.erfinv(2 * uniform_grid(num) - 1)
