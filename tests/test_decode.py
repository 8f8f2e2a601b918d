"""One picture file to levels: ADM's crop by its own formula, odd modes converted, damage refused with a reason."""

import struct
import zlib

import numpy as np
import pytest
from picture_files import encoded, jpeg, levels
from PIL import Image, features

from facm.data.images import decode
from facm.data.images.decode import Unreadable, crop


@pytest.mark.parametrize(
    ("sides", "size"), [((40, 64), 16), ((16, 16), 16), ((31, 45), 16), ((5, 9), 16), ((200, 33), 8)], ids=str
)
def test_the_crop_is_adms(sides: tuple[int, int], size: int) -> None:
    """Written again from its description: halved by boxes of 2x2, bicubic to the short side, the array's middle."""
    picture = Image.fromarray(levels(side=sides[0], wide=sides[1]))
    expected = picture
    while min(expected.size) >= 2 * size:
        expected = expected.resize(tuple(side // 2 for side in expected.size), Image.BOX)
    scale = size / min(expected.size)
    pixels = np.asarray(expected.resize(tuple(round(side * scale) for side in expected.size), Image.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    found = np.asarray(crop(picture, size))
    assert found.shape == (size, size, 3) and np.array_equal(found, pixels[top : top + size, left : left + size])


def test_a_halved_picture_has_the_means_of_2x2_boxes() -> None:
    pixels = levels(side=32)
    means = pixels.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(crop(Image.fromarray(pixels), 16)).astype(float) - means).max() <= 1


def test_without_a_size_a_lossless_picture_comes_back_as_it_is() -> None:
    pixels = levels(side=7, wide=9)
    assert np.array_equal(decode.levels(encoded(Image.fromarray(pixels)), None), pixels)


def colour(picture: Image.Image, kind: str = "PNG", **options) -> list[int]:
    """The colour of a picture of one colour, after decoding."""
    found = decode.levels(encoded(picture, kind, **options), None)
    assert found.dtype == np.uint8 and (found == found[0, 0]).all()
    return found[0, 0].tolist()


def test_odd_modes_become_rgb() -> None:
    assert colour(Image.new("L", (4, 4), 77)) == [77] * 3
    assert colour(Image.new("1", (4, 4), 1)) == [255] * 3
    assert colour(Image.new("RGBA", (4, 4), (10, 20, 30, 255))) == [10, 20, 30]
    assert colour(Image.new("RGBA", (4, 4), (10, 20, 30, 0))) == [255] * 3, "what is hidden stays hidden"
    assert colour(Image.new("LA", (4, 4), (0, 128))) == [127] * 3
    palette = Image.new("RGB", (4, 4), (200, 100, 50)).quantize(4)
    assert palette.mode == "P" and colour(palette) == [200, 100, 50]
    assert colour(palette, transparency=0) == [255] * 3
    cmyk = colour(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert cmyk[0] > 245 and max(cmyk[1:]) < 10, "no ink of cyan, all of magenta and yellow: red"
    gif = encoded(Image.new("P", (4, 4), 0), "GIF", save_all=True, append_images=[Image.new("P", (4, 4), 1)])
    assert decode.levels(gif, None).shape == (4, 4, 3)


def test_a_transparent_level_of_16_bit_grey_is_white() -> None:
    values = np.array([[0, 30000, 30000, 65535]], np.uint16).repeat(4, 0)
    content = encoded(Image.fromarray(values), "PNG", transparency=30000)
    assert decode.levels(content, None)[0, :, 0].tolist() == [0, 255, 255, 255]


def png(bits: int, kind: int, rows: list[bytes], transparent: bytes) -> bytes:
    """A PNG of two columns, put together by hand: Pillow writes neither 2 or 4 bits of grey nor 16 of colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 2, len(rows), bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = ((b"IHDR", head), (b"tRNS", transparent), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(("bits", "row", "other"), [(2, 0b0110_0000, 170), (4, 0x1A, 170), (8, None, 10)])
def test_a_transparent_level_of_few_bits_is_white(bits: int, row: int | None, other: int) -> None:
    content = png(bits, 0, [bytes([1, 10] if row is None else [row])] * 2, struct.pack(">H", 1))
    assert decode.levels(content, None)[0, :, 0].tolist() == [255, other]


def test_a_transparent_one_of_16_bit_colours_is_refused() -> None:
    row = struct.pack(">6H", 0x1234, 0x2345, 0x3456, 0x1234, 0x2345, 0x3457)
    with pytest.raises(Unreadable, match="16-bit colours of which one is transparent: store it with 8 bits"):
        decode.levels(png(16, 2, [row] * 2, row[:6]), None)


def test_16_bit_grey_is_rounded_not_clipped() -> None:
    values = np.array([[0, 128, 129, 256, 257, 30000, 65406, 65407, 65535]], np.uint16).repeat(2, 0)
    found = decode.levels(encoded(Image.fromarray(values)), None)
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 1, 117, 254, 255, 255]
    big_endian = encoded(Image.fromarray(values), "TIFF")
    assert np.array_equal(decode.levels(big_endian, None), found)


def test_the_exif_orientation_is_applied() -> None:
    pixels = levels(side=6, wide=8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    assert np.array_equal(decode.levels(encoded(Image.fromarray(pixels), exif=exif), None), np.rot90(pixels, -1))


DAMAGED = {
    "zero bytes": (b"", "zero bytes"),
    "text": (b"no picture at all\n" * 20, "not a picture that Pillow can read"),
    "half a JPEG": (jpeg(side=64)[:900], "truncated"),
    "half a PNG": (encoded(Image.fromarray(levels(side=64)))[:4000], "truncated|Truncated|broken"),
    "a JPEG's header": (jpeg()[:20], "not a picture|truncated"),
    "a PNG of other bytes": (encoded(Image.fromarray(levels()))[:200] + bytes(2000), "broken|truncated|checksum"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), "1x1 pixels"),
    "a line": (encoded(Image.new("RGB", (9, 1))), "9x1 pixels"),
    "floats": (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit levels \\(mode F\\)"),
    "a ribbon": (encoded(Image.new("RGB", (60000, 2))), "too narrow for a crop of 256"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_cannot_be_used_is_refused_with_the_reason(name: str) -> None:
    content, reason = DAMAGED[name]
    with pytest.raises(Unreadable, match=reason):
        decode.levels(content, 256)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"])
def test_whatever_bytes_are_spoilt_nothing_else_is_raised(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    whole, generator = encoded(Image.fromarray(levels(side=16)), kind), np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        content = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        for place in generator.integers(0, len(content), 8):
            content[place] = generator.integers(256)
        try:
            outcomes.add(decode.levels(bytes(content), 16).shape)
        except Unreadable:
            outcomes.add("refused")
    assert "refused" in outcomes and outcomes <= {"refused", (16, 16, 3)}
