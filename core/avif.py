"""Sizes of the frames coded in an AVIF file, which need not be the size that its header gives.

A decoder makes frames as large as the video stream inside says, whatever they are scaled to afterwards, and Pillow
sets it no limit. So the stream's own headers are looked up: in the items of the file, and in the first sample of each
track. What is damaged is passed over: a decoder refuses it. All that is walked is counted, for each step costs time.
Source: ISO/IEC 14496-12, sections 4.2, 8.7 and 8.11.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from . import av1
from .errors import BadRequest

MOST_UNITS = 1 << 16  # of streams
MOST_HEADERS = 1 << 12  # of sequences among them: a picture in tiles has one for each, 512 at most
MOST_BOXES = 1 << 12
DEEPEST = 8  # boxes inside of one another; tables of tracks are in the sixth
MOST_PIECES = 1 << 12  # of items; one that has none counts, too

_CONTAINERS = frozenset([b"moov", b"trak", b"mdia", b"minf", b"stbl"])


def frame_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the width and height that each sequence header in a file gives, and the largest that each frame may have.

    Nothing is found in other files. Raises BadRequest for one that consists of absurdly many parts.
    """
    units = headers = 0
    with suppress(IndexError):
        for stream in _streams(data):
            sequence: av1.Sequence | None = None
            with suppress(IndexError):
                for type, content in av1.units(stream):
                    units += 1
                    headers += type == av1.SEQUENCE_HEADER
                    _check_count(units, MOST_UNITS, "parts")
                    _check_count(headers, MOST_HEADERS, "sequence headers")
                    if type == av1.SEQUENCE_HEADER:
                        sequence = av1.Sequence.read(content)
                        yield sequence.size
                    elif type in av1.FRAMES and sequence:
                        yield sequence.frame_size(content)


def _check_count(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise BadRequest(f"an AVIF image has more than {limit} {what}")


def _streams(data: bytes) -> Iterator[memoryview]:
    """Yield what may be a stream of AV1: the contents of items, and the first sample of each track."""
    view, held, pieces = memoryview(data), 0, 0
    boxes = list(islice(_boxes(data, 0, len(data)), MOST_BOXES + 1))
    _check_count(len(boxes), MOST_BOXES, "boxes")
    inner = next((start for name, start, _ in boxes if name == b"idat"), 0)
    sample = max((_first_size(data, start) for name, start, _ in boxes if name == b"stsz"), default=len(data))
    for name, start, _ in boxes:
        if name == b"iloc":
            for extents in _items(data, start, inner):
                pieces += max(len(extents), 1)
                _check_count(pieces, MOST_PIECES, "pieces of items")
                held += sum(min(length, len(data)) for _, length in extents)
                if held > 2 * len(data):
                    raise BadRequest("an AVIF image has items that share too much of the file")
                yield memoryview(b"".join(view[at : at + length] for at, length in extents))
        elif name in (b"stco", b"co64") and _number(data, start + 4, 4):
            at = _number(data, start + 8, 4 if name == b"stco" else 8)
            yield view[at : at + sample]


def _first_size(data: bytes, at: int) -> int:
    """Return the size of a track's first sample: the one that all have, or the first of a table."""
    every, count = _number(data, at + 4, 4), _number(data, at + 8, 4)
    return every or (_number(data, at + 12, 4) if count else 0)


def _boxes(data: bytes, at: int, end: int, depth: int = 1) -> Iterator[tuple[bytes, int, int]]:
    """Yield each box between two places, inside of others too: its name, and where its content begins and ends."""
    _check_count(depth, DEEPEST, "boxes inside of one another")
    while at + 8 <= end:
        size, name, start = _number(data, at, 4), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = _number(data, start, 8), start + 8
        stop = end if size == 0 else at + size
        if stop < start or stop > end:
            return
        yield name, start, stop
        if name == b"meta" or name in _CONTAINERS:
            yield from _boxes(data, start + 4 * (name == b"meta"), stop, depth + 1)
        at = stop


def _items(data: bytes, at: int, inner: int) -> Iterator[list[tuple[int, int]]]:
    """Yield where in the file the parts of each item are, as place and length. inner: where the box idat begins."""
    version, sizes, more = data[at], data[at + 4], data[at + 5]
    widths = sizes >> 4, sizes & 15, more >> 4, more & 15 if version else 0  # of offset, length, base, index
    number = 4 if version == 2 else 2
    count, at = _number(data, at + 6, number), at + 6 + number
    for _ in range(count):
        method = _number(data, at + number, 2) & 15 if version else 0
        at += number + (2 if version else 0) + 2
        base = _number(data, at, widths[2]) + (inner if method == 1 else 0)
        parts, at = _number(data, at + widths[2], 2), at + widths[2] + 2
        extents = []
        for _ in range(parts):
            at += widths[3]
            start, length = base + _number(data, at, widths[0]), _number(data, at + widths[0], widths[1])
            extents.append((start, length if widths[1] and length else len(data)))
            at += widths[0] + widths[1]
        yield extents


def _number(data: bytes, at: int, width: int) -> int:
    if at + width > len(data):
        raise IndexError(at)
    return int.from_bytes(data[at : at + width], "big")
