"""Picture files as they lie about on disks: good ones, odd ones, damaged ones."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def levels(seed: int = 0, side: int = 24, wide: int | None = None) -> np.ndarray:
    """A smooth picture with some noise, uint8 (side, wide, 3)."""
    y, x = np.mgrid[0:side, 0 : wide or side] / side
    noise = np.random.default_rng(seed).integers(0, 40, (side, wide or side, 3))
    return (np.stack([200 * x, 200 * y, 100 * (x + y)], 2) + noise).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of a picture file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int = 0, side: int = 24, wide: int | None = None) -> bytes:
    """A JPEG picture."""
    return encoded(Image.fromarray(levels(seed, side, wide)), "JPEG", quality=90)


def fill(folder: Path, num: int, side: int = 24, first: int = 0) -> None:
    """Write `num` JPEG pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        (folder / f"{first + i:03d}.jpg").write_bytes(jpeg(first + i, side))
