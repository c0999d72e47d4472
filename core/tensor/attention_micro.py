"""Micro-kernels of attention, written as emitted vector code: widen what is kept, score, soften, mix.

They work on a group of four tiles, 64 positions, that has been widened to float32, for up to BLOCK query rows whose
sums are held in registers. Whatever the number of rows, each one's sums are formed in the same order. All that they
work on lies in one float32 array, `memory`; where in it is what most arguments say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import BYTE, FLOAT, FLOATS, HALF, INT, INTS, LANES, Emitter, exp2, features, from_half, tanh, vector

GROUP = 4  # tiles that are looked at together: one softmax for each
WIDE = "avx512f" in features()  # 32 registers of 16 lanes
BLOCK = 8 if WIDE else 4  # rows whose sums are held in registers, ...
PAIR = 2 if WIDE else 1  # ... for so many vectors of each
VECTOR = 4 * LANES  # bytes
FEW = 8  # numbers of a query that are put in their places together
INDEX = types.intp


# --- widening -------------------------------------------------------------------------------------------------------


@intrinsic
def widen(typing: Any, source: Any, at: Any, ahead: Any, vectors: Any, memory: Any, to: Any) -> Any:
    """Write `vectors` times sixteen numbers, float32 or the bits of float16, as float32. Returns if all are finite.

    As many from `ahead` on are asked for, since they will be next.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        kept = FLOATS if signature.args[0].dtype == types.float32 else vector(HALF)
        size = kept.count * (4 if kept is FLOATS else 2)
        start, later = (e.address(context, signature.args[0], args[0], args[i], size // LANES) for i in (1, 2))
        target = e.address(context, signature.args[4], args[4], args[5], 4)

        def read(index: Any) -> list[Any]:
            e.prefetch(e.move(later, index, size), 0)
            found = e.load(kept, e.move(start, index, size))
            return [found if kept is FLOATS else from_half(builder, found)]

        return _widened(e, args[3], read, target)

    return types.boolean(source, INDEX, INDEX, INDEX, memory, INDEX), emit


@intrinsic(prefer_literal=True)
def widen_codes(
    typing: Any, codes: Any, at: Any, ahead: Any, vectors: Any, scales: Any, scale_at: Any, lanes: Any, memory: Any,
    to: Any,
) -> Any:  # fmt: skip
    """Do as `widen` for sixteen signed bytes at a time, times their scale.

    scales: float16; sixteen of them, one for each lane, or one for all.
    """
    scaled = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        start, later = (e.address(context, signature.args[0], args[0], args[i]) for i in (1, 2))
        place = e.address(context, signature.args[4], args[4], args[5], 2)
        target = e.address(context, signature.args[7], args[7], args[8], 4)
        scale = e.halves(place) if scaled == LANES else e.splat(from_half(builder, e.load(HALF, place)))

        def read(index: Any) -> list[Any]:
            e.prefetch(e.move(later, index, LANES), 0)
            found = e.load(vector(BYTE), e.move(start, index, LANES))
            return [builder.fmul(e.floats(builder.sext(found, INTS)), scale)]

        return _widened(e, args[3], read, target)

    return types.boolean(codes, INDEX, INDEX, INDEX, scales, INDEX, lanes, memory, INDEX), emit


@intrinsic(prefer_literal=True)
def widen_nibbles(
    typing: Any, codes: Any, at: Any, ahead: Any, vectors: Any, scales: Any, scale_at: Any, lanes: Any, memory: Any,
    to: Any,
) -> Any:  # fmt: skip
    """Do as `widen_codes` for sixteen bytes at a time, which hold two codes each.

    The upper halves' numbers come `vectors` vectors behind the lower halves'.
    """
    scaled = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, b = Emitter(builder), builder
        start, later = (e.address(context, signature.args[0], args[0], args[i]) for i in (1, 2))
        place = e.address(context, signature.args[4], args[4], args[5], 2)
        target = e.address(context, signature.args[7], args[7], args[8], 4)
        scale = e.halves(place) if scaled == LANES else e.splat(from_half(b, e.load(HALF, place)))
        eight = b.fmul(scale, ir.Constant(FLOATS, [-8.0] * LANES))

        def read(index: Any) -> list[Any]:
            e.prefetch(e.move(later, index, LANES), 0)
            both = b.zext(e.load(vector(BYTE), e.move(start, index, LANES)), INTS)
            halves = b.and_(both, ir.Constant(INTS, [15] * LANES)), b.lshr(both, ir.Constant(INTS, [4] * LANES))
            return [e.fma(e.floats(half), scale, eight) for half in halves]

        return _widened(e, args[3], read, target)

    return types.boolean(codes, INDEX, INDEX, INDEX, scales, INDEX, lanes, memory, INDEX), emit


def _widened(e: Emitter, vectors: Any, read: Callable[[Any], list[Any]], target: Any) -> Any:
    """Emit a loop that stores what `read` gives for each index, one result behind all of the other; return if all of
    it is finite."""
    b = e.builder
    largest = cgutils.alloca_once_value(b, ir.Constant(INTS, [0] * LANES))
    sign = ir.Constant(INTS, [0x7FFFFFFF] * LANES)
    with cgutils.for_range(b, vectors) as loop:
        for part, found in enumerate(read(loop.index)):
            place = target if part == 0 else e.move(target, vectors, VECTOR)
            e.store(found, e.move(place, loop.index, VECTOR))
            size, before = b.and_(b.bitcast(found, INTS), sign), b.load(largest)
            b.store(b.select(b.icmp_unsigned(">", size, before), size, before), largest)
    top = e.call("llvm.vector.reduce.umax.v16i32", INT, b.load(largest))
    return b.icmp_unsigned("<", top, INT(0x7F800000))


# --- products -------------------------------------------------------------------------------------------------------


@intrinsic
def score(typing: Any, memory: Any, rows: Any, q: Any, size: Any, keys: Any, out: Any) -> Any:
    """out[r, tile, lane] = q[r] · keys[tile, :, lane] for PAIR tiles.

    rows: a power of two up to BLOCK. At q: [size, BLOCK]. At keys: [PAIR, size, 16]. At out: rows of GROUP tiles.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        query, key, target = (e.address(context, signature.args[0], args[0], args[i], 4) for i in (2, 4, 5))
        starts = (key, e.move(key, args[3], VECTOR))[:PAIR]
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        for count in _counts(builder, args[1], BLOCK):
            sums = _Sums(e, [[zero] * PAIR for _ in range(count)])
            with cgutils.for_range(builder, args[3]) as loop:
                here = e.move(query, loop.index, BLOCK * 4)
                columns = [e.load(FLOATS, e.move(start, loop.index, VECTOR)) for start in starts]
                sums.add([e.splat(e.load(FLOAT, here, r * 4)) for r in range(count)], columns)
            for r, row in enumerate(sums.found()):
                for tile, value in enumerate(row):
                    e.store(value, target, (r * GROUP + tile) * VECTOR)
        return context.get_dummy_value()

    return types.void(memory, *[INDEX] * 5), emit


@intrinsic
def mix(
    typing: Any, memory: Any, rows: Any, weights: Any, first: Any, last: Any, values: Any, stride: Any, vectors: Any,
    shrink: Any, sums: Any, step: Any,
) -> Any:  # fmt: skip
    """sums[v, r] = sums[v, r] * shrink[r] + Σ_s weights[r, s] * values[s, v] for s in first..last, `vectors` vectors v.

    rows: a power of two up to BLOCK; vectors: up to PAIR. At weights: rows of a group's positions. At values: rows of
    `stride` numbers. At sums: [vectors, rows, 16], `step` numbers from vector to vector.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        weight, value, shrinks, target = (
            e.address(context, signature.args[0], args[0], args[i], 4) for i in (2, 5, 8, 9)
        )
        targets = (target, e.move(target, args[10], 4))
        for width in _counts(builder, args[7], PAIR):
            for count in _counts(builder, args[1], BLOCK):
                old = [e.splat(e.load(FLOAT, shrinks, r * 4)) for r in range(count)]
                sums = _Sums(
                    e,
                    [
                        [builder.fmul(e.load(FLOATS, at, r * VECTOR), old[r]) for at in targets[:width]]
                        for r in range(count)
                    ],
                )
                with cgutils.for_range(builder, args[4], start=args[3]) as loop:
                    here = e.move(weight, loop.index, 4)
                    row = e.move(value, builder.mul(loop.index, args[6]), 4)
                    columns = [e.load(FLOATS, row, v * VECTOR) for v in range(width)]
                    sums.add([e.splat(e.load(FLOAT, here, r * GROUP * VECTOR)) for r in range(count)], columns)
                for r, found in enumerate(sums.found()):
                    for at, total in zip(targets, found, strict=False):
                        e.store(total, at, r * VECTOR)
        return context.get_dummy_value()

    return types.void(memory, *[INDEX] * 10), emit


class _Sums:
    """Sums of rows times vectors that stay in registers through an emitted loop."""

    def __init__(self, e: Emitter, start: list[list[Any]]) -> None:
        self._e = e
        self._places = [[cgutils.alloca_once(e.builder, FLOATS) for _ in row] for row in start]
        for values, places in zip(start, self._places, strict=True):
            for value, place in zip(values, places, strict=True):
                e.builder.store(value, place)

    def add(self, scalars: list[Any], vectors: list[Any]) -> None:
        """Add each scalar times each vector."""
        for scalar, row in zip(scalars, self._places, strict=True):
            for value, place in zip(vectors, row, strict=True):
                self._e.builder.store(self._e.multiply_add(scalar, value, self._e.builder.load(place)), place)

    def found(self) -> list[list[Any]]:
        """Return the sums, [rows, vectors]."""
        return [[self._e.builder.load(place) for place in row] for row in self._places]


def _counts(builder: Any, count: Any, most: int) -> Iterator[int]:
    """Emit a branch for each power of two up to `most` that count may be; inside it count is a constant."""
    for constant in (1, 2, 4, 8):
        if constant <= most:
            with builder.if_then(builder.icmp_signed("==", count, ir.Constant(count.type, constant))):
                yield constant


# --- softmax --------------------------------------------------------------------------------------------------------


@intrinsic
def bend(typing: Any, memory: Any, scores: Any, height: Any) -> Any:
    """scores = height * tanh(scores) for the positions of a group."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        place, scale = e.address(context, signature.args[0], args[0], args[1], 4), e.splat(args[2])
        for tile in range(GROUP):
            bent = builder.fmul(scale, tanh(e, e.load(FLOATS, place, tile * VECTOR)))
            e.store(bent, place, tile * VECTOR)
        return context.get_dummy_value()

    return types.void(memory, INDEX, types.float32), emit


@intrinsic
def soften(typing: Any, memory: Any, scores: Any, low: Any, high: Any, peak: Any, shrink: Any, norm: Any) -> Any:
    """scores = 2^(scores - peak) for a group of positions, exactly 0 outside low..high.

    The peak becomes the highest score so far, shrink what older sums have to be multiplied with; the sixteen lanes at
    norm gain the weights.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, b = Emitter(builder), builder
        place, peak_at, shrink_at, norm_at = (
            e.address(context, signature.args[0], args[0], args[i], 4) for i in (1, 4, 5, 6)
        )
        low, high, size = args[2], args[3], ir.Constant(args[2].type, GROUP * LANES)
        none = b.or_(b.icmp_signed(">=", low, size), b.icmp_signed("<=", high, ir.Constant(high.type, 0)))
        every = b.and_(b.icmp_signed("<=", low, ir.Constant(low.type, 0)), b.icmp_signed(">=", high, size))
        with b.if_else(none) as (then, otherwise):
            with then:
                for tile in range(GROUP):
                    e.store(ir.Constant(FLOATS, [0.0] * LANES), place, tile * VECTOR)
                e.store(FLOAT(1.0), shrink_at)
            with otherwise, b.if_else(every) as (then, otherwise):
                with then:
                    _soften(e, place, None, peak_at, shrink_at, norm_at)
                with otherwise:
                    seen = [_within(e, tile, low, high) for tile in range(GROUP)]
                    _soften(e, place, seen, peak_at, shrink_at, norm_at)
        return context.get_dummy_value()

    return types.void(memory, *[INDEX] * 6), emit


def _soften(e: Emitter, place: Any, seen: list[Any] | None, peak_at: Any, shrink_at: Any, norm_at: Any) -> None:
    """Emit `soften` for a row that sees the lanes `seen`; None: all of them."""
    b = e.builder
    values = [e.load(FLOATS, place, tile * VECTOR) for tile in range(GROUP)]
    if seen is not None:
        values = [_where(b, mask, value, float("-inf")) for mask, value in zip(seen, values, strict=True)]
    before = e.splat(e.load(FLOAT, peak_at))
    top = _larger(b, before, _highest(b, values))
    weights = [exp2(e, b.fsub(value, top)) for value in values]
    if seen is not None:
        weights = [_where(b, mask, weight, 0.0) for mask, weight in zip(seen, weights, strict=True)]
    for tile, weight in enumerate(weights):
        e.store(weight, place, tile * VECTOR)
    total = b.fadd(b.fadd(weights[0], weights[1]), b.fadd(weights[2], weights[3]))
    highest, formerly = (b.extract_element(value, INT(0)) for value in (top, before))
    with b.if_else(b.fcmp_ordered("==", highest, formerly), likely=True) as (then, otherwise):
        with then:
            e.store(b.fadd(e.load(FLOATS, norm_at), total), norm_at)
            e.store(FLOAT(1.0), shrink_at)
        with otherwise:
            less = exp2(e, b.fsub(before, top))
            e.store(e.fma(e.load(FLOATS, norm_at), less, total), norm_at)
            e.store(highest, peak_at)
            e.store(b.extract_element(less, INT(0)), shrink_at)


def _where(b: Any, mask: Any, values: Any, otherwise: float) -> Any:
    return b.select(mask, values, ir.Constant(FLOATS, [otherwise] * LANES))


def _within(e: Emitter, tile: int, low: Any, high: Any) -> Any:
    """Return which lanes of a tile lie in low..high."""
    b, lanes = e.builder, ir.Constant(INTS, [*range(tile * LANES, tile * LANES + LANES)])
    first, last = (e.splat(b.trunc(value, INT)) for value in (low, high))
    return b.and_(b.icmp_signed(">=", lanes, first), b.icmp_signed("<", lanes, last))


def _highest(b: Any, values: list[Any]) -> Any:
    """Return the highest of all lanes, in each lane."""
    top = _larger(b, _larger(b, values[0], values[1]), _larger(b, values[2], values[3]))
    for step in (8, 4, 2, 1):
        other = b.shuffle_vector(top, top, ir.Constant(INTS, [lane ^ step for lane in range(LANES)]))
        top = _larger(b, top, other)
    return top


def _larger(b: Any, left: Any, right: Any) -> Any:
    """Return the larger; right if either is NaN."""
    return b.select(b.fcmp_ordered(">", left, right), left, right)


# --- rows in and out ------------------------------------------------------------------------------------------------


@intrinsic
def take_query(typing: Any, q: Any, at: Any, scale: Any, size: Any, memory: Any, to: Any) -> Any:
    """Write `size` numbers of q, float32, times scale, BLOCK places apart."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0], args[1], 4)
        target = e.address(context, signature.args[4], args[4], args[5], 4)
        # Eight at a time, taken apart by hand: a compiler would scatter them, which costs more than all else here.
        few, scale = ir.Constant(args[3].type, FEW), e.splat(args[2], FEW)
        with cgutils.for_range(builder, builder.sdiv(args[3], few)) as loop:
            found = builder.fmul(e.load(vector(FLOAT, FEW), e.move(source, loop.index, FEW * 4)), scale)
            there = e.move(target, loop.index, FEW * BLOCK * 4)
            for lane in range(FEW):
                e.store(builder.extract_element(found, INT(lane)), there, lane * BLOCK * 4)
        done = builder.mul(builder.sdiv(args[3], few), few)
        with cgutils.for_range(builder, args[3], start=done) as loop:
            value = builder.fmul(e.load(FLOAT, e.move(source, loop.index, 4)), args[2])
            e.store(value, e.move(target, loop.index, BLOCK * 4))
        return context.get_dummy_value()

    return types.void(q, INDEX, types.float32, INDEX, memory, INDEX), emit


@intrinsic
def weighted(
    typing: Any, memory: Any, at: Any, old: Any, part: Any, part_at: Any, new: Any, vectors: Any, step: Any
) -> Any:
    """memory = memory * old + part * new for `vectors` vectors, `step` numbers from one to the next."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        target = e.address(context, signature.args[0], args[0], args[1], 4)
        source = e.address(context, signature.args[3], args[3], args[4], 4)
        old, new = e.splat(args[2]), e.splat(args[5])
        with cgutils.for_range(builder, args[6]) as loop:
            offset = builder.mul(loop.index, args[7])
            place = e.move(target, offset, 4)
            added = builder.fmul(e.load(FLOATS, e.move(source, offset, 4)), new)
            e.store(e.fma(e.load(FLOATS, place), old, added), place)
        return context.get_dummy_value()

    return types.void(memory, INDEX, types.float32, part, INDEX, types.float32, INDEX, INDEX), emit


@intrinsic
def give_row(typing: Any, memory: Any, at: Any, step: Any, scale: Any, size: Any, out: Any, to: Any) -> Any:
    """Write `size` numbers of out: those of vectors `step` numbers apart, times scale."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, lanes = Emitter(builder), ir.Constant(args[4].type, LANES)
        source = e.address(context, signature.args[0], args[0], args[1], 4)
        target = e.address(context, signature.args[5], args[5], args[6], 4)
        whole, scale = builder.sdiv(args[4], lanes), e.splat(args[3])
        with cgutils.for_range(builder, whole) as loop:
            row = e.load(FLOATS, e.move(source, builder.mul(loop.index, args[2]), 4))
            e.store(builder.fmul(row, scale), e.move(target, loop.index, VECTOR))
        last = e.move(source, builder.mul(whole, args[2]), 4)
        rest = e.move(target, whole, VECTOR)
        with cgutils.for_range(builder, builder.srem(args[4], lanes)) as loop:
            value = builder.fmul(e.load(FLOAT, e.move(last, loop.index, 4)), args[3])
            e.store(value, e.move(rest, loop.index, 4))
        return context.get_dummy_value()

    return types.void(memory, INDEX, INDEX, types.float32, INDEX, out, INDEX), emit


# --- work -----------------------------------------------------------------------------------------------------------


@intrinsic
def take(typing: Any, counter: Any) -> Any:
    """Return counter[0], an int64, and add one to it, as one thing that no other thread comes between."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), emit
