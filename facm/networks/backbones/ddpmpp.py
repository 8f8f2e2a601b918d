"""DDPM++: the U-Net of Song et al. 2021 (arXiv 2011.13456) as Karras et al. 2022 train it (NVlabs/edm, SongUNet).

Encoder and decoder of residual blocks, each modulated by the time, attention at chosen resolutions. Weights and buffers
bear the authors' names, so that their state dicts load strictly. `channel_mult_noise: 2, resample_filter: [1, 3, 3, 1]`
is the variant of py-meanflow.

EDM feeds ln(sigma)/4, IMM 1000 t. Here: `time_scale` times t, which is raw, in [0, 2] (t for the CM format, 2 - t for
the FM format), unless a preconditioning (facm/preconds) makes another condition of it. A large scale multiplies dF/dt.

Under autocast the embedding, the modulations, the residual stream and all norms stay in the precision of the weights.
Plain operations only, as in lightningdit.py: the network also runs on dual numbers.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facm.networks.layers.blocks import pixel_norm, refuse_condition
from facm.networks.layers.dropout import Dropout, number_layers
from facm.runtime.ranges import Count

PLACE = "params.yaml, backbones.ddpmpp"
TINY = 1e-5  # gain of the layers that end a residual branch, and of the last one
HALF = math.sqrt(0.5)  # keeps the variance of a sum of two


class DDPMpp(nn.Module):
    """Velocity F(x, t, y, r); nearly zero at initialisation.

    With the constants of presets/base.yaml, for images (3, 32, 32) without classes, it has 55,732,739 parameters.

    Args:
        resample_filter: taps of the separable filter that halves and doubles the sides, an even number of them.
        adaptive_scale: the time scales and shifts what has been normalised; False: it is added before the norm.
        augment_dim: inputs of EDM's layer for augmentation labels, which are always zero here (EDM's published networks
            have 9, py-meanflow's 6); None: no such layer.
        pixel_norm: scales and shifts, or what is added in their place, are divided by their rms over the channels.

    Raises:
        ValueError: sizes that do not fit; the message names value, rule and place.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],  # (C, S, S) of the images
        num_classes: int,  # the null label is `num_classes`, which has no weights; 0: unconditional
        model_channels: Count,  # channels of the first layer; a multiple of 4
        channel_mult: Sequence[Count],  # channels of each level over `model_channels`; every level halves the sides
        num_blocks: Count,  # residual blocks per level of the encoder; the decoder has one more
        attn_resolutions: Sequence[Count],  # sides at which blocks attend; the first block of the decoder always does
        resample_filter: Sequence[float] = (1, 1),
        channel_mult_noise: Count = 1,  # width of the time's cosines and sines over `model_channels`
        adaptive_scale: bool = False,
        augment_dim: Count | None = None,
        time_scale: float = 1.0,  # multiplies t and r before they are embedded
        pixel_norm: bool = False,
        auxiliary: bool = False,  # add an embedding of r, whose last layer is zero: nothing changes at initialisation
        dropout: float = 0.0,  # probability, before the second convolution of every block
    ) -> None:
        super().__init__()
        if time_scale == 0:
            raise ValueError(f"{PLACE}.time_scale: 0 leaves the network without its time: set it above 0")
        check_sizes(shape, model_channels, channel_mult, attn_resolutions, resample_filter)
        self.frequencies, self.time_scale = model_channels * channel_mult_noise, time_scale
        self.num_classes = num_classes
        width = 4 * model_channels
        self.map_label = Precise(num_classes, self.frequencies) if num_classes else None
        self.map_augment = Precise(augment_dim, self.frequencies, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Precise(self.frequencies, width), Precise(width, width)

        options: dict[str, Any] = {"taps": resample_filter, "dropout": dropout}
        options |= {"adaptive_scale": adaptive_scale, "pixel_norm": pixel_norm}
        block = functools.partial(Block, width, **options)
        levels = [(shape[1] >> i, model_channels * mult) for i, mult in enumerate(channel_mult)]  # side, channels
        attends = [side in attn_resolutions for side, _ in levels]
        self.enc, skips = encoder(block, levels, attends, num_blocks, shape[0], model_channels)
        self.dec = decoder(block, levels, attends, num_blocks, shape[0], skips)

        number_layers(self)
        initialise(self)
        # r last, so that with and without it one seed draws the same weights
        self.r_embedder = Embedder(self.frequencies, width) if auxiliary else None

    @property
    def blocks(self) -> list[nn.Module]:
        """What facm/training/passes.py compiles, recomputes and shards one by one."""
        return [layer for part in (self.enc, self.dec) for layer in part.values() if isinstance(layer, Block)]

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Velocity (B, C, S, S) at (x, t), as `Transformer.forward`; t (B,) may be a preconditioning's c_noise."""
        embedding, skips = self.embed(t, y, r), list[Tensor]()
        for layer in self.enc.values():
            x = layer(x, embedding, key) if isinstance(layer, Block) else layer(x).to(embedding.dtype)
            skips.append(x)
        *blocks, last_norm, last = self.dec.values()
        for layer in blocks:
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, embedding, key)
        return last(F.silu(last_norm(x)))

    def embed(self, t: Tensor, y: Tensor | None, r: Tensor | None) -> Tensor:
        """Time, label and r -> (B, 4 model_channels); arguments as `forward` has them."""
        refuse_condition("y", y, self.map_label)
        refuse_condition("r", r, self.r_embedder)
        dtype = self.map_layer0.weight.dtype
        embedding = waves(t * self.time_scale, self.frequencies).to(dtype)
        if self.map_label is not None and y is not None:
            row = F.one_hot(y, self.num_classes + 1)[:, : self.num_classes].to(dtype)  # the null label has none
            embedding = embedding + self.map_label(row * math.sqrt(self.num_classes))
        if self.map_augment is not None:
            embedding = embedding + self.map_augment(embedding.new_zeros(t.shape[0], self.map_augment.in_features))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        if self.r_embedder is not None and r is not None:
            embedding = embedding + self.r_embedder(waves(r * self.time_scale, self.frequencies).to(dtype))
        return embedding


def encoder(
    block: Callable[..., nn.Module],
    levels: Sequence[tuple[int, int]],
    attends: Sequence[bool],
    num_blocks: int,
    channels: int,
    first: int,
) -> tuple[nn.ModuleDict, list[int]]:
    """The layers by name and the channels that each of them passes on.

    `block`: (c_in, c_out, ...) -> a residual block; `levels`: side and channels of each, `attends`: whether its blocks
    attend; `channels` of the images, `first` of the first layer.
    """
    layers, skips = nn.ModuleDict(), [first]
    layers[f"{levels[0][0]}x{levels[0][0]}_conv"] = Convolution(channels, first, 3)
    for level, (side, c_out) in enumerate(levels):
        if level:
            layers[f"{side}x{side}_down"] = block(skips[-1], skips[-1], resample="down")
            skips.append(skips[-1])
        for i in range(num_blocks):
            layers[f"{side}x{side}_block{i}"] = block(skips[-1], c_out, attention=attends[level])
            skips.append(c_out)
    return layers, skips


def decoder(
    block: Callable[..., nn.Module],
    levels: Sequence[tuple[int, int]],
    attends: Sequence[bool],
    num_blocks: int,
    channels: int,
    skips: Sequence[int],
) -> nn.ModuleDict:
    """The layers by name; arguments as the encoder's, `skips` what it returned."""
    layers, c, waiting = nn.ModuleDict(), skips[-1], list(skips)
    for level, (side, c_out) in reversed(list(enumerate(levels))):
        if level == len(levels) - 1:
            layers[f"{side}x{side}_in0"] = block(c, c, attention=True)
            layers[f"{side}x{side}_in1"] = block(c, c)
        else:
            layers[f"{side}x{side}_up"] = block(c, c, resample="up")
        for i in range(num_blocks + 1):
            attention = i == num_blocks and attends[level]
            layers[f"{side}x{side}_block{i}"] = block(c + waiting.pop(), c_out, attention=attention)
            c = c_out
    side = levels[0][0]
    layers[f"{side}x{side}_aux_norm"] = norm(c)
    layers[f"{side}x{side}_aux_conv"] = Convolution(c, channels, 3, gain=TINY)
    return layers


class Block(nn.Module):
    """Two convolutions, the time between them, then attention; both added to their input, over sqrt 2 (UNetBlock)."""

    def __init__(
        self,
        width: int,
        c_in: int,
        c_out: int,
        *,
        attention: bool = False,
        resample: str | None = None,
        taps: Sequence[float],
        dropout: float,
        adaptive_scale: bool,
        pixel_norm: bool,
    ) -> None:
        super().__init__()
        self.in_channels, self.adaptive_scale, self.pixel_norm = c_in, adaptive_scale, pixel_norm
        self.norm0 = norm(c_in)
        self.conv0 = Convolution(c_in, c_out, 3, resample=resample, taps=taps)
        self.affine = Precise(width, c_out * (2 if adaptive_scale else 1))
        self.norm1 = norm(c_out)
        self.dropout = Dropout(dropout)
        self.conv1 = Convolution(c_out, c_out, 3, gain=TINY)
        straight = c_in == c_out and resample is None
        self.skip = None if straight else Convolution(c_in, c_out, 1, resample=resample, taps=taps)
        self.attends = attention
        if attention:
            self.norm2 = norm(c_out)
            self.qkv = Convolution(c_out, 3 * c_out, 1, gain=math.sqrt(0.2))
            self.proj = Convolution(c_out, c_out, 1, gain=TINY)

    def forward(self, x: Tensor, embedding: Tensor, key: Tensor | None = None) -> Tensor:
        """x (B, c_in, H, W), embedding (B, width), key (B,) -> (B, c_out, H', W'), in the embedding's dtype."""
        dtype = embedding.dtype
        h = self.conv0(F.silu(self.norm0(x))).to(dtype)
        parts = self.affine(embedding).chunk(2 if self.adaptive_scale else 1, dim=1)
        parts = [(pixel_norm(part) if self.pixel_norm else part).unsqueeze(2).unsqueeze(3) for part in parts]
        h = torch.addcmul(parts[1], self.norm1(h), parts[0] + 1) if self.adaptive_scale else self.norm1(h + parts[0])
        h = self.conv1(self.dropout(F.silu(h), key)).to(dtype)
        x = (h + (x if self.skip is None else self.skip(x))) * HALF
        if self.attends:
            x = (x + self.attend(self.norm2(x))) * HALF
        return x

    def attend(self, x: Tensor) -> Tensor:
        """Attention of one head over all places, (B, C, H, W) -> like x; q, k, v alternate along qkv's channels."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).reshape(batch, 1, channels, 3, height * width)
        q, k, v = qkv.transpose(2, 4).unbind(3)  # (B, 1, N, C)
        answer = F.scaled_dot_product_attention(q, k, v)
        return self.proj(answer.transpose(2, 3).reshape(batch, channels, height, width))


class Convolution(nn.Conv2d):
    """A convolution that keeps the sides, after a filter that halves or doubles them (Conv2d of NVlabs/edm)."""

    resample_filter: Tensor | None  # (1, 1, n, n) of sum 1, a buffer; None where the sides stay

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        resample: str | None = None,
        taps: Sequence[float] = (1, 1),
        gain: float = 1.0,  # of the initial weights
    ) -> None:
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.resample, self.gain, self.inset = resample, gain, (len(taps) - 1) // 2
        line = torch.tensor(taps, dtype=torch.float32)
        square = (line.outer(line) / line.sum().square())[None, None]
        self.register_buffer("resample_filter", None if resample is None else square)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        if self.resample_filter is not None:
            each: dict[str, Any] = {"groups": self.in_channels, "stride": 2, "padding": self.inset}
            kernel = self.resample_filter.tile(self.in_channels, 1, 1, 1)
            x = F.conv2d(x, kernel, **each) if self.resample == "down" else F.conv_transpose2d(x, 4 * kernel, **each)
        return super().forward(x)


class Precise(nn.Linear):
    """A linear layer that runs in the precision of its weights, also under autocast."""

    gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class Embedder(nn.Module):
    """Cosines and sines of r -> width; zero at initialisation."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.layer0, self.layer1 = Precise(frequencies, width), Precise(width, width)
        initialise(self)
        nn.init.zeros_(self.layer1.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, frequencies) -> (B, width)."""
        return self.layer1(F.silu(self.layer0(x)))


def waves(t: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of t at frequencies from 1 to 1e-4 rad, both ends included: (B,) -> (B, width).

    EDM's PositionalEmbedding has the cosines first, and SongUNet swaps the halves.
    """
    half, dtype = width // 2, torch.promote_types(t.dtype, torch.float32)
    i = torch.arange(half, device=t.device, dtype=dtype)
    angles = t.unsqueeze(-1) * 1e-4 ** (i / (half - 1))
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


def norm(channels: int) -> nn.GroupNorm:
    """Groups of four channels, at most 32 of them (GroupNorm of NVlabs/edm)."""
    groups = min(32, channels // 4)
    if channels % groups:
        raise ValueError(
            f"{PLACE}.model_channels: a layer of {channels} channels cannot be normalised in {groups} groups: take a "
            "multiple of 32, or of 4 in a network whose layers all have fewer than 128 channels"
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def initialise(network: nn.Module) -> None:
    """Xavier-uniform layers, times their gain, and zero biases (weight_init of NVlabs/edm)."""
    for module in network.modules():
        if isinstance(module, Convolution | Precise):
            nn.init.xavier_uniform_(module.weight, gain=module.gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_sizes(
    shape: Sequence[int],
    model_channels: int,
    channel_mult: Sequence[int],
    attn_resolutions: Sequence[int],
    resample_filter: Sequence[float],
) -> None:
    """Raise ValueError, naming value, rule and place, for sizes that do not fit together."""
    if len(shape) != 3:
        raise ValueError(f"ddpmpp needs pictures (C, S, S), got shape {tuple(shape)}: set backbone.name to mlp")
    if model_channels % 4:
        raise ValueError(f"{PLACE}.model_channels: must be a multiple of 4, got {model_channels}")
    for rule in broken(shape, channel_mult, attn_resolutions, resample_filter):
        raise ValueError(f"{PLACE}.{rule}")


def broken(
    shape: Sequence[int],
    channel_mult: Sequence[int],
    attn_resolutions: Sequence[int],
    resample_filter: Sequence[float],
) -> Iterator[str]:
    """Rules of the lists that are broken, each with its key; those of the side last, see `facm.check.buildable`."""
    if not resample_filter or len(resample_filter) % 2 or sum(resample_filter) <= 0:
        yield f"resample_filter: must be a list of an even number of taps, of a sum above 0, got {resample_filter!r}"
    if not channel_mult:
        yield f"channel_mult: must be a list of whole numbers of at least 1, one per level, got {channel_mult!r}"
    levels = len(channel_mult)
    if shape[1] != shape[2] or shape[1] % 2 ** (levels - 1):
        yield (
            f"channel_mult: {levels} levels need square pictures whose side is a multiple of {2 ** (levels - 1)}, "
            f"got {shape[1]}x{shape[2]}"
        )
    sides = [shape[1] >> level for level in range(levels)]
    if not set(attn_resolutions) <= set(sides):
        yield f"attn_resolutions: must be a list of some of the levels' sides {sides}, got {attn_resolutions!r}"
