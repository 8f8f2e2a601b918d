"""The transformer over latent patches that DiT, SiT, REPA and LightningDiT share.

DiT (Peebles & Xie 2023) with RMSNorm, QK-norm, SwiGLU and 2-D RoPE (Yao et al. 2025), each of which can be switched
off. Weights and buffers bear the authors' names, so that their state dicts load strictly. Buffers that are saved but
could be made anew are `pos_embed` and `feat_rope.*`.

Time enters raw, in [0, 2] (t for the CM format, 2 - t for the FM format), never times 1000, which would multiply dF/dt
as well.

Plain operations only (lists in cat and stack, nothing in-place, no einops): the network also runs on dual numbers.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from facm.networks.layers.blocks import (
    Attention,
    Block,
    FinalLayer,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    Rope,
    SwiGLU,
    TimeEmbedder,
    refuse_condition,
    sincos_positions,
)
from facm.networks.layers.dropout import number_layers
from facm.runtime.ranges import Count, NonNegative, Positive

WIDTHS = {
    "S": {"hidden": 384, "depth": 12, "heads": 6},
    "B": {"hidden": 768, "depth": 12, "heads": 12},
    "L": {"hidden": 1024, "depth": 24, "heads": 16},
    "XL": {"hidden": 1152, "depth": 28, "heads": 16},
    "1p0B": {"hidden": 1536, "depth": 24, "heads": 24},
    "1p6B": {"hidden": 1792, "depth": 28, "heads": 28},
}


def sizes(*names: str) -> dict[str, dict[str, int]]:
    """What published sizes such as "XL/2" (width / patch size) stand for: hidden, depth, heads, patch_size."""
    parts = {name: name.split("/") for name in names}
    return {name: WIDTHS[width] | {"patch_size": int(patch)} for name, (width, patch) in parts.items()}


DIT_SIZES = sizes(*(f"{width}/{patch}" for width in ("S", "B", "L", "XL") for patch in (2, 4, 8)))


class Transformer(nn.Module):
    """Velocity F(x, t, y, r); zero at initialisation.

    Args:
        mlp_ratio: width of the MLP over `hidden`; SwiGLU takes 2/3 of it, which keeps the number of weights.
        t_std: initial std of the two layers of the time embedding; one number stands for both.
        pixel_norm: AdaLN's scales and shifts, not its gates, are divided by their rms over the channels, as sCM needs.
        learn_sigma: the last layer has 2C channels, of which `forward` returns the first C: the others are the variance
            of DiT's and SiT's published checkpoints, which nothing here uses.

    Raises:
        ValueError: sizes that do not divide; the message names value, rule and place.
    """

    NAME: ClassVar[str] = "transformer"
    """Key of the registry, for messages."""

    SIZES: ClassVar[dict[str, dict[str, int]]] = {}
    """What `variant` in params.yaml may be, and the constants that it stands for."""

    pos_embed: Tensor | None

    def __init__(
        self,
        *,
        shape: Sequence[int],  # (C, H, W) of the latents
        num_classes: int,  # number of classes, the null label is `num_classes`; 0: unconditional
        patch_size: Count,  # pixels per side of a token
        hidden: Count,  # width D of a token
        depth: Count,  # number of blocks
        heads: Count,  # attention heads
        mlp_ratio: Positive = 4.0,
        qk_norm: bool = True,  # normalise queries and keys per head (paper A.3a)
        rms_norm: bool = True,  # RMSNorm; False: LayerNorm
        swiglu: bool = True,  # SwiGLU; False: GELU (tanh)
        rope: bool = True,  # rotate queries and keys by the token's place
        shift: bool = True,  # AdaLN shifts and scales; False: it only scales
        pos_embed: bool = True,  # add sin-cos position embeddings, a buffer, to the tokens
        pos_learned: bool = False,  # make them weights, initially from N(0, pos_std^2)
        pos_std: NonNegative = 0.02,  # see `pos_learned`
        label_std: NonNegative = 0.02,  # initial std of the label embedding
        t_std: NonNegative | Sequence[NonNegative] = 0.02,
        gate_bias: float = 0.0,  # initial value of the AdaLN gates; 0 makes every block the identity
        pixel_norm: bool = False,
        learn_sigma: bool = False,
        auxiliary: bool = False,  # add an embedding of r, whose last layer is zero: nothing changes at initialisation
        dropout: float = 0.0,  # probability, after the attention's projection and after the MLP
    ) -> None:
        super().__init__()
        t_stds = (t_std, t_std) if isinstance(t_std, int | float) else tuple(t_std)
        check_sizes(self.NAME, shape, patch_size, hidden, heads)
        if len(t_stds) != 2:
            raise ValueError(f"params.yaml, backbones.{self.NAME}.t_std: one number or two, a layer each, got {t_stds}")
        grid = (shape[1] // patch_size, shape[2] // patch_size)
        self.channels, self.learn_sigma = shape[0], learn_sigma

        self.x_embedder = PatchEmbed(shape[0], patch_size, hidden)
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
        answered = shape[0] * (1 + learn_sigma)
        self.final_layer = FinalLayer(hidden, answered, grid, patch_size, rms_norm=rms_norm, pixel_norm=pixel_norm)

        number_layers(self)
        self.initialise(label_std=label_std, t_stds=t_stds, pos_std=pos_std, gate_bias=gate_bias)
        if auxiliary:  # last, so that with and without it one seed draws the same weights
            self.add_second_time(t_stds[0])

    def add_second_time(self, std: float) -> None:
        """Embed r, with a last layer of zero and `std` of the first."""
        self.r_embedder = TimeEmbedder(self.final_layer.linear.in_features)
        self.r_embedder.initialise(std, 0.0)

    def initialise(self, *, label_std: float, t_stds: Sequence[float], pos_std: float, gate_bias: float) -> None:
        """Initialise as DiT does: Xavier-uniform layers, zero biases, modulations and last layer."""
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
        """Velocity (B, C, H, W) at (x, t).

        Args:
            x: (B, C, H, W).
            t: (B,) in [0, 2], float32 (float64 in a float64 network).
            y: (B,) int64 in [0, num_classes]; None where there are no classes.
            r: (B,) in [0, 1] for an `auxiliary` network, else None.
            key: (B,) int64, of each sample's dropout masks; None: no dropout.

        Raises:
            ValueError: y or r is missing, or given to a network that has no embedding of it.
        """
        return self.run(x, t, y, r, key)[0]

    def run(
        self, x: Tensor, t: Tensor, y: Tensor | None, r: Tensor | None, key: Tensor | None, watched: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """What `forward` returns, and the tokens (B, N, D) behind block number `watched`, from 1 on; 0: None."""
        c, watched_tokens = self.condition(t, y, r), None
        tokens = self.x_embedder(x)  # (B, N, D)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens, c, self.feat_rope, key)
            if number == watched:
                watched_tokens = tokens
        F = self.final_layer(tokens, c)
        return (F[:, : self.channels] if self.learn_sigma else F), watched_tokens

    def condition(self, t: Tensor, y: Tensor | None, r: Tensor | None) -> Tensor:
        """Sum of the embeddings of times and label, (B, D); raises as `forward` does."""
        c = self.t_embedder(t)
        for name, label, embedder in [("y", y, self.y_embedder), ("r", r, self.r_embedder)]:
            refuse_condition(name, label, embedder)
            if embedder is not None:
                c = c + embedder(label)
        return c


class AdaLNTransformer(Transformer):
    """The transformer of DiT and SiT, as `Transformer`: LayerNorm, GELU, fixed positions, other switches off."""

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        patch_size: Count,
        hidden: Count,
        depth: Count,
        heads: Count,
        mlp_ratio: Positive = 4.0,
        qk_norm: bool = False,
        label_std: NonNegative = 0.02,
        t_std: NonNegative | Sequence[NonNegative] = 0.02,
        gate_bias: float = 0.0,
        pixel_norm: bool = False,
        learn_sigma: bool = True,
        auxiliary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            shape=shape,
            num_classes=num_classes,
            patch_size=patch_size,
            hidden=hidden,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            rms_norm=False,
            swiglu=False,
            rope=False,
            label_std=label_std,
            t_std=t_std,
            gate_bias=gate_bias,
            pixel_norm=pixel_norm,
            learn_sigma=learn_sigma,
            auxiliary=auxiliary,
            dropout=dropout,
        )


def check_sizes(name: str, shape: Sequence[int], patch_size: int, hidden: int, heads: int) -> None:
    """Raise ValueError, naming value, rule and place, for sizes that do not fit together."""
    place = f"params.yaml, backbones.{name}"
    if len(shape) != 3:
        raise ValueError(f"{name} needs latents (C, H, W), got shape {tuple(shape)}: set backbone.name to mlp")
    if shape[1] % patch_size or shape[2] % patch_size:
        raise ValueError(
            f"{place}.patch_size: {shape[1]}x{shape[2]} latents cannot be cut into patches of {patch_size}, "
            "it must divide both sides"
        )
    if hidden % (4 * heads):
        raise ValueError(
            f"{place}.hidden: must be a multiple of 4 x heads (each head turns pairs along two axes), "
            f"got {hidden} with {heads} heads"
        )
