"""What an image file may consist of, checked before a decoder sees it.

Decoders keep what they read of a file: some a Python object for each of its parts, or buffers of sizes that the file
names. So a small file may cost gigabytes or hours. Here the parts are counted first, without a copy of any. Parts that
are damaged are left to the decoder, whose business they are.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .avif import frame_sizes
from .errors import BadRequest

MOST_PIXELS = 64 << 20  # a picture of 16,384 patches of 28 x 28 has 13 million
LONGEST_SIDE = 1 << 16

MOST_CHUNKS = 1 << 16  # of a PNG; writers put 8 kB or more of an image into each
MOST_BLOCKS = 1 << 16  # of a GIF, before its first frame
MOST_SEGMENTS = 1 << 10  # of a JPEG
MOST_SCANS = 100  # of a JPEG, each of which may touch every pixel; common writers make ten
MOST_EXIF = 4  # segments of it in a JPEG, where it fits into one
MOST_VALUES = 1 << 18  # of a TIFF's tag: places of strips or tiles, the smallest of which have 256 pixels
LARGEST_AVIF = 16 << 20  # bytes; what it holds besides frames is not looked at, so the whole has to be small

_PNG, _GIF, _JPEG = b"\x89PNG\r\n\x1a\n", b"GIF8", b"\xff\xd8\xff"
_BIG_TIFF = (b"II+\0", b"MM\0+")
_TIFF = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", *_BIG_TIFF)  # two of them wrong, and yet accepted by decoders


def check_file(data: bytes) -> None:
    """Raise BadRequest for an image file that would cost far more than its size and its pixels."""
    if data.startswith(_PNG):
        _check_png(data)
    elif data.startswith(_GIF):
        _check_gif(data)
    elif data.startswith(_JPEG):
        _check_jpeg(data)
    elif data.startswith(_TIFF):
        _check_tiff(data)
    elif data[4:8] == b"ftyp":
        _check_avif(data)


def check_size(width: int, height: int) -> None:
    """Raise BadRequest for sizes, in pixels, that show nothing or are too large."""
    if width < 1 or height < 1:
        raise BadRequest(f"an image of {width} x {height} pixels shows nothing")
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise BadRequest(
            f"an image of {width} x {height} pixels is too large; at most {MOST_PIXELS} pixels are read, "
            f"{LONGEST_SIDE} of them in a row"
        )


def orientation(exif: bytes) -> int:
    """Return how a picture has to be turned, 1 to 8, as its EXIF data say; 1 (not at all) where they make no sense."""
    for tag in _tags(exif.removeprefix(b"Exif\0\0")):
        if (tag.number, tag.type, tag.count) == (_ORIENTATION, _SHORT, 1) and 1 <= tag.first <= 8:
            return tag.first
    return 1


def _counted(parts: Iterator[object], limit: int, what: str) -> None:
    """Raise BadRequest if there are more parts than the limit."""
    for number, _ in enumerate(parts, 1):
        if number > limit:
            raise BadRequest(f"an image file has more than {limit} {what}")


# --- PNG, GIF -------------------------------------------------------------------------------------------------------


def _check_png(data: bytes) -> None:
    _counted(_chunks(data), MOST_CHUNKS, "chunks")


def _chunks(data: bytes) -> Iterator[int]:
    """Yield where each chunk begins: length, name, content, checksum. Source: PNG specification, section 5.3."""
    at = len(_PNG)
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _check_gif(data: bytes) -> None:
    _counted(_sub_blocks(data), MOST_BLOCKS, "blocks before its first frame")


def _sub_blocks(data: bytes) -> Iterator[int]:
    """Yield where each piece of an extension begins, as far as the first frame. Source: GIF89a, sections 15 and 23."""
    at = 13 + (3 * (2 << (data[10] & 7)) if len(data) > 10 and data[10] & 0x80 else 0)  # behind the palette
    while data[at : at + 1] not in (b",", b";", b""):
        yield at
        if data[at] != 0x21:  # what begins no extension is passed over
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += 1 + data[at]
        at += 1


# --- AVIF -----------------------------------------------------------------------------------------------------------


def _check_avif(data: bytes) -> None:
    if len(data) > LARGEST_AVIF:
        raise BadRequest(f"an AVIF image of {len(data)} bytes is too large; at most {LARGEST_AVIF} are read")
    for size in frame_sizes(data):
        check_size(*size)


# --- JPEG -----------------------------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # what is neither escaped, padding nor a mark to restart from
_ALONE = frozenset([0x01, 0xD8])  # markers without a segment
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1


def _check_jpeg(data: bytes) -> None:
    exif = scans = 0
    for number, (marker, at) in enumerate(_segments(data), 1):
        exif += marker == _APP1 and data.startswith(b"Exif\0\0", at + 4)
        scans += marker == _SCAN
        if number > MOST_SEGMENTS or exif > MOST_EXIF or scans > MOST_SCANS:
            raise BadRequest(
                f"a JPEG image has more than {MOST_SEGMENTS} segments, {MOST_EXIF} of EXIF data or {MOST_SCANS} scans"
            )


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker and where it stands, as far as the image's end. Source: ITU-T T.81, annex B."""
    at = 0
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.start()
        yield marker, at
        if marker == _END:
            return
        length = 0 if marker in _ALONE else int.from_bytes(data[at + 2 : at + 4], "big")
        at += 2 + length  # behind the header of a scan its data follow, which hold no marker


# --- TIFF and EXIF --------------------------------------------------------------------------------------------------

_SHORT, _LONG = 3, 4
_TEXTS = frozenset([1, 2, 7])  # types whose values stay bytes
_COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 259, 274, 322, 323
# None, CCITT's three, LZW, JPEG, PackBits, and both numbers of Deflate. The others are as rare as their decoders.
_COMPRESSIONS = frozenset([1, 2, 3, 4, 5, 7, 8, 32773, 32946])


@dataclass(frozen=True)
class _Tag:
    """An entry in a table of tags."""

    number: int
    type: int
    count: int  # of values
    value: int  # the values if they fit into four bytes, else where they are
    order: str  # of bytes, in the language of struct

    @property
    def first(self) -> int:
        """The value of an entry with a single whole number."""
        if self.type == _SHORT:
            return self.value >> 16 if self.order == ">" else self.value & 0xFFFF
        return self.value


def _check_tiff(data: bytes) -> None:
    if data.startswith(_BIG_TIFF):
        raise BadRequest("a TIFF image of the kind for files above 4 GB is not read")
    tile = {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
    for tag in _tags(data):
        if tag.count > MOST_VALUES and tag.type not in _TEXTS:
            raise BadRequest(f"a TIFF image has {tag.count} values of tag {tag.number}; at most {MOST_VALUES} are read")
        if tag.number in (_COMPRESSION, *tile) and (tag.type not in (_SHORT, _LONG) or tag.count != 1):
            raise BadRequest(f"a TIFF image has a tag {tag.number} that is no whole number")
        if tag.number == _COMPRESSION and tag.first not in _COMPRESSIONS:
            raise BadRequest(f"a TIFF image is compressed in a way that is not read, number {tag.first}")
        if tag.number in tile:
            tile[tag.number] = max(tile[tag.number], tag.first)  # of several, decoders differ on which one counts
    check_size(tile[_TILE_WIDTH], tile[_TILE_LENGTH])  # what a decoder's buffer holds, however small the picture


def _tags(data: bytes) -> Iterator[_Tag]:
    """Yield the entries of the first table, as far as it goes. Source: TIFF 6.0, section 2."""
    order = ">" if data.startswith(b"MM") else "<"
    try:
        (table,) = struct.unpack_from(order + "L", data, 4)
        (count,) = struct.unpack_from(order + "H", data, table)
        for at in range(table + 2, table + 2 + 12 * count, 12):
            number, type, values, value = struct.unpack_from(order + "HHLL", data, at)
            yield _Tag(number, type, values, value, order)
    except struct.error:
        return
