"""Micro-kernels of products with packed weights, written as emitted vector code.

`unpack` turns one record of sixteen rows into codes that `dot` takes, once; `multiply` uses them for up to six
columns of activations. Both work on a pair of groups: two weight vectors share each broadcast of activations, which is
what keeps the dot unit busier than the load ports.

Where each sum of 32 columns has a step size of its own, sums are not converted from integers to floats: they begin at
the bits of 1.5 · 2^23, a float whose last place is worth 1, so that what is added to the bits is added to the number.
The multiply-add that applies the step takes 1.5 · 2^23 steps away again, which is exact.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .abreast import CHAINS, column_parts
from .layouts import GROUP, LAYOUTS, PAIR, STEPS, SUB, Layout
from .simd import BYTE, BYTES, CODES, FLOAT, FLOATS, INT, INTS, LANES, Emitter, code_bytes, fused, vector

VECTOR = 4 * GROUP  # bytes of sixteen float32
AHEAD = 6144  # bytes of weights that are asked for before they are unpacked: the time memory takes to answer
LINE = 64  # bytes of a cache line
CHUNK = 8  # sub-blocks of 32 columns that are unpacked at once: 8 or 16 KB of codes for a pair stay in the first cache
CODE_BYTES = code_bytes()
DOTS = STEPS * CODE_BYTES  # dot products of vectors in 32 columns

ONE = 0x4B400000  # the bits of 1.5 * 2^23
ORIGIN = 1.5 * 2.0**23

# What is unpacked, in bytes of one array.
SCALES_AT = CHUNK * DOTS * PAIR * BYTES  # float32 [scales, PAIR, 16]; codes lie before, [CHUNK, DOTS, PAIR, 64 bytes]
LOWS_AT = SCALES_AT + 2 * CHUNK * PAIR * VECTOR  # minimums: float32 [scales, PAIR, 16], or pairs of int16
HEADS_AT = LOWS_AT + CHUNK * PAIR * VECTOR  # float32 [PAIR, 16]: minus the scale of a unit's minimums
UNPACKED = HEADS_AT + PAIR * VECTOR

SUMS = 3  # of each 32 codes: of the first half, the second, and both
EACH = 2  # sums of a column and a group: of integers, and of floats
PAIRS = 12  # of int16 for each unit of 256 codes: the sums of 16 codes, two by two, then those of 32


@intrinsic(prefer_literal=True)
def unpack(typing: Any, name: Any, records: Any, record: Any, lane: Any, sub: Any, unpacked: Any) -> Any:
    """Write one record's codes as `dot` takes them and its scales as float32, for place `lane` (0 or 1) of a pair.

    They go to sub-block `sub` (of 32 columns) and those behind it. name: of the block format; records: address of
    packed weights; unpacked: uint8, laid out as said above. Codes fill the upper bits of their bytes, so that every
    offset is 128; scales are as much less.
    """
    layout = LAYOUTS[name.literal_value]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        _, records_, record_, lane_, sub_, unpacked_ = args
        source = e.address(context, signature.args[1], records_, record_, layout.places["end"])
        start = e.address(context, signature.args[5], unpacked_)
        scale_at = builder.add(builder.mul(sub_, ir.Constant(sub_.type, SUB // layout.sub * PAIR)), lane_)
        scales, lows = (e.move(e.move(start, place), scale_at, VECTOR) for place in (INDEX(SCALES_AT), INDEX(LOWS_AT)))
        target = e.move(e.move(start, lane_, BYTES), sub_, DOTS * PAIR * BYTES)
        planes = _planes(e, layout, source)
        for step in range(layout.unit // SUB * STEPS):
            for part, codes in enumerate(e.multiplied(_code(e, layout, planes, step))):
                e.store(codes, target, (step * CODE_BYTES + part) * PAIR * BYTES)
        for place, values in ((scales, _scales(e, layout, source)), (lows, _lows(e, layout, source))):
            for i, value in enumerate(values):
                e.store(value, place, i * PAIR * VECTOR)
        if layout.minimums and layout.unit > SUB:
            e.store(_head(e, layout, source), e.move(e.move(start, INDEX(HEADS_AT)), lane_, VECTOR))
        return context.get_dummy_value()

    return types.void(name, *[types.intp] * 4, unpacked), emit


INDEX = ir.IntType(64)


def _code(e: Emitter, layout: Layout, planes: list[Any], step: int) -> Any:
    """Return the codes of one step: bits of every plane put together, and looked up where the format has a table.

    planes: where each begins.
    """
    found, position = None, 8 - layout.bits if layout.table is None else 0
    for plane, bits in enumerate(layout.planes):
        per = 8 // bits  # steps in a vector
        part = _field(e, e.load(CODES, planes[plane], step // per * BYTES), step % per * bits, bits, position)
        found = part if found is None else e.builder.or_(found, part)
        position += bits
    if layout.table is not None:
        return e.lookup([value + layout.offset for value in layout.table], found)
    return found


def _planes(e: Emitter, layout: Layout, source: Any, sub: Any = None) -> list[Any]:
    """Return where each plane of a record begins, or the part of it that belongs to sub-block `sub`."""
    starts = [e.move(source, INDEX(layout.places[f"plane{i}"])) for i in range(len(layout.planes))]
    if sub is None:
        return starts
    sizes = [STEPS * bits // 8 * BYTES for bits in layout.planes]
    return [e.move(start, sub, size) for start, size in zip(starts, sizes, strict=True)]


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


def _scales(e: Emitter, layout: Layout, source: Any) -> list[Any]:
    """Return the scales of a record as float32, divided by what its codes were multiplied with."""
    b, places = e.builder, layout.places
    if layout.scales == "exponent":
        return [_power_of_two(e, e.load(vector(BYTE), source))]
    d = _unit_scale(e, layout, source)
    if layout.scales == "half":
        return [d]
    starts = [places["sc"] + sub * GROUP for sub in range(layout.subs)]
    return [b.fmul(d, _whole_scale(e, layout, source, start)) for start in starts]


def _unit_scale(e: Emitter, layout: Layout, source: Any) -> Any:
    """Return the scale that a record's integers multiply, divided by what its codes were multiplied with."""
    d = e.halves(source)
    if layout.table is None and layout.bits < 8:
        d = e.builder.fmul(d, ir.Constant(FLOATS, [2.0 ** (layout.bits - 8)] * LANES))
    return d


def _whole_scale(e: Emitter, layout: Layout, source: Any, at: int) -> Any:
    """Return the integer scales of sixteen rows as float32."""
    if layout.scales == "integer":
        return e.bytes_as_floats(source, at, signed=True)
    low = e.builder.and_(e.load(vector(BYTE), source, at), ir.Constant(vector(BYTE), [15] * GROUP))
    return e.floats(e.builder.zext(low, INTS))


def _lows(e: Emitter, layout: Layout, source: Any) -> list[Any]:
    """Return the minimums of a record: as float32, or, where they are integers, as int16 in pairs."""
    b = e.builder
    if not layout.minimums:
        return []
    if layout.scales == "half":
        return [e.halves(source, layout.places["m"])]
    found = []
    for pair in range(layout.subs // 2):
        words = []
        for sub in (2 * pair, 2 * pair + 1):
            name = "mn" if layout.scales == "integer" else "sc"
            octets = e.load(vector(BYTE), source, layout.places[name] + sub * GROUP)
            if layout.scales == "nibbles":
                octets = b.lshr(octets, ir.Constant(vector(BYTE), [4] * GROUP))
            words.append(b.zext(octets, INTS))
        found.append(b.or_(words[0], b.shl(words[1], ir.Constant(INTS, [16] * LANES))))
    return found


def _head(e: Emitter, layout: Layout, source: Any) -> Any:
    """Return what the integer minimums of a record are multiplied with."""
    return e.builder.fneg(e.halves(source, layout.places["m"]))


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
    typing: Any, name: Any, width: Any, unpacked: Any, subs: Any, codes: Any, code_at: Any, starts: Any, start_at: Any,
    pairs: Any, pair_at: Any, steps: Any, step_at: Any, out: Any, out_at: Any, ahead: Any, lines: Any,
) -> Any:  # fmt: skip
    """Add the products of `subs` unpacked sub-blocks of a pair of groups with `width` columns of activations.

    out[j, g, row] += step_j * (scale * (code - offset) · x_j + minimum * sum(x_j)), summed over what was unpacked. The
    addresses from codes to steps are those of `Quantised`, and where this tile's part begins. out: float32
    [width, PAIR, 16]. Each sub-block asks for `lines` cache lines, those from the address `ahead` on.
    """
    layout, columns = LAYOUTS[name.literal_value], width.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        weights = Unpacked(e, layout, e.address(context, signature.args[2], args[2]))
        asked = e.address(context, signature.args[14], args[14]), args[15]
        _multiply(e, layout, columns, weights, args[3], _addresses(e, context, signature, args, 4), asked)
        return context.get_dummy_value()

    index = types.intp
    arrays = [item for array in (codes, starts, pairs, steps, out) for item in (array, index)]
    return types.void(name, width, unpacked, index, *arrays, index, index), emit


@intrinsic(prefer_literal=True)
def multiply_records(
    typing: Any, name: Any, width: Any, records: Any, record: Any, codes: Any, code_at: Any, starts: Any, start_at: Any,
    pairs: Any, pair_at: Any, steps: Any, step_at: Any, out: Any, out_at: Any,
) -> Any:  # fmt: skip
    """Do what `unpack` and `multiply` do for one unit of a pair, in registers: for few tokens, which memory binds.

    Nothing is written and read back, so that the processor sees further ahead what memory it will need.
    """
    layout, columns = LAYOUTS[name.literal_value], width.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, size = Emitter(builder), layout.places["end"]
        sources = [e.address(context, signature.args[2], args[2], args[3], size)]
        sources.append(e.move(sources[0], INDEX(size)))
        weights = Records(e, layout, sources)
        subs = INDEX(layout.unit // SUB)
        _multiply(e, layout, columns, weights, subs, _addresses(e, context, signature, args, 4))
        return context.get_dummy_value()

    index = types.intp
    arrays = [item for array in (codes, starts, pairs, steps, out) for item in (array, index)]
    return types.void(name, width, records, index, *arrays), emit


def _addresses(e: Emitter, context: Any, signature: Any, args: Any, first: int) -> dict[str, Any]:
    """Return where a tile's codes, starts, pairs, steps and sums lie: arrays and offsets from argument `first` on."""
    scales = {"codes": 1, "starts": 4, "pairs": 4, "steps": 4, "out": 4}
    places = range(first, first + 2 * len(scales), 2)
    return {
        name: e.address(context, signature.args[i], args[i], args[i + 1], scale)
        for i, (name, scale) in zip(places, scales.items(), strict=True)
    }


class Unpacked:
    """What `unpack` wrote, or one sub-block of it."""

    def __init__(self, e: Emitter, layout: Layout, start: Any, index: Any = None) -> None:
        self._e, self._layout, self._start = e, layout, start
        if index is not None:
            self._codes = e.move(start, index, DOTS * PAIR * BYTES)
            self._scales = e.move(start, index, SUB // layout.sub * PAIR * VECTOR)

    def at(self, index: Any) -> Unpacked:
        """Return one sub-block of 32 columns."""
        return Unpacked(self._e, self._layout, self._start, index)

    def code(self, step: int, g: int) -> Any:
        """Return what one dot product takes."""
        return self._e.load(CODES, self._codes, (step * PAIR + g) * BYTES)

    def scale(self, half: int, g: int) -> Any:
        """Return a scale of this sub-block."""
        return self._e.load(FLOATS, self._scales, SCALES_AT + (half * PAIR + g) * VECTOR)

    def low(self, g: int) -> Any:
        """Return the minimum of this sub-block."""
        return self._e.load(FLOATS, self._scales, LOWS_AT + g * VECTOR)

    def pair(self, index: int, g: int) -> Any:
        """Return two integer minimums of a unit."""
        return self._e.load(INTS, self._start, LOWS_AT + (index * PAIR + g) * VECTOR)

    def head(self, g: int) -> Any:
        """Return what a unit's minimums are multiplied with."""
        return self._e.load(FLOATS, self._start, HEADS_AT + g * VECTOR)


class Records:
    """The same of the records themselves, one of each group: fields are unpacked into registers."""

    def __init__(self, e: Emitter, layout: Layout, sources: list[Any], index: Any = None) -> None:
        self._e, self._layout, self._sources, self._index = e, layout, sources, index
        if index is not None:
            self._planes = [_planes(e, layout, source, index) for source in sources]
            part = layout.places["end"] * SUB // layout.unit  # the bytes ahead that go with this sub-block
            for source in sources:
                ahead = e.move(source, index, part)
                for line in range(0, part, BYTES):
                    e.prefetch(ahead, AHEAD + line)

    def at(self, index: Any) -> Records:
        """Return one sub-block of 32 columns."""
        return Records(self._e, self._layout, self._sources, index)

    def code(self, step: int, g: int) -> Any:
        """Return what one dot product takes."""
        four, part = divmod(step, CODE_BYTES)
        return self._e.multiplied(_code(self._e, self._layout, self._planes[g], four))[part]

    def scale(self, half: int, g: int) -> Any:
        """Return a scale of this sub-block."""
        e, layout, source = self._e, self._layout, self._sources[g]
        if layout.unit == SUB:
            return _scales(e, layout, source)[0]
        place = e.move(source, self._index, SUB // layout.sub * GROUP)
        whole = _whole_scale(e, layout, place, layout.places["sc"] + half * GROUP)
        return e.builder.fmul(_unit_scale(e, layout, source), whole)

    def low(self, g: int) -> Any:
        """Return the minimum of this sub-block."""
        return _lows(self._e, self._layout, self._sources[g])[0]

    def pair(self, index: int, g: int) -> Any:
        """Return two integer minimums of a unit."""
        return _lows(self._e, self._layout, self._sources[g])[index]

    def head(self, g: int) -> Any:
        """Return what a unit's minimums are multiplied with."""
        return _head(self._e, self._layout, self._sources[g])


Weights = Unpacked | Records


def _multiply(
    e: Emitter, layout: Layout, columns: int, weights: Weights, subs: Any, at: dict[str, Any], asked: Any = None
) -> None:
    """Emit the product of `subs` sub-blocks of a pair of groups with a tile of activations.

    asked: None, or the address from which on each sub-block asks for cache lines, and how many.
    """
    for count, first in column_parts(e.builder, columns, EACH):
        here = {name: e.move(start, first, PAIR * VECTOR if name == "out" else 4) for name, start in at.items()}
        tile = Tile(e, layout, columns, count, here)
        tile.begin()
        with cgutils.for_range(e.builder, subs) as loop:
            if asked is not None:
                ask(e, asked[0], asked[1], loop.index)
            tile.add_sub_block(weights.at(loop.index), tile.at_sub_block(loop.index))
        tile.end(weights)


def ask(e: Emitter, start: Any, lines: Any, index: Any) -> None:
    """Emit requests for the index-th stretch of so many cache lines."""
    with cgutils.for_range(e.builder, lines) as loop:
        e.prefetch(e.move(start, e.builder.add(e.builder.mul(index, lines), loop.index), LINE), 0)


class Tile:
    """Emits the product of a pair of groups with columns of a tile: every sum stays in a register throughout."""

    def __init__(self, e: Emitter, layout: Layout, columns: int, count: int, at: dict[str, Any]) -> None:
        """Start with the first of `count` columns of a tile that has `columns`."""
        self.e, self.layout, self.columns, self.count, self.at = e, layout, columns, count, at
        self.whole = layout.unit > SUB
        places = [(j, g) for j in range(count) for g in range(PAIR)]
        self.sums = {place: cgutils.alloca_once(e.builder, FLOATS) for place in places}

    def begin(self) -> None:
        """Start the sums: at what is there already, or, for a unit of 256 columns, at nothing."""
        for (j, g), variable in self.sums.items():
            nothing = ir.Constant(FLOATS, [0.0] * LANES)
            start = nothing if self.whole else self.e.load(FLOATS, self.at["out"], self._place(j, g))
            self.e.builder.store(start, variable)

    def at_sub_block(self, index: Any) -> dict[str, Any]:
        """Return where the activations of 32 columns lie."""
        sizes = {"codes": SUB * CODE_BYTES, "starts": 4 * SUMS, "steps": 4 * SUMS}
        return {name: self.e.move(self.at[name], index, size * self.columns) for name, size in sizes.items()}

    def add_sub_block(self, weights: Weights, at: dict[str, Any]) -> None:
        """Add the products of 32 columns."""
        halves = SUB // self.layout.sub
        each = DOTS // halves
        for half in range(halves):
            found = self._dots(weights, at, range(half * each, (half + 1) * each), half)
            for g in range(PAIR):
                scale = weights.scale(half, g)
                for j in range(self.count):
                    self._add(j, g, found[j, g], scale, weights, at)

    def _dots(self, weights: Weights, at: dict[str, Any], steps: range, half: int) -> dict[tuple[int, int], Any]:
        """Return the dot products of these steps; above the bits of ORIGIN, if step sizes are those of 32 columns."""
        e = self.e
        chains = max(1, min(len(steps) // 2, CHAINS // len(self.sums)))
        nothing = ir.Constant(INTS, [0] * LANES)
        found = {(place, c): nothing for place in self.sums for c in range(chains)}
        for j, g in self.sums:
            found[(j, g), 0] = self._start(at["starts"], half, j)
        for step in steps:
            w = [weights.code(step, g) for g in range(PAIR)]
            for j in range(self.count):
                x = e.splat(e.load(INT, at["codes"], (step * self.columns + j) * 4))
                for g in range(PAIR):
                    key = (j, g), step % chains
                    found[key] = e.dot(found[key], w[g], x)
        return {place: reduce(e.builder.add, [found[place, c] for c in range(chains)]) for place in self.sums}

    def _start(self, starts: Any, half: int, j: int) -> Any:
        """Return what a dot product begins with: minus the offset's share, if there is one."""
        if not self.layout.offset:
            return ir.Constant(INTS, [0 if self.whole else ONE] * LANES)
        span = 2 if self.layout.sub == SUB else half
        return self.e.splat(self.e.load(INT, starts, (span * self.columns + j) * 4))

    def _add(self, j: int, g: int, value: Any, scale: Any, weights: Weights, at: dict[str, Any]) -> None:
        """Add one sub-block's share. value: as `_dots` returns it."""
        e, variable = self.e, self.sums[j, g]
        total = e.builder.load(variable)
        if self.whole:
            value = e.floats(value)
        else:
            step, taken, sum_ = (e.splat(e.load(FLOAT, at["steps"], (i * self.columns + j) * 4)) for i in range(SUMS))
            value = _grown(e, e.builder.bitcast(value, FLOATS), step, taken)
            if self.layout.minimums:
                total = e.fma(weights.low(g), sum_, total)
        e.builder.store(e.fma(value, scale, total), variable)

    def end(self, weights: Weights) -> None:
        """Add the minimums of a unit of 256 columns, multiply by its step size, and write the sums."""
        e = self.e
        for (j, g), variable in self.sums.items():
            total, place = e.builder.load(variable), self._place(j, g)
            if self.whole:
                if self.layout.minimums:
                    total = e.fma(e.floats(self._minimums(weights, j, g)), weights.head(g), total)
                step = e.splat(e.load(FLOAT, self.at["steps"], j * 4))
                total = e.fma(total, step, e.load(FLOATS, self.at["out"], place))
            e.store(total, self.at["out"], place)

    def _minimums(self, weights: Weights, j: int, g: int) -> Any:
        """Return the dot product of a unit's minimums with the sums of its codes."""
        e, count = self.e, self.layout.subs // 2
        first = PAIRS - count if self.layout.sub == SUB else 0
        total = ir.Constant(INTS, [0] * LANES)
        for pair in range(count):
            sums = e.splat(e.load(INT, self.at["pairs"], ((first + pair) * self.columns + j) * 4))
            total = e.dot2(total, weights.pair(pair, g), sums)
        return total

    def _place(self, j: int, g: int) -> int:
        return (j * PAIR + g) * VECTOR


def _grown(e: Emitter, value: Any, step: Any, taken: Any) -> Any:
    """Return step times what was added to ORIGIN, rounded once. taken: -ORIGIN * step, which is exact."""
    if fused():
        return e.fma(value, step, taken)
    return e.builder.fmul(e.builder.fsub(value, ir.Constant(FLOATS, [ORIGIN] * LANES)), step)


@intrinsic(prefer_literal=True)
def quantise_block(
    typing: Any, x: Any, at: Any, unit: Any, width: Any, codes: Any, code_at: Any, starts: Any, start_at: Any,
    pairs: Any, pair_at: Any, steps: Any, step_at: Any,
) -> Any:  # fmt: skip
    """Quantise `unit` floats from x[at] on, as one column of a tile of `width`. See `Quantised` for what goes where.

    The step size is the largest magnitude / 127, less its last two bits. Rounds half to even; what is below 1e-36
    throughout gives zeros, and a NaN or infinity a step size that is one.
    """
    columns = unit.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0], args[1], 4)
        code, start, pair, step = (
            e.address(context, signature.args[i], args[i], args[i + 1], scale)
            for i, scale in ((4, 1), (6, 4), (8, 4), (10, 4))
        )
        values = [e.load(FLOATS, source, v * LANES * 4) for v in range(columns // LANES)]
        size, inverse = _step_size(e, values)
        sums = []
        for value in values:
            rounded = e.call("llvm.rint.v16f32", FLOATS, builder.fmul(value, inverse))
            integers = builder.fptosi(rounded, INTS)
            sums.append(e.call("llvm.vector.reduce.add.v16i32", INT, integers))
            lanes = e.lanes(integers)
            for lane in range(lanes.type.count):
                e.store(builder.extract_element(lanes, INT(lane)), code)
                code = e.move(code, args[3], 4)
        wholes = [builder.add(*sums[i : i + 2]) for i in range(0, len(sums), 2)]
        for i, whole in enumerate(wholes):
            for total in (*sums[2 * i : 2 * i + 2], whole):
                e.store(builder.add(INT(ONE if columns == SUB else 0), builder.mul(total, INT(-128))), start)
                start = e.move(start, args[3], 4)
        if columns > SUB:
            for totals in (sums, wholes):
                for i in range(0, len(totals), 2):
                    low = builder.and_(totals[i], INT(0xFFFF))
                    e.store(builder.or_(low, builder.shl(totals[i + 1], INT(16))), pair)
                    pair = e.move(pair, args[3], 4)
            e.store(size, step)
        else:
            total = builder.fmul(size, builder.sitofp(wholes[0], FLOAT))
            for value in (size, builder.fmul(size, FLOAT(-ORIGIN)), total):
                e.store(value, step)
                step = e.move(step, args[3], 4)
        return context.get_dummy_value()

    index = types.intp
    arrays = [item for array in (codes, starts, pairs, steps) for item in (array, index)]
    return types.void(x, index, unit, index, *arrays), emit


def _step_size(e: Emitter, values: list[Any]) -> tuple[Any, Any]:
    """Return the step size of these floats, and its inverse in every lane."""
    b = e.builder
    # Magnitudes are compared as integers, among which a NaN is the largest: it must show in the step size.
    bits = [b.and_(b.bitcast(v, INTS), ir.Constant(INTS, [0x7FFFFFFF] * LANES)) for v in values]
    peak = reduce(partial(e.call, "llvm.smax.v16i32", INTS), bits)
    largest = b.bitcast(e.call("llvm.vector.reduce.smax.v16i32", INT, peak), FLOAT)
    some = b.fcmp_ordered(">", largest, FLOAT(1e-36))  # 127 / less is infinite
    inverse = e.splat(b.select(some, b.fdiv(FLOAT(127.0), largest), FLOAT(0.0)))
    size = b.bitcast(b.fmul(largest, FLOAT(1 / 127)), INT)
    return b.bitcast(b.and_(size, INT(~3)), FLOAT), inverse  # so short that ORIGIN times it is exact
