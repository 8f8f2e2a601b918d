"""Codecs between pictures and the space of training, one file each; a new one is a file and a line in CODECS."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from facm.names import refuse_unknown

CODECS = {"identity": "Identity", "points": "Points"}
POINTS = ("points",)  # which of them take points


class Codec(Protocol):
    """What a codec has."""

    name: str

    def encode(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, H, W, C) -> latents float32 (B, C', H', W'), not normalised; points (B, D) likewise."""

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
