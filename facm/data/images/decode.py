"""An image file's bytes -> levels uint8 (H, W, 3): whatever Pillow reads is brought to RGB, or refused with a reason.

Grey is repeated, palettes are looked up, CMYK and the like are converted, transparent parts lie on white, grey of 12
and 16 bits becomes 8-bit by rounding, an EXIF orientation is applied, of an animation the first frame is taken. What
Pillow reads otherwise than the file means it is refused by name: 16-bit PNG colours of which one is transparent, signed
and 32-bit levels, and the TIFFs of `_misread`. Published code (ADM, DiT, LightningDiT) drops transparency and ignores
EXIF, which among ImageNet's photographs concerns a handful.

Damage within a JPEG's coded data cannot be noticed: it has no checksum, and decodes to a spoilt image.

The crop is ADM's (openai/guided-diffusion, guided_diffusion/image_datasets.py): halve by box averages while the short
side is at least twice the wanted one, then bicubic to the wanted short side, then the middle.
"""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

CHANNELS = 3
LEAST_SIDE = 2  # pixels; an image of one pixel, or a line, shows nothing
MOST_PIXELS = 2**27  # of an image brought to size, before the crop: narrower ones would fill the memory

LEVELS = {"L;2": 4, "L;4": 16}  # of grey PNGs that Pillow widens to 256
WIDE = ("PNG", "TIFF", "JPEG2000", "PPM")  # formats whose grey of more than 8 bits Pillow brings to a known range
TOP = 2**16 - 1  # of that range; 12-bit TIFFs keep theirs
TIFF = (b"II*\0", b"MM\0*")  # how its bytes begin
PHOTOMETRIC, BITS, COMPRESSION, PLANES, FORMAT = 262, 258, 259, 284, 339  # TIFF tags, with those of `_misread`

# What Pillow's readers raise on damaged bytes, by their own account and by trial.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, AttributeError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


class Unreadable(ValueError):
    """Bytes that are no usable image; the message is the reason."""


def levels(content: bytes, size: int | None) -> np.ndarray:
    """Levels uint8 (H, W, 3) of an image file's bytes, by ADM's crop to `size` pixels (None: as it is)."""
    picture = rgb(content)
    if min(picture.size) < LEAST_SIDE:
        raise Unreadable(f"{picture.width}x{picture.height} pixels")
    return np.asarray(picture if size is None else crop(picture, size))


def rgb(content: bytes) -> Image.Image:
    """The image upright, in mode RGB; raises as `levels`."""
    if not content:
        raise Unreadable("zero bytes")
    try:
        picture = _opened(content)
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable(_unknown(content)) from None
    except BROKEN as error:
        raise Unreadable(_first_line(error)) from None
    try:
        picture.load()
        if _is_wide(picture):
            return _rgb(_upright(_narrow(picture)))
        return _rgb(_upright(picture))
    except Unreadable:
        raise
    except BROKEN as error:
        raise Unreadable(_first_line(error)) from None


def highest(content: bytes) -> int | None:
    """Highest level, in 0..255, of an image that `levels` takes and whose samples have 16 bits; None of others."""
    picture = Image.open(BytesIO(content))
    tile = picture.tile[0] if picture.tile else None
    packing = str(tile.args) if tile else ""
    if _is_wide(picture):
        wide, top, _ = _grey(picture)
        return round(int(wide.max()) * 255 / top) if top == TOP else None
    colours = picture.format == "PPM" and tile is not None and isinstance(tile.args, tuple) and tile.args[1] > 255
    if not (colours or any(f";16{order}" in packing for order in "BLN")):
        return None
    return max(int(np.asarray(picture.getchannel(band)).max()) for band in picture.getbands() if band not in "Aa")


def crop(picture: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop to size x size pixels; Unreadable for an image so narrow that it would fill the memory."""
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
    """The image, not decoded; a PNG's checksums are compared, which decoding it does not do."""
    picture = Image.open(BytesIO(content))
    if picture.format == "PNG":
        picture.verify()
        picture = Image.open(BytesIO(content))
        _widen_transparent(picture)
    if isinstance(picture, TiffImageFile) and (reason := _misread(picture.tag_v2)):
        raise Unreadable(reason)
    return picture


def _misread(tags: ImageFileDirectory_v2) -> str:
    """Why Pillow would read a TIFF otherwise than its tags say; empty where it does not."""
    photometric, bits, samples = tags.get(PHOTOMETRIC), set(tags.get(BITS, (1,))), tags.get(277, 1)
    raw, planes = tags.get(COMPRESSION, 1) == 1, tags.get(PLANES, 1) == 2
    rules = {
        "a TIFF without PhotometricInterpretation: whether 0 is black or white is not known": photometric is None,
        "a TIFF of signed levels": 2 in tags.get(FORMAT, ()),
        "a TIFF of uncompressed YCbCr": photometric == 6 and raw and samples > 1,
        "a TIFF of other inks than CMYK": photometric == 5 and tags.get(332, 1) != 1,
        "a TIFF with a palette of 8 bits": photometric == 3 and max(tags.get(320, (TOP,))) < 256,
        "a TIFF of uncompressed planes that are not grey, RGB or CMYK of 8 bits": planes
        and raw
        and (bits != {8} or photometric not in (1, 2, 3, 5) or tags.get(266, 1) != 1),
    }
    return next((reason for reason, broken in rules.items() if broken), "")


def _unknown(content: bytes) -> str:
    """What a file is that Pillow does not know; of a TIFF its levels."""
    if not content.startswith(TIFF):
        return "not a picture that Pillow can read"
    try:
        tags, file = ImageFileDirectory_v2(content[:8]), BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        bits, form = tags.get(BITS, (1,)), tags.get(FORMAT, (1,))
    except BROKEN:
        return "a TIFF that is damaged"
    return (
        f"a TIFF that Pillow cannot read: PhotometricInterpretation {tags.get(PHOTOMETRIC)}, BitsPerSample "
        f"{'x'.join(map(str, bits))}, SampleFormat {'x'.join(map(str, form))}, Compression {tags.get(COMPRESSION, 1)}"
    )


def _is_wide(picture: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits in a range that is known."""
    return picture.format in WIDE and (
        picture.mode.startswith("I;16") or (picture.format == "PPM" and picture.mode == "I")
    )


def _grey(picture: Image.Image) -> tuple[np.ndarray, int, bool]:
    """Levels uint32 (H, W) as they are stored, the highest that there can be, and whether that one is black."""
    wide = np.asarray(picture).astype(np.uint32)
    if not isinstance(picture, TiffImageFile):
        return wide, TOP, False
    return wide, 2 ** picture.tag_v2[BITS][0] - 1, picture.tag_v2[PHOTOMETRIC] == 0


def _narrow(picture: Image.Image) -> Image.Image:
    """The same in mode L; a transparent level is white."""
    wide, top, inverted = _grey(picture)
    unseen = wide == picture.info.get("transparency")  # a level
    narrow = ((top - wide if inverted else wide) * 255 + top // 2) // top
    made = Image.fromarray(np.where(unseen, 255, narrow).astype(np.uint8))
    made.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return made


def _widen_transparent(picture: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent level to the range of its pixels, which Pillow scales as it decodes.

    Raises Unreadable for one of 16-bit colours, of which Pillow keeps 8 bits.
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
    if picture.mode in ("I", "F"):
        raise Unreadable(f"32-bit levels (mode {picture.mode}), whose range is not known")
    if picture.mode.startswith("I;16"):
        raise Unreadable(f"16-bit levels (mode {picture.mode}) of a format that does not say their range")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
