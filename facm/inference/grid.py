"""Grids of images, and scatter plots of points, as PNG files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facm.data.images.images import kind
from facm.runtime.files import atomic_write

LEAST_SIDE = 64  # pixels; smaller images are enlarged by whole factors
FRAME = 2
PLOT_SIDE = 320  # pixels of a scatter plot


def sheet(samples: Any, columns: int, rows: int | None = None) -> Image.Image:
    """Samples as one image: of images the first `columns` x `rows` (None: all) as a `grid`, of points a `scatter` plot.

    They are uint8 (N, H, W, C) or float32 (N, D), an array or an archive's.
    """
    if kind(samples.dtype, samples.shape) == "points":
        return scatter(np.asarray(samples))
    return grid(np.asarray(samples if rows is None else samples[: columns * rows]), columns)


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """Images uint8 (N, H, W, C), C 1 or 3, side by side, row by row."""
    num, height, width, channels = images.shape
    factor = max(1, -(-LEAST_SIDE // height))
    tall, wide = height * factor + FRAME, width * factor + FRAME
    sheet = np.full((-(-num // columns) * tall + FRAME, columns * wide + FRAME, channels), 255, np.uint8)
    for i, image in enumerate(images.repeat(factor, 1).repeat(factor, 2)):
        top, left = i // columns * tall + FRAME, i % columns * wide + FRAME
        sheet[top : top + height * factor, left : left + width * factor] = image
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def scatter(points: np.ndarray) -> Image.Image:
    """First and last coordinate of points (N, D) in a square around 0, upwards; more points on a pixel are darker.

    It reaches to the next whole number beyond the 99th percentile of the coordinates' absolute values, which is the
    same for plots of nearly the same points.
    """
    shown = points[np.isfinite(points).all(1)][:, [-1, 0]].astype(np.float64)
    reach = float(max(1, np.ceil(np.quantile(np.abs(shown), 0.99)))) if len(shown) else 1.0
    counts, _, _ = np.histogram2d(-shown[:, 0], shown[:, 1], PLOT_SIDE, [[-reach, reach]] * 2)
    return Image.fromarray((255 * 0.35**counts).astype(np.uint8))


def save(image: Image.Image, path: str | Path) -> None:
    """Write a PNG under a temporary name, then move it into place."""
    with atomic_write(Path(path)) as file:
        image.save(file, format="PNG")
