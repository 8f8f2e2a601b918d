"""Training in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from facm.data.images.levels import from_levels, refuse_rounding, to_levels


@dataclass(frozen=True)
class Identity:
    """Pixels themselves; rounding: round (half up) | floor, of the decoded level."""

    name: ClassVar[str] = "identity"
    rounding: str = "round"

    def __post_init__(self) -> None:
        refuse_rounding(self.rounding)

    def encode(self, images: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Images uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1]."""
        return from_levels(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) -> images uint8 (B, H, W, C)."""
        return to_levels(latents, self.rounding)

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, int, int]:
        """(H, W, C) -> (C, H, W)."""
        height, width, channels = image_shape
        return channels, height, width
