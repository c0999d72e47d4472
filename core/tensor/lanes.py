"""Sixteen numbers at a time: the vector types and operators that the block decoders are written in.

Inside a kernel `Codes` are sixteen int32 and `Reals` sixteen float32. Both map onto LLVM vectors, which become one
AVX-512 register, two AVX2 or four NEON ones. Reading and writing goes through raw addresses: no bounds check, no
Python wrap-around of negative indices. A kernel's caller checks the shapes once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import errors
from numba.extending import intrinsic, models, overload, register_model

from .simd import from_half

LANES = 16

_intrinsic: Callable[..., Any] = intrinsic  # the arguments of a call from a kernel are not those of the definition

_BYTE, _SHORT, _INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_HALF, _FLOAT = ir.HalfType(), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)


class _Lanes(types.Type):
    """A numba type that is one LLVM vector."""


codes, reals = _Lanes("Codes"), _Lanes("Reals")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: _Lanes) -> None:
        super().__init__(manager, type_, _INTS if type_ is codes else _FLOATS)


def _vector(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, LANES)


def _splat(builder: Any, scalar: Any) -> Any:
    """Return a vector with scalar in every lane."""
    undefined = ir.Constant(_vector(scalar.type), ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


def _address(context: Any, builder: Any, array_type: Any, array: Any, at: Any, stored: ir.Type) -> Any:
    """Return a pointer to a `stored` that begins at element `at` of an array, at any alignment."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), stored.as_pointer())


def _require(array: Any, dtype: Any) -> None:
    """Refuse an array that is not one packed run of dtype: raw addresses would miss its elements."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == dtype):
        raise errors.TypingError(f"expected a contiguous array of {dtype} with one dimension, got {array}")


def _loader(stored: ir.Type, result: Any, widen: Callable[[Any, Any], Any]) -> Any:
    """Return an intrinsic load(src, at): the `stored` at byte `at` of a uint8 array, little-endian, widened."""

    def load(typing: Any, src: Any, at: Any) -> Any:
        _require(src, types.uint8)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array, at = args
            address = _address(context, builder, signature.args[0], array, at, stored)
            return widen(builder, builder.load(address, align=1))

        return result(src, types.intp), emit

    return _intrinsic(load)


u8 = _loader(_BYTE, types.int32, lambda builder, v: builder.zext(v, _INT))
i8 = _loader(_BYTE, types.int32, lambda builder, v: builder.sext(v, _INT))
u16 = _loader(_SHORT, types.int32, lambda builder, v: builder.zext(v, _INT))
u32 = _loader(_INT, types.uint32, lambda builder, v: v)
f16 = _loader(_HALF, types.float32, from_half)
f32 = _loader(_FLOAT, types.float32, lambda builder, v: v)

u8x16 = _loader(_vector(_BYTE), codes, lambda builder, v: builder.zext(v, _INTS))
i8x16 = _loader(_vector(_BYTE), codes, lambda builder, v: builder.sext(v, _INTS))
u16x16 = _loader(_vector(_SHORT), codes, lambda builder, v: builder.zext(v, _INTS))
f16x16 = _loader(_vector(_HALF), reals, from_half)
f32x16 = _loader(_FLOATS, reals, lambda builder, v: v)


@_intrinsic
def store(typing: Any, out: Any, to: Any, values: Any) -> Any:
    """Write sixteen Reals to out[to : to + 16], float32."""
    _require(out, types.float32)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, to, values = args
        builder.store(values, _address(context, builder, signature.args[0], array, to, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(out, types.intp, reals), emit


@_intrinsic
def real(typing: Any, values: Any) -> Any:
    """Return Codes as Reals: exact up to 2^24."""
    return reals(codes), lambda context, builder, signature, args: builder.sitofp(args[0], _FLOATS)


@_intrinsic
def from_bits(typing: Any, pattern: Any) -> Any:
    """Return the float32 with this int32 bit pattern."""
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(args[0], _FLOAT)


@_intrinsic
def from_bits_x16(typing: Any, pattern: Any) -> Any:
    """Return the sixteen float32 with these bit patterns."""
    return reals(codes), lambda context, builder, signature, args: builder.bitcast(args[0], _FLOATS)


@_intrinsic
def bits(typing: Any, word: Any, first: Any) -> Any:
    """Return Codes of 0 or 1: lane i is bit first + i of a uint32 word. first: 0 or 16."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, first = args
        counts = builder.add(_splat(builder, first), ir.Constant(_INTS, list(range(LANES))))
        return builder.and_(builder.lshr(_splat(builder, word), counts), ir.Constant(_INTS, [1] * LANES))

    return codes(types.uint32, types.int32), emit


@_intrinsic
def lookup(typing: Any, table: Any, index: Any) -> Any:
    """Return table[index] for sixteen Codes in 0..15; table: Reals. LLVM makes this one permutation where it can."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, index = args
        found = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            chosen = builder.extract_element(table, builder.extract_element(index, _INT(lane)))
            found = builder.insert_element(found, chosen, _INT(lane))
        return found

    return reals(reals, codes), emit


def _operator(symbol: Any, instruction: str, lanes: _Lanes, scalar: Any) -> None:
    """Give kernels `lanes symbol lanes` and `lanes symbol scalar`."""

    def both(typing: Any, left: Any, right: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return lanes(lanes, lanes), emit

    def one(typing: Any, left: Any, right: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(args[0], _splat(builder, args[1]))

        return lanes(lanes, scalar), emit

    with_lanes, with_scalar = _intrinsic(both), _intrinsic(one)

    def choose(left: Any, right: Any) -> Any:
        if left is lanes and right is lanes:
            return lambda left, right: with_lanes(left, right)
        # float64 would be narrowed in silence; integers are all small constants and shift counts
        if left is lanes and (right == scalar or (scalar == types.int32 and isinstance(right, types.Integer))):
            return lambda left, right: with_scalar(left, right)
        return None

    overload(symbol)(
        lambda left, right: choose(left, right)
    )  # numba compares annotations, and the inner ones have none


for _symbol, _instruction in {
    operator.and_: "and_",
    operator.or_: "or_",
    operator.lshift: "shl",
    operator.rshift: "lshr",
    operator.sub: "sub",
}.items():
    _operator(_symbol, _instruction, codes, types.int32)
for _symbol, _instruction in {operator.mul: "fmul", operator.add: "fadd", operator.sub: "fsub"}.items():
    _operator(_symbol, _instruction, reals, types.float32)
