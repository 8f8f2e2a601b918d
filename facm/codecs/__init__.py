"""Codecs between pictures and the space of training, one file each; a new one is a file and a line in CODECS."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from facm.names import refuse_unknown

CODECS = {"identity": "Identity", "points": "Points", "sd_vae": "SdVae", "va_vae": "VaVae"}
POINTS = ("points",)  # which of them take points
WEIGHTS = ("sd_vae", "va_vae")  # which of them are networks, whose weights `latents.vae` names


class Codec(Protocol):
    """What a codec has; one that needs more than its name to be built has it in `options`, which are plain values."""

    name: str

    def encode(self, images: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Pictures uint8 (B, H, W, C) -> latents float32 (B, C', H', W'), not normalised; points (B, D) likewise.

        What is random about the latent of a picture depends on its number in `streams` (B,) only; None: 0, 1, ...
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C', H', W'), not normalised -> pictures uint8 (B, H, W, C)."""

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a picture (H, W, C) -> of its latent (C', H', W')."""


def build(name: str, **options: Any) -> Codec:
    """Make a codec.

    Args:
        name: a key of CODECS.
        options: named options of its class.

    Raises:
        ValueError: unknown name.
    """
    refuse_unknown([name], CODECS, "params.yaml, latents.codec")
    codec: Codec = getattr(import_module(f"{__name__}.{name}"), CODECS[name])(**options)
    return codec
