"""LightningDiT: a transformer over latent patches (Yao et al. 2025; hustvl/LightningDiT, as in ali-vilab/FACM).

DiT (Peebles & Xie 2023) with RMSNorm, QK-norm, SwiGLU and 2-D RoPE, each of which can be switched off: all off is the
DiT of SiT. Weights and buffers bear the authors' names, so that their state dicts load strictly.

Time enters raw, in [0, 2] (t for the CM format, 2 - t for the FM format), never times 1000, which would multiply dF/dt
as well. Embeddings of t, r, y and the modulations made of them are left out of autocast.

Plain operations only (lists in cat and stack, nothing in-place, no einops): the network also runs on dual numbers.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facm.backbones.dropout import Dropout, number_layers
from facm.backbones.pixel_norm import pixel_norm

PLACE = "params.yaml, backbones.lightningdit"


class LightningDiT(nn.Module):
    """Velocity F(x, t, y, r); zero at initialisation.

    Args:
        shape: (C, H, W) of the latents.
        num_classes: number of classes, the null label is `num_classes`; 0: unconditional.
        patch_size: pixels per side of a token.
        hidden: width D of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: width of the MLP over `hidden`; SwiGLU takes 2/3 of it, which keeps the number of weights.
        qk_norm: normalise queries and keys per head (paper A.3a).
        rms_norm: RMSNorm; False: LayerNorm.
        swiglu: SwiGLU; False: GELU (tanh).
        rope: rotate queries and keys by the token's place.
        shift: AdaLN shifts and scales; False: it only scales.
        pos_embed: add sin-cos position embeddings, a buffer, to the tokens.
        pos_learned: make them weights, drawn from N(0, pos_std^2).
        pos_std: see `pos_learned`.
        label_std: initial std of the label embedding.
        t_std: initial std of the two layers of the time embedding; one number stands for both.
        gate_bias: initial value of the AdaLN gates; 0 makes every block the identity.
        pixel_norm: AdaLN's scales and shifts, not its gates, are divided by their rms over the channels, as sCM needs.
        auxiliary: add an embedding of r, whose last layer is zero: nothing changes at initialisation.
        dropout: probability, after the attention's projection and after the MLP.

    Raises:
        ValueError: sizes that do not divide; the message names value, rule and place.
    """

    pos_embed: Tensor | None

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        patch_size: int,
        hidden: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        rope: bool = True,
        shift: bool = True,
        pos_embed: bool = True,
        pos_learned: bool = False,
        pos_std: float = 0.02,
        label_std: float = 0.02,
        t_std: float | Sequence[float] = 0.02,
        gate_bias: float = 0.0,
        pixel_norm: bool = False,
        auxiliary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        t_stds = (t_std, t_std) if isinstance(t_std, int | float) else tuple(t_std)
        check_sizes(shape, patch_size, hidden, heads, t_stds)
        channels, grid = shape[0], (shape[1] // patch_size, shape[2] // patch_size)

        self.x_embedder = PatchEmbed(channels, patch_size, hidden)
        self.t_embedder = TimeEmbedder(hidden)
        self.r_embedder: TimeEmbedder | None = None
        self.y_embedder = LabelEmbedder(num_classes, hidden) if num_classes else None
        self.register_buffer("pos_embed", sincos_positions(grid, hidden) if pos_embed else None)
        if pos_learned:
            del self.pos_embed
            self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], hidden))
        self.feat_rope = Rope(grid, hidden // heads) if rope else None
        self.blocks = nn.ModuleList(
            Block(
                hidden,
                Attention(hidden, heads, qk_norm=qk_norm, rms_norm=rms_norm, dropout=dropout),
                (SwiGLU if swiglu else Mlp)(hidden, mlp_ratio, dropout),
                rms_norm=rms_norm,
                shift=shift,
                pixel_norm=pixel_norm,
            )
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden, channels, grid, patch_size, rms_norm=rms_norm, pixel_norm=pixel_norm)

        number_layers(self)
        self.initialise(label_std=label_std, t_stds=t_stds, pos_std=pos_std, gate_bias=gate_bias)
        if auxiliary:  # last, so that with and without it one seed draws the same weights
            self.r_embedder = TimeEmbedder(hidden)
            self.r_embedder.initialise(t_stds[0], 0.0)

    def initialise(self, *, label_std: float, t_stds: Sequence[float], pos_std: float, gate_bias: float) -> None:
        """Draw the weights as DiT does: Xavier-uniform layers, zero biases, modulations and last layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)
        self.t_embedder.initialise(*t_stds)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=label_std)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.normal_(self.pos_embed, std=pos_std)
        for module in self.modules():
            if isinstance(module, Block):
                module.adaLN_modulation.initialise(gate_bias)
        self.final_layer.adaLN_modulation.initialise(0.0)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Velocity at (x, t).

        Args:
            x: (B, C, H, W).
            t: (B,) in [0, 2], float32 (float64 in a float64 network).
            y: (B,) int64 in [0, num_classes]; None where there are no classes.
            r: (B,) in [0, 1] for an `auxiliary` network, else None.
            key: (B,) int64, of each sample's dropout masks; None: no dropout.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: y or r is missing, or given to a network that has no embedding of it.
        """
        c = self.t_embedder(t)  # (B, D)
        for name, label, embedder in [("y", y, self.y_embedder), ("r", r, self.r_embedder)]:
            if (label is None) != (embedder is None):
                raise ValueError(f"{name} is {'missing' if label is None else 'given'}, but {NEEDS[name]}")
            if embedder is not None:
                c = c + embedder(label)
        tokens = self.x_embedder(x)  # (B, N, D)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, c, self.feat_rope, key)
        return self.final_layer(tokens, c)


NEEDS = {
    "y": "labels go with num_classes > 0 and only with it",
    "r": "a second time goes with conditioning auxiliary and only with it",
}


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
        """Draw the two layers from normal distributions; biases are zero."""
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


def norm(width: int, rms_norm: bool, *, affine: bool = False) -> nn.Module:
    """RMSNorm with weight, or LayerNorm, in DiT's blocks without one."""
    return RMSNorm(width) if rms_norm else nn.LayerNorm(width, elementwise_affine=affine, eps=1e-6)


def sincos_positions(grid: tuple[int, int], hidden: int) -> Tensor:
    """Sines and cosines of column, then of row, at hidden/4 frequencies (He et al. 2021, MAE); (1, N, D) float32."""
    speed = 1e4 ** (-torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    halves = [torch.outer(place.flatten(), speed) for place in [columns, rows]]
    return torch.cat([f(half) for half in halves for f in [torch.sin, torch.cos]], dim=1).float().unsqueeze(0)


def check_sizes(shape: Sequence[int], patch_size: int, hidden: int, heads: int, t_stds: Sequence[float]) -> None:
    """Raise ValueError, naming value, rule and place, for sizes that do not fit together."""
    if len(shape) != 3:
        raise ValueError(f"lightningdit needs latents (C, H, W), got shape {tuple(shape)}: set backbone.name to mlp")
    if shape[1] % patch_size or shape[2] % patch_size:
        raise ValueError(
            f"{PLACE}.patch_size: {shape[1]}x{shape[2]} latents cannot be cut into patches of {patch_size}, "
            "it must divide both sides"
        )
    if hidden % (4 * heads):
        raise ValueError(
            f"{PLACE}.hidden: must be a multiple of 4 x heads (each head turns pairs along two axes), "
            f"got {hidden} with {heads} heads"
        )
    if len(t_stds) != 2 or not all(isinstance(std, int | float) for std in t_stds):
        raise ValueError(f"{PLACE}.t_std: one number or two (one per layer), got {list(t_stds)}")
