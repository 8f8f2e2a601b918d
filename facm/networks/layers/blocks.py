"""What the transformers are made of: embeddings, attention, MLPs, modulated blocks, the last layer.

Weights and buffers bear the names of facebookresearch/DiT and hustvl/LightningDiT, so that published state dicts load.
Embeddings of times and labels and the modulations made of them are left out of autocast.

Plain operations only (lists in cat and stack, nothing in-place, no einops): they also run on dual numbers.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facm.networks.layers.dropout import Dropout

PIXEL_EPS = 1e-8
NEEDS = {
    "y": "labels go with num_classes > 0 and only with it",
    "r": "a second time goes with conditioning auxiliary and only with it",
}


def refuse_condition(name: str, given: Tensor | None, embedder: nn.Module | None) -> None:
    """Raise ValueError where y or r is missing, or given to a network that has no embedding of it."""
    if (given is None) != (embedder is None):
        raise ValueError(f"{name} is {'missing' if given is None else 'given'}, but {NEEDS[name]}")


def pixel_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + PIXEL_EPS) over the last axis, (..., D) (Karras et al. 2018, arXiv 1710.10196, Sec. 4.2).

    sCM needs it of the vectors that AdaLN and FiLM scale and shift by.
    """
    return torch.rms_norm(x, x.shape[-1:], None, PIXEL_EPS)


class Block(nn.Module):
    """Attention and MLP, each behind a norm modulated by c and added through a gate made of c (AdaLN-zero)."""

    def __init__(
        self, hidden: int, attn: nn.Module, mlp: nn.Module, *, rms_norm: bool, shift: bool, pixel_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(hidden, rms_norm), norm(hidden, rms_norm)
        self.attn, self.mlp = attn, mlp
        self.shift = shift
        self.adaLN_modulation = Modulation(hidden, 6 if shift else 4, pixel_norm=pixel_norm)

    def forward(self, x: Tensor, c: Tensor, rope: "Rope | None", key: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D), condition (B, D), key (B,) -> (B, N, D)."""
        if self.shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)
            x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rope, key)
            return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2, key)
        scale1, gate1, scale2, gate2 = self.adaLN_modulation(c)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1), rope, key)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2), key)


class FinalLayer(nn.Module):
    """Tokens -> latents, through a modulated norm and a linear layer."""

    def __init__(
        self,
        hidden: int,
        channels: int,
        grid: tuple[int, int],
        patch_size: int,
        *,
        rms_norm: bool,
        pixel_norm: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.patch_size, self.channels = grid, patch_size, channels
        self.norm_final = norm(hidden, rms_norm)
        self.linear = nn.Linear(hidden, patch_size**2 * channels)
        self.adaLN_modulation = Modulation(hidden, 2, pixel_norm=pixel_norm)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, N, D), condition (B, D) -> (B, C, H, W)."""
        shift, scale = self.adaLN_modulation(c)
        x = self.linear(self.norm_final(x) * (1 + scale) + shift)  # (B, N, p p C)
        (h, w), p = self.grid, self.patch_size
        x = x.reshape(x.shape[0], h, w, p, p, self.channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(x.shape[0], self.channels, h * p, w * p)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens; queries and keys normalised per head, then rotated."""

    def __init__(self, hidden: int, heads: int, *, qk_norm: bool, rms_norm: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.q_norm: nn.Module = norm(hidden // heads, rms_norm, affine=True) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = norm(hidden // heads, rms_norm, affine=True) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, rope: "Rope | None", key: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D), key (B,) -> (B, N, D)."""
        batch, num, hidden = x.shape
        q, k, v = self.qkv(x).reshape(batch, num, 3, self.heads, hidden // self.heads).unbind(2)  # (B, N, heads, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        x = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.dropout(self.proj(x.transpose(1, 2).reshape(batch, num, hidden)), key)


class SwiGLU(nn.Module):
    """w3 (silu(a) b), [a, b] = w12 x (Shazeer 2020)."""

    def __init__(self, hidden: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        width = int(2 * mlp_ratio * hidden / 3)
        self.w12 = nn.Linear(hidden, 2 * width)
        self.w3 = nn.Linear(width, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """(B, N, D), key (B,) -> (B, N, D)."""
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.dropout(self.w3(F.silu(a) * b), key)


class Mlp(nn.Module):
    """fc2 gelu(fc1 x), the MLP of DiT."""

    def __init__(self, hidden: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        width = int(mlp_ratio * hidden)
        self.fc1 = nn.Linear(hidden, width)
        self.fc2 = nn.Linear(width, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """(B, N, D), key (B,) -> (B, N, D)."""
        return self.dropout(self.fc2(F.gelu(self.fc1(x), approximate="tanh")), key)


class Precise(nn.Sequential):
    """Layers that run in the precision of their weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class Modulation(Precise):
    """AdaLN: the condition c -> `parts` vectors of D to shift, scale and gate with.

    With pixel norm, shifts and scales are divided by their root mean square: x (1 + pn(scale)) + pn(shift) (Lu & Song
    2024, "adaptive double normalization"; ali-vilab/FACM, scm_modulate in ldit/lightningdit.py). The gates are not.
    """

    def __init__(self, hidden: int, parts: int, *, pixel_norm: bool = False) -> None:
        super().__init__(nn.SiLU(), nn.Linear(hidden, parts * hidden))
        self.parts, self.pixel_norm = parts, pixel_norm
        self.gates = (parts // 2 - 1, parts - 1) if parts > 2 else ()  # the last part of each half

    def initialise(self, gate_bias: float) -> None:
        """Zero weights and biases, except the gates' biases and, with pixel norm, all others, which are one.

        Pixel norm is steepest at zero, 1 / sqrt(1e-8) = 1e4: from there the first step of an optimizer takes every
        scale and shift to a random vector of rms one, and its gradient drowns all others where the norm is clipped.
        The published code starts there. From one, pn is smooth, and x * 2 + 1 for every channel costs nothing.
        """
        linear = self[1]
        assert isinstance(linear, nn.Linear)
        nn.init.zeros_(linear.weight)
        for part, bias in enumerate(linear.bias.unflatten(0, (self.parts, -1))):
            nn.init.constant_(bias, gate_bias if part in self.gates else float(self.pixel_norm))

    def forward(self, c: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        """(B, D) -> `parts` tensors (B, 1, D)."""
        parts = super().forward(c).unsqueeze(1).chunk(self.parts, dim=-1)
        if not self.pixel_norm:
            return parts
        return [part if i in self.gates else pixel_norm(part) for i, part in enumerate(parts)]


class TimeEmbedder(nn.Module):
    """Time -> D: cosines and sines at geometric frequencies from 1 to 1/max_period rad, then two layers."""

    def __init__(self, hidden: int, frequencies: int = 128, max_period: float = 1e4) -> None:
        super().__init__()
        self.frequencies, self.max_period = frequencies, max_period
        self.mlp = Precise(nn.Linear(2 * frequencies, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def initialise(self, first_std: float, second_std: float) -> None:
        """Normal distributions for the two layers; biases are zero."""
        layers = [layer for layer in self.mlp if isinstance(layer, nn.Linear)]
        for layer, std in zip(layers, [first_std, second_std], strict=True):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, D); the angles are at least float32."""
        dtype = torch.promote_types(t.dtype, torch.float32)
        i = torch.arange(self.frequencies, device=t.device, dtype=dtype)
        angles = t.unsqueeze(-1) * torch.exp(-math.log(self.max_period) / self.frequencies * i)
        embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return self.mlp(embedding.to(cast(nn.Linear, self.mlp[0]).weight.dtype))


class LabelEmbedder(nn.Module):
    """Label -> D; row `num_classes` is the null label."""

    def __init__(self, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden)

    def forward(self, y: Tensor) -> Tensor:
        """(B,) int64 -> (B, D)."""
        return self.embedding_table(y)


class PatchEmbed(nn.Module):
    """Patches of p x p pixels -> tokens: the authors' convolution, computed as a linear layer, which is faster."""

    def __init__(self, channels: int, patch_size: int, hidden: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, hidden, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D), row by row."""
        (batch, channels, height, width), p = x.shape, self.patch_size
        patches = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class Rope(nn.Module):
    """Rotary position embedding (Su et al. 2021): half of a head turns with the row, half with the column.

    Channels 2i and 2i+1 of a half turn by place * 10000^(-4i/d).
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: tuple[int, int], head: int) -> None:
        super().__init__()
        speed = 1e4 ** (-torch.arange(0, head // 2, 2, dtype=torch.float64) / (head // 2))
        rows, columns = (torch.outer(torch.arange(n), speed).repeat_interleave(2, dim=1) for n in grid)
        shape = (*grid, head // 2)
        angles = torch.cat([rows.unsqueeze(1).expand(shape), columns.unsqueeze(0).expand(shape)], dim=-1).flatten(0, 1)
        self.register_buffer("freqs_cos", angles.cos().float())
        self.register_buffer("freqs_sin", angles.sin().float())

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys (B, N, heads, d) -> (B, N, heads, d)."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-b, a], dim=-1).flatten(-2)
        return x * self.freqs_cos.unsqueeze(1) + turned * self.freqs_sin.unsqueeze(1)


class RMSNorm(nn.Module):
    """x / rms(x) times a weight (Zhang & Sennrich 2019); the statistics are at least float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), dtype of x."""
        return torch.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


class LayerNorm(nn.LayerNorm):
    """torch's, by torch.layer_norm, which torch 2.11 compiles on dual numbers; its namesake in nn.functional not."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return torch.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def norm(width: int, rms_norm: bool, *, affine: bool = False) -> nn.Module:
    """RMSNorm with weight, or LayerNorm: in DiT's blocks without weights, for queries and keys as timm has it."""
    if rms_norm:
        return RMSNorm(width)
    return LayerNorm(width, elementwise_affine=affine, eps=1e-5 if affine else 1e-6)


def sincos_positions(grid: tuple[int, int], hidden: int) -> Tensor:
    """Sines and cosines of column, then of row, at hidden/4 frequencies (He et al. 2021, MAE); (1, N, D) float32."""
    speed = 1e4 ** (-torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    halves = [torch.outer(place.flatten(), speed) for place in [columns, rows]]
    return torch.cat([f(half) for half in halves for f in [torch.sin, torch.cos]], dim=1).float().unsqueeze(0)
