"""A picture file's bytes -> levels uint8 (H, W, 3): whatever Pillow reads is brought to RGB, or refused with a reason.

Grey is repeated, palettes are looked up, CMYK and the like are converted, transparent parts lie on white, 16-bit grey
becomes 8-bit by rounding, an EXIF orientation is applied, of an animation the first frame is taken. A PNG of 16-bit
colours of which one is transparent is refused: Pillow reads 8 bits of them. Published code (ADM, DiT, LightningDiT)
drops transparency and ignores EXIF, which among ImageNet's photographs concerns a handful.

Damage within a JPEG's coded data cannot be told: it has no checksum, and decodes to a spoilt picture.

The crop is ADM's (openai/guided-diffusion, guided_diffusion/image_datasets.py): halve by box averages while the short
side is at least twice the wanted one, then bicubic to the wanted short side, then the middle.
"""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

CHANNELS = 3
LEAST_SIDE = 2  # pixels; a picture of one pixel, or a line, shows nothing
MOST_PIXELS = 2**27  # of a picture brought to size, before the crop: narrower ones would fill the memory

LEVELS = {"L;2": 4, "L;4": 16}  # of grey PNGs that Pillow widens to 256

# What Pillow's readers raise on damaged bytes, by their own account and by trial.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, AttributeError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


class Unreadable(ValueError):
    """Bytes that are no usable picture; the message is the reason."""


def levels(content: bytes, size: int | None) -> np.ndarray:
    """Levels uint8 (H, W, 3) of a picture file.

    Args:
        content: the file's bytes.
        size: pixels per side, by ADM's crop; None: as the picture is.

    Raises:
        Unreadable: no picture, a damaged one, or one that cannot be converted.
    """
    picture = rgb(content)
    if min(picture.size) < LEAST_SIDE:
        raise Unreadable(f"{picture.width}x{picture.height} pixels")
    return np.asarray(picture if size is None else crop(picture, size))


def rgb(content: bytes) -> Image.Image:
    """The picture upright, in mode RGB.

    Raises:
        Unreadable: as `levels`.
    """
    if not content:
        raise Unreadable("zero bytes")
    try:
        picture = _opened(content)
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable("not a picture that Pillow can read") from None
    except BROKEN as error:
        raise Unreadable(_first_line(error)) from None
    try:
        picture.load()
        return _rgb(_upright(picture))
    except Unreadable:
        raise
    except BROKEN as error:
        raise Unreadable(_first_line(error)) from None


def crop(picture: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop to size x size pixels.

    Raises:
        Unreadable: a picture so narrow that it would fill the memory on the way.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    if width * height > MOST_PIXELS:
        raise Unreadable(f"{picture.width}x{picture.height} pixels are too narrow for a crop of {size}")
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _opened(content: bytes) -> Image.Image:
    """The picture, not decoded; a PNG's checksums are compared, which decoding it does not do."""
    picture = Image.open(BytesIO(content))
    if picture.format == "PNG":
        picture.verify()
        picture = Image.open(BytesIO(content))
        _widen_transparent(picture)
    return picture


def _widen_transparent(picture: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent level to the range of its pixels, which Pillow scales as it decodes.

    Raises:
        Unreadable: it is one of 16-bit colours, of which Pillow keeps 8 bits.
    """
    packing = picture.tile[0].args if "transparency" in picture.info and picture.tile else ""
    if packing == "RGB;16B":
        raise Unreadable("16-bit colours of which one is transparent: store it with 8 bits")
    if packing in LEVELS:
        picture.info["transparency"] *= 255 // (LEVELS[packing] - 1)


def _upright(picture: Image.Image) -> Image.Image:
    """As the EXIF orientation says; a damaged EXIF block is ignored."""
    try:
        return ImageOps.exif_transpose(picture)
    except BROKEN:
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.uint32)
        unseen = wide == picture.info.get("transparency")  # a level
        narrow = np.where(unseen, 255, (wide + 128) // 257)
        return Image.fromarray(narrow.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise Unreadable(f"32-bit levels (mode {picture.mode}), whose range is not known")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
