"""Micro-kernels of products with weights that are float32, on float32 activations.

Like `micro.py`: a chunk of a pair of groups is put side by side once, and multiplied by tiles of up to six tokens.
Weights are exact and sums float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .abreast import column_parts
from .layouts import PAIR, SUB
from .micro import AHEAD, INDEX, VECTOR
from .simd import FLOAT, FLOATS, INTS, LANES, Emitter

WIDE_CHUNK = 4  # blocks of 32 columns that are widened at once
WIDENED = WIDE_CHUNK * SUB * PAIR * VECTOR  # bytes of them: 16 KB stay in the first cache
UNROLLED = 8  # columns of one round


@intrinsic
def interleave(typing: Any, records: Any, record: Any, lane: Any, sub: Any, widened: Any) -> Any:
    """Write one record, 32 columns of a group, as float32 [SUB, PAIR, 16], at place `lane` of block `sub`.

    records: address of packed weights; widened: float32.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0], args[1], SUB * VECTOR)
        target = e.address(context, signature.args[4], args[4], args[3], SUB * PAIR * VECTOR)
        target = e.move(target, args[2], VECTOR)
        for column in range(SUB):
            e.prefetch(source, AHEAD + column * VECTOR)
            e.store(e.load(FLOATS, source, column * VECTOR), target, column * PAIR * VECTOR)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, widened), emit


@intrinsic(prefer_literal=True)
def multiply_wide(typing: Any, width: Any, widened: Any, blocks: Any, x: Any, x_at: Any, out: Any, out_at: Any) -> Any:
    """out[j, g, row] += Σ weight * x over `blocks` of 32 columns. x: address of a tile that `copy_rows` fills."""
    tokens = width.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        weights = e.address(context, signature.args[1], args[1])
        activations = e.address(context, signature.args[3], args[3], args[4], 4)
        target = e.address(context, signature.args[5], args[5], args[6], 4)
        rounds = builder.mul(args[2], INDEX(SUB // UNROLLED))
        for count, first in column_parts(builder, tokens, 1):
            x_here, out_here = e.move(activations, first, 4), e.move(target, first, PAIR * VECTOR)
            _multiply(e, tokens, count, weights, rounds, x_here, out_here)
        return context.get_dummy_value()

    index = types.intp
    return types.void(width, widened, index, x, index, out, index), emit


def _multiply(e: Emitter, tokens: int, count: int, weights: Any, rounds: Any, x: Any, out: Any) -> None:
    """Emit the product with `count` tokens of a tile of `tokens`, in `rounds` of UNROLLED columns."""
    builder, places = e.builder, [(j, g) for j in range(count) for g in range(PAIR)]
    sums = {place: cgutils.alloca_once(builder, FLOATS) for place in places}
    for place, variable in sums.items():
        builder.store(e.load(FLOATS, out, _place(place)), variable)
    with cgutils.for_range(builder, rounds) as loop:
        w_at = e.move(weights, loop.index, UNROLLED * PAIR * VECTOR)
        x_at = e.move(x, loop.index, UNROLLED * tokens * 4)
        for column in range(UNROLLED):
            w = [e.load(FLOATS, w_at, (column * PAIR + g) * VECTOR) for g in range(PAIR)]
            for j in range(count):
                value = e.splat(e.load(FLOAT, x_at, (column * tokens + j) * 4))
                for g in range(PAIR):
                    variable = sums[j, g]
                    builder.store(e.multiply_add(value, w[g], builder.load(variable)), variable)
    for place in places:
        e.store(builder.load(sums[place]), out, _place(place))


def _place(place: tuple[int, int]) -> int:
    return (place[0] * PAIR + place[1]) * VECTOR


@intrinsic(prefer_literal=True)
def side_by_side(typing: Any, count: Any, x: Any, at: Any, stride: Any, out: Any, to: Any) -> Any:
    """Write sixteen columns of `count` rows of x, which begin `stride` numbers apart: a column's numbers together."""
    rows = count.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[1], args[1], args[2], 4)
        target = e.address(context, signature.args[4], args[4], args[5], 4)
        found = [e.load(FLOATS, e.move(source, builder.mul(args[3], INDEX(row)), 4)) for row in range(rows)]
        for part in range(rows):
            places = [divmod(part * LANES + lane, rows) for lane in range(LANES)]  # (column, row)
            made = ir.Constant(FLOATS, ir.Undefined)
            for row, values in enumerate(found):
                mask = [LANES + column if own == row else lane for lane, (column, own) in enumerate(places)]
                made = builder.shuffle_vector(made, values, ir.Constant(INTS, mask))
            e.store(made, target, part * VECTOR)
        return context.get_dummy_value()

    index = types.intp
    return types.void(count, x, index, index, out, index), emit
