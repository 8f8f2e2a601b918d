"""Levels 0..255 as numbers in [-1, 1], and back.

Paper: does not say how images become uint8. Published code: floor(255 (x + 1)/2), which darkens by half a level on
average. Here: rounded (half up), as DiT, SiT and LightningDiT do, since then to_levels(from_levels(images)) == images;
`rounding="floor"` is the published way.
"""

from torch import Tensor, uint8

ROUNDINGS = {"round": 0.5, "floor": 0.0}


def refuse_rounding(rounding: str) -> None:
    """Raise ValueError for an unknown rounding."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding '{rounding}'; known: {', '.join(ROUNDINGS)}")


def from_levels(images: Tensor) -> Tensor:
    """Images uint8 (B, H, W, C) -> x = level/127.5 - 1, float32 (B, C, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_levels(x: Tensor, rounding: str = "round") -> Tensor:
    """x (B, C, H, W), clamped to [-1, 1] -> images uint8 (B, H, W, C)."""
    levels = (x.clamp(-1, 1) + 1) * 127.5 + ROUNDINGS[rounding]
    return levels.floor().to(uint8).permute(0, 2, 3, 1).contiguous()
