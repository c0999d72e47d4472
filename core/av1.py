"""Sizes of the frames coded in a stream of AV1, as its headers give them; nothing is decoded.

Source: AV1 Bitstream & Decoding Process Specification, sections 4.10 and 5.3 to 5.9, whose names are used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .errors import BadRequest

SEQUENCE_HEADER = 1
FRAMES = frozenset([3, 6, 7])  # units that begin with a frame's header: alone, with the frame, and once more

_KEY, _SWITCH = 0, 3  # frame_type
_SELECT = 2  # of what a sequence leaves to its frames


def units(stream: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of each unit of a stream ("OBU"), as far as it is one. Raises IndexError at its end."""
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
    """Reads numbers of so many bits, the highest first. Raises IndexError at the end."""

    data: memoryview
    at: int = 0

    def read(self, count: int) -> int:
        end = self.at + count
        if end > 8 * len(self.data):
            raise IndexError(end)
        value = int.from_bytes(self.data[self.at >> 3 : end + 7 >> 3], "big") >> (-end & 7)
        self.at = end
        return value & ((1 << count) - 1)


@dataclass(frozen=True)
class _Timing:
    """What a sequence's clock adds to the headers of its frames, in bits."""

    delay_bits: int = 0  # 0: there is no model of the decoder
    time_bits: int = 0


@dataclass(frozen=True)
class Sequence:
    """What a sequence header says about its frames."""

    size: tuple[int, int]  # width and height of frames that name none of their own, in pixels
    largest: tuple[int, int]  # that a frame can name: decoders do not hold it to the size above, as section 6.8.5 does
    reduced: bool  # for a single picture, whose frame has nothing to say
    timing: _Timing = _Timing()
    id_bits: int = 0
    screen_tools: int = _SELECT
    whole_vectors: int = _SELECT

    @classmethod
    def read(cls, content: memoryview) -> Sequence:
        """Return the header in a unit's content, section 5.5. Raises IndexError if it ends early, and BadRequest."""
        bits = _Bits(content)
        bits.read(4)  # seq_profile, still_picture
        reduced = bool(bits.read(1))
        timing = _Timing()
        if reduced:
            bits.read(5)  # seq_level_idx
        else:
            timing = _operating_points(bits)
        width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
        size = bits.read(width_bits) + 1, bits.read(height_bits) + 1
        if reduced:
            return cls(size, size, reduced)
        return cls(size, (1 << width_bits, 1 << height_bits), reduced, timing, *_tools(bits))

    def frame_size(self, content: memoryview) -> tuple[int, int]:
        """Return the largest size that the frame may have whose header is in a unit's content, section 5.9.2."""
        bits = _Bits(content)
        if self.reduced or bits.read(1):  # show_existing_frame
            return self.size
        kind, shown = bits.read(2), bits.read(1)
        bits.read(self.timing.time_bits if shown else 1)  # frame_presentation_time, or showable_frame
        if kind != _SWITCH and not (kind == _KEY and shown):
            bits.read(1)  # error_resilient_mode
        bits.read(1)  # disable_cdf_update
        tools = bits.read(1) if self.screen_tools == _SELECT else self.screen_tools
        if tools and self.whole_vectors == _SELECT:
            bits.read(1)  # force_integer_mv
        bits.read(self.id_bits)  # current_frame_id
        return self.largest if kind == _SWITCH or bits.read(1) else self.size  # frame_size_override_flag


def _operating_points(bits: _Bits) -> _Timing:
    timing = _timing(bits) if bits.read(1) else _Timing()  # timing_info_present_flag
    display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)
        if timing.delay_bits and bits.read(1):
            bits.read(2 * timing.delay_bits + 1)
        if display_delay and bits.read(1):
            bits.read(4)
    return timing


def _timing(bits: _Bits) -> _Timing:
    bits.read(64)
    equal = bits.read(1)  # equal_picture_interval
    if equal:
        zeros = 0
        while not bits.read(1):
            zeros += 1
            if zeros == 32:  # section 6.4.3 forbids it, and decoders differ on where it ends
                raise BadRequest("an AVIF image shows its frames for longer than is allowed")
        bits.read(zeros)
    if not bits.read(1):  # decoder_model_info_present_flag
        return _Timing()
    delay_bits = bits.read(5) + 1
    bits.read(32 + 5)
    time_bits = bits.read(5) + 1
    return _Timing(delay_bits, 0 if equal else time_bits)


def _tools(bits: _Bits) -> tuple[int, int, int]:
    """Return id_bits, screen_tools and whole_vectors of a Sequence, which stand behind its size."""
    id_bits = bits.read(4) + bits.read(3) + 3 if bits.read(1) else 0  # frame_id_numbers_present_flag
    bits.read(7)  # tools that are on or off
    if bits.read(1):  # enable_order_hint
        bits.read(2)
    screen_tools = _SELECT if bits.read(1) else bits.read(1)
    whole_vectors = _SELECT if not screen_tools or bits.read(1) else bits.read(1)
    return id_bits, screen_tools, whole_vectors
