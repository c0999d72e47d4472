"""How keys and values lie in memory: tiles of sixteen positions, found through a table.

Sixteen keys of a tile lie in the lanes of a vector, so a score needs no sum across lanes; values are rows, padded to
whole vectors. Numbers are float32, the bits of float16, or q8_0: signed bytes with one float16 scale for each 32
dimensions of one position's head, the largest of them at 127.

Source of q8_0: the block format of that name in ggml.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..errors import BadModel
from .checks import ANY, INT32, expect
from .jit import kernel
from .simd import BYTE, BYTES, FLOAT, FLOATS, INT, INTS, LANES, SHORT, Emitter, to_half, vector
from .team import TEAM, shared

ElementType = Literal["f16", "f32", "q8_0"]

SUB = 32  # numbers that share a scale
TOKENS = 32  # tokens that one thread stores at once
LITTLE = 1 << 15  # numbers that one thread has stored before others have woken up
INFINITE = INT(0x7F800000)  # the bits of float32 infinity; those of a NaN are above


class Tiles(NamedTuple):
    """The keys and values of one layer, for as many tiles as there are; no numbers but zeros to begin with."""

    keys: npt.NDArray[Any]  # [tiles, K, E, 16]: float32, uint16 that holds float16, or int8
    key_scales: npt.NDArray[np.uint16]  # [tiles, K, E / 32, 16], float16; of q8_0 only, else empty
    values: npt.NDArray[Any]  # [tiles, K, 16, F padded to a multiple of 16]
    value_scales: npt.NDArray[np.uint16]  # [tiles, K, 16, F / 32], float16

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self)


def new_tiles(tiles: int, heads: int, key_size: int, value_size: int, element: ElementType) -> Tiles:
    """Return zeros. With q8_0 the sizes are multiples of 32."""
    coded = element == "q8_0"
    dtype: Any = {"f32": np.float32, "f16": np.uint16, "q8_0": np.int8}[element]
    assert not coded or key_size % SUB == value_size % SUB == 0, (key_size, value_size)
    scaled = tiles if coded else 0
    return Tiles(
        _zeros(dtype, tiles, heads, key_size, LANES),
        _zeros(np.uint16, scaled, heads, key_size // SUB, LANES),
        _zeros(dtype, tiles, heads, LANES, -(-value_size // LANES) * LANES),
        _zeros(np.uint16, scaled, heads, LANES, value_size // SUB),
    )


def _zeros(dtype: Any, *shape: int) -> npt.NDArray[Any]:
    """Return zeros that begin a cache line, so that no vector lies across two."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + BYTES, np.uint8)
    start = -raw.ctypes.data % BYTES
    aligned: npt.NDArray[Any] = raw[start : start + nbytes].view(dtype).reshape(shape)
    return aligned


def store(k: npt.NDArray[np.float32], v: npt.NDArray[np.float32], slots: npt.NDArray[np.int32], tiles: Tiles) -> None:
    """Put keys [T, K, E] and values [T, K, F] of row t into place slots[t]: 16 * tile + lane.

    Raises BadModel if they do not fit the tiles: models bring them.
    """
    _expect_to_fit(k, v, slots, tiles)
    share = share_codes if tiles.keys.dtype == np.int8 else share_numbers
    few, K = k.size + v.size < LITTLE, k.shape[1]
    each = max(1, len(slots)) if few else TOKENS
    share(TEAM.ready(), K * -(-len(slots) // each), (k, v, slots, *tiles, each))


def _expect_to_fit(
    k: npt.NDArray[np.float32], v: npt.NDArray[np.float32], slots: npt.NDArray[np.int32], tiles: Tiles
) -> None:
    count, K, E, _ = tiles.keys.shape
    room = tiles.values.shape[3]
    expect("store: slots", slots, (slots.size,), INT32)
    expect("store: k", k, (slots.size, K, E))
    expect("store: v", v, (slots.size, K, ANY))
    F = v.shape[2]
    if (F if tiles.values.dtype == np.int8 else -(-F // LANES) * LANES) != room:
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
    """Write 32 numbers as signed bytes and return the bits of their scale. Both arrays: flat.

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
        scale = b.fdiv(b.bitcast(top, FLOAT), FLOAT(127.0))
        usable = b.and_(finite, b.fcmp_ordered(">", scale, FLOAT(1e-38)))  # whose inverse is finite
        inverse = e.splat(b.select(usable, b.fdiv(FLOAT(1.0), scale), FLOAT(0.0)))
        for i, part in enumerate(parts):
            scaled = b.fmul(b.select(e.splat(finite), part, ir.Constant(FLOATS, [0.0] * LANES)), inverse)
            away = e.call("llvm.copysign.v16f32", FLOATS, ir.Constant(FLOATS, [0.5] * LANES), scaled)
            rounded = b.fptosi(b.fadd(scaled, away), INTS)
            e.store(b.trunc(rounded, vector(BYTE)), target, i * LANES)
        kept = b.select(finite, scale, FLOAT(float("nan")))
        return b.bitcast(to_half(b, kept), SHORT)

    return types.uint16(numbers, types.intp, codes, types.intp), emit


@kernel
def store_coded_head(k, v, slots, first, last, head, keys, key_scales, values, value_scales):
    """Store rows first..last of one head as q8_0."""
    K, E, F = k.shape[1], k.shape[2], v.shape[2]
    flat_k, flat_v, flat_keys, flat_values = k.reshape(-1), v.reshape(-1), keys.reshape(-1), values.reshape(-1)
    column = np.empty(SUB, np.int8)
    for t in range(first, last):
        tile, lane = slots[t] // LANES, slots[t] % LANES
        at, row = (tile * K + head) * E * LANES + lane, (t * K + head) * E
        for sub in range(E // SUB):
            key_scales[tile, head, sub, lane] = encode(flat_k, row + sub * SUB, column, 0)
            for i in range(SUB):
                flat_keys[at + (sub * SUB + i) * LANES] = column[i]
        at, row = ((tile * K + head) * LANES + lane) * F, (t * K + head) * F
        for sub in range(F // SUB):
            value_scales[tile, head, lane, sub] = encode(flat_v, row + sub * SUB, flat_values, at + sub * SUB)


@kernel
def store_numbers(k, v, slots, keys, key_scales, values, value_scales, each, item):
    """`store` `each` rows of one head, as float32 or float16."""
    K = k.shape[1]
    first = item // K * each
    store_head(k, v, slots, first, min(first + each, len(slots)), item % K, keys, values)


@kernel
def store_codes(k, v, slots, keys, key_scales, values, value_scales, each, item):
    """`store` `each` rows of one head, as q8_0."""
    K = k.shape[1]
    first = item // K * each
    last = min(first + each, len(slots))
    store_coded_head(k, v, slots, first, last, item % K, keys, key_scales, values, value_scales)


share_numbers, share_codes = shared(store_numbers), shared(store_codes)
