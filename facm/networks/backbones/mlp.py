"""A small network for points (B, D): the toy problems in which velocity and flow map are known in closed form.

Time t in [0, 2] is embedded by cosines and sines of periods 4, 2, 4/3, 1 (the first cosine tells t from 2 - t) and
scales and shifts every hidden layer (FiLM, Perez et al. 2018). Plain operations only, as in lightningdit.py.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facm.networks.layers.blocks import pixel_norm, refuse_condition
from facm.networks.layers.dropout import Dropout, number_layers
from facm.runtime.ranges import Count

HARMONICS = 4


class MLP(nn.Module):
    """Velocity F(x, t, y, r) of points; ValueError for a shape that is not (D,)."""

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,  # the null label is `num_classes`; 0: unconditional
        hidden: Count,  # hidden, depth: width and number of the hidden layers
        depth: Count,
        pixel_norm: bool = False,  # scales and shifts are divided by their rms over the channels, as in transformer.py
        auxiliary: bool = False,  # add an embedding of r, whose last layer is zero: nothing changes at initialisation
        dropout: float = 0.0,  # probability, after every hidden layer
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"mlp needs points (D,), got shape {tuple(shape)}: set backbone.name to lightningdit")
        widths = [shape[0]] + depth * [hidden]
        self.pixel_norm = pixel_norm
        self.t_embedder = time_embedder(hidden)
        self.y_embedder = nn.Embedding(num_classes + 1, hidden) if num_classes else None
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.modulations = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(depth))
        self.head = nn.Linear(hidden, shape[0])
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(depth))
        number_layers(self)
        # r last, so that with and without it one seed draws the same weights
        self.r_embedder = time_embedder(hidden, zero=True) if auxiliary else None

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Velocity at (x, t), both as in `Transformer.forward` but for x (B, D) -> (B, D)."""
        refuse_condition("y", y, self.y_embedder)
        refuse_condition("r", r, self.r_embedder)
        dtype = self.head.weight.dtype
        with torch.autocast(x.device.type, enabled=False):  # as in blocks.py: times and modulations in full precision
            c = self.t_embedder(harmonics(t).to(dtype))
            if self.r_embedder is not None and r is not None:
                c = c + self.r_embedder(harmonics(r).to(dtype))
            if self.y_embedder is not None:
                c = c + self.y_embedder(y)
            c = F.silu(c)
            modulated = [modulation(c).chunk(2, dim=-1) for modulation in self.modulations]
        for layer, (shift, scale), dropout in zip(self.layers, modulated, self.dropouts, strict=True):
            if self.pixel_norm:
                shift, scale = pixel_norm(shift), pixel_norm(scale)
            x = dropout(F.silu(layer(x) * (1 + scale) + shift), key)
        return self.head(x)


def harmonics(t: Tensor) -> Tensor:
    """Cosines and sines of k pi t / 2, k = 1..HARMONICS; (B,) -> (B, 2 HARMONICS)."""
    k = torch.arange(1, HARMONICS + 1, device=t.device, dtype=t.dtype)
    angles = math.pi / 2 * t.unsqueeze(-1) * k
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def time_embedder(hidden: int, *, zero: bool = False) -> nn.Sequential:
    """Harmonics of a time -> hidden; `zero`: the last layer starts at zero."""
    last = nn.Linear(hidden, hidden)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(2 * HARMONICS, hidden), nn.SiLU(), last)
