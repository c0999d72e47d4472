"""Packed weights: one layout for each block format, made when a model is loaded, read by every product.

Sixteen rows form a group, one row a lane, and two groups a pair. A pair is a run of units of 32 or 256 columns, first
one group's, then the other's, so that a product reads memory from one end to the other. Each is a record of

    d     [16] float16             scale of each row, or [16] uint8 exponents
    m     [16] float16             if the format has minimums
    sc    [subs, 16] int8          if the scales of sub-blocks are integers of their own
    mn    [subs, 16] uint8         likewise for minimums
    codes planes of 2, 4 or 8 bits and further ones of 1 or 2 bits above them

In a plane of w bits, a vector of 64 bytes holds 8 / w steps; a step is 4 columns of 16 rows, [16, 4], which is what
`dot4` takes at once. A record has as many bytes as the file's blocks, at most 4 % more where the file squeezes scales.

A weight is scale * (code - offset) - minimum, or scale * table[code].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import types
from numba.core import errors

from .blocks import by_name

GROUP = 16  # rows
PAIR = 2  # groups that are multiplied together, and whose records alternate
SUB = 32  # columns of a sub-block: the codes that one call of a micro-kernel consumes
STEPS = SUB // 4

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled


@dataclass(frozen=True)
class Layout:
    """How one block format is packed."""

    name: str
    planes: tuple[int, ...]  # bits of each plane, lowest first
    unit: Literal[32, 256]  # columns of a record
    sub: Literal[16, 32] = 32  # columns that share a scale
    offset: int = 0  # subtracted from codes
    scales: Literal["half", "integer", "nibbles", "exponent"] = "half"
    minimums: bool = False
    table: tuple[int, ...] | None = None

    @property
    def kind(self) -> int:
        """The block format's id in GGUF files."""
        return by_name(self.name).id

    @property
    def subs(self) -> int:
        """Scales of one row in a record."""
        return self.unit // self.sub

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return sum(self.planes)

    @property
    def places(self) -> dict[str, int]:
        """Where each field of a record begins, in bytes, and under "end" where the record ends."""
        sizes = {"d": GROUP if self.scales == "exponent" else 2 * GROUP}
        if self.minimums:
            sizes["m"] = 2 * GROUP
        if self.scales in ("integer", "nibbles"):
            sizes["sc"] = self.subs * GROUP
            if self.minimums and self.scales == "integer":
                sizes["mn"] = self.subs * GROUP
        for bits in self.planes:
            sizes[f"plane{self.planes.index(bits)}"] = self.unit * GROUP * bits // 8
        ends = np.cumsum(list(sizes.values())).tolist()
        return dict(zip([*sizes, "end"], [0, *ends], strict=True))

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The record, as a dtype whose one field bears the format's name: kernels are compiled for it by that name."""
        return np.dtype([(self.name, np.uint8, (self.places["end"],))])


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("Q4_0", (4,), 32, offset=8),
        Layout("Q4_1", (4,), 32, minimums=True),
        Layout("Q5_0", (4, 1), 32, offset=16),
        Layout("Q5_1", (4, 1), 32, minimums=True),
        Layout("Q8_0", (8,), 32, offset=128),
        Layout("Q2_K", (2,), 256, sub=16, scales="nibbles", minimums=True),
        Layout("Q3_K", (2, 1), 256, sub=16, offset=4, scales="integer"),
        Layout("Q4_K", (4,), 256, scales="integer", minimums=True),
        Layout("Q5_K", (4, 1), 256, scales="integer", minimums=True),
        Layout("Q6_K", (4, 2), 256, sub=16, offset=32, scales="integer"),
        Layout("IQ4_NL", (4,), 32, offset=128, table=IQ4),
        Layout("IQ4_XS", (4,), 256, offset=128, scales="integer", table=IQ4),
        Layout("MXFP4", (4,), 32, offset=128, scales="exponent", table=E2M1),
    )
}


@dataclass(frozen=True)
class WideFormat:
    """How weights that are float32 are packed: records of 32 columns, [32, 16]."""

    name: str

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The record."""
        return np.dtype([(self.name, np.uint8, (SUB * GROUP * 4,))])


@dataclass(frozen=True)
class RoundedFormat:
    """How weights that are floats of 16 bits are packed: rounded to integers, in records of 32 columns.

    A record is codes, int16 [16, 16, 2]: two columns of sixteen rows in each step, and scales, [16], of which the upper
    16 bits of a float32 are kept. A weight is scale * code.
    """

    name: str

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The record."""
        return np.dtype([(self.name, np.uint8, (ROUNDED_BYTES,))])


WORDS = SUB // 2  # steps of a record of integers of 16 bits
ROUNDED_SCALES_AT = WORDS * GROUP * 4  # bytes
ROUNDED_BYTES = ROUNDED_SCALES_AT + GROUP * 2
PEAK = 8191  # largest integer of 16 bits that products take: 32 * PEAK^2 < 2^31

WIDE_FORMATS = {"F32": WideFormat("F32")}
ROUNDED_FORMATS = {name: RoundedFormat(name) for name in ("F16", "BF16")}
FORMATS: dict[str, Layout | WideFormat | RoundedFormat] = {**LAYOUTS, **WIDE_FORMATS, **ROUNDED_FORMATS}  # all
FLOAT_FORMATS = (*WIDE_FORMATS, *ROUNDED_FORMATS)  # of these, what have one number a block


def record_of(name: str) -> np.dtype[np.void]:
    """Return the record of a block format."""
    return FORMATS[name].dtype


def name_of_records(data: np.ndarray[Any, np.dtype[np.void]]) -> str:
    """Return the block format of packed weights."""
    (name,) = data.dtype.names or ()
    return name


def name_of(data: Any) -> str:
    """Return the block format that an array type of packed weights names."""
    if isinstance(data, types.Array) and isinstance(data.dtype, types.Record):
        (name,) = data.dtype.fields
        return str(name)
    raise errors.TypingError(f"expected packed weights, got {data}")
