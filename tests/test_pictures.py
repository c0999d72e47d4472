"""Image files, odd, damaged and hostile: each is a picture or a BadRequest, at a cost that its pixels explain."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from puna.core import pictures
from puna.core.avif import frame_sizes
from puna.core.errors import BadRequest
from puna.core.pictures import Picture, open_frames, open_picture

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as it is outside of tests

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LOSSLESS = ["PNG", "GIF", "BMP", "TIFF", "WEBP"]
AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no decoder of AVIF")
EVERY = [*LOSSLESS, "JPEG", pytest.param("AVIF", marks=AVIF)]


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    if format == "WEBP":
        options = {"lossless": True, "exact": True} | options
    image.save(out, format, **options)
    return out.getvalue()


def corners(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture that no turn leaves as it is: red, green, blue and white from the top left on."""
    image = Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for number, colour in enumerate([RED, GREEN, BLUE, WHITE]):
        image.paste(colour, (number % 2 * width, number // 2 * height, size[0], size[1] if number > 1 else height))
    return image.convert(mode)


def seen(picture: Picture) -> list[tuple[int, int, int]]:
    """The colours near the four corners."""
    wide, high = picture.width, picture.height
    places = [(wide // 4, high // 4), (3 * wide // 4, high // 4), (wide // 4, 3 * high // 4)]
    return [picture.image.getpixel(place) for place in [*places, (3 * wide // 4, 3 * high // 4)]]


def close(found: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]) -> bool:
    return bool(np.abs(np.array(found) - np.array(expected)).max() <= 12)


def refused(data: bytes) -> str:
    with pytest.raises(BadRequest) as refusal:
        open_picture(data)
    return str(refusal.value)


# Formats and modes


@pytest.mark.parametrize("format", EVERY)
def test_each_format_is_read(format):
    picture = open_picture(encoded(corners(), format))
    assert (picture.width, picture.height, picture.image.mode) == (64, 48, "RGB")
    assert close(seen(picture), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("1", "PNG"), ("L", "PNG"), ("L", "JPEG"), ("P", "PNG"), ("P", "GIF"), ("P", "BMP"), ("1", "TIFF"),
        ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF"), ("RGBA", "PNG"), ("LA", "PNG"),
        ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("F", "TIFF"), ("I", "TIFF"), ("I;16", "TIFF"),
    ],
)  # fmt: skip
def test_each_mode_becomes_rgb(mode, format):
    source = corners("L").convert(mode) if mode in ("I", "I;16", "F") else corners(mode)
    picture = open_picture(encoded(source, format))
    assert picture.image.mode == "RGB"
    assert picture.image.size == (64, 48)
    if mode in ("CMYK", "YCbCr", "RGBA", "P"):
        assert close(seen(picture), [RED, GREEN, BLUE, WHITE])
    elif mode == "F":
        assert close(seen(picture), [(value,) * 3 for value in (76, 149, 29, 255)])


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_in_16_bits_keeps_its_range(format):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(4, 0)
    picture = open_picture(encoded(Image.fromarray(ramp), format))
    assert [picture.image.getpixel((x, 2)) for x in (0, 128, 255)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *extra: bytes, compressed: bytes = b"") -> bytes:
    """A PNG file written by hand: header, chunks of one's own, pixels, end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", compressed or zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize(
    ("kind", "pixel", "colour"),
    [
        (2, struct.pack(">HHH", 0xFFFF, 0x8080, 0), (255, 128, 0)),
        (6, struct.pack(">HHHH", 0xFFFF, 0x8080, 0, 0xFFFF), (255, 128, 0)),
        (6, struct.pack(">HHHH", 0xFFFF, 0, 0, 0), WHITE),
        (4, struct.pack(">HH", 0x4040, 0xFFFF), (64, 64, 64)),
    ],
)
def test_colours_in_16_bits_are_read(kind, pixel, colour):
    assert open_picture(png(1, 1, 16, kind, b"\0" + pixel)).image.getpixel((0, 0)) == colour


def test_a_colour_that_stands_for_transparency_is_white():
    clear = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert open_picture(png(1, 1, 8, 2, b"\0\1\2\3", clear)).image.getpixel((0, 0)) == WHITE
    assert open_picture(png(1, 1, 8, 2, b"\0\1\2\4", clear)).image.getpixel((0, 0)) == (1, 2, 4)
    grey = chunk(b"tRNS", struct.pack(">H", 0x1234))
    assert open_picture(png(1, 1, 16, 0, b"\0\x12\x34", grey)).image.getpixel((0, 0)) == WHITE
    assert open_picture(png(1, 1, 16, 0, b"\0\x12\x35", grey)).image.getpixel((0, 0)) == (18, 18, 18)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=AVIF)])
def test_what_is_transparent_lies_on_white(format):
    image = corners("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 32, 24))
    image.paste((0, 0, 0, 128), (32, 0, 64, 24))
    assert close(seen(open_picture(encoded(image, format))), [WHITE, (127, 127, 127), BLUE, WHITE])


def test_grey_and_palettes_may_be_transparent_too():
    half = corners("RGBA")
    half.paste((0, 0, 0, 0), (0, 0, 32, 24))
    palette = corners("P")
    clear = palette.getpixel((1, 1))
    graded = bytes(0 if number == clear else 255 for number in range(256))
    for data in (
        encoded(half.convert("LA"), "PNG"),
        encoded(palette, "GIF", transparency=clear),
        encoded(palette, "PNG", transparency=clear),
        encoded(palette, "PNG", transparency=graded),
    ):
        assert seen(open_picture(data))[0] == WHITE


def test_tall_pictures_are_converted_whole():
    image = Image.new("RGBA", (3, 1000), (0, 0, 0, 0))
    image.putpixel((1, 999), (0, 0, 255, 255))
    image.putpixel((2, 256), (255, 0, 0, 255))
    picture = open_picture(encoded(image, "PNG")).image
    assert (picture.getpixel((1, 999)), picture.getpixel((2, 256)), picture.getpixel((0, 512))) == (BLUE, RED, WHITE)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (2, 3)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF"])
def test_sizes_may_be_extreme(format, size):
    assert open_picture(encoded(Image.new("RGB", size, RED), format)).image.size == size


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=AVIF)])
def test_only_the_first_frame_of_several_counts(format):
    frames = [Image.new("RGB", (32, 32), colour) for colour in (BLUE, RED, GREEN)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert close([open_picture(data).image.getpixel((9, 9))], [BLUE])


# EXIF


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif.tobytes()


TURNED = {
    1: [RED, GREEN, BLUE, WHITE], 2: [GREEN, RED, WHITE, BLUE], 3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN], 5: [RED, BLUE, GREEN, WHITE], 6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED], 8: [GREEN, WHITE, RED, BLUE], 0: [RED, GREEN, BLUE, WHITE],
    9: [RED, GREEN, BLUE, WHITE],
}  # fmt: skip


@pytest.mark.parametrize("value", TURNED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_exif_data_say(format, value):
    picture = open_picture(encoded(corners(), format, exif=with_orientation(value)))
    assert picture.image.size == ((48, 64) if value in (5, 6, 7, 8) else (64, 48))
    assert close(seen(picture), TURNED[value])


@AVIF
@pytest.mark.parametrize("value", [1, 3, 6, 8])
def test_a_picture_in_avif_is_turned_too(value):
    assert close(seen(open_picture(encoded(corners(), "AVIF", exif=with_orientation(value)))), TURNED[value])


def big_endian(orientation: int, *, type: int = 3) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, type, 1, orientation, 0) + b"\0\0\0\0"


def test_exif_data_in_the_other_order_of_bytes_are_read():
    assert seen(open_picture(encoded(corners(), "PNG", exif=big_endian(3))))[0] == WHITE


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0nonsense", b"\0" * 9, big_endian(6, type=5), big_endian(6, type=99), b"Exif\0\0" + b"\xff" * 60000,
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 0x0112, 3, 0xFFFFFFFF, 6) * 4000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_data_without_sense_turn_nothing(format, exif):
    try:
        data = encoded(corners(), format, exif=exif)
    except Exception:
        data = encoded(corners(), "JPEG")
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert close(seen(open_picture(data)), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [b"", b"x", b"\xff" * 500_000])
def test_absurd_colour_profiles_are_not_looked_at(format, profile):
    assert close(seen(open_picture(encoded(corners(), format, icc_profile=profile))), [RED, GREEN, BLUE, WHITE])


# Damage


def noise(format: str) -> bytes:
    pixels = np.random.default_rng(5).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    return encoded(Image.fromarray(pixels), format)


@pytest.mark.parametrize("format", EVERY)
def test_a_file_that_ends_too_soon_is_refused_or_shows_what_it_needs_not(format):
    data = noise(format)
    whole = 0
    for end in [*range(min(len(data), 60)), *range(60, len(data), max(1, len(data) // 40))]:
        try:
            whole += open_picture(data[:end]).image.size == (40, 40)
        except BadRequest as refusal:
            assert "image" in str(refusal)
    assert whole <= 3  # only the very end may be missing
    assert open_picture(data).image.size == (40, 40)


@pytest.mark.parametrize("format", EVERY)
def test_a_file_with_changed_bytes_is_a_picture_or_refused(format):
    data, chance = noise(format), random.Random(7)
    outcomes = set()
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 3, 20])):
            changed[chance.randrange(len(data))] = chance.choice([0, 0xFF, chance.randrange(256)])
        try:
            outcomes.add(open_picture(bytes(changed)).image.mode)
        except BadRequest as refusal:
            assert "0x" not in str(refusal)
            outcomes.add("refused")
    assert outcomes <= {"RGB", "refused"}
    assert "refused" in outcomes or format in ("BMP", "AVIF")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"hello, I am no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\0" * 4096,
        b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP", b"\xff" * 5000,
        b"\0\0\0\x1cftypavif", b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", b"PK\3\4",
        b"GIF89a" + b"\xff" * 7 + b"!" * 4000,
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_what_is_one(data):
    assert refused(data).startswith("an image is damaged, or in no format that is read: PNG, JPEG, WEBP, GIF, BMP, ")


@pytest.mark.parametrize("format", ["PPM", "ICO", "PCX", "TGA", "JPEG2000", "EPS", "PDF", "SGI", "IM"])
def test_other_formats_that_pillow_knows_are_not_read(format):
    assert "in no format that is read" in refused(encoded(corners(), format))


@pytest.mark.parametrize(
    "data", [b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 18, b"\xff\xd8" * 3000, b"BM" + b"\xff" * 60, b"II*\0" * 50]
)
def test_beginnings_of_images_are_no_images(data):
    assert "image" in refused(data)


def test_the_words_of_decoders_are_not_passed_on():
    broken = bytearray(noise("PNG"))
    broken[60] ^= 0xFF
    assert refused(bytes(broken)) == "an image is damaged: it cannot be decoded"


# What would cost far more than it shows


def repeated(data: bytes, at: int, part: bytes, times: int) -> bytes:
    return data[:at] + part * times + data[at:]


def tiff(*tags: tuple[int, int, int, int], pixels: bytes = b"\0" * 64, order: str = "<", magic: int = 42) -> bytes:
    """A TIFF file of one table, its tags as number, type, count and value; pixels follow."""
    tags = tuple(sorted(tags))
    table = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", magic, 8)
    return start + struct.pack(order + "H", len(tags)) + table + b"\0\0\0\0" + pixels


def tile(width: int, height: int, *more: tuple[int, int, int, int], order: str = "<") -> bytes:
    pixels = zlib.compress(b"\0" * 768)
    at = 8 + 2 + 12 * (11 + len(more)) + 4
    short = (lambda n: n << 16) if order == ">" else (lambda n: n)
    return tiff(
        (256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, short(8)), (259, 3, 1, short(8)), (262, 3, 1, short(2)),
        (277, 3, 1, short(3)), (284, 3, 1, short(1)), (322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, at),
        (325, 4, 1, len(pixels)), *more, pixels=pixels, order=order,
    )  # fmt: skip


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("P", (1, 1)), "GIF"))
    at = data.index(b",", 13 + 3 * (2 << (data[10] & 7)))
    data[6:10] = data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    picture = encoded(Image.new("RGB", (8, 8)), "WEBP")[12:]
    body = b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + picture
    return b"RIFF" + struct.pack("<I", len(body)) + body


def box(name: bytes, *inner: bytes) -> bytes:
    """A box of an AVIF file."""
    return struct.pack(">I", sum(map(len, inner)) + 8) + name + b"".join(inner)


def unit(type: int, bits: str) -> bytes:
    """A unit of an AV1 stream."""
    content = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    size = bytes([len(content)]) if len(content) < 128 else bytes([len(content) & 127 | 128, len(content) >> 7])
    return bytes([type << 3 | 2]) + size + content


def still(width: int, height: int) -> bytes:
    """The header of a stream of one frame."""
    return unit(1, f"000110000011111111{width - 1:016b}{height - 1:016b}")


def moving(width: int, height: int, *, regular: bool = True) -> bytes:
    """The header of a stream of many frames, with all that may be in it: clocks, models, two points to work at."""
    clocks = "1" + "0" * 64 + ("1" + "00101" if regular else "0") + "1" + "00111" + "0" * 42
    points = "1" + "00001" + 2 * ("0" * 12 + "01001" + "0" + "1" + "0" * 17 + "1" + "0" * 4)
    bits = [(side - 1).bit_length() for side in (width, height)]
    sizes = f"{bits[0] - 1:04b}{bits[1] - 1:04b}{width - 1:0{bits[0]}b}{height - 1:0{bits[1]}b}"
    return unit(1, "00000" + clocks + points + sizes + "1" + "0001" + "010" + "0" * 7 + "100" + "01" + "1")


def frame(kind: int = 0, *, shown: bool = True, regular: bool = True, own_size: bool = False, type: int = 6) -> bytes:
    """The header of a frame in such a stream, as far as where it says whether it has a size of its own."""
    start = "0" + f"{kind:02b}" + ("1" if shown else "00") + ("" if regular or not shown else "1")
    resilient = "" if kind == 3 or (kind == 0 and shown) else "0"
    return unit(type, start + resilient + "00" + "0" * 6 + ("" if kind == 3 else str(int(own_size))) + "0" * 40)


START = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")


def items(*contents: bytes, times: int = 1) -> bytes:
    """An AVIF file of items, each so many times; their contents lie in the box with the places."""
    extents = b""
    for number, content in enumerate(contents):
        extents += struct.pack(">HHHHII", number, 1, 0, 1, sum(map(len, contents[:number])), len(content)) * times
    places = struct.pack(">IBBH", 1 << 24, 0x44, 0, len(contents) * times) + extents
    return START + box(b"meta", b"\0\0\0\0", box(b"iloc", places), box(b"idat", *contents))


def scattered(count: int, pieces: int) -> bytes:
    """An AVIF file of items in pieces of one byte."""
    item = struct.pack(">IHHH", 1, 0, 0, pieces) + struct.pack(">II", 0, 1) * pieces
    return START + box(b"meta", b"\0\0\0\0", box(b"iloc", struct.pack(">IBBI", 2 << 24, 0x44, 0, count), item * count))


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = box(b"moov", data)
    return data


def track(stream: bytes, *, places: bytes = b"stco") -> bytes:
    """An AVIF file of a track of one sample."""

    def table(at: int) -> bytes:
        sizes = box(b"stsz", struct.pack(">IIII", 0, 0, 1, len(stream)))
        chunks = box(places, struct.pack(">II" + ("I" if places == b"stco" else "Q"), 0, 1, at))
        inner = box(b"stbl", sizes, chunks)
        for name in (b"minf", b"mdia", b"trak", b"moov"):
            inner = box(name, inner)
        return START + inner

    return table(len(table(0)) + 8) + box(b"mdat", stream)


def progressive(scans: int) -> bytes:
    data = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    return repeated(data, len(data) - 2, data[data.rindex(b"\xff\xda") : -2], scans)


def after_palette(gif: bytes) -> int:
    return 13 + 3 * (2 << (gif[10] & 7))


TINY_PNG, TINY_JPEG = encoded(Image.new("RGB", (8, 8)), "PNG"), encoded(Image.new("RGB", (8, 8)), "JPEG")
TINY_GIF = encoded(Image.new("P", (8, 8)), "GIF")
EXIF_SEGMENT = b"\xff\xe1\0\x09Exif\0\0x"

BOMBS: dict[str, Callable[[], bytes]] = {
    "a PNG of 30000 x 30000": lambda: png(30000, 30000, 8, 2, b"\0" * 1000),
    "a PNG of 2 thousand million pixels in a row": lambda: png(2**31 - 1, 1, 1, 0, b"\0" * 1000),
    "a PNG a million pixels high": lambda: png(1, 1_000_000, 8, 0, b"\0\0" * 1_000_000),
    "a PNG of nothing": lambda: png(0, 0, 8, 2, b""),
    "a PNG of a million chunks": lambda: repeated(TINY_PNG, 33, chunk(b"aaAa", b""), 1_000_000),
    "a PNG with a text that unpacks to 100 MB": lambda: repeated(
        TINY_PNG, 33, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**8)), 1
    ),
    "a PNG with a profile that unpacks to 100 MB": lambda: repeated(
        TINY_PNG, 33, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 10**8)), 1
    ),
    "a JPEG of 65500 x 65500": lambda: jpeg_of(65500, 65500),
    "a JPEG of 300000 pieces of EXIF": lambda: repeated(TINY_JPEG, 2, EXIF_SEGMENT, 300_000),
    "a JPEG of 5 large pieces of EXIF": lambda: repeated(
        TINY_JPEG, 2, b"\xff\xe1\xff\xffExif\0\0" + b"\0" * (65535 - 8), 5
    ),
    "a JPEG of 500000 comments": lambda: repeated(TINY_JPEG, 2, b"\xff\xfe\0\x02", 500_000),
    "a JPEG of 20000 scans": lambda: progressive(20_000),
    "a GIF of 65535 x 65535": lambda: gif_of(65535, 65535),
    "a GIF of a million comments": lambda: repeated(TINY_GIF, after_palette(TINY_GIF), b"!\xfe\x02xy\0", 10**6),
    "a GIF of a comment of a million pieces": lambda: repeated(
        TINY_GIF, after_palette(TINY_GIF), b"!\xfe" + b"\x02xy" * 10**6 + b"\0", 1
    ),
    "a BMP of 60000 x 60000": lambda: bmp_of(60000, 60000),
    "a BMP upside down, of the largest size": lambda: bmp_of(2**31 - 1, -(2**31)),
    "a WebP of 16 million x 200": lambda: webp_of(1 << 24, 200),
    "a WebP of 16000 x 16000": lambda: webp_of(16000, 16000),
    "a TIFF of 1 x 1 whose tile is 32000 x 20000": lambda: tile(32000, 20000),
    "the same in the other order of bytes": lambda: tile(32000, 20000, order=">"),
    "the same behind a small tile": lambda: tile(16, 16, (322, 4, 1, 32000), (323, 4, 1, 20000)),
    "the same in 8 bytes": lambda: tile(16, 16, (322, 16, 1, 64)),
    "a TIFF of 100000 x 100000": lambda: tiff((256, 4, 1, 100_000), (257, 4, 1, 100_000), (262, 3, 1, 1)),
    "a TIFF of a million strips": lambda: tiff(
        (256, 4, 1, 10), (257, 4, 1, 10), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 10**6, 100), (278, 4, 1, 1),
        pixels=b"\0" * 4_000_200,
    ),
    "a TIFF of a million bits": lambda: tiff(
        (256, 4, 1, 10), (257, 4, 1, 10), (258, 3, 10**6, 8), (262, 3, 1, 1), pixels=b"\0" * 2_000_200
    ),
    "a TIFF of lzma": lambda: tile(16, 16, (259, 3, 1, 34925)),
    "a TIFF for large files": lambda: tiff((256, 4, 1, 10), magic=43),
    "100 MB of nothing": lambda: b"\xff\xd8\xff" + b"\0" * (100 << 20),
    "an AVIF whose frame is 16000 x 16000": lambda: items(still(16000, 16000)),
    "an AVIF whose second frame is 16000 x 16000": lambda: items(still(16, 16), unit(2, "0") + still(16000, 16000)),
    "an AVIF of frames of up to 16384 x 8192": lambda: track(moving(8700, 4100) + frame(own_size=True)),
    "the same of a file that could be larger": lambda: track(moving(16384, 8192), places=b"co64"),
    "an AVIF of a million parts": lambda: items(b"\x12\0" * 10**6),
    "an AVIF of 40,000 sequence headers": lambda: items(moving(100, 60) * 40_000),
    "an AVIF of an item in 60,000 pieces": lambda: scattered(1, 60_000),
    "an AVIF of 100 items in 50 pieces each": lambda: scattered(100, 50),
    "an AVIF of a million items without pieces": lambda: scattered(10**6, 0),
    "an AVIF of 100 tables of the same items": lambda: START + box(b"iloc", b"\0" * 7 + b"d") * 100 + b"\0" * 10**6,
    "an AVIF of a million boxes": lambda: START + box(b"free") * 10**6,
    "an AVIF of 3000 boxes inside of one another": lambda: START + nested(3000),
    "an AVIF whose clock stands": lambda: items(unit(1, "00000" + "1" + "0" * 64 + "1" + "0" * 800)),
    "an AVIF of a thousand items that are all of it": lambda: items(b"\x12\x7f" + b"\0" * 10**6, times=1000),
    "an AVIF of 20 MB": lambda: b"\0\0\0\x1cftypavif" + b"\0" * (20 << 20),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(name):
    assert "image" in refused(BOMBS[name]())


def child(script: str) -> str:
    """What a script prints in a process of its own, where memory can be measured and limited."""
    start = "import resource\nfrom tests.test_pictures import *\nopen_picture(TINY_PNG)\n"
    return subprocess.run([sys.executable, "-c", start + script], capture_output=True, text=True, check=True).stdout


def test_no_bomb_takes_memory():
    peaks = child(
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "made = [make() for make in BOMBS.values()]\n"  # the largest of them have 100 MB
        "print(peak())\n"
        "for data in made:\n"
        "    refused(data)\n"
        "print(peak())\n"
    )
    before, after = map(int, peaks.split())
    assert after - before < 64 << 10, "in kB"


def test_a_large_picture_takes_memory_for_its_pixels():
    """Twice four bytes each: as it was decoded, and as it is returned."""
    taken = child(
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = encoded(Image.new('RGBA', (6000, 5000), (1, 2, 3, 4)), 'PNG', compress_level=1)\n"
        "before = peak()\n"
        "assert open_picture(data).image.size == (6000, 5000)\n"
        "print(peak() - before)\n"
    )
    assert int(taken) < (2 * 4 * 30_000_000 >> 10) * 1.2


def test_too_little_memory_is_said_to_be_that():
    said = child(
        "data = encoded(Image.new('L', (8000, 8000)), 'PNG', compress_level=1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), used + (100 << 20)))\n"
        "print(refused(data))\n"
    )
    assert said == "there is not enough memory to decode an image\n"


@AVIF
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("frames", [1, 3])
def test_frames_in_avif_files_are_found(mode, frames):
    images = [Image.new(mode, (100, 60), number) for number in range(frames)]
    data = encoded(images[0], "AVIF", save_all=True, append_images=images[1:])
    found = list(frame_sizes(data))
    assert len(found) >= 1 + (mode == "RGBA")
    assert set(found) == {(100, 60)}
    assert open_picture(data).image.size == (100, 60)


def test_frames_are_as_large_as_their_streams_say():
    assert list(frame_sizes(items(still(100, 60), unit(5, "0") + still(7, 9)))) == [(100, 60), (7, 9)]
    assert list(frame_sizes(track(unit(2, "0") + moving(8700, 4100)))) == [(8700, 4100)]
    assert list(frame_sizes(START)) == list(frame_sizes(TINY_PNG)) == []


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("type", [3, 6, 7])
def test_frames_with_sizes_of_their_own_may_be_as_large_as_its_bits_allow(type, kind, shown, regular):
    start = moving(8700, 4100, regular=regular)
    for own_size in (False, True):
        header = frame(kind, shown=shown, regular=regular, own_size=own_size, type=type)
        largest = (16384, 8192) if own_size or kind == 3 else (8700, 4100)
        assert list(frame_sizes(track(start + header))) == [(8700, 4100), largest]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("40,000 sequence headers", "4096 sequence headers"),
        ("an item in 60,000 pieces", "4096 pieces of items"),
        ("100 items in 50 pieces each", "4096 pieces of items"),
        ("a million items without pieces", "4096 pieces of items"),
        ("100 tables of the same items", "4096 pieces of items"),
        ("a million boxes", "4096 boxes"),
        ("a million parts", "65536 parts"),
    ],
)
def test_the_parts_of_an_avif_file_are_limited_by_kind(name, limit):
    assert refused(BOMBS[f"an AVIF of {name}"]()) == f"an AVIF image has more than {limit}"


def test_boxes_may_be_as_deep_as_those_of_a_track_with_some_to_spare():
    assert list(frame_sizes(START + nested(7) + items(still(100, 60))[len(START) :])) == [(100, 60)]
    assert refused(START + nested(8)) == "an AVIF image has more than 8 boxes inside of one another"


MOVIE = moving(2048, 512) + frame()


@pytest.mark.parametrize("data", [items(still(100, 60)), track(MOVIE), track(MOVIE, places=b"co64")])
def test_damaged_avif_files_are_walked_to_an_end(data):
    chance = random.Random(3)
    for end in range(len(data)):
        _walk(data[:end])
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 2, 8])):
            changed[chance.randrange(len(data))] = chance.choice([0, 0xFF, 0x7F, chance.randrange(256)])
        _walk(bytes(changed))


def _walk(data: bytes) -> None:
    try:
        assert all(width > 0 and height > 0 for width, height in frame_sizes(data))
    except BadRequest as refusal:
        assert "an AVIF image" in str(refusal)


def slightly_below() -> Iterator[bytes]:
    """What real files are like: many parts, but not absurdly many."""
    yield repeated(TINY_PNG, 33, chunk(b"aaAa", b"x"), 5000)
    yield repeated(TINY_JPEG, 2, b"\xff\xe2\xff\xffICC_PROFILE\0\1\1" + b"\0" * (65535 - 16), 60)
    yield repeated(TINY_GIF, after_palette(TINY_GIF), b"!\xfe\x02xy\0", 2000)
    yield encoded(Image.new("RGB", (900, 900)), "JPEG", progressive=True)
    yield tile(16, 16)
    yield tile(16, 16, order=">")


@pytest.mark.parametrize("number", range(6))
def test_what_real_files_hold_is_below_every_limit(number):
    assert open_picture(list(slightly_below())[number]).image.mode == "RGB"


def test_frames_of_a_video_may_have_so_many_pixels_together(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    monkeypatch.setattr(pictures, "VIDEO_PIXELS", 40 * 30 * 2)
    assert [(frame.width, frame.height) for frame in open_frames([file.getvalue()] * 2)] == [(40, 30)] * 2
    with pytest.raises(BadRequest, match="frames of a video have too many pixels"):
        open_frames([file.getvalue()] * 3)


@pytest.mark.parametrize(("size", "left", "top"), [((70, 48), 3, 0), ((64, 51), 0, 1), ((64, 48), 0, 0)])
def test_a_picture_lies_in_the_middle_of_a_larger_ground(size, left, top):
    small = corners()
    large = Picture(small).centred(*size, (1, 2, 3))
    assert (large.width, large.height) == size
    assert large.cropped(left, top, 64, 48).image.tobytes() == small.tobytes()
    ground = {large.image.getpixel(at) for at in ((0, 0), (size[0] - 1, size[1] - 1))}
    assert (ground == {(1, 2, 3)}) == (left > 0) or top > 0
