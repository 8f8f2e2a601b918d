"""Pictures as data URIs: PNG, small ones pixel for pixel (the page enlarges them), large ones reduced."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from facm.report.tags import Html, tag

LARGEST = 128  # pixels per side, at most
LEAST = 24  # below which a picture is never reduced, whatever the budget
BUDGET = 3_300_000  # bytes of a page's pixels, uncompressed: its PNGs, in base64, stay below 4/3 of that and headers
PIXELATED = 64  # sides up to which a browser is to show pixels


def side_of(shape: Sequence[int], num: int) -> int:
    """Pixels per side at which `num` pictures (H, W, C) of a page are shown, so that they keep within BUDGET."""
    height, width, _ = shape
    fits = math.isqrt(BUDGET // (3 * max(1, num)))
    return min(max(height, width), LARGEST, max(LEAST, fits))


def strip(images: np.ndarray, alt: str, side: int) -> Html:
    """Pictures uint8 (N, H, W, C) side by side, as one image.

    Args:
        images: the pictures.
        alt: what they are.
        side: largest number of pixels per picture's side, see `side_of`.
    """
    small = [reduced(image, side) for image in images]
    height, width = np.asarray(small[0]).shape[:2]
    gap = max(1, height // 16)
    sheet = Image.new("LA" if images.shape[-1] == 1 else "RGBA", (len(small) * (width + gap) - gap, height))
    for i, image in enumerate(small):
        sheet.paste(image.convert(sheet.mode), (i * (width + gap), 0))
    kind = "pixels" if max(height, width) <= PIXELATED else None
    return tag("img", src=uri(sheet), alt=alt, class_=kind, width=sheet.width, height=sheet.height)


def reduced(image: np.ndarray, side: int) -> Image.Image:
    """One picture (H, W, C), its larger side at most `side`."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    largest = max(picture.size)
    if largest <= side:
        return picture
    size = tuple(max(1, round(length * side / largest)) for length in picture.size)
    return picture.resize(size, Image.Resampling.BOX)  # type: ignore[arg-type]


def uri(image: Image.Image) -> str:
    """A PNG as a data URI."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
