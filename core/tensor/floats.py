"""Numbers from one float format of weight files to another, in numpy: F32, F16 and BF16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .blocks import BlockFormat, by_name

F32, F16, BF16 = FLOATS = by_name("F32"), by_name("F16"), by_name("BF16")

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def widen(raw: Bytes, form: BlockFormat) -> Floats:
    """Return the numbers in raw, which is [rows, bytes per row], as [rows, elements per row]. form: one of FLOATS."""
    raw = np.ascontiguousarray(raw)
    if form == BF16:
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f2" if form == F16 else "<f4").astype(np.float32, copy=False)


def narrow(numbers: Floats, form: BlockFormat) -> Bytes:
    """Return numbers as the bytes of a format, [rows, bytes per row], rounded to the nearest, halfway to even.

    form: one of FLOATS. Raises OverflowError if a finite number is too large for it.
    """
    if form == F32:
        return numbers.astype("<f4", copy=False).view(np.uint8)
    with np.errstate(over="ignore"):  # is looked for below
        found = _bfloats(numbers) if form == BF16 else numbers.astype("<f2").view("<u2")
    exponent = 0x7F80 if form == BF16 else 0x7C00
    if (((found & exponent) == exponent) & np.isfinite(numbers)).any():
        raise OverflowError(f"{np.abs(numbers[np.isfinite(numbers)]).max():.6g} is too large for {form.name}")
    return found.view(np.uint8)


def _bfloats(numbers: Floats) -> npt.NDArray[np.uint16]:
    bits = numbers.astype("<f4", copy=False).view("<u4").astype(np.uint64)  # wide enough for the carry
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers), bits >> 16 | 0x40, rounded).astype("<u2")  # a NaN must not carry into infinity
