"""Sizes of the frames coded in an AVIF file, which need not be the size that its header gives.

A decoder makes frames as large as the video stream inside says, whatever they are scaled to afterwards, and Pillow
sets it no limit. So the stream's own headers are looked up: in the items of the file, and in the first sample of each
track. What is damaged is passed over: a decoder refuses it.
Sources: ISO/IEC 14496-12, sections 4.2, 8.7 and 8.11.3; AV1 Bitstream & Decoding Process Specification, section 5.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from .errors import BadRequest

MOST_UNITS = 1 << 16  # that are looked at
_CONTAINERS = frozenset([b"moov", b"trak", b"mdia", b"minf", b"stbl"])
_SEQUENCE_HEADER = 1


def frame_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield width and height of the largest frames that each sequence header in a file allows.

    Nothing is found in other files. Raises BadRequest for one that consists of absurdly many parts.
    """
    units = 0
    with suppress(IndexError):
        for stream in _streams(data):
            with suppress(IndexError):
                for type, content in _units(stream):
                    units += 1
                    if units > MOST_UNITS:
                        raise BadRequest(f"an AVIF image has more than {MOST_UNITS} parts")
                    if type == _SEQUENCE_HEADER:
                        yield _frame_size(_Bits(content))


# --- the file -------------------------------------------------------------------------------------------------------


def _streams(data: bytes) -> Iterator[memoryview]:
    """Yield what may be a stream of AV1: the contents of items, and the first sample of each track."""
    view, held = memoryview(data), 0
    boxes = list(_boxes(data, 0, len(data)))
    inner = next((start for name, start, _ in boxes if name == b"idat"), 0)
    sample = max((_first_size(data, start) for name, start, _ in boxes if name == b"stsz"), default=len(data))
    for name, start, _ in boxes:
        if name == b"iloc":
            for extents in _items(data, start, inner):
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


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield each box between two places, inside of others too: its name, and where its content begins and ends."""
    while at + 8 <= end:
        size, name, start = _number(data, at, 4), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = _number(data, start, 8), start + 8
        stop = end if size == 0 else at + size
        if stop < start or stop > end:
            return
        yield name, start, stop
        if name == b"meta" or name in _CONTAINERS:
            yield from _boxes(data, start + 4 * (name == b"meta"), stop)
        at = stop


def _items(data: bytes, at: int, inner: int) -> Iterator[list[tuple[int, int]]]:
    """Yield where in the file the parts of each item are, as place and length. inner: where the box idat begins."""
    version, sizes, more = data[at], data[at + 4], data[at + 5]
    widths = sizes >> 4, sizes & 15, more >> 4, more & 15 if version else 0  # of offset, length, base, index
    number = 4 if version == 2 else 2
    count, at = _number(data, at + 6, number), at + 6 + number
    for _ in range(min(count, MOST_UNITS)):
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


# --- the stream -----------------------------------------------------------------------------------------------------


def _units(stream: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of each unit of a stream ("OBU"), as far as it is one."""
    at = 0
    while at < len(stream):
        header = stream[at]
        at += 2 if header & 4 else 1
        size, shift = len(stream) - at, 0
        if header & 2:
            size = 0
            while True:
                byte = stream[at]
                at, size, shift = at + 1, size | (byte & 127) << shift, shift + 7
                if byte < 128 or shift > 56:
                    break
        yield header >> 3 & 15, stream[at : at + size]
        at += size


@dataclass
class _Bits:
    """Reads numbers of so many bits, the highest first."""

    data: memoryview
    at: int = 0

    def read(self, count: int) -> int:
        value = 0
        for place in range(self.at, self.at + count):
            value = value << 1 | self.data[place >> 3] >> (7 - (place & 7)) & 1
        self.at += count
        return value


def _frame_size(bits: _Bits) -> tuple[int, int]:
    """Return the largest width and height that frames may have. Names are those of section 5.5.1."""
    bits.read(4)  # seq_profile, still_picture
    reduced = bits.read(1)
    if reduced:
        bits.read(5)  # seq_level_idx
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    if not reduced:
        return 1 << width_bits, 1 << height_bits  # each frame may have a size of its own, in as many bits
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)
        if bits.read(1):  # equal_picture_interval
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros if zeros < 32 else 0)
        if bits.read(1):  # decoder_model_info_present_flag
            delay_bits = bits.read(5) + 1
            bits.read(42)
    display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if display_delay and bits.read(1):
            bits.read(4)
