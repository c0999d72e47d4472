"""Micro-kernels of products with packed weights, written as emitted vector code.

`unpack` turns one record of sixteen rows into bytes that `dot4` takes, once; `multiply` uses them for up to six
columns of activations. Both work on a pair of groups: two weight vectors share each broadcast of activations, which is
what keeps the dot unit busier than the load ports.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .layouts import GROUP, STEPS, SUB, Layout, layout_of
from .simd import BYTE, BYTES, CODES, FLOAT, FLOATS, INT, INTS, LANES, Emitter, vector

PAIR = 2  # groups that are multiplied together
VECTOR = 4 * GROUP  # bytes of sixteen float32
AHEAD = 6144  # bytes of weights that are asked for before they are unpacked: the time memory takes to answer


@intrinsic
def unpack(
    typing: Any, data: Any, group: Any, unit: Any, lane: Any, sub: Any, codes: Any, scales: Any, minimums: Any
) -> Any:
    """Write one record's codes as bytes and its scales and minimums as float32, for place `lane` (0 or 1) of a pair.

    They go to sub-block `sub` (of 32 columns) and those behind it.

    data: records [groups, units]. codes: uint8 [subs of 32, STEPS, PAIR, 64]. scales, minimums: float32
    [scales of a row, PAIR, 16].
    """
    layout = layout_of(data)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        data_, group_, unit_, lane_, sub_, codes_, scales_, minimums_ = args
        units = builder.extract_value(context.make_array(signature.args[0])(context, builder, data_).shape, 1)
        record = builder.add(builder.mul(group_, units), unit_)
        source = e.address(context, signature.args[0], data_, record, layout.places["end"])
        scale_at = builder.add(builder.mul(sub_, ir.Constant(sub_.type, SUB // layout.sub * PAIR)), lane_)
        target = e.move(e.address(context, signature.args[5], codes_, lane_, BYTES), sub_, STEPS * PAIR * BYTES)
        for offset in range(0, layout.places["end"], BYTES):
            e.prefetch(source, AHEAD // layout.places["end"] * layout.places["end"] + offset)
        for sub in range(layout.unit // SUB):
            for step in range(STEPS):
                e.store(_code(e, layout, source, sub, step), target, (sub * STEPS + step) * PAIR * BYTES)
        _emit_scales(
            e, layout, source,
            e.address(context, signature.args[6], scales_, scale_at, VECTOR),
            e.address(context, signature.args[7], minimums_, scale_at, VECTOR),
        )  # fmt: skip
        return context.get_dummy_value()

    signature = types.void(data, *[types.intp] * 4, codes, scales, minimums)
    return signature, emit


def _code(e: Emitter, layout: Layout, source: Any, sub: int, step: int) -> Any:
    """Return the codes of one step: bits of every plane put together, and looked up where the format has a table."""
    found, position = None, 0
    for plane, bits in enumerate(layout.planes):
        per = 8 // bits  # steps in a vector
        at = layout.places[f"plane{plane}"] + (sub * STEPS + step) // per * BYTES
        part = _field(e, e.load(CODES, source, at), step % per * bits, bits, position)
        found = part if found is None else e.builder.or_(found, part)
        position += bits
    if layout.table is not None:
        return e.lookup([value + layout.offset for value in layout.table], found)
    return found


def _field(e: Emitter, values: Any, start: int, bits: int, position: int) -> Any:
    """Return bits start.. of every byte, moved to bit `position`. Shifts work on 32-bit lanes; the mask cleans up."""
    words = e.builder.bitcast(values, INTS)
    if start > position:
        words = e.builder.lshr(words, ir.Constant(INTS, [start - position] * 16))
    elif start < position:
        words = e.builder.shl(words, ir.Constant(INTS, [position - start] * 16))
    mask = ((1 << bits) - 1) << position
    values = e.builder.bitcast(words, CODES)
    return values if bits == 8 else e.builder.and_(values, ir.Constant(CODES, [mask] * BYTES))


def _emit_scales(e: Emitter, layout: Layout, source: Any, scales: Any, minimums: Any) -> None:
    """Widen the scales of a record, and its minimums with the sign they are added with."""
    b, places = e.builder, layout.places
    if layout.scales == "exponent":
        e.store(_power_of_two(e, e.load(vector(BYTE), source)), scales)
        return
    d = e.halves(source)
    m = e.halves(source, places["m"]) if layout.minimums else None
    if layout.scales == "half":
        e.store(d, scales)
        if m is not None:
            e.store(m, minimums)
        return
    for sub in range(layout.subs):
        if layout.scales == "integer":
            sc = e.bytes_as_floats(source, places["sc"] + sub * GROUP, signed=True)
            mn = e.bytes_as_floats(source, places["mn"] + sub * GROUP, signed=False) if m is not None else None
        else:
            both = e.load(vector(BYTE), source, places["sc"] + sub * GROUP)
            low = b.and_(both, ir.Constant(vector(BYTE), [15] * GROUP))
            high = b.lshr(both, ir.Constant(vector(BYTE), [4] * GROUP))
            sc, mn = (e.floats(b.zext(part, INTS)) for part in (low, high))
        e.store(b.fmul(d, sc), scales, sub * PAIR * VECTOR)
        if m is not None:
            e.store(b.fneg(b.fmul(m, mn)), minimums, sub * PAIR * VECTOR)


def _power_of_two(e: Emitter, exponents: Any) -> Any:
    """Return 2^(exponent - 128) as float32, sub-normals included."""
    b = e.builder
    wide = b.zext(exponents, INTS)
    plain = b.shl(b.sub(wide, ir.Constant(INTS, [1] * 16)), ir.Constant(INTS, [23] * 16))
    tiny = b.shl(ir.Constant(INTS, [1 << 21] * 16), wide)  # 2^-128 is bit 21, 2^-127 bit 22
    small = b.icmp_unsigned("<", wide, ir.Constant(INTS, [2] * 16))
    return b.bitcast(b.select(small, tiny, plain), FLOATS)


@intrinsic(prefer_literal=True)
def multiply(
    typing: Any, data: Any, width: Any, codes: Any, scales: Any, minimums: Any, subs: Any, x: Any, x_at: Any,
    sums: Any, totals: Any, sums_at: Any, steps: Any, steps_at: Any, inner: Any, out: Any, out_at: Any,
) -> Any:  # fmt: skip
    """Add the products of `subs` sub-blocks of a pair of groups with `width` columns of activations.

    out[j, g, row] += step_j * (scale * (code - offset) · x_j + minimum * sum(x_j)), summed over what was unpacked.

    x: int8 [subs, STEPS, width, 4] from x_at. sums, totals: int32 and float32 [subs, 3, width] from sums_at, the sums
    of x over the first half of the columns, the second and both. steps: float32 from steps_at, [subs, width] where
    units have 32 columns, [width] where they have 256: then `inner`, zeros as large as out's part, collects the unit
    and is zero again afterwards. out: float32 [width, PAIR, 16] from out_at.
    """
    layout, columns = layout_of(data), width.literal_value
    whole = layout.unit > SUB

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)

        def start(position: int, scale: int, offset: Any = None) -> Any:
            return e.address(context, signature.args[position], args[position], offset, scale)

        at = {
            "codes": start(2, 1), "scales": start(3, 4), "minimums": start(4, 4), "x": start(6, 1, args[7]),
            "sums": start(8, 4, args[10]), "totals": start(9, 4, args[10]), "steps": start(11, 4, args[12]),
        }  # fmt: skip
        out_ = start(14, 4, args[15])
        target = start(13, 4) if whole else out_
        per = SUB // layout.sub
        strides = {
            "codes": STEPS * PAIR * BYTES, "scales": per * PAIR * VECTOR, "minimums": per * PAIR * VECTOR,
            "x": SUB * columns, "sums": 12 * columns, "totals": 12 * columns, "steps": 0 if whole else 4 * columns,
        }  # fmt: skip
        with cgutils.for_range(builder, args[5]) as loop:
            here = {name: e.move(pointer, loop.index, strides[name]) for name, pointer in at.items()}
            _emit_multiply(e, layout, columns, here | {"out": target})
        if whole:
            _emit_close(e, columns, target, at["steps"], out_)
        return context.get_dummy_value()

    index = types.intp
    signature = types.void(
        data, width, codes, scales, minimums, index, x, index, sums, totals, index, steps, index, inner, out, index
    )
    return signature, emit


def _emit_multiply(e: Emitter, layout: Layout, columns: int, at: dict[str, Any]) -> None:
    b = e.builder
    halves = SUB // layout.sub
    each = STEPS // halves
    for half in range(halves):
        acc = [_start(e, layout, columns, at["sums"], half, j) for j in range(columns)]
        sums = [[start] * PAIR for start in acc]
        for step in range(half * each, (half + 1) * each):
            w = [e.load(CODES, at["codes"], (step * PAIR + g) * BYTES) for g in range(PAIR)]
            for j in range(columns):
                x = e.splat(e.load(INT, at["x"], (step * columns + j) * 4))
                for g in range(PAIR):
                    sums[j][g] = e.dot4(sums[j][g], w[g], x)
        place = half * PAIR * VECTOR
        scales = [e.load(FLOATS, at["scales"], place + g * VECTOR) for g in range(PAIR)]
        if layout.minimums:
            minimums = [e.load(FLOATS, at["minimums"], place + g * VECTOR) for g in range(PAIR)]
        for j in range(columns):
            if layout.unit == SUB:
                step_size = e.splat(e.load(FLOAT, at["steps"], j * 4))
            if layout.minimums:
                total = e.splat(e.load(FLOAT, at["totals"], (_span(layout, half) * columns + j) * 4))
            for g in range(PAIR):
                place_out = (j * PAIR + g) * VECTOR
                value = e.floats(sums[j][g])
                result = e.load(FLOATS, at["out"], place_out)
                if layout.unit == SUB:
                    value = b.fmul(value, step_size)
                if layout.minimums:
                    m = b.fmul(total, step_size) if layout.unit == SUB else total
                    result = e.fma(minimums[g], m, result)
                e.store(e.fma(value, scales[g], result), at["out"], place_out)


def _span(layout: Layout, half: int) -> int:
    """Return which of the three sums covers the columns of one scale."""
    return 2 if layout.sub == SUB else half


def _start(e: Emitter, layout: Layout, columns: int, sums: Any, half: int, j: int) -> Any:
    """Return what accumulators begin with: minus the offset's share, so that subtracting it costs nothing later."""
    if not layout.offset:
        return ir.Constant(INTS, [0] * 16)
    total = e.load(INT, sums, (_span(layout, half) * columns + j) * 4)
    return e.splat(e.builder.mul(total, INT(-layout.offset)))


def _emit_close(e: Emitter, columns: int, inner: Any, steps: Any, out: Any) -> None:
    """Move what a unit of 256 columns summed up: out[j] += steps[j] * inner[j], and inner = 0 for the next one."""
    for j in range(columns):
        size = e.splat(e.load(FLOAT, steps, j * 4))
        for g in range(PAIR):
            place = (j * PAIR + g) * VECTOR
            e.store(e.fma(e.load(FLOATS, inner, place), size, e.load(FLOATS, out, place)), out, place)
            e.store(ir.Constant(FLOATS, [0.0] * 16), inner, place)


@intrinsic(prefer_literal=True)
def quantise_block(
    typing: Any, x: Any, at: Any, unit: Any, codes: Any, code_at: Any, width: Any, sums: Any, totals: Any, sum_at: Any
) -> Any:
    """Quantise `unit` floats from x[at] on and return their step size: the largest magnitude / 127.

    Four codes go to codes[code_at], the next four 4 * width bytes further, and so on. For each 32 codes the sums of the
    first half, the second and both go to sums and totals from sum_at on, `width` apart. Rounds half to even; what is
    below 1e-36 throughout gives zeros, and a NaN or infinity a step size that is one.
    """
    count = unit.literal_value // LANES

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0], args[1], 4)
        code = e.address(context, signature.args[3], args[3], args[4])
        places = [e.address(context, signature.args[i], args[i], args[8], 4) for i in (6, 7)]

        def put(total: Any) -> None:
            e.store(total, places[0])
            e.store(builder.sitofp(total, FLOAT), places[1])
            places[:] = [e.move(place, args[5], 4) for place in places]

        values = [e.load(FLOATS, source, v * LANES * 4) for v in range(count)]
        # Magnitudes are compared as integers, among which a NaN is the largest: it must show in the step size.
        bits = [builder.and_(builder.bitcast(v, INTS), ir.Constant(INTS, [0x7FFFFFFF] * LANES)) for v in values]
        peak = reduce(partial(e.call, "llvm.smax.v16i32", INTS), bits)
        largest = builder.bitcast(e.call("llvm.vector.reduce.smax.v16i32", INT, peak), FLOAT)
        some = builder.fcmp_ordered(">", largest, FLOAT(1e-36))  # 127 / less is infinite
        inverse = e.splat(builder.select(some, builder.fdiv(FLOAT(127.0), largest), FLOAT(0.0)))
        before = None
        for value in values:
            rounded = e.call("llvm.rint.v16f32", FLOATS, builder.fmul(value, inverse))
            integers = builder.fptosi(rounded, INTS)
            total = e.call("llvm.vector.reduce.add.v16i32", INT, integers)
            put(total)
            if before is not None:
                put(builder.add(before, total))
            before = total if before is None else None
            fours = builder.bitcast(builder.trunc(integers, vector(BYTE)), vector(INT, 4))
            for four in range(4):
                e.store(builder.extract_element(fours, INT(four)), code)
                code = e.move(code, args[5], 4)
        return builder.fmul(largest, FLOAT(1 / 127))

    index = types.intp
    return types.float32(x, index, unit, codes, index, index, sums, totals, index), emit
