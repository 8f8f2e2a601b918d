"""Training in pixels: levels 0..255 to [-1, 1] and back.

Paper: does not say how pictures become uint8. Published code: floor(255 (x + 1)/2), which darkens by half a level on
average. Here: rounded (half up), as DiT, SiT and LightningDiT do, because then decode(encode(images)) == images;
`rounding="floor"` is the published way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

ROUNDINGS = {"round": 0.5, "floor": 0.0}


@dataclass(frozen=True)
class Identity:
    """Pixels themselves.

    Attributes:
        rounding: round (half up) | floor, of the decoded level.
    """

    name: ClassVar[str] = "identity"
    rounding: str = "round"

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown rounding."""
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"identity codec: unknown rounding '{self.rounding}'; known: {', '.join(ROUNDINGS)}")

    def encode(self, images: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Pictures uint8 (B, H, W, C) -> x = level/127.5 - 1, float32 (B, C, H, W) in [-1, 1]."""
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W), clamped to [-1, 1] -> pictures uint8 (B, H, W, C)."""
        levels = (latents.clamp(-1, 1) + 1) * 127.5 + ROUNDINGS[self.rounding]
        return levels.floor().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, int, int]:
        """(H, W, C) -> (C, H, W)."""
        height, width, channels = image_shape
        return channels, height, width
