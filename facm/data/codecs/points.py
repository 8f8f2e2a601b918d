"""Training on points as they stand: their coordinates are the channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Points:
    """Points themselves, in the data's units both ways."""

    name: ClassVar[str] = "points"

    def encode(self, images: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Points float32 (B, D) -> the same."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """(B, D) -> points float32 (B, D)."""
        return latents.float()

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(D,) -> (D,)."""
        return tuple(image_shape)
