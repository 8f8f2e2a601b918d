"""What the preconditionings share: the wrapped network, its two times, and its data's units.

A published network has data of its own, x1_net, where ours are normalised, x1 = (z - mean)/std per channel of the
codec's z. With a network whose data are `scale` z, x1_net = a + b x1, a = scale mean, b = scale std. Its noise has one
level for all channels, ours has level 1 for all after division by std: so b must be one number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Wrapper(nn.Module):
    """A network F(x, t, y, r, key) around another one, G = `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def blocks(self) -> list[nn.Module]:
        """Those of G, which facm/training/passes.py compiles, recomputes and shards one by one."""
        return list(getattr(self.model, "blocks", []))


class Units(nn.Module):
    """x1_net = a + b x1, the data as G knows them; b is a number.

    Args:
        mean, std: per channel, of the codec's z; one std for all channels, else ValueError.
        scale: x1_net / z.
        name: of the preconditioning.
    """

    mean: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], scale: float, name: str) -> None:
        super().__init__()
        low, high = min(std), max(std)
        if high - low > 1e-4 * high:
            raise ValueError(
                f"params.yaml, backbone.precond: '{name}' knows noise of one level for all channels, and data/latents "
                f"was normalised by stds from {low:.4g} to {high:.4g}: set latents.normalise to one or none, or "
                "precond to none or simple_edm"
            )
        self.b = scale * sum(std) / len(std)
        self.register_buffer("mean", scale * torch.tensor(mean, dtype=torch.float64), persistent=False)

    def a(self, x: Any) -> Tensor:
        """(1, C, 1, ...) in the dtype of x (B, C, ...)."""
        return self.mean.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))


def physical(t: Any) -> Any:
    """Where x lies: t in the CM format, 2 - t in the FM format; (B,) in [0, 2] -> (B,) in [0, 1].

    At t = 1 the derivative by dual numbers is that of the CM format; torch.func halves the tie. FACM multiplies it by
    1 - t = 0 there.
    """
    return torch.minimum(t, 2 - t)


def halves(t: Any) -> tuple[Any, Any]:
    """(min(t, 1), min(2 - t, 1)) of t (B,) in [0, 2]: the time in one format, and 1 in the other.

    With h(1) = 0, c + h of the first - h of the second goes on beyond t = 1 as the mirror image of what it is before,
    as t itself does with h(t) = t - 1: FM and CM format meet at the data's end and are apart everywhere else.
    """
    return t.clamp(max=1), (2 - t).clamp(max=1)
