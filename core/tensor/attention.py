"""Attention over the cache of one sequence: blocks of query rows against tiles of sixteen keys, softmax on the way.

The cache keeps keys in tiles, [tiles, K, E, 16], so that sixteen keys lie in the lanes of a vector and a score needs no
sum across lanes; values are rows, [positions, K, F], F padded to whole vectors. Both are float32, or the bits of
float16. All query heads of a group, and several tokens, share each load of a key. Accumulates in float32.

Source: FlashAttention-2, arXiv:2307.08691, section 3.1 (the running softmax).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .jit import kernel
from .simd import FLOAT, FLOATS, INT, INTS, LANES, Emitter, exp

BLOCK = 8  # rows whose sums are held in registers
ROWS = 32  # rows of one piece of work
TOKENS = 16  # most tokens of one piece of work
CHUNK = 16  # head dimensions between two visits of the sums in memory


@intrinsic(prefer_literal=True)
def add_scores(
    typing: Any, rows: Any, q: Any, q_at: Any, size: Any, keys: Any, key_at: Any, chunk: Any, out: Any, out_at: Any
) -> Any:
    """out[r, lane] += Σ q[r, e] * keys[e, lane] for `chunk` dimensions e. q: rows of `size` floats from q_at."""
    count, dimensions = rows.literal_value, chunk.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        element = _bytes_of(signature.args[4])
        key = e.address(context, signature.args[4], args[4], args[5], element)
        sums_at = e.address(context, signature.args[7], args[7], args[8], 4)
        queries = [
            e.address(context, signature.args[1], args[1], _row(builder, args[2], args[3], r), 4) for r in range(count)
        ]
        sums = [e.load(FLOATS, sums_at, r * LANES * 4) for r in range(count)]
        for d in range(dimensions):
            k = _widened(e, signature.args[4], key, d * LANES * element)
            for r in range(count):
                sums[r] = e.fma(e.splat(e.load(FLOAT, queries[r], d * 4)), k, sums[r])
        for r in range(count):
            e.store(sums[r], sums_at, r * LANES * 4)
        return context.get_dummy_value()

    index = types.intp
    return types.void(rows, q, index, index, keys, index, chunk, out, index), emit


@intrinsic(prefer_literal=True)
def add_values(
    typing: Any, rows: Any, p: Any, p_at: Any, values: Any, value_at: Any, stride: Any, shrink: Any, shrink_at: Any,
    out: Any, out_at: Any, width: Any,
) -> Any:  # fmt: skip
    """out[r] = out[r] * shrink[r] + Σ_s p[r, s] * values[s] for one vector of dimensions and sixteen keys.

    values: `stride` elements from one key to the next; out: rows of `width` floats from out_at.
    """
    row_count = rows.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        element = _bytes_of(signature.args[3])
        weights = e.address(context, signature.args[1], args[1], args[2], 4)
        shrinks = e.address(context, signature.args[6], args[6], args[7], 4)
        value = e.address(context, signature.args[3], args[3], args[4], element)
        targets = [
            e.address(context, signature.args[8], args[8], _row(builder, args[9], args[10], r), 4)
            for r in range(row_count)
        ]
        sums = [
            builder.fmul(e.load(FLOATS, targets[r]), e.splat(e.load(FLOAT, shrinks, r * 4))) for r in range(row_count)
        ]
        for s in range(LANES):
            v = _widened(e, signature.args[3], value, 0)
            value = e.move(value, args[5], element)
            for r in range(row_count):
                sums[r] = e.fma(e.splat(e.load(FLOAT, weights, (r * LANES + s) * 4)), v, sums[r])
        for r in range(row_count):
            e.store(sums[r], targets[r])
        return context.get_dummy_value()

    index = types.intp
    return types.void(rows, p, index, values, index, index, shrink, index, out, index, index), emit


@intrinsic
def soften(typing: Any, scores: Any, at: Any, visible: Any, hidden: Any, peak: Any) -> Any:
    """Turn sixteen scores into exp(score - new peak), 0 for lanes outside hidden <= lane < visible.

    Returns (new peak, their sum).
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        place = e.address(context, signature.args[0], args[0], args[1], 4)
        lanes = ir.Constant(INTS, list(range(LANES)))
        seen = builder.and_(
            builder.icmp_signed("<", lanes, e.splat(builder.trunc(args[2], INT))),
            builder.icmp_signed(">=", lanes, e.splat(builder.trunc(args[3], INT))),
        )
        nothing = ir.Constant(FLOATS, [float("-inf")] * LANES)
        values = builder.select(seen, e.load(FLOATS, place), nothing)
        top = e.call("llvm.vector.reduce.fmax.v16f32", FLOAT, values)
        top = builder.select(builder.fcmp_ordered(">", top, args[4]), top, args[4])
        weights = exp(e, builder.fsub(values, e.splat(top)))
        e.store(weights, place)
        zero = FLOAT(0.0)
        fast = e.call("llvm.vector.reduce.fadd.v16f32", FLOAT, zero, weights)
        return context.make_tuple(builder, signature.return_type, (top, fast))

    result = types.UniTuple(types.float32, 2)
    return result(scores, types.intp, types.intp, types.intp, types.float32), emit


def _bytes_of(array: Any) -> int:
    return 4 if array.dtype == types.float32 else 2


def _widened(e: Emitter, array: Any, pointer: Any, offset: int) -> Any:
    """Read sixteen elements of the cache as float32."""
    return e.load(FLOATS, pointer, offset) if array.dtype == types.float32 else e.halves(pointer, offset)


def _row(builder: Any, start: Any, stride: Any, row: int) -> Any:
    return builder.add(start, builder.mul(stride, ir.Constant(stride.type, row)))


@kernel
def score_tile(q, rows, size, keys, key_at, scores):
    """scores[r] = q[r] · keys for sixteen keys. rows is a multiple of 8, or 1, 2 or 4."""
    for r in range(0, rows, BLOCK):
        for lane in range(r * LANES, min(rows, r + BLOCK) * LANES):
            scores[lane] = 0
        for e in range(0, size - size % CHUNK, CHUNK):
            at = key_at + e * LANES
            if rows >= 8:
                add_scores(8, q, r * size + e, size, keys, at, 16, scores, r * LANES)
            elif rows == 4:
                add_scores(4, q, r * size + e, size, keys, at, 16, scores, r * LANES)
            elif rows == 2:
                add_scores(2, q, r * size + e, size, keys, at, 16, scores, r * LANES)
            else:
                add_scores(1, q, r * size + e, size, keys, at, 16, scores, r * LANES)
        for e in range(size - size % CHUNK, size):
            for row in range(r, min(rows, r + BLOCK)):
                add_scores(1, q, row * size + e, size, keys, key_at + e * LANES, 1, scores, row * LANES)


@kernel
def mix_tile(p, rows, values, value_at, stride, shrink, out, width):
    """out[r] = out[r] * shrink[r] + p[r] · values for sixteen keys; p is 0 for those that a row does not see."""
    for r in range(0, rows, BLOCK):
        for f in range(0, width, LANES):
            at, target = value_at + f, r * width + f
            if rows >= 8:
                add_values(8, p, r * LANES, values, at, stride, shrink, r, out, target, width)
            elif rows == 4:
                add_values(4, p, r * LANES, values, at, stride, shrink, r, out, target, width)
            elif rows == 2:
                add_values(2, p, r * LANES, values, at, stride, shrink, r, out, target, width)
            else:
                add_values(1, p, r * LANES, values, at, stride, shrink, r, out, target, width)


@kernel
def attend_block(q, keys, values, first, window, scale, head, token, tokens, out):
    """Attention of `tokens` tokens from `token` on, for the query heads of one key/value head."""
    H, E = q.shape[1], q.shape[2]
    K, F = values.shape[1], values.shape[2]
    G = H // K
    used = tokens * G
    rows = 1
    while rows < used and rows < BLOCK:
        rows *= 2
    rows = max(rows, (used + BLOCK - 1) // BLOCK * BLOCK) if used > BLOCK else rows
    queries = np.zeros(rows * E, np.float32)
    for t in range(tokens):
        for g in range(G):
            for e in range(E):
                queries[(t * G + g) * E + e] = q[token + t, head * G + g, e] * scale
    scores = np.empty(rows * LANES, np.float32)
    sums = np.zeros(rows * F, np.float32)
    peak = np.full(rows, -np.inf, np.float32)
    norm = np.zeros(rows, np.float32)
    shrink = np.ones(rows, np.float32)
    flat_keys, flat_values = keys.reshape(-1), values.reshape(-1)
    end = first + token + tokens  # positions that the last token sees
    low = max(0, first + token + 1 - window) if window > 0 else 0
    for tile in range(low // LANES, (end + LANES - 1) // LANES):
        start = tile * LANES
        score_tile(queries, rows, E, flat_keys, (tile * K + head) * E * LANES, scores)
        for r in range(rows):
            position = first + token + min(r // G, tokens - 1)
            hidden = position + 1 - window - start if window > 0 else 0
            if position < start or hidden >= LANES:
                shrink[r] = 1
                scores[r * LANES : (r + 1) * LANES] = 0
                continue
            before = peak[r]
            peak[r], total = soften(scores, r * LANES, position + 1 - start, hidden, before)
            shrink[r] = np.exp(before - peak[r])
            norm[r] = norm[r] * shrink[r] + total
        mix_tile(scores, rows, flat_values, (start * K + head) * F, K * F, shrink, sums, F)
    for t in range(tokens):
        for g in range(G):
            r = t * G + g
            for f in range(out.shape[2]):
                out[token + t, head * G + g, f] = sums[r * F + f] / norm[r]


@kernel(parallel=True)
def attend_rows(q, keys, values, first, window, scale, out):
    """Attention of one sequence's rows over its cache.

    q: [T, H, E] float32; row t stands at position first + t and sees the keys up to itself, of the last `window`
    positions if that is not 0. keys: [tiles, K, E, 16]; values: [16 tiles, K, F], finite everywhere, F a multiple of
    16. out: [T, H, V] float32 with V <= F.
    """
    T, K = q.shape[0], values.shape[1]
    G = q.shape[1] // K
    each = max(1, min(TOKENS, ROWS // G))
    blocks = (T + each - 1) // each
    for item in prange(blocks * K):
        # The last tokens see the most keys: dealing blocks out in turn evens the threads' loads.
        block, head = item // K, item % K
        block = block // 2 if block % 2 == 0 else blocks - 1 - block // 2
        token = block * each
        attend_block(q, keys, values, first, window, scale, head, token, min(each, T - token), out)


@kernel
def store_keys(k, first, keys):
    """Put k, [T, K, E], into its tiles from position `first` on."""
    T, K, E = k.shape
    for t in range(T):
        tile, lane = (first + t) // LANES, (first + t) % LANES
        for head in range(K):
            for e in range(E):
                keys[tile, head, e, lane] = k[t, head, e]
