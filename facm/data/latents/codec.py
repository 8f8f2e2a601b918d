"""What a codec between images and latents has."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """A codec; one that needs more than its name to be built has it in `options`, which are plain values."""

    name: str

    def encode(self, images: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Images uint8 (B, H, W, C) -> latents float32 (B, C', H', W'), not normalised; points (B, D) likewise.

        What is random about the latent of an image depends on its number in `streams` (B,) only; None: 0, 1, ...
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C', H', W'), not normalised -> images uint8 (B, H, W, C)."""

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of an image (H, W, C) -> of its latent (C', H', W')."""
