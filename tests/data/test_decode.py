"""One picture file to levels: ADM's crop by its own formula, odd modes converted, damage refused with a reason."""

import struct
import zlib

import numpy as np
import pytest
from picture_files import encoded, jpeg, levels, tiff
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
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts if part != (b"tRNS", b""))


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


def packed(values: list[int], bits: int, order: str) -> bytes:
    """Four rows of the same grey values, as a TIFF stores them."""
    if bits == 16:
        return struct.pack(f"{order}4H", *values) * 4
    row = int("".join(f"{value:0{bits}b}" for value in values), 2) << -4 * bits % 8
    return row.to_bytes((4 * bits + 7) // 8, "big") * 4


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiffs_are_what_their_tags_say_or_refused(
    bits: int, compress: bool, white_is_zero: bool, order: str
) -> None:
    top = 2**bits - 1
    values = [0, top, top // 3, top - top // 3]
    content = tiff(packed(values, bits, order), bits, int(not white_is_zero), order=order, packed=compress)
    unread = (bits == 12 and (white_is_zero or order == ">")) or (bits == 16 and white_is_zero and order == ">")
    if unread:
        wanted = f"PhotometricInterpretation {int(not white_is_zero)}, BitsPerSample {bits}, SampleFormat 1"
        with pytest.raises(Unreadable, match=f"a TIFF that Pillow cannot read: {wanted}"):
            decode.levels(content, None)
        return
    expected = [round(255 * (top - value if white_is_zero else value) / top) for value in values]
    assert decode.levels(content, None)[3, :, 1].tolist() == expected


def test_the_tiffs_of_the_report_are_right() -> None:
    assert decode.levels(tiff(struct.pack("<16H", *[6425] * 16), 16, 0), None)[0, 0, 0] == 230
    assert decode.levels(tiff(b"\xff" * 24, 12, 1), None)[0, 0, 0] == 255


RED = bytes([0, 255, 255, 0] * 16)  # of CMYK
PALETTE = [0, 200] + [0] * 14 + [0, 100] + [0] * 14 + [0, 50] + [0] * 14
HALF = bytes([200, 100, 50, 128] * 16)
COLOURS = {
    "RGB": (tiff(bytes([10, 20, 30] * 16), 8, 2, samples=3), [10, 20, 30]),
    "RGB, 16 bits": (tiff(struct.pack(">3H", 2570, 5140, 7710) * 16, 16, 2, samples=3, order=">"), [10, 20, 30]),
    "RGB in planes": (tiff([b"\x0a" * 16, b"\x14" * 16, b"\x1e" * 16], 8, 2, samples=3), [10, 20, 30]),
    "RGB in packed planes of 16 bits": (
        tiff([struct.pack("<16H", *[257 * v] * 16) for v in (10, 20, 30)], 16, 2, samples=3, packed=True),
        [10, 20, 30],
    ),
    "transparent": (tiff(HALF, 8, 2, samples=4, more={338: [2]}), [227, 177, 152]),
    "an unused fourth": (tiff(HALF, 8, 2, samples=4, more={338: [0]}), [200, 100, 50]),
    "CMYK": (tiff(RED, 8, 5, samples=4), [255, 0, 0]),
    "CMYK, 16 bits": (tiff(bytes(RED[i // 2] for i in range(128)), 16, 5, samples=4), [255, 0, 0]),
    "palette": (tiff(b"\x11" * 8, 4, 3, more={320: [257 * v for v in PALETTE]}), [200, 100, 50]),
    "packed YCbCr": (tiff(bytes([76, 85, 255] * 16), 8, 6, samples=3, packed=True, more={530: [1, 1]}), [254, 0, 0]),
    "packed YCbCr, 4:2:0": (tiff(bytes([76] * 4 + [85, 255]) * 4, 8, 6, samples=3, packed=True), [254, 0, 0]),
    "Lab": (tiff(bytes([255, 0, 0] * 16), 8, 8, samples=3), [255, 255, 255]),
    "fax, white": (tiff(bytes([0xF0, 0x01, 0x00, 0x10]), 1, 0, more={259: [4]}), [255, 255, 255]),
    "fax, black": (tiff(bytes([0xF0, 0x01, 0x00, 0x10]), 1, 1, more={259: [4]}), [0, 0, 0]),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_tiffs_are_what_their_tags_say(name: str) -> None:
    content, expected = COLOURS[name]
    found = decode.levels(content, None).reshape(-1, 3)
    assert np.abs(found - np.array(expected)).max() <= 1 and (found == found[0]).all()


SHORTS = struct.pack("<16H", *range(16))
MISREAD = {
    "signed levels": tiff(bytes(16), 8, 1, more={339: [2]}),
    "signed levels ": tiff(SHORTS, 16, 1, more={339: [2]}),
    "SampleFormat 3": tiff(SHORTS, 16, 1, more={339: [3]}),
    "SampleFormat 4": tiff(bytes(16), 8, 1, more={339: [4]}),
    "32-bit levels .mode F": tiff(bytes(64), 32, 0, more={339: [3]}),
    "32-bit levels .mode I": tiff(bytes(64), 32, 1),
    "without PhotometricInterpretation": tiff(bytes(16), 8, None),
    "uncompressed YCbCr": tiff(bytes([76] * 4 + [85, 255]) * 4, 8, 6, samples=3),
    "other inks than CMYK": tiff(RED, 8, 5, samples=4, more={332: [2]}),
    "a palette of 8 bits": tiff(b"\x11" * 8, 4, 3, more={320: PALETTE}),
    "uncompressed planes": tiff([SHORTS] * 3, 16, 2, samples=3),
    "uncompressed planes ": tiff(bytes(16), 8, 0, more={284: [2]}),
    "BitsPerSample 10,": tiff(bytes(20), 10, 1),
    "BitsPerSample 12x12x12": tiff(bytes(72), 12, 2, samples=3),
    "PhotometricInterpretation 9": tiff(bytes(48), 8, 9, samples=3),
    "PhotometricInterpretation 32803": tiff(SHORTS, 16, 32803),
}


@pytest.mark.parametrize("name", MISREAD)
def test_tiffs_whose_levels_pillow_does_not_honour_are_refused_by_name(name: str) -> None:
    with pytest.raises(Unreadable, match=name.strip()):
        decode.levels(MISREAD[name], None)


def test_grey_maps_have_the_range_that_they_say_and_16_bits_of_unknown_range_are_refused() -> None:
    for top in (15, 255, 4095, 65535):
        values = [0, top // 3, top, top]
        raw = struct.pack(f">{16 if top > 255 else 0}H", *values * (4 if top > 255 else 0)) or bytes(values * 4)
        for content in (b"P5 4 4 %d\n" % top + raw, b"P2 4 4 %d\n" % top + b" ".join(b"%d" % v for v in values * 4)):
            found = decode.levels(content, None)[0, :, 0].tolist()
            assert found == [0, 85, 255, 255], (top, content)
    with pytest.raises(Unreadable, match=r"16-bit levels \(mode I;16\) of a format that does not say their range"):
        decode.levels(encoded(Image.new("I;16", (4, 4)), "IM"), None)
    cards = {"SIMPLE": "T", "BITPIX": "16", "NAXIS": "2", "NAXIS1": "4", "NAXIS2": "4"}
    head = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END"
    with pytest.raises(Unreadable, match="does not say their range"):
        decode.levels(head.ljust(2880).encode() + bytes(2880), None)


def test_an_orientation_is_applied_to_16_bit_grey_too() -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 2570
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(values), exif=exif)
    assert np.array_equal(decode.levels(content, None)[:, :, 0], np.rot90(values // 257, -1))
    turned = tiff(bytes(range(16)), 8, 1, more={274: [6]})
    assert decode.levels(turned, None)[0, :, 0].tolist() == [12, 8, 4, 0]


def test_the_highest_level_is_that_of_16_bit_images_only() -> None:
    deep = np.array([[0, 4095]] * 2, np.uint16)
    colours = png(16, 2, [struct.pack(">6H", 0, 0, 4095, 0, 4000, 0)] * 2, b"")
    for content in (
        encoded(Image.fromarray(deep)),
        tiff(struct.pack("<16H", *[4095] * 16), 16, 0),
        tiff(struct.pack("<48H", *[4000] * 48), 16, 2, samples=3),
        encoded(Image.fromarray(deep), "JPEG2000"),
    ):
        assert decode.highest(content) in (15, 16)
    assert decode.highest(colours) == 15
    assert decode.highest(b"P6 4 4 65535\n" + struct.pack(">48H", *[4095] * 48)) == 16
    assert decode.highest(b"P6 4 4 255\n" + bytes(48)) is decode.highest(b"P4 4 4\n" + bytes(4)) is None
    assert decode.highest(encoded(Image.fromarray(deep * 16))) == 255
    assert [decode.highest(content) for content in (jpeg(), tiff(b"\x11" * 24, 12, 1), tiff(bytes(16), 8, 1))] == [
        None
    ] * 3


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
