"""Latent diffusion's autoencoder, evaluated on its own names of weights: what a converted one is compared with.

Written from the architecture (two residual blocks per level on the way down, three on the way up, attention at given
levels and in the middle, pictures halved by a convolution padded below and to the right), functionally, so that nothing
of the code under test is in it.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

Weights = dict[str, Tensor]


def random_weights(width: int, multipliers: tuple[int, ...], channels: int, attends: tuple[bool, ...]) -> Weights:
    """Random weights under LDM's names."""
    generator, weights = torch.Generator().manual_seed(0), Weights()

    def convolution(name: str, inside: int, outside: int, kernel: int) -> None:
        scale = (inside * kernel**2) ** -0.5
        weights[f"{name}.weight"] = torch.randn(outside, inside, kernel, kernel, generator=generator) * scale
        weights[f"{name}.bias"] = torch.randn(outside, generator=generator) * 0.1

    def norm(name: str, size: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=generator)
        weights[f"{name}.bias"] = 0.1 * torch.randn(size, generator=generator)

    def block(name: str, inside: int, outside: int) -> None:
        norm(f"{name}.norm1", inside)
        convolution(f"{name}.conv1", inside, outside, 3)
        norm(f"{name}.norm2", outside)
        convolution(f"{name}.conv2", outside, outside, 3)
        if inside != outside:
            convolution(f"{name}.nin_shortcut", inside, outside, 1)

    def attention(name: str, size: int) -> None:
        norm(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", size, size, 1)

    def middle(name: str, size: int) -> None:
        block(f"{name}.block_1", size, size)
        attention(f"{name}.attn_1", size)
        block(f"{name}.block_2", size, size)

    sizes, last = [width * multiplier for multiplier in multipliers], len(multipliers) - 1
    convolution("encoder.conv_in", 3, width, 3)
    inside = width
    for level, size in enumerate(sizes):
        for j in range(2):
            block(f"encoder.down.{level}.block.{j}", inside, size)
            inside = size
            if attends[level]:
                attention(f"encoder.down.{level}.attn.{j}", size)
        if level < last:
            convolution(f"encoder.down.{level}.downsample.conv", size, size, 3)
    middle("encoder.mid", inside)
    norm("encoder.norm_out", inside)
    convolution("encoder.conv_out", inside, 2 * channels, 3)
    convolution("decoder.conv_in", channels, inside, 3)
    middle("decoder.mid", inside)
    for level in reversed(range(last + 1)):
        for j in range(3):
            block(f"decoder.up.{level}.block.{j}", inside, sizes[level])
            inside = sizes[level]
            if attends[level]:
                attention(f"decoder.up.{level}.attn.{j}", inside)
        if level > 0:
            convolution(f"decoder.up.{level}.upsample.conv", inside, inside, 3)
    norm("decoder.norm_out", inside)
    convolution("decoder.conv_out", inside, 3, 3)
    convolution("quant_conv", 2 * channels, 2 * channels, 1)
    convolution("post_quant_conv", channels, channels, 1)
    return weights


def encode(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) -> mean and log-variance (clamped) of the posterior."""
    h, level = _convolution(w, "encoder.conv_in", x), 0
    while f"encoder.down.{level}.block.0.conv1.weight" in w:
        h = _level(w, f"encoder.down.{level}", h, 2)
        if f"encoder.down.{level}.downsample.conv.weight" in w:
            h = _convolution(
                w, f"encoder.down.{level}.downsample.conv", functional.pad(h, (0, 1, 0, 1)), stride=2, pad=0
            )
        level += 1
    h = _convolution(w, "encoder.conv_out", _active(w, "encoder.norm_out", _middle(w, "encoder.mid", h)))
    mean, logvar = _convolution(w, "quant_conv", h).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode(w: Weights, z: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> pictures (B, 3, H, W)."""
    h = _middle(w, "decoder.mid", _convolution(w, "decoder.conv_in", _convolution(w, "post_quant_conv", z)))
    levels = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("decoder.up."))
    for level in reversed(range(levels)):
        h = _level(w, f"decoder.up.{level}", h, 3)
        if level > 0:
            h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = _convolution(w, f"decoder.up.{level}.upsample.conv", h)
    return _convolution(w, "decoder.conv_out", _active(w, "decoder.norm_out", h))


def _level(w: Weights, name: str, h: Tensor, num: int) -> Tensor:
    for j in range(num):
        h = _block(w, f"{name}.block.{j}", h)
        if f"{name}.attn.{j}.q.weight" in w:
            h = _attention(w, f"{name}.attn.{j}", h)
    return h


def _middle(w: Weights, name: str, h: Tensor) -> Tensor:
    return _block(w, f"{name}.block_2", _attention(w, f"{name}.attn_1", _block(w, f"{name}.block_1", h)))


def _block(w: Weights, name: str, x: Tensor) -> Tensor:
    h = _convolution(w, f"{name}.conv1", _active(w, f"{name}.norm1", x))
    h = _convolution(w, f"{name}.conv2", _active(w, f"{name}.norm2", h))
    return h + (_convolution(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def _attention(w: Weights, name: str, x: Tensor) -> Tensor:
    h = _norm(w, f"{name}.norm", x)
    q, k, v = (_convolution(w, f"{name}.{part}", h).flatten(2) for part in ("q", "k", "v"))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5, dim=-1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    return x + _convolution(w, f"{name}.proj_out", mixed)


def _convolution(w: Weights, name: str, x: Tensor, stride: int = 1, pad: int | None = None) -> Tensor:
    weight = w[f"{name}.weight"]
    return functional.conv2d(x, weight, w[f"{name}.bias"], stride, weight.shape[-1] // 2 if pad is None else pad)


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def _active(w: Weights, name: str, x: Tensor) -> Tensor:
    h = _norm(w, name, x)
    return h * torch.sigmoid(h)
