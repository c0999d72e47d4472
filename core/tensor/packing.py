"""From a file's blocks to packed records: bits are moved, and no value changes but those of F16 and BF16.

Sixteen rows are read at once, four neighbouring columns of each in one lane of 32 bits, and every lane goes through the
same shifts and masks. Source of the block layouts: ggml's block structs; `decode.py` reads the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from .arena import Arena
from .blocks import BlockFormat, by_name
from .jit import kernel, specialised
from .layouts import (
    FLOAT_FORMATS,
    FORMATS,
    GROUP,
    LAYOUTS,
    PAIR,
    STEPS,
    SUB,
    WIDE_FORMATS,
    WORDS,
    Layout,
    name_of,
    record_of,
)
from .simd import BYTE, BYTES, INT, INTS, SHORT, Emitter, vector
from .sixteen import emit_rounded
from .team import shared, spread


def pack(raw: npt.NDArray[np.uint8], form: BlockFormat, arena: Arena | None = None) -> npt.NDArray[np.void]:
    """Return raw as records [pairs, units, PAIR] in memory of the arena. raw: [rows, bytes per row].

    Rows that the last pair lacks are zero, as are columns that the last record of F32, F16 and BF16 lacks.
    """
    nbytes = SUB * form.nbytes if form.name in FLOAT_FORMATS else form.nbytes  # of one record's part of a row
    units, both = -(-raw.shape[1] // nbytes), PAIR * GROUP
    whole = len(raw) // both if raw.shape[1] % nbytes == 0 else 0  # pairs that need no padding
    rest = np.zeros((-(-len(raw) // both) * both - whole * both, units * nbytes), np.uint8)
    rest[: len(raw) - whole * both, : raw.shape[1]] = raw[whole * both :]
    out = (arena or Arena()).empty((whole + len(rest) // both, units, PAIR), record_of(form.name))
    for rows, part in ((raw[: whole * both], out[:whole]), (rest, out[whole:])):
        if len(part) > 0:
            rows = rows.view()
            rows.flags.writeable = False  # as mapped rows are: one compiled version serves both
            spread(share_packing, len(part), 1, rows, nbytes, part)
    return out


def get_ready_to_pack(forms: Iterable[BlockFormat]) -> None:
    """Load the kernels that pack weights of these formats, as far as such weights are packed."""
    for form in forms:
        if form.name in FORMATS:
            both = 2 * PAIR * GROUP  # as many pairs as are shared out
            pack(np.zeros((both, form.row_bytes(256)), np.uint8), form)


@kernel
def pack_pairs(raw, nbytes, out, each, item):
    """Fill `each` pairs of out, records [pairs, units, PAIR], from raw, uint8 [32 * pairs, bytes per row]."""
    for pair in range(item * each, min(out.shape[0], item * each + each)):
        for unit in range(out.shape[1]):
            for lane in range(PAIR):
                row, record = (pair * PAIR + lane) * GROUP, (pair * out.shape[1] + unit) * PAIR + lane
                pack_record(raw, row, unit * nbytes, out, record)


share_packing = shared(pack_pairs)


@intrinsic
def pack_record(typing: Any, raw: Any, row: Any, at: Any, out: Any, record: Any) -> Any:
    """Pack the blocks that begin at byte `at` of sixteen rows into one record."""
    name = name_of(out)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        width = builder.extract_value(context.make_array(signature.args[0])(context, builder, args[0]).shape, 1)
        first = e.address(context, signature.args[0], args[0], builder.add(builder.mul(args[1], width), args[2]))
        place = e.address(context, signature.args[3], args[3], args[4], record_of(name).itemsize)
        _emit(e, name, Rows(e, first, width), place)
        return context.get_dummy_value()

    return types.void(raw, types.intp, types.intp, out, types.intp), emit


# The following is compiled once for each block format: its name, and the bytes of one record and of a row's part of it,
# stand here.
NAME, RECORD, PART = "", 0, 0


def pack_pair(raw, units, pair, out):
    """Pack one pair of groups. raw: address of the first of all rows; out: address of `units` records of a pair."""
    for unit in range(units):
        for lane in range(PAIR):
            first = ((pair * PAIR + lane) * GROUP * units + unit) * PART
            pack_block(NAME, raw + first, units * PART, out + (unit * PAIR + lane) * RECORD)


@cache
def packer(name: str) -> Any:
    """Return `pack_pair` for a block format, compiled, which has an address."""
    form = by_name(name)
    part = SUB * form.nbytes if name in FLOAT_FORMATS else form.nbytes
    made = specialised(pack_pair, f"pack_{name}", NAME=name, RECORD=record_of(name).itemsize, PART=part)
    return cfunc(types.void(*[types.intp] * 4), cache=True)(made)


@intrinsic(prefer_literal=True)
def pack_block(typing: Any, name: Any, first: Any, stride: Any, record: Any) -> Any:
    """Pack a block each of sixteen rows, `stride` bytes apart, into one record. first, record: addresses."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source, place = (e.address(context, signature.args[i], args[i]) for i in (1, 3))
        _emit(e, name.literal_value, Rows(e, source, args[2]), place)
        return context.get_dummy_value()

    return types.void(name, types.intp, types.intp, types.intp), emit


def _emit(e: Emitter, name: str, rows: Rows, out: Any) -> None:
    """Write a record of that format."""
    if name in LAYOUTS:
        _emit_record(e, LAYOUTS[name], rows, out)
    elif name in WIDE_FORMATS:
        for column in range(SUB):
            e.store(rows.words(4 * column), out, column * BYTES)
    else:
        emit_rounded(e, name, [rows.words(4 * word) for word in range(WORDS)], out)


class Rows:
    """The same bytes of sixteen rows, as vectors with a row in each lane."""

    def __init__(self, e: Emitter, first: Any, stride: Any) -> None:
        """first: where the bytes of the first row begin; stride: bytes from there to those of the next."""
        self.e = e
        self._starts = [first]
        for _ in range(GROUP - 1):
            self._starts.append(e.move(self._starts[-1], stride))
        self._read: dict[int, Any] = {}

    def words(self, at: int) -> Any:
        """Return four bytes of each row, [16] int32."""
        if at not in self._read:
            self._read[at] = self._gather(INT, at)
        return self._read[at]

    def shorts(self, at: int) -> Any:
        """Return two bytes of each row, [16] int16."""
        return self._gather(SHORT, at)

    def octets(self, at: int) -> Any:
        """Return one byte of each row, [16] int8."""
        return self._gather(BYTE, at)

    def field(self, at: int, start: int, bits: int, position: int = 0) -> Any:
        """Return bits start .. start + bits - 1 of each of four bytes, moved to bit `position` of its byte."""
        b, words = self.e.builder, self.words(at)
        if start > position:
            words = b.lshr(words, _all(start - position))
        elif start < position:
            words = b.shl(words, _all(position - start))
        return b.and_(words, _all(((1 << bits) - 1) * 0x01010101 << position))

    def _gather(self, kind: Any, at: int) -> Any:
        found = ir.Constant(vector(kind, GROUP), ir.Undefined)
        for row, start in enumerate(self._starts):
            found = self.e.builder.insert_element(found, self.e.load(kind, start, at), INT(row))
        return found


def _all(value: int) -> Any:
    return ir.Constant(INTS, [value & 0xFFFFFFFF] * GROUP)


def _emit_record(e: Emitter, layout: Layout, rows: Rows, out: Any) -> None:
    """Write every field of a record."""
    places = layout.places
    if layout.scales == "exponent":
        e.store(rows.octets(0), out)
    else:
        e.store(rows.shorts(HEADS.get(layout.name, 0)), out)
        if layout.minimums:
            e.store(rows.shorts(HEADS.get(layout.name, 0) + 2), out, places["m"])
    if layout.name in SCALES:
        for name, quads in zip(("sc", "mn"), SCALES[layout.name](rows), strict=False):
            for quad, words in enumerate(quads):
                for j in range(4):  # one byte of each row for each sub-block
                    octets = e.builder.trunc(e.builder.lshr(words, _all(8 * j)), vector(BYTE))
                    e.store(octets, out, places[name] + (4 * quad + j) * GROUP)
    for step in range(layout.unit // SUB * STEPS):
        _emit_step(e, layout, CODES_OF[layout.name](rows, step), step, out)


def _emit_step(e: Emitter, layout: Layout, codes: Any, step: int, out: Any) -> None:
    """Add the codes of four columns to each plane."""
    b, position = e.builder, 0
    for plane, bits in enumerate(layout.planes):
        per = 8 // bits
        at = layout.places[f"plane{plane}"] + step // per * BYTES
        part = b.lshr(codes, _all(position)) if position else codes
        if bits < 8:
            part = b.and_(part, _all(((1 << bits) - 1) * 0x01010101))
        part = b.shl(part, _all(step % per * bits)) if step % per else part
        e.store(b.or_(part, e.load(INTS, out, at)) if step % per else part, out, at)
        position += bits


# --- what the blocks hold ---------------------------------------------------------------------------------------------

HEADS = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}  # where d lies, if not at the start of a block

Words = list[Any]  # [16] int32 each: four bytes of sixteen rows


def _pairs(rows: Rows) -> tuple[Words, Words]:
    """Q4_K and Q5_K: eight scales and minimums of 6 bits in twelve bytes."""
    b = rows.e.builder
    scales = [rows.field(4, 0, 6), b.or_(rows.field(12, 0, 4), rows.field(4, 6, 2, 4))]
    minimums = [rows.field(8, 0, 6), b.or_(rows.field(12, 4, 4), rows.field(8, 6, 2, 4))]
    return scales, minimums


def _q3_scales(rows: Rows) -> tuple[Words]:
    """Q3_K: sixteen scales of 6 bits in twelve bytes, 32 too large."""
    b = rows.e.builder
    found = []
    for quad in range(4):
        low = rows.field(96 + 4 * (quad % 2), 4 * (quad // 2), 4)
        found.append(_minus_32(rows, b.or_(low, rows.field(104, 2 * quad, 2, 4))))
    return (found,)


def _xs_scales(rows: Rows) -> tuple[Words]:
    """IQ4_XS: eight scales of 6 bits, 32 too large; neighbours share a byte of low bits."""
    b = rows.e.builder
    high = b.zext(rows.shorts(2), INTS)
    found = []
    for quad in range(2):
        low = b.zext(rows.shorts(4 + 2 * quad), INTS)
        spread = _all(0)
        for j in range(4):
            four = b.and_(b.lshr(low, _all(4 * j)), _all(15))
            two = b.and_(b.lshr(high, _all(2 * (4 * quad + j))), _all(3))
            spread = b.or_(spread, b.shl(b.or_(four, b.shl(two, _all(4))), _all(8 * j)))
        found.append(_minus_32(rows, spread))
    return (found,)


def _minus_32(rows: Rows, words: Any) -> Any:
    """Return bytes of 0..63 less 32, as int8."""
    bytes_ = rows.e.builder.bitcast(words, vector(BYTE, BYTES))
    return rows.e.builder.bitcast(rows.e.builder.sub(bytes_, ir.Constant(vector(BYTE, BYTES), [32] * BYTES)), INTS)


SCALES: dict[str, Callable[[Rows], tuple[Words, ...]]] = {
    "Q2_K": lambda rows: ([rows.words(4 * quad) for quad in range(4)],),
    "Q3_K": _q3_scales,
    "Q4_K": _pairs,
    "Q5_K": _pairs,
    "Q6_K": lambda rows: ([rows.words(192 + 4 * quad) for quad in range(4)],),
    "IQ4_XS": _xs_scales,
}


def _halves(first: int, block: int = 32) -> Callable[[Rows, int], Any]:
    """Return a reader of nibbles in split halves: column j in the low, j + 16 in the high half of byte j."""

    def read(rows: Rows, step: int) -> Any:
        sub, within = divmod(step, STEPS)
        return rows.field(first + sub * block // 2 + 4 * (within % 4), 4 * (within // 4), 4)

    return read


def _with_fifth_bits(first: int, bits_at: int) -> Callable[[Rows, int], Any]:
    """Return a reader of split halves with a fifth bit: bit j of a word belongs to column j."""
    low = _halves(first)

    def read(rows: Rows, step: int) -> Any:
        b = rows.e.builder
        four = b.and_(b.lshr(rows.words(bits_at), _all(4 * step)), _all(15))
        # the product puts bit j of four at bit 8 * j, between copies that the mask removes
        spread = b.and_(b.mul(four, _all(0x00204081)), _all(0x01010101))
        return b.or_(low(rows, step), b.shl(spread, _all(4)))

    return read


def _k_nibbles(first: int) -> Callable[[Rows, int], Any]:
    """Return a reader of 64 columns in 32 bytes: the first 32 in the low halves, the others in the high ones."""

    def read(rows: Rows, step: int) -> Any:
        sub, within = divmod(step, STEPS)
        return rows.field(first + 32 * (sub // 2) + 4 * within, 4 * (sub % 2), 4)

    return read


def _k_pairs_of_bits(first: int) -> Callable[[Rows, int], Any]:
    """Return a reader of 128 columns in 32 bytes, two bits for each 32."""

    def read(rows: Rows, step: int) -> Any:
        sub, within = divmod(step, STEPS)
        return rows.field(first + 32 * (sub // 4) + 4 * within, 2 * (sub % 4), 2)

    return read


def _k_high_bit(low: Callable[[Rows, int], Any], first: int, position: int) -> Callable[[Rows, int], Any]:
    """Return low with one bit more from 32 bytes, bit j of each for sub-block j."""

    def read(rows: Rows, step: int) -> Any:
        sub, within = divmod(step, STEPS)
        return rows.e.builder.or_(low(rows, step), rows.field(first + 4 * within, sub, 1, position))

    return read


def _q6_codes(rows: Rows, step: int) -> Any:
    half, rest = divmod(step, 4 * STEPS)
    quarter, within = divmod(rest, STEPS)
    low = rows.field(64 * half + 32 * (quarter % 2) + 4 * within, 4 * (quarter // 2), 4)
    return rows.e.builder.or_(low, rows.field(128 + 32 * half + 4 * within, 2 * quarter, 2, 4))


def _q8_codes(rows: Rows, step: int) -> Any:
    return rows.e.builder.xor(rows.words(2 + 4 * step), _all(0x80808080))  # int8 + 128


CODES_OF: dict[str, Callable[[Rows, int], Any]] = {  # four columns, [16] int32: a code in each byte
    "Q4_0": _halves(2),
    "Q4_1": _halves(4),
    "Q5_0": _with_fifth_bits(6, 2),
    "Q5_1": _with_fifth_bits(8, 4),
    "Q8_0": _q8_codes,
    "IQ4_NL": _halves(2),
    "MXFP4": _halves(1),
    "IQ4_XS": _halves(8),
    "Q2_K": _k_pairs_of_bits(16),
    "Q3_K": _k_high_bit(_k_pairs_of_bits(32), 0, 2),
    "Q4_K": _k_nibbles(16),
    "Q5_K": _k_high_bit(_k_nibbles(48), 16, 4),
    "Q6_K": _q6_codes,
}
