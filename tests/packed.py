"""Weights with random blocks, and literal readers of what the kernels work on: packed records, 8-bit activations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from puna.core.tensor.blocks import BlockFormat
from puna.core.tensor.cpu import CpuMatrix, PackedMatrix, packed_matrix
from puna.core.tensor.layouts import E2M1, IQ4, LAYOUTS
from puna.core.tensor.operands import WIDTH, Quantised

HALVES_AT = {  # bytes where a block's half-precision scale and minimum lie
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
EXTREMES = {  # bytes first .. last - 1 of a block, and what they are at the highest and lowest codes if not 255 and 0
    "Q8_0": (2, 34, 0x7F, 0x80),  # signed
    "MXFP4": (1, 17, 0x77, 0xFF),  # signs and magnitudes
    "Q6_K": (192, 208, 0x7F, 0x80),  # signed scales
    "Q2_K": (0, 16, 0xFF, 0xFF), "Q4_K": (4, 16, 0xFF, 0xFF), "Q5_K": (4, 16, 0xFF, 0xFF),  # scales from 0 on
}  # fmt: skip
SUBNORMAL = 2.0**-15  # the smallest normal float16 is 2^-14


def random_blocks(
    rng: np.random.Generator, form: BlockFormat, rows: int, columns: int, *, tiny: bool = False
) -> np.ndarray:
    """Return [rows, row bytes] uint8, read-only as a mapped file is: every code and sub-scale, and everyday scales.

    tiny: sub-normal scales. MXFP4 then has those of its exponents that are sub-normal float32.
    """
    blocks = rng.integers(0, 256, (rows, columns // form.elements, form.nbytes), np.uint8)
    for at in HALVES_AT.get(form.name, ()):
        size = SUBNORMAL if tiny else 0.1
        scales = rng.uniform(-size, size, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    if form.name == "MXFP4":
        low, high = (0, 2) if tiny else (120, 128)  # 2^-128, 2^-127; or powers of two up to 1/2
        blocks[..., 0] = rng.integers(low, high, blocks.shape[:2])
    data = np.ascontiguousarray(blocks.reshape(rows, -1))
    data.flags.writeable = False
    return data


def extreme_blocks(rng: np.random.Generator, form: BlockFormat, rows: int, columns: int, *, high: bool) -> np.ndarray:
    """Return blocks as `random_blocks`, but every code at one end of its range, and sub-scales as large as they get."""
    ordinary = random_blocks(rng, form, rows, columns).reshape(rows, -1, form.nbytes)
    blocks = np.full_like(ordinary, 255 if high else 0)
    if form.name in EXTREMES:
        first, last, highest, lowest = EXTREMES[form.name]
        blocks[..., first:last] = highest if high else lowest
    halves = [at + byte for at in HALVES_AT.get(form.name, ()) for byte in (0, 1)]
    kept = halves if form.name != "MXFP4" else [0]
    blocks[..., kept] = ordinary[..., kept]
    data = blocks.reshape(rows, -1)
    data.flags.writeable = False
    return data


def packed(form: BlockFormat, raw: np.ndarray) -> PackedMatrix:
    """Return blocks [rows, row bytes] as a loader packs them."""
    rows = CpuMatrix(form, raw, (len(raw), raw.shape[1] // form.nbytes * form.elements))
    return packed_matrix(rows)


@dataclass(frozen=True)
class Unpacked:
    """What the records of a weight say, in the words of the formats: value = code * scale - low."""

    codes: np.ndarray  # [rows, D] float32: offsets subtracted, tables looked up
    scales: np.ndarray  # [rows, scales of a row] float32
    lows: np.ndarray  # [rows, scales of a row] float32

    @property
    def weights(self) -> np.ndarray:
        """[rows, D] float32, each product and difference rounded, as the decoders do."""
        each = self.codes.shape[1] // self.scales.shape[1]
        return self.codes * self.scales.repeat(each, 1) - self.lows.repeat(each, 1)


class _Cursor:
    """Takes the fields of all records one after the other."""

    def __init__(self, raw: np.ndarray) -> None:
        self.raw, self.at = raw, 0

    def take(self, count: int, dtype: type = np.uint8) -> np.ndarray:
        size = count * np.dtype(dtype).itemsize
        found = np.ascontiguousarray(self.raw[..., self.at : self.at + size]).view(dtype)
        self.at += size
        return found


def unpacked(data: np.ndarray, name: str) -> Unpacked:
    """Read records [pairs, units, 2] field by field, as the documentation of the layouts says they lie."""
    layout = LAYOUTS[name]
    pairs, units, _ = data.shape
    groups = 2 * pairs
    cursor = _Cursor(data.view(np.uint8).reshape(pairs, units, 2, -1).swapaxes(1, 2).reshape(groups, units, -1))
    if layout.scales == "exponent":
        d = np.ldexp(np.float32(1), cursor.take(16).astype(np.int32) - 128)[:, :, None]
    else:
        d = cursor.take(16, np.float16).astype(np.float32)[:, :, None]
    m = cursor.take(16, np.float16).astype(np.float32)[:, :, None] if layout.minimums else np.float32(0)
    wide = groups, units, layout.subs, 16
    if layout.scales == "integer":
        d = d * cursor.take(layout.subs * 16, np.int8).reshape(wide).astype(np.float32)
        if layout.minimums:
            m = m * cursor.take(layout.subs * 16).reshape(wide).astype(np.float32)
    elif layout.scales == "nibbles":
        both = cursor.take(layout.subs * 16).reshape(wide)
        d, m = d * (both & 15).astype(np.float32), m * (both >> 4).astype(np.float32)
    elif layout.minimums:
        m = -m  # these formats add their minimum
    codes, below = np.zeros((groups, units, layout.unit, 16), np.int32), 0
    for bits in layout.planes:
        codes |= _plane(cursor, layout.unit, bits) << below
        below += bits
    assert cursor.at == cursor.raw.shape[-1], "a record holds more than its fields"
    values = codes - layout.offset
    if layout.table is not None:
        values = np.array({"MXFP4": E2M1}.get(name, IQ4))[codes]
    return Unpacked(*(_by_rows(field.astype(np.float32)) for field in (values, d, np.broadcast_to(m, d.shape))))


def _plane(cursor: _Cursor, columns: int, bits: int) -> np.ndarray:
    """Return the numbers of one plane, [groups, units, columns, 16]."""
    per = 8 // bits
    vectors = cursor.take(columns * 16 // per)
    groups, units, _ = vectors.shape
    shifts = bits * np.arange(per)[:, None, None]
    steps = vectors.reshape(groups, units, -1, 1, 16, 4) >> shifts & (1 << bits) - 1
    return steps.swapaxes(4, 5).reshape(groups, units, columns, 16).astype(np.int32)


def _by_rows(field: np.ndarray) -> np.ndarray:
    """Return [groups, units, n, 16] as [rows, units · n]."""
    groups, units, count, _ = field.shape
    return field.transpose(0, 3, 1, 2).reshape(groups * 16, units * count)


@dataclass(frozen=True)
class Columns:
    """Quantised activations, one row a token, those that only fill a tile included."""

    codes: np.ndarray  # [T padded, D] int8, or int16 on processors that multiply those
    starts: np.ndarray  # [T padded, D / 32, 3] int32
    pairs: np.ndarray  # [T padded, D / 256, 12] int32, if the unit is 256
    steps: np.ndarray  # [T padded, D / unit] float32
    others: np.ndarray  # [T padded, D / 32, 2] float32 if the unit is 32: what is taken away, and step * sum of codes

    @property
    def values(self) -> np.ndarray:
        """[T padded, D] float64, exact."""
        return self.codes * self.steps.astype(np.float64).repeat(self.codes.shape[1] // self.steps.shape[1], 1)


def columns_of(x: Quantised, D: int) -> Columns:
    """Take the tiles of x apart."""
    each = 4 // x.codes.itemsize  # columns of a step
    bounds = [*range(0, len(x.codes) // D, WIDTH), len(x.codes) // D]  # of tiles; the last may be narrower
    cursors = [_Run(flat) for flat in (x.codes, x.starts, x.pairs, x.steps)]
    found: list[list[list[np.ndarray]]] = [[] for _ in cursors]
    for first in range(0, D // 32, 8):
        subs = min(8, D // 32 - first)
        sizes = [subs * 32 // each, subs * 3, 12 if x.unit == 256 else 0, 1 if x.unit == 256 else subs * 3]
        for field, (cursor, size, last) in enumerate(zip(cursors, sizes, (each, 1, 1, 1), strict=True)):
            tiles = [cursor.take(size, stop - start, last) for start, stop in itertools.pairwise(bounds)]
            found[field].append([tile.swapaxes(0, 1).reshape(tile.shape[1], -1) for tile in tiles])
    codes, starts, pairs, steps = (np.concatenate([np.concatenate(tiles) for tiles in chunks], 1) for chunks in found)
    padded, others = len(codes), np.empty((len(codes), 0, 2), np.float32)
    if each == 2:  # columns 0 and 2, then 1 and 3
        codes = codes.reshape(padded, -1, 2, 2).swapaxes(2, 3).reshape(padded, -1)
    if x.unit == 32:
        steps, others = steps.reshape(padded, -1, 3)[..., 0], steps.reshape(padded, -1, 3)[..., 1:]
    return Columns(codes, starts.reshape(padded, -1, 3), pairs.reshape(padded, -1, 12), steps, others)


class _Run:
    """Takes arrays one after the other."""

    def __init__(self, flat: np.ndarray) -> None:
        self.flat, self.at = flat, 0

    def take(self, *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        self.at += size
        return self.flat[self.at - size : self.at].reshape(shape)


def quantised_twin(x: np.ndarray, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes [T, D] and steps [T, D / unit] of activations, as numpy computes them in float32."""
    blocks = x.reshape(len(x), -1, unit)
    largest = np.abs(blocks).max(2)
    inverse = np.divide(np.float32(127), largest, where=largest > 0, out=np.zeros_like(largest))
    codes = np.rint(blocks * inverse[:, :, None]).astype(np.int8)
    steps = largest * np.float32(1 / 127)
    return codes.reshape(x.shape), (steps.view(np.int32) & ~3).view(np.float32)


def rounded(x: np.ndarray, unit: int) -> np.ndarray:
    """Return activations [T, D] as their codes stand for them, in float32."""
    codes, steps = quantised_twin(x, unit)
    return codes * steps.repeat(unit, 1)
