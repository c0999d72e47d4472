"""Vector instructions for kernels, as functions over an LLVM builder: the vocabulary that micro-kernels are written in.

A micro-kernel is a numba intrinsic whose body is Python that emits instructions; its loops over registers are unrolled
because they are Python loops. Everything here works on every processor. `dot4` becomes the one instruction that a
processor has for it; elsewhere LLVM's generic form is lowered to whatever is best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numpy.polynomial import Chebyshev, Polynomial

LANES = 16  # float32 and int32 values in a vector
BYTES = 64  # bytes in a vector

BYTE, SHORT, INT, LONG = (ir.IntType(n) for n in (8, 16, 32, 64))
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()


def vector(element: Any, count: int = LANES) -> Any:
    """Return the type of a vector of count elements."""
    return ir.VectorType(element, count)


INTS, FLOATS, CODES = vector(INT), vector(FLOAT), vector(BYTE, BYTES)


@cache
def features() -> frozenset[str]:
    """Return what the processor that kernels are compiled for can do, in LLVM's words.

    As numba sees it, which leaves out all of AVX on some processors.
    """
    given: str | None = config.CPU_FEATURES  # type: ignore[attr-defined]
    if given is None:
        given = "" if config.CPU_NAME else get_host_cpu_features()  # type: ignore[attr-defined,no-untyped-call]
    return frozenset(item[1:] for item in given.split(",") if item.startswith("+"))


def registers() -> int:
    """Return how many vectors of LANES the processor's registers hold: each takes one, two or four of them."""
    if "avx512f" in features():
        return 32
    return 4 if features().isdisjoint({"avx2", "neon"}) else 8


def code_bytes() -> int:
    """Return the bytes of a code in the form that products take: one, or two where x86 has no dot product of bytes.

    There 16-bit integers are what an instruction multiplies and adds in pairs, so that codes are widened beforehand.
    """
    return 2 if _on_x86() and features().isdisjoint({"avx512vnni", "avxvnni"}) else 1


def fused() -> bool:
    """Return whether the processor multiplies and adds floats in one instruction, rounding once."""
    return not features().isdisjoint({"fma", "avx512f", "neon", "fp-armv8"})


_PAIRWISE = (("avx512bw", 1, "avx512.pmaddw.d.512"), ("avx2", 2, "avx2.pmadd.wd"), ("sse2", 4, "sse2.pmadd.wd"))


def _on_x86() -> bool:
    return any(feature.startswith(("sse", "avx")) for feature in features())


class Emitter:
    """Emits into one function. Pointers are byte pointers; offsets are constants, in bytes."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def address(self, context: Any, kind: Any, array: Any, offset: Any = None, scale: int = 1) -> Any:
        """Return a byte pointer into a contiguous array: its start, or `offset` elements of `scale` bytes behind it.

        array: of numba's type `kind`; an integer is an address.
        """
        if isinstance(kind, types.Integer):
            start = self.builder.inttoptr(array, BYTE.as_pointer())
        else:
            start = self.builder.bitcast(context.make_array(kind)(context, self.builder, array).data, BYTE.as_pointer())
        return start if offset is None else self.move(start, offset, scale)

    def move(self, pointer: Any, offset: Any, scale: int = 1) -> Any:
        """Return pointer moved by a number of elements known only at run time."""
        return self.builder.gep(pointer, [self.builder.mul(offset, ir.Constant(offset.type, scale))])

    def load(self, kind: Any, pointer: Any, offset: int = 0) -> Any:
        """Read a value of any type at any alignment."""
        return self.builder.load(self._place(pointer, offset, kind), align=1)

    def store(self, value: Any, pointer: Any, offset: int = 0) -> None:
        """Write a value at any alignment."""
        self.builder.store(value, self._place(pointer, offset, value.type), align=1)

    def prefetch(self, pointer: Any, offset: int) -> None:
        """Ask for a cache line that will be read soon. Any address is allowed."""
        place = self.builder.gep(pointer, [LONG(offset)])
        module, void = self.builder.module, ir.VoidType()
        function = module.globals.get("llvm.prefetch.p0")
        if function is None:
            kind = ir.FunctionType(void, [place.type, INT, INT, INT])
            function = ir.Function(module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [place, INT(0), INT(2), INT(1)])  # to read, into the second cache, data

    def splat(self, scalar: Any, lanes: int = LANES) -> Any:
        """Return a vector with scalar in every lane."""
        nothing = ir.Constant(vector(scalar.type, lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, scalar, INT(0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(vector(INT, lanes), [0] * lanes))

    def floats(self, values: Any) -> Any:
        """Return signed integers as float32."""
        return self.builder.sitofp(values, vector(FLOAT, values.type.count))

    def halves(self, pointer: Any, offset: int = 0) -> Any:
        """Read sixteen float16 and return them as float32."""
        return from_half(self.builder, self.load(vector(HALF), pointer, offset))

    def bytes_as_floats(self, pointer: Any, offset: int, *, signed: bool) -> Any:
        """Read sixteen bytes and return them as float32."""
        found = self.load(vector(BYTE), pointer, offset)
        return self.floats(self.builder.sext(found, INTS) if signed else self.builder.zext(found, INTS))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c of float32 vectors, rounded once.

        A processor without the instruction would call a library for each lane. There float64 holds the product exactly
        and the sum to 29 more bits: one result in 2^29 falls to the other side when it is rounded to float32.
        """
        if fused():
            return self.call(f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)
        wide = [self.builder.fpext(value, vector(DOUBLE, a.type.count)) for value in (a, b, c)]
        return self.builder.fptrunc(self.builder.fadd(self.builder.fmul(*wide[:2]), wide[2]), a.type)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, rounded once or twice: what the processor does faster."""
        return self.call(f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, c)

    def dot4(self, sums: Any, unsigned: Any, signed: Any) -> Any:
        """Return sums + the dot products of four unsigned with four signed bytes in each 32-bit lane.

        sums: 16 int32; unsigned: 64 bytes; signed: 64 bytes, or 16 int32 that hold four each.
        """
        signed = self.builder.bitcast(signed, CODES)
        if "avx512vnni" in features():
            return self.call("llvm.x86.avx512.vpdpbusd.512", INTS, sums, unsigned, signed)
        if "avxvnni" in features():
            return self._in_parts(2, "llvm.x86.avx512.vpdpbusd.256", INT, sums, unsigned, signed)
        if "i8mm" in features():
            return self._in_parts(4, "llvm.aarch64.neon.usdot.v4i32.v16i8", INT, sums, unsigned, signed)
        words = self.words(unsigned, signed=False), self.words(signed, signed=True)
        for left, right in zip(*words, strict=True):
            sums = self.dot2(sums, left, right)
        return sums

    def dot2(self, sums: Any, left: Any, right: Any) -> Any:
        """Return sums + the dot products of two signed 16-bit integers in each 32-bit lane, [16] int32 each."""
        if "avx512vnni" in features():
            return self._added_dot2(sums, left, right)
        b, narrow, wide = self.builder, vector(SHORT, 2 * LANES), vector(INT, 2 * LANES)
        left, right = (b.bitcast(value, narrow) for value in (left, right))
        for feature, parts, name in _PAIRWISE:
            if feature in features() or (feature == "sse2" and _on_x86()):
                return b.add(sums, self._in_parts(parts, f"llvm.x86.{name}", INT, left, right))
        products = b.mul(b.sext(left, wide), b.sext(right, wide))
        for first in (0, 1):
            sums = b.add(sums, b.shuffle_vector(products, products, ir.Constant(INTS, [*range(first, 2 * LANES, 2)])))
        return sums

    def _added_dot2(self, sums: Any, left: Any, right: Any) -> Any:
        """Return what `dot2` does by one instruction. Of its intrinsic LLVM makes two, to have sums a cycle earlier."""
        llvm.initialize_native_asmparser()
        kind = ir.FunctionType(INTS, [INTS] * 3)
        text = ir.InlineAsm(kind, "vpdpwssd $3, $2, $0", "=v,0,v,v", side_effect=False)
        return self.builder.call(text, [sums, left, right])

    def dot(self, sums: Any, codes: Any, lanes: Any) -> Any:
        """Return sums + the dot products of codes, as `multiplied` returns them, with activations, as `lanes` does."""
        return (self.dot4 if code_bytes() == 1 else self.dot2)(sums, codes, lanes)

    def multiplied(self, octets: Any) -> Sequence[Any]:
        """Return 64 unsigned bytes, four columns of sixteen rows, as the vectors that `dot` takes: one, or two."""
        return [octets] if code_bytes() == 1 else self.words(octets, signed=False)

    def lanes(self, integers: Any) -> Any:
        """Return sixteen int32 that fit a signed byte as the 32-bit lanes that `dot` takes, 4 or 8 of them."""
        if code_bytes() == 1:
            return self.builder.bitcast(self.builder.trunc(integers, vector(BYTE)), vector(INT, 4))
        order = ir.Constant(INTS, [four + i for four in range(0, LANES, 4) for i in (0, 2, 1, 3)])  # as `words` does
        shorts = self.builder.trunc(self.builder.shuffle_vector(integers, integers, order), vector(SHORT))
        return self.builder.bitcast(shorts, vector(INT, 8))

    def words(self, octets: Any, *, signed: bool) -> tuple[Any, Any]:
        """Return 64 bytes as 16-bit integers, two in each 32-bit lane: first bytes 0 and 2 of a lane, then 1 and 3."""
        b, kind = self.builder, vector(SHORT, 2 * LANES)
        eight, pairs = ir.Constant(kind, [8] * 2 * LANES), b.bitcast(octets, kind)
        if signed:
            halves = b.ashr(b.shl(pairs, eight), eight), b.ashr(pairs, eight)
        else:
            halves = b.and_(pairs, ir.Constant(kind, [255] * 2 * LANES)), b.lshr(pairs, eight)
        even, odd = (b.bitcast(half, INTS) for half in halves)
        return even, odd

    def lookup(self, table: Sequence[int], indices: Any) -> Any:
        """Return table[index] for 64 byte indices in 0..15."""
        row = ir.Constant(vector(BYTE, 16), [value & 255 for value in table])
        if "avx512bw" in features():
            everywhere = self.builder.shuffle_vector(row, row, ir.Constant(vector(INT, BYTES), [*range(16)] * 4))
            return self.call("llvm.x86.avx512.pshuf.b.512", CODES, everywhere, indices)
        found = ir.Constant(CODES, [0] * BYTES)
        for index, value in enumerate(table):  # a chain of selects, which every processor can do on whole vectors
            hit = self.builder.icmp_unsigned("==", indices, ir.Constant(CODES, [index] * BYTES))
            found = self.builder.select(hit, ir.Constant(CODES, [value & 255] * BYTES), found)
        return found

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Call an LLVM intrinsic."""
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [arg.type for arg in args]), name)
        return self.builder.call(function, args)

    def _in_parts(self, parts: int, name: str, element: Any, *operands: Any) -> Any:
        """Apply an intrinsic of narrower vectors to each part of the operands, and join the results to 16 elements."""
        results = []
        for part in range(parts):
            narrow = [self._part(value, part, parts) for value in operands]
            results.append(self.call(name, vector(element, LANES // parts), *narrow))
        while len(results) > 1:
            results = [self._joined(a, b) for a, b in zip(results[::2], results[1::2], strict=True)]
        return results[0]

    def _part(self, value: Any, part: int, parts: int) -> Any:
        count = value.type.count // parts
        chosen = ir.Constant(vector(INT, count), [*range(part * count, (part + 1) * count)])
        return self.builder.shuffle_vector(value, value, chosen)

    def _joined(self, a: Any, b: Any) -> Any:
        count = 2 * a.type.count
        return self.builder.shuffle_vector(a, b, ir.Constant(vector(INT, count), [*range(count)]))

    def _place(self, pointer: Any, offset: int, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [LONG(offset)]), kind.as_pointer())


def _native_halves() -> bool:
    return not features().isdisjoint({"f16c", "avx512f", "neon", "fp-armv8"})


def _like(kind: Any, element: Any) -> Any:
    """Return the type of as many elements as kind holds."""
    return vector(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _every(kind: Any, value: float) -> Any:
    """Return a constant of this type, in every lane if it has lanes."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def from_half(b: Any, half: Any) -> Any:
    """Return float16, one or a vector, as float32.

    A processor without the instruction would call a library that need not be there: then the bits are moved, and the
    exponents' difference is multiplied in, which makes sub-normals normal.
    """
    floats, ints = _like(half.type, FLOAT), _like(half.type, INT)
    if _native_halves():
        return b.fpext(half, floats)
    bits = b.zext(b.bitcast(half, _like(half.type, SHORT)), ints)
    size = b.shl(b.and_(bits, _every(ints, 0x7FFF)), _every(ints, 13))
    scaled = b.bitcast(b.fmul(b.bitcast(size, floats), _every(floats, 2.0**112)), ints)
    special = b.or_(size, _every(ints, 0x7F800000))  # infinities and NaNs
    found = b.select(b.icmp_unsigned(">=", size, _every(ints, 0x7C00 << 13)), special, scaled)
    return b.bitcast(b.or_(found, b.shl(b.and_(bits, _every(ints, 0x8000)), _every(ints, 16))), floats)


def to_half(b: Any, value: Any) -> Any:
    """Return float32, one or a vector, rounded to float16, half to even.

    Without the instruction: sums with a power of two round sub-normals, integers the rest.
    """
    halves, floats, ints = _like(value.type, HALF), value.type, _like(value.type, INT)
    if _native_halves():
        return b.fptrunc(value, halves)
    bits = b.bitcast(value, ints)
    size = b.and_(bits, _every(ints, 0x7FFFFFFF))
    odd = b.and_(b.lshr(size, _every(ints, 13)), _every(ints, 1))
    normal = b.lshr(b.add(size, b.add(odd, _every(ints, 0xFFF - (112 << 23)))), _every(ints, 13))
    magic = 0x3F000000  # 1/2, whose last place is worth as much as a sub-normal float16's
    tiny = b.sub(b.bitcast(b.fadd(b.bitcast(size, floats), _every(floats, 0.5)), ints), _every(ints, magic))
    found = b.select(b.icmp_unsigned("<", size, _every(ints, 113 << 23)), tiny, normal)
    special = b.select(b.icmp_unsigned(">", size, _every(ints, 0x7F800000)), _every(ints, 0x7E00), _every(ints, 0x7C00))
    found = b.select(b.icmp_unsigned(">=", size, _every(ints, 143 << 23)), special, found)
    sign = b.and_(b.lshr(bits, _every(ints, 16)), _every(ints, 0x8000))
    return b.bitcast(b.trunc(b.or_(found, sign), _like(value.type, SHORT)), halves)


def exp(e: Emitter, x: Any) -> Any:
    """Return exp of sixteen float32, within 1 unit in the last place; 0 below -87, exp(88) above 88, NaN of NaN.

    exp(x) = 2^n * exp(r) with n = round(x / ln 2); the polynomial is exp's Taylor series to r^7, with r within 0.35.
    """
    b = e.builder

    def constant(value: float) -> Any:
        return ir.Constant(FLOATS, [value] * LANES)

    low = b.fcmp_ordered("<", x, constant(-87.0))
    clamped = b.select(low, constant(-87.0), b.select(b.fcmp_ordered(">", x, constant(88.0)), constant(88.0), x))
    n = e.call("llvm.rint.v16f32", FLOATS, b.fmul(clamped, constant(1 / math.log(2))))
    high_part = 0.693359375  # of ln 2, in so few bits that n times it is exact
    r = e.fma(n, constant(-high_part), clamped)
    r = e.fma(n, constant(high_part - math.log(2)), r)
    total = constant(1 / 5040)
    for divisor in (720, 120, 24, 6, 2, 1, 1):
        total = e.fma(total, r, constant(1 / divisor))
    shifted = b.shl(b.fptosi(n, INTS), ir.Constant(INTS, [23] * LANES))
    scaled = b.bitcast(b.add(b.bitcast(total, INTS), shifted), FLOATS)
    return b.select(low, constant(0.0), scaled)


def erf(e: Emitter, x: Any) -> Any:
    """Return erf of sixteen float32: off by less than 1e-7, by 2 units in the last place below 1; NaN of NaN.

    Below 1 the Maclaurin series to x^19 (DLMF 7.6.1). Beyond, 1 - exp(-p(|x|)), where p is a polynomial that was fitted
    to -ln erfc on [1, 4] for the least absolute error of erfc, 1e-9; from 4 on erf is 1 in float32.
    """
    b = e.builder

    def constant(value: float) -> Any:
        return ir.Constant(FLOATS, [value] * LANES)

    square = b.fmul(x, x)
    series = constant(_ERF_SERIES[-1])
    for factor in _ERF_SERIES[-2::-1]:
        series = e.fma(series, square, constant(factor))
    near = e.fma(series, x, x)
    size = e.call("llvm.fabs.v16f32", FLOATS, x)
    capped = b.select(b.fcmp_ordered(">", size, constant(4.0)), constant(4.0), size)
    power = constant(_ERFC_POWER[-1])
    for factor in _ERFC_POWER[-2::-1]:
        power = e.fma(power, capped, constant(factor))
    far = b.fsub(constant(1.0), exp(e, b.fneg(power)))
    return b.select(b.fcmp_ordered("<", size, constant(1.0)), near, e.call("llvm.copysign.v16f32", FLOATS, far, x))


_ERF_SERIES = [  # of erf(x) / x - 1, in x^2
    2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) - (n == 0) for n in range(10)
]
_ERFC_POWER = (3.5371851e-4, 1.12704, 0.63822567, 0.10303737, -0.021805321, 2.9396081e-3, -1.8557409e-4)  # in |x|


def fitted(function: Callable[[Any], Any], degree: int, low: float, high: float) -> list[float]:
    """Return the coefficients, lowest first, of the polynomial that meets function at the Chebyshev points."""
    found = Chebyshev.interpolate(function, degree, domain=[low, high])
    return [float(c) for c in found.convert(kind=Polynomial).coef]


EXP2_STEEP = fitted(lambda r: np.expm1(r * math.log(2)) / r, 5, -0.5, 0.5)  # 2^r = 1 + r * this
TANH_FLAT = 0.625  # below, tanh is a polynomial; above, nothing cancels in 1 - 2 / (exp(2x) + 1)
TANH_BEND = fitted(lambda z: (np.tanh(np.sqrt(z)) / np.sqrt(z) - 1) / z, 5, 0.0, TANH_FLAT**2)  # x + x³ * this(x²)


def exp2(e: Emitter, x: Any) -> Any:
    """Return 2^x of sixteen float32 up to 0, within 2 units in the last place; 2^-126 below that, NaN of NaN.

    x = n + r with n = round(x). Adding 1.5 * 2^23 leaves n in the low bits of the sum, which shifted up are 2^n.
    """
    b, magic = e.builder, ir.Constant(FLOATS, [1.5 * 2.0**23] * LANES)
    least = ir.Constant(FLOATS, [-126.0] * LANES)
    clamped = b.select(b.fcmp_ordered("<", x, least), least, x)
    shifted = b.fadd(clamped, magic)
    r = b.fsub(clamped, b.fsub(shifted, magic))
    total = _polynomial(e, EXP2_STEEP, r)
    one = ir.Constant(FLOATS, [1.0] * LANES)
    power = b.shl(b.bitcast(shifted, INTS), ir.Constant(INTS, [23] * LANES))
    power = b.add(power, ir.Constant(INTS, [127 << 23] * LANES))
    return b.fmul(e.fma(total, r, one), b.bitcast(power, FLOATS))


def tanh(e: Emitter, x: Any) -> Any:
    """Return tanh of sixteen float32, within 3 units in the last place; NaN of NaN."""
    b = e.builder
    one, two = (ir.Constant(FLOATS, [value] * LANES) for value in (1.0, 2.0))
    size = e.call("llvm.fabs.v16f32", FLOATS, x)
    z = b.fmul(x, x)
    small = e.fma(b.fmul(_polynomial(e, TANH_BEND, z), z), x, x)
    large = b.fsub(one, b.fdiv(two, b.fadd(exp(e, b.fadd(size, size)), one)))
    large = e.call("llvm.copysign.v16f32", FLOATS, large, x)
    return b.select(b.fcmp_ordered("<", size, ir.Constant(FLOATS, [TANH_FLAT] * LANES)), small, large)


def _polynomial(e: Emitter, coefficients: Sequence[float], x: Any) -> Any:
    """Return the polynomial's value at x, by Horner's rule."""
    total = ir.Constant(FLOATS, [coefficients[-1]] * LANES)
    for value in coefficients[-2::-1]:
        total = e.fma(total, x, ir.Constant(FLOATS, [value] * LANES))
    return total
