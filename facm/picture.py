"""Grids of pictures as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from facm.files import whole

LEAST_SIDE = 64  # pixels; smaller pictures are enlarged by whole factors
FRAME = 2


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """Pictures side by side, row by row.

    Args:
        images: uint8 (N, H, W, C), C 1 or 3.
        columns: pictures per row.
    """
    num, height, width, channels = images.shape
    factor = max(1, -(-LEAST_SIDE // height))
    tall, wide = height * factor + FRAME, width * factor + FRAME
    sheet = np.full((-(-num // columns) * tall + FRAME, columns * wide + FRAME, channels), 255, np.uint8)
    for i, image in enumerate(images.repeat(factor, 1).repeat(factor, 2)):
        top, left = i // columns * tall + FRAME, i % columns * wide + FRAME
        sheet[top : top + height * factor, left : left + width * factor] = image
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def save(image: Image.Image, path: str | Path) -> None:
    """Write a PNG under a temporary name, then move it into place."""
    with whole(Path(path)) as file:
        image.save(file, format="PNG")
