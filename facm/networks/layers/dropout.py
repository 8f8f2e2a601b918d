"""Dropout without a random state: a mask is a function of the sample's key, the layer and the element.

All passes of a training step that give a sample the same key drop the same features of it (the FM half, the CM half,
its tangent, the student's own guidance), and neither the split of a batch over processes or micro-batches nor the
recomputation of a checkpointed block changes a mask. Bits come from SplitMix64 (Steele et al. 2014).
"""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero a share p, 0 to below 1, of the features of each sample and divide the others by 1 - p.

    Attributes:
        layer: number of this layer in its network, see `number_layers`; int64 (), a buffer that is not saved: of a
            Python number torch.compile would make one graph for each block.
    """

    layer: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("layer", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor, key: Tensor | None) -> Tensor:
        """x (B, ...), key (B,) int64, or None: nothing is dropped -> like x."""
        if key is None or self.p == 0:
            return x
        kept = mask(key, self.layer, x.shape, self.p).to(torch.promote_types(x.dtype, torch.float32))
        return (x * (kept / (1 - self.p))).to(x.dtype)


def number_layers(network: nn.Module) -> None:
    """Give every Dropout of a network a number, so that no two share a mask."""
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.layer.fill_(number)


def mask(key: Tensor, layer: Tensor | int, shape: torch.Size, p: float) -> Tensor:
    """Return 1 with probability 1 - p, else 0, float32 of `shape` (B, ...); key (B,) int64."""
    count = shape[1:].numel()
    stream = mix(mix(key) + layer).unsqueeze(-1)
    bits = mix(stream + GOLDEN * torch.arange(count, device=key.device)) >> 32 & 0xFFFFFFFF  # 32 of 64
    return (bits >= round(p * 2**32)).float().reshape(shape)


GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64, whose products wrap


def mix(z: Tensor) -> Tensor:
    """Scramble int64: every bit of the result depends on every bit of z (SplitMix64's finaliser)."""
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros: int64's own shift repeats the sign."""
    return z >> bits & (1 << 64 - bits) - 1
