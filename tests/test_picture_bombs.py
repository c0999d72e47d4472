"""Image files that would cost far more than they show, and AVIF files, whose parts are counted before decoding."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from puna.core.avif import frame_sizes
from puna.core.errors import BadRequest
from puna.core.pictures import open_picture

from .test_pictures import (
    AVIF,
    chunk,
    encoded,
    png,
    refused,
)


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
    start = "import resource\nfrom tests.test_picture_bombs import *\nopen_picture(TINY_PNG)\n"
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
