"""Image files, odd and damaged: each is a picture or a BadRequest."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from puna.core import pictures
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


# Videos


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
