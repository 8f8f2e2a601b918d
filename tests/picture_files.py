"""Picture files as they lie about on disks: good ones, odd ones, damaged ones."""

import struct
import zlib
from collections.abc import Mapping, Sequence
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


def tiff(
    strips: bytes | Sequence[bytes],
    bits: int,
    photometric: int | None,
    *,
    order: str = "<",
    samples: int = 1,
    packed: bool = False,
    more: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF of 4 x 4 pixels, put together by hand, so that no decoder decides what it means.

    Args:
        strips: the pixels as they are stored, or those of each plane.
        bits: per sample.
        photometric: 0: white is zero, 1: black is, ...; None: no such tag.
        order: of bytes, < or >.
        samples: per pixel.
        packed: compress the strips.
        more: values of further tags, or other values of these.
    """
    planes = [strips] if isinstance(strips, bytes) else list(strips)
    planes = [zlib.compress(plane) for plane in planes] if packed else planes
    starts = [8 + sum(map(len, planes[:number])) for number in range(len(planes))]
    tags: dict[int, Sequence[int]] = {256: [4], 257: [4], 258: [bits] * samples, 259: [8 if packed else 1]}
    tags |= {} if photometric is None else {262: [photometric]}
    tags |= {273: starts, 277: [samples], 278: [4], 279: list(map(len, planes)), 284: [1 if len(planes) == 1 else 2]}
    tags |= more or {}
    at = 8 + sum(map(len, planes))
    entries, beyond = b"", b""
    for tag, values in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(values)}H", *values)
        if len(raw) > 4:
            place = at + 2 + 12 * len(tags) + 4 + len(beyond)
            raw, beyond = struct.pack(f"{order}I", place), beyond + raw
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + raw.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", at)
    return head + b"".join(planes) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + beyond
