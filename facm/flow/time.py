"""Where in time a loss is asked and how much it weighs there (arXiv 2507.03738, Eq. 20, Table 4).

Times t in [0, 1], t = 1 is data. Samplers turn standard normals, drawn by the caller, into times: nothing random here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def arctan_lognormal(n: Tensor, mean: float, std: float) -> Tensor:
    """Return t = 1 - (2 / pi) arctan(sigma), ln(sigma) = mean + std n (Eq. 20). n standard normal, any shape."""
    return 1 - 2 / math.pi * torch.arctan(torch.exp(mean + std * n))


def logit_normal(n: Tensor, mean: float, std: float) -> Tensor:
    """Return t = 1 - s, logit(s) = mean + std n. n standard normal, any shape.

    Orientation of eq. 20 and of the published code's `t_type=log`: a negative mean favours the data end. LightningDiT
    takes t = s with mean 0, which is the same distribution.
    """
    return torch.sigmoid(-(mean + std * n))


def uniform(n: Tensor, mean: float, std: float) -> Tensor:
    """Return t = Phi(n), uniform on [0, 1] for standard normal n of any shape; mean and std have no part in it."""
    return torch.special.ndtr(n)


def evenly(n: Tensor, num: Tensor | int) -> Tensor:
    """Standard normals n (B,) -> whole numbers 0 .. num - 1, each as often, like n; num may differ by sample."""
    return torch.minimum((uniform(n, 0.0, 1.0) * num).floor(), torch.as_tensor(num - 1, dtype=n.dtype, device=n.device))


TIME_SAMPLERS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "arctan_lognormal": arctan_lognormal,
    "logit_normal": logit_normal,
    "uniform": uniform,
}


@dataclass(frozen=True)
class TimeSampler:
    """A named distribution of t with its two constants; `place` is where params.yaml names it.

    Raises:
        ValueError: unknown name, or std not positive.
    """

    name: str = "arctan_lognormal"
    mean: float = -0.8
    std: float = 1.6
    place: str = "distill.time"

    def __post_init__(self) -> None:
        if self.name not in TIME_SAMPLERS:
            known = ", ".join(TIME_SAMPLERS)
            raise ValueError(f"params.yaml, {self.place}.sampler: {self.name!r} is not one of {known}")
        if not self.std > 0:
            raise ValueError(f"params.yaml, {self.place}.std: {self.std!r} must be above 0")

    def __call__(self, n: Tensor) -> Tensor:
        """Standard normals n (B,) -> times t (B,) in [0, 1]."""
        return TIME_SAMPLERS[self.name](n, self.mean, self.std)


def two_times(n: Tensor, time: TimeSampler, equal: float) -> tuple[Tensor, Tensor]:
    """Standard normals n (B, 3) -> t and r (B,), t <= r, for methods that jump from t to r.

    Two draws of `time`, the smaller is t; then r = t for a share `equal` of the samples, chosen by the third normal.
    """
    a, b = time(n[:, 0]), time(n[:, 1])
    t, r = torch.minimum(a, b), torch.maximum(a, b)
    return t, torch.where(torch.special.ndtr(n[:, 2]) < equal, t, r)


def one(t: Tensor, p: float) -> Tensor:
    """Return 1 for every t (B,)."""
    return torch.ones_like(t)


def power(t: Tensor, p: float) -> Tensor:
    """Return 1 - t^p for t (B,) in [0, 1]."""
    return 1 - t**p


def cos(t: Tensor, p: float) -> Tensor:
    """Return cos(pi t / 2) for t (B,) in [0, 1]; p has no part in it."""
    return torch.cos(math.pi / 2 * t)


WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor]] = {"one": one, "power": power, "cos": cos}


def weighting(name: str, p: float, place: str = "distill.alpha") -> Callable[[Tensor], Tensor]:
    """Return the weighting t (B,) -> (B,) in [0, 1] called `name`, a candidate for alpha(t) or beta(t) (Table 4).

    Args:
        name: one of WEIGHTINGS.
        p: exponent of `power`, above 0.
        place: key of params.yaml that holds the name.

    Raises:
        ValueError: unknown name, or p not positive.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"params.yaml, {place}: {name!r} is not one of {', '.join(WEIGHTINGS)}")
    if not p > 0:
        raise ValueError(f"params.yaml, distill.p: {p!r} must be above 0")
    return lambda t: WEIGHTINGS[name](t, p)


def sigma_of(t: Tensor) -> Tensor:
    """Return EDM's noise level sigma = (1 - t) / t of t in (0, 1], any shape: x_t / t is data plus sigma noise."""
    return (1 - t) / t


def time_of(sigma: Tensor) -> Tensor:
    """Return t = 1 / (1 + sigma) for sigma at least 0, any shape; the inverse of `sigma_of`."""
    return 1 / (1 + sigma)


def karras(num: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Return `num` noise levels from high to low, evenly spaced in sigma^(1/rho), float64 (Karras et al. 2022, Eq. 5).

    Raises:
        ValueError: num below 2, or not 0 < low < high.
    """
    if num < 2 or not 0 < low < high:
        raise ValueError(f"karras: num {num} must be at least 2 and 0 < low {low} < high {high}")
    levels = torch.linspace(high ** (1 / rho), low ** (1 / rho), num, dtype=torch.float64)
    return levels**rho


def shift(t: Tensor, s: float) -> Tensor:
    """Return t' = s t / (1 + (s - 1) t), which crowds a time grid towards the noise for s < 1; s = 0 and s = 1: t.

    Source: LightningDiT, transport/integrators.py, where 0 switches the shift off.

    Raises:
        ValueError: negative s.
    """
    if s < 0:
        raise ValueError(f"params.yaml, baseline.shift or sample.shift: {s!r} must not be negative")
    return t if s in (0, 1) else s * t / (s * t + (1 - t))  # this form keeps t = 1 exactly
