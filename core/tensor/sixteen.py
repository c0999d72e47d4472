"""Micro-kernels of products with weights of 16 bits, F16 and BF16, as products of integers.

The processors' dot product of 16-bit integers does twice what a multiply-add of floats does. So weights, when they are
packed, and activations are rounded, in blocks of 32 columns, to multiples of the block's largest magnitude / 8,191:
that keeps a sum of 32 products within 31 bits. The error is at most 2^-14 of the block's largest; rounding a float to
F16 costs up to 2^-11 of each. Sums of a block are exact, and sums of blocks float32.

Like `micro.py`, with tiles of up to six tokens; but records are multiplied as they lie.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .abreast import CHAINS, column_parts
from .layouts import PAIR, PEAK, ROUNDED_BYTES, ROUNDED_SCALES_AT, SUB, WORDS
from .micro import EACH, LINE, VECTOR, ask
from .simd import FLOAT, FLOATS, HALF, INT, INTS, LANES, SHORT, Emitter, from_half, vector

TINY = 1e-30  # magnitudes below this are nothing: PEAK / less might be infinite
MAGIC = 1.5 * 2.0**23  # added to a float below 2^22, it leaves the nearest integer in the low bits, halves to even
ASKED = PAIR * ROUNDED_BYTES // LINE  # cache lines of a block of both groups


# --- weights ----------------------------------------------------------------------------------------------------------


def emit_rounded(e: Emitter, name: str, words: list[Any], out: Any) -> None:
    """Emit a record for 32 columns of sixteen rows. words: [16] int32 each, two columns of F16 or BF16."""
    b = e.builder
    columns = [[_widened(e, name, b.trunc(part, vector(SHORT))) for part in (w, b.lshr(w, _all(16)))] for w in words]
    largest = reduce(partial(_larger, e), [column for pair in columns for column in pair])
    scale = _rounded_up(e, b.fmul(largest, _every(1 / PEAK)))
    inverse = _inverse(e, scale)
    for step, (low, high) in enumerate(columns):
        e.store(_both(e, _code(e, low, inverse), _code(e, high, inverse)), out, step * VECTOR)
    upper = b.trunc(b.lshr(b.bitcast(scale, INTS), _all(16)), vector(SHORT))
    e.store(upper, out, ROUNDED_SCALES_AT)


def _widened(e: Emitter, name: str, bits: Any) -> Any:
    """Return sixteen F16 or BF16, or the upper halves of float32, of which bits are given, as float32."""
    if name == "F16":
        return from_half(e.builder, e.builder.bitcast(bits, vector(HALF)))
    return e.builder.bitcast(e.builder.shl(e.builder.zext(bits, INTS), _all(16)), FLOATS)


def _larger(e: Emitter, a: Any, b: Any) -> Any:
    """Return the larger magnitudes. They are compared as integers, among which a NaN is the largest."""
    sizes = [e.builder.and_(e.builder.bitcast(value, INTS), _all(0x7FFFFFFF)) for value in (a, b)]
    return e.builder.bitcast(e.call("llvm.smax.v16i32", INTS, *sizes), FLOATS)


def _rounded_up(e: Emitter, scale: Any) -> Any:
    """Return scales of which only the upper 16 bits are set, none smaller than before; NaN and infinity as they are."""
    b = e.builder
    bits = b.bitcast(scale, INTS)
    finite = b.icmp_unsigned("<", bits, _all(0x7F800000))
    more = b.add(bits, b.select(finite, _all(0xFFFF), _all(0)))
    return b.bitcast(b.and_(more, _all(0xFFFF0000)), FLOATS)


def _inverse(e: Emitter, scale: Any) -> Any:
    """Return 1 / scale, or 0 where that is not a number to reckon with."""
    b = e.builder
    return b.select(b.fcmp_ordered(">", scale, _every(TINY)), b.fdiv(_every(1.0), scale), _every(0.0))


def _code(e: Emitter, value: Any, inverse: Any) -> Any:
    """Return value * inverse rounded to an integer, in the low 16 bits of each lane."""
    return e.builder.bitcast(e.multiply_add(value, inverse, _every(MAGIC)), INTS)


def _both(e: Emitter, low: Any, high: Any) -> Any:
    """Return the low 16 bits of two vectors, one above the other in each lane."""
    return e.builder.or_(e.builder.and_(low, _all(0xFFFF)), e.builder.shl(high, _all(16)))


def _every(value: float) -> Any:
    return ir.Constant(FLOATS, [value] * LANES)


def _all(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


# --- activations ------------------------------------------------------------------------------------------------------


@intrinsic
def round_block(typing: Any, x: Any, at: Any, width: Any, codes: Any, code_at: Any, steps: Any, step_at: Any) -> Any:
    """Round 32 floats from x[at] on, as one column of a tile of `width`: codes two by two, and their step size.

    A NaN or infinity gives a step size that is one.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0], args[1], 4)
        code, step = (e.address(context, signature.args[i], args[i], args[i + 1], 4) for i in (3, 5))
        values = [e.load(FLOATS, source, v * VECTOR) for v in range(SUB // LANES)]
        peaks = builder.bitcast(reduce(partial(_larger, e), values), INTS)
        largest = builder.bitcast(e.splat(e.call("llvm.vector.reduce.smax.v16i32", INT, peaks)), FLOATS)
        size = builder.fmul(largest, _every(1 / PEAK))
        inverse = _inverse(e, size)
        for value in values:
            pairs = builder.bitcast(builder.trunc(_code(e, value, inverse), vector(SHORT)), vector(INT, LANES // 2))
            for i in range(LANES // 2):
                e.store(builder.extract_element(pairs, INT(i)), code)
                code = e.move(code, args[2], 4)
        e.store(builder.extract_element(size, INT(0)), step)
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, index, codes, index, steps, index), emit


# --- products ---------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def multiply_rounded(
    typing: Any, width: Any, records: Any, record: Any, blocks: Any, codes: Any, code_at: Any, steps: Any,
    step_at: Any, out: Any, out_at: Any, ahead: Any, lines: Any,
) -> Any:  # fmt: skip
    """out[j, g, row] += Σ scale * step_j * (code · code_j) over `blocks` of 32 columns of both groups.

    records: address of packed weights; codes, steps: of what `round_rows` fills, and where this tile's part begins.
    out: float32 [width, PAIR, 16]. Each block asks for `lines` cache lines, those from the address `ahead` on.
    """
    tokens = width.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        weights = e.address(context, signature.args[1], args[1], args[2], ROUNDED_BYTES)
        codes_, steps_, out_ = (e.address(context, signature.args[i], args[i], args[i + 1], 4) for i in (4, 6, 8))
        asked = e.address(context, signature.args[10], args[10])
        for count, first in column_parts(builder, tokens, EACH):
            tile = Tile(e, tokens, count, e.move(out_, first, PAIR * VECTOR))
            with cgutils.for_range(builder, args[3]) as loop:
                ask(e, asked, args[11], loop.index)
                here = e.move(weights, loop.index, PAIR * ROUNDED_BYTES)
                code_at = e.move(e.move(codes_, first, 4), loop.index, WORDS * tokens * 4)
                tile.add_block(here, code_at, e.move(e.move(steps_, first, 4), loop.index, tokens * 4))
            tile.end()
        return context.get_dummy_value()

    index = types.intp
    return types.void(width, records, index, index, codes, index, steps, index, out, index, index, index), emit


class Tile:
    """Emits the product of a pair of groups with columns of a tile: every sum stays in a register throughout."""

    def __init__(self, e: Emitter, tokens: int, count: int, out: Any) -> None:
        """Start with `count` of the tokens of a tile, at what their sums are already."""
        self.e, self.tokens, self.count, self.out = e, tokens, count, out
        self.places = [(j, g) for j in range(count) for g in range(PAIR)]
        self.totals = {place: cgutils.alloca_once(e.builder, FLOATS) for place in self.places}
        for place, variable in self.totals.items():
            e.builder.store(e.load(FLOATS, out, _place(place)), variable)

    def add_block(self, weights: Any, codes: Any, steps: Any) -> None:
        """Add the products of 32 columns. All: addresses."""
        e, sums = self.e, self._dots(weights, codes)
        scales = [
            _widened(e, "BF16", e.load(vector(SHORT), weights, g * ROUNDED_BYTES + ROUNDED_SCALES_AT))
            for g in range(PAIR)
        ]
        for j, g in self.places:
            value = e.builder.fmul(e.floats(sums[j, g]), e.splat(e.load(FLOAT, steps, j * 4)))
            variable = self.totals[j, g]
            e.builder.store(e.multiply_add(value, scales[g], e.builder.load(variable)), variable)

    def _dots(self, weights: Any, codes: Any) -> dict[tuple[int, int], Any]:
        """Return the dot products of a block, [16] int32 for each token and group."""
        e, chains = self.e, max(1, CHAINS // len(self.places))
        found = {(place, c): _all(0) for place in self.places for c in range(chains)}
        for step in range(WORDS):
            w = [e.load(INTS, weights, g * ROUNDED_BYTES + step * VECTOR) for g in range(PAIR)]
            for j in range(self.count):
                x = e.splat(e.load(INT, codes, (step * self.tokens + j) * 4))
                for g in range(PAIR):
                    key = (j, g), step % chains
                    found[key] = e.dot2(found[key], w[g], x)
        return {place: reduce(e.builder.add, [found[place, c] for c in range(chains)]) for place in self.places}

    def end(self) -> None:
        """Write the sums."""
        for place in self.places:
            self.e.store(self.e.builder.load(self.totals[place]), self.out, _place(place))


def _place(place: tuple[int, int]) -> int:
    return (place[0] * PAIR + place[1]) * VECTOR
