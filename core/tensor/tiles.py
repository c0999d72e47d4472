"""How keys and values lie in memory: tiles of sixteen positions, found through a table.

Sixteen keys of a tile lie in the lanes of a vector, so a score needs no sum across lanes; values are rows, padded to
whole vectors. Numbers are float32, the bits of float16, or codes with one float16 scale for each 32 dimensions of one
position's head: q8_0, signed bytes, the largest of them at 127; or q4_0, four bits around 8, the largest of them at 0,
where a byte holds dimension i of the 32 in its lower half and i + 16 in its upper one.

Source of q8_0 and q4_0: the block formats of these names in ggml.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from ..errors import BadModel
from .checks import ANY, INT32, expect
from .jit import kernel
from .simd import BYTE, BYTES, FLOAT, FLOATS, INT, INTS, LANES, SHORT, Emitter, to_half, vector
from .tape import do
from .team import TEAM, shared

ElementType = Literal["f16", "f32", "q8_0", "q4_0"]

SUB = 32  # numbers that share a scale
DTYPES: dict[ElementType, Any] = {"f32": np.float32, "f16": np.uint16, "q8_0": np.int8, "q4_0": np.uint8}
CODED = ("q8_0", "q4_0")
TOKENS = 32  # tokens that one thread stores at once
LITTLE = 1 << 15  # numbers that one thread has stored before others have woken up
INFINITE = INT(0x7F800000)  # the bits of float32 infinity; those of a NaN are above


class Tiles(NamedTuple):
    """The keys and values of one layer, for as many tiles as there are; no numbers but zeros to begin with."""

    keys: npt.NDArray[Any]  # [tiles, K, E, 16]: float32, uint16 that holds float16, int8; uint8 for two of E each
    key_scales: npt.NDArray[np.uint16]  # [tiles, K, E / 32, 16], float16; of codes only, else empty
    values: npt.NDArray[Any]  # [tiles, K, 16, F padded to a multiple of 16]; uint8 for two of F each
    value_scales: npt.NDArray[np.uint16]  # [tiles, K, 16, F / 32], float16

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self)

    @property
    def key_size(self) -> int:
        """E."""
        return int(self.keys.shape[2]) * per_item(self.keys.dtype)

    @property
    def value_room(self) -> int:
        """F, padded to a multiple of 16."""
        return int(self.values.shape[3]) * per_item(self.values.dtype)


def per_item(dtype: Any) -> int:
    """Return how many numbers an item of such tiles holds."""
    return 2 if dtype == np.uint8 else 1


def new_tiles(
    tiles: int, heads: int, key_size: int, value_size: int, element: ElementType, *, filled: bool = False
) -> Tiles:
    """Return zeros, or, if all places will be filled, what memory held before. For codes sizes are multiples of 32."""
    dtype = DTYPES[element]
    assert element not in CODED or key_size % SUB == value_size % SUB == 0, (key_size, value_size)
    scaled, per = tiles if element in CODED else 0, per_item(dtype)
    return Tiles(
        _aligned(dtype, tiles, heads, key_size // per, LANES, filled=filled),
        _aligned(np.uint16, scaled, heads, key_size // SUB, LANES, filled=filled),
        _aligned(dtype, tiles, heads, LANES, -(-value_size // LANES) * LANES // per, filled=filled),
        _aligned(np.uint16, scaled, heads, LANES, value_size // SUB, filled=filled),
    )


def _aligned(dtype: Any, *shape: int, filled: bool) -> npt.NDArray[Any]:
    """Return an array that begins a cache line, so that no vector lies across two: of zeros, if not soon filled."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = (np.empty if filled else np.zeros)(nbytes + BYTES, np.uint8)
    start = -raw.ctypes.data % BYTES
    aligned: npt.NDArray[Any] = raw[start : start + nbytes].view(dtype).reshape(shape)
    return aligned


def store(k: npt.NDArray[np.float32], v: npt.NDArray[np.float32], slots: npt.NDArray[np.int32], tiles: Tiles) -> None:
    """Put keys [T, K, E] and values [T, K, F] of row t into place slots[t]: 16 * tile + lane.

    Raises BadModel if they do not fit the tiles: models bring them.
    """
    _expect_to_fit(k, v, slots, tiles)
    share = share_codes if tiles.key_scales.size else share_numbers
    few, K = k.size + v.size < LITTLE, k.shape[1]
    each = max(1, len(slots)) if few else TOKENS
    do(share, TEAM.ready(), K * -(-len(slots) // each), (k, v, slots, *tiles, each))


def _expect_to_fit(
    k: npt.NDArray[np.float32], v: npt.NDArray[np.float32], slots: npt.NDArray[np.int32], tiles: Tiles
) -> None:
    count, K, E, room = *tiles.keys.shape[:2], tiles.key_size, tiles.value_room
    expect("store: slots", slots, (slots.size,), INT32)
    expect("store: k", k, (slots.size, K, E))
    expect("store: v", v, (slots.size, K, ANY))
    F = v.shape[2]
    if (F if tiles.key_scales.size else -(-F // LANES) * LANES) != room:
        raise BadModel(f"store: values of {F} in tiles that have room for {room}")
    places = slots.tolist()  # of a single token, as is usual, numpy would take longer to find the least and the largest
    if places and not 0 <= min(places) <= max(places) < count * LANES:
        raise BadModel(f"store: slots from {min(places)} to {max(places)}, the tiles have {count * LANES}")


@intrinsic
def put(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """array[at] = value, as float32 or as the bits of float16. array: flat."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        narrow = signature.args[0].dtype != types.float32
        place = e.address(context, signature.args[0], args[0], args[1], 2 if narrow else 4)
        e.store(to_half(builder, args[2]) if narrow else args[2], place)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), emit


@kernel
def store_head(k, v, slots, first, last, head, keys, values):
    """Store rows first..last of one head as float32 or float16."""
    K, E, F, width = k.shape[1], k.shape[2], v.shape[2], values.shape[3]
    flat_keys, flat_values = keys.reshape(-1), values.reshape(-1)
    for t in range(first, last):
        tile, lane = slots[t] // LANES, slots[t] % LANES
        at = (tile * K + head) * E * LANES + lane
        for i in range(E):
            put(flat_keys, at + i * LANES, k[t, head, i])
        at = ((tile * K + head) * LANES + lane) * width
        for i in range(F):
            put(flat_values, at + i, v[t, head, i])


@intrinsic
def encode(typing: Any, numbers: Any, at: Any, codes: Any, code_at: Any) -> Any:
    """Write 32 numbers as q8_0, if codes are int8, or q4_0, and return the bits of their scale. Both arrays: flat.

    What is not finite cannot be written: it makes the scale, and so all 32, NaN.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e, b = Emitter(builder), builder
        source = e.address(context, signature.args[0], args[0], args[1], 4)
        target = e.address(context, signature.args[2], args[2], args[3])
        parts = [e.load(FLOATS, source), e.load(FLOATS, source, 4 * LANES)]
        first, second = (b.bitcast(e.call("llvm.fabs.v16f32", FLOATS, part), INTS) for part in parts)
        sizes = b.select(b.icmp_unsigned(">", first, second), first, second)
        top = e.call("llvm.vector.reduce.umax.v16i32", INT, sizes)
        finite = b.icmp_unsigned("<", top, INFINITE)
        nothing = ir.Constant(FLOATS, [0.0] * LANES)
        parts = [b.select(e.splat(finite), part, nothing) for part in parts]
        scale, store = _eights(e) if signature.args[2].dtype == types.int8 else _fours(e)
        step = scale(parts, b.bitcast(top, FLOAT))
        size = e.call("llvm.fabs.f32", FLOAT, step)
        usable = b.and_(finite, b.fcmp_ordered(">", size, FLOAT(1e-38)))  # whose inverse is finite
        inverse = e.splat(b.select(usable, b.fdiv(FLOAT(1.0), step), FLOAT(0.0)))
        store([b.fmul(part, inverse) for part in parts], target)
        return b.bitcast(to_half(b, b.select(finite, step, FLOAT(float("nan")))), SHORT)

    return types.uint16(numbers, types.intp, codes, types.intp), emit


def _eights(e: Emitter) -> Any:
    """Return how the step of q8_0 is found, and how numbers in steps are written: rounded, halves away from zero."""
    b = e.builder

    def scale(parts: list[Any], top: Any) -> Any:
        return b.fdiv(top, FLOAT(127.0))

    def store(parts: list[Any], target: Any) -> None:
        for i, part in enumerate(parts):
            away = e.call("llvm.copysign.v16f32", FLOATS, ir.Constant(FLOATS, [0.5] * LANES), part)
            e.store(b.trunc(b.fptosi(b.fadd(part, away), INTS), vector(BYTE)), target, i * LANES)

    return scale, store


def _fours(e: Emitter) -> Any:
    """Return the same of q4_0, whose step has the sign that puts the largest number at code 0, or -8."""
    b = e.builder

    def scale(parts: list[Any], top: Any) -> Any:
        high = e.call("llvm.maxnum.v16f32", FLOATS, *parts)
        largest = e.call("llvm.vector.reduce.fmax.v16f32", FLOAT, high)
        signed = b.select(b.fcmp_ordered("==", largest, top), top, b.fneg(top))
        return b.fmul(signed, FLOAT(-0.125))

    def store(parts: list[Any], target: Any) -> None:
        raised = [b.fadd(part, ir.Constant(FLOATS, [8.5] * LANES)) for part in parts]
        codes = [b.fptosi(value, INTS) for value in raised]
        low, high = (e.call("llvm.smin.v16i32", INTS, code, ir.Constant(INTS, [15] * LANES)) for code in codes)
        both = b.or_(low, b.shl(high, ir.Constant(INTS, [4] * LANES)))
        e.store(b.trunc(both, vector(BYTE)), target)

    return scale, store


def block_bytes(codes):
    """Return the bytes of 32 codes in an array."""


@overload(block_bytes)
def _block_bytes(codes):
    count = SUB if codes.dtype == types.int8 else SUB // 2
    return lambda codes: count


@kernel
def store_coded_head(k, v, slots, first, last, head, keys, key_scales, values, value_scales):
    """Store rows first..last of one head as q8_0 or q4_0."""
    K, E, F, size = k.shape[1], k.shape[2], v.shape[2], block_bytes(keys)
    flat_k, flat_v, flat_keys, flat_values = k.reshape(-1), v.reshape(-1), keys.reshape(-1), values.reshape(-1)
    column = np.empty(SUB, keys.dtype)
    for t in range(first, last):
        tile, lane = slots[t] // LANES, slots[t] % LANES
        at, row = (tile * K + head) * (E // SUB * size) * LANES + lane, (t * K + head) * E
        for sub in range(E // SUB):
            key_scales[tile, head, sub, lane] = encode(flat_k, row + sub * SUB, column, 0)
            for i in range(size):
                flat_keys[at + (sub * size + i) * LANES] = column[i]
        at, row = ((tile * K + head) * LANES + lane) * (F // SUB * size), (t * K + head) * F
        for sub in range(F // SUB):
            value_scales[tile, head, lane, sub] = encode(flat_v, row + sub * SUB, flat_values, at + sub * size)


@kernel
def store_numbers(k, v, slots, keys, key_scales, values, value_scales, each, item):
    """`store` `each` rows of one head, as float32 or float16."""
    K = k.shape[1]
    first = item // K * each
    store_head(k, v, slots, first, min(first + each, len(slots)), item % K, keys, values)


@kernel
def store_codes(k, v, slots, keys, key_scales, values, value_scales, each, item):
    """`store` `each` rows of one head, as q8_0 or q4_0."""
    K = k.shape[1]
    first = item // K * each
    last = min(first + each, len(slots))
    store_coded_head(k, v, slots, first, last, item % K, keys, key_scales, values, value_scales)


share_numbers, share_codes = shared(store_numbers), shared(store_codes)
