"""Attention of one block: a few tokens' query heads over the one key/value head that they share.

Positions are gone through in segments of SEGMENT, each with a softmax of its own, and segments are put together in
their order. A row therefore gets the same bits however the work is cut: by tokens, or by segments for more threads.

Source: FlashAttention-2, arXiv:2307.08691, section 3.1 (the running softmax).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import overload

from .attention_micro import BLOCK, GROUP, PAIR, bend, mix, score, soften, widen, widen_codes
from .jit import kernel
from .simd import LANES
from .tiles import SUB

SPAN = GROUP * LANES  # positions of a group
SEGMENT = 8 * SPAN
ROWS = 64  # rows of a block, unless one token has more


class Sight(NamedTuple):
    """Which positions a row sees: from the window's or the chunk's first to its own, or to `until`."""

    window: int  # 0: none
    chunk: int  # 0: none
    until: npt.NDArray[np.int32]  # [T], the last position that each row of the step sees; empty: its own


class Block(NamedTuple):
    """What one block of rows needs while it is computed: one array, and where in it things lie.

    One, because every array that is passed on costs two atomic counts of references.
    """

    memory: npt.NDArray[np.float32]
    sees: npt.NDArray[np.int64]  # [rows, 2], the first position that each row sees, and the one behind the last
    heads: int  # query heads of a key/value head: a token's rows
    E: int
    F: int  # a multiple of 16
    rows: int  # a multiple of 16
    queries: int  # [rows / BLOCK, E, BLOCK], scaled
    keys: int  # [GROUP, E, 16]
    values: int  # [SPAN, F]
    scores: int  # [BLOCK, SPAN]
    shrink: int  # [BLOCK]
    part: int  # the state of one segment: sums [F / 16, rows, 16], their weights [rows, 16], peaks [rows]
    total: int  # the state of all segments
    end: int


@kernel
def tokens_of_block(heads):
    """Return how many tokens make a block when so many query heads share a key/value head."""
    return max(1, ROWS // heads)


@kernel
def rows_of_block(heads):
    """Return how many rows a block has memory for, a multiple of 16."""
    return (tokens_of_block(heads) * heads + LANES - 1) // LANES * LANES


@kernel
def new_block(heads, E, F):
    """Return memory for blocks of heads of these sizes."""
    rows = rows_of_block(heads)
    memory = np.zeros(rows * E + SPAN * (E + F + BLOCK) + LANES + 2 * state_size(rows, F) + LANES, np.float32)
    queries = -(memory.ctypes.data // 4) % LANES  # so that no vector lies across two cache lines
    keys = queries + rows * E
    values = keys + SPAN * E
    scores = values + SPAN * F
    shrink = scores + SPAN * BLOCK
    part = shrink + LANES
    total = part + state_size(rows, F)
    end = total + state_size(rows, F)
    sees = np.zeros((rows, 2), np.int64)
    return Block(memory, sees, heads, E, F, rows, queries, keys, values, scores, shrink, part, total, end)


@kernel
def state_size(rows, F):
    """Return the numbers of a state."""
    return (F + LANES + 1) * rows


@kernel
def clear(block, state):
    """Make a state that of nothing seen."""
    weights = state + (block.F + LANES) * block.rows
    block.memory[state:weights] = 0
    block.memory[weights : weights + block.rows] = -np.inf


@kernel
def first_seen(position, sight):
    """Return the first position that a token sees."""
    if sight.window > 0:
        return max(0, position + 1 - sight.window)
    return position - position % sight.chunk if sight.chunk > 0 else 0


@kernel
def last_seen(position, row, sight):
    """Return the position behind the last that a row of the step sees."""
    return np.int64(sight.until[row]) + 1 if sight.until.size > 0 else position + 1


@kernel
def load_queries(block, q, sight, scale, head, token, tokens, position):
    """Fill a block's queries and what they see with rows token.. of q, the first of them at `position`."""
    memory, E = block.memory, block.E
    for t in range(tokens):
        low, high = first_seen(position + t, sight), last_seen(position + t, token + t, sight)
        for g in range(block.heads):
            r = t * block.heads + g
            block.sees[r, 0], block.sees[r, 1] = low, high
            at = block.queries + r // BLOCK * BLOCK * E + r % BLOCK
            for e in range(E):
                memory[at + e * BLOCK] = q[token + t, head * block.heads + g, e] * scale


def widen_tile(tiles, at, block, place):
    """Write the keys and values of tile and head number `at` as float32, as the group's tile `place`.

    Returns whether all values are finite.
    """


@overload(widen_tile)
def _widen_tile(tiles, at, block, place):
    def numbers(tiles, at, block, place):
        E, F, memory = block.E, block.F, block.memory
        widen(tiles.keys, at * E * LANES, E, memory, block.keys + place * E * LANES)
        return widen(tiles.values, at * F * LANES, F, memory, block.values + place * F * LANES)

    def codes(tiles, at, block, place):
        E, F, memory = block.E, block.F, block.memory
        source, to = at * E * LANES, block.keys + place * E * LANES
        for sub in range(E // SUB):
            i = sub * SUB * LANES
            widen_codes(tiles.keys, source + i, SUB, tiles.key_scales, source // SUB + sub * LANES, 16, memory, to + i)
        finite, source, to = True, at * F * LANES, block.values + place * F * LANES
        for i in range(0, F * LANES, SUB):
            one = (source + i) // SUB
            finite &= widen_codes(tiles.values, source + i, SUB // LANES, tiles.value_scales, one, 1, memory, to + i)
        return finite

    return codes if _is_coded(tiles) else numbers


def _is_coded(tiles: Any) -> bool:
    return bool(tiles.types[0].dtype.bitwidth == 8)


@kernel(inline="always")
def attend_segment(block, rows, tiles, table, table_at, head, bend_to, first, last):
    """Put what the block's rows see in positions first..last of one segment into its state `part`."""
    clear(block, block.part)
    for start in range(first // SPAN * SPAN, last, SPAN):
        low, high = max(first - start, 0) // LANES, (min(last - start, SPAN) + LANES - 1) // LANES
        finite = True
        for place in range(low, high):
            tile = np.int64(table[table_at + start // LANES + place])
            finite &= widen_tile(tiles, tile * tiles.keys.shape[1] + head, block, place)
        row, count = 0, BLOCK
        while row < rows:
            while count > rows - row:
                count //= 2
            attend_rows(block, row, count, start, bend_to, finite)
            row += count


@kernel
def attend_rows(block, row, count, start, bend_to, finite):
    """Let `count` rows of a block look at the group of positions from `start` on."""
    memory, sees, E, F, rows = block.memory, block.sees, block.E, block.F, block.rows
    first, last = SPAN, 0  # what any of them sees
    for r in range(row, row + count):
        first, last = min(first, sees[r, 0] - start), max(last, sees[r, 1] - start)
    first, last = max(first, 0), min(last, SPAN)
    if first >= last:
        return
    q = block.queries + row // BLOCK * BLOCK * E + row % BLOCK
    for tile in range(first // LANES // PAIR * PAIR, (last + LANES - 1) // LANES, PAIR):
        score(memory, count, q, E, block.keys + tile * E * LANES, block.scores + tile * LANES)
    for i in range(count):
        r, scores = row + i, block.scores + i * SPAN
        if bend_to > 0:
            bend(memory, scores, bend_to)
        norm, peak = block.part + F * rows + r * LANES, block.part + (F + LANES) * rows + r
        soften(memory, scores, sees[r, 0] - start, sees[r, 1] - start, peak, block.shrink + i, norm)
    if finite:
        for f in range(0, F, PAIR * LANES):
            sums, pair = block.part + f * rows + row * LANES, min(PAIR, (F - f) // LANES)
            mix(memory, count, block.scores, first, last, block.values + f, F, pair, block.shrink, sums, rows * LANES)
    else:
        mix_one_by_one(block, row, count, start)


@kernel
def mix_one_by_one(block, row, count, start):
    """Mix values that are not all finite: since 0 * NaN is NaN, each row keeps away from those that it does not see."""
    for i in range(count):
        first, last = max(block.sees[row + i, 0] - start, 0), min(block.sees[row + i, 1] - start, SPAN)
        scores, shrink = block.scores + i * SPAN, block.shrink + i
        for f in range(0, block.F if first < last else 0, LANES):
            sums = block.part + f * block.rows + (row + i) * LANES
            mix(block.memory, 1, scores, first, last, block.values + f, block.F, 1, shrink, sums, 0)


@kernel
def add_state(block, rows, part, at):
    """Put a state, which lies in `part` from `at` on, to the block's total."""
    memory, peaks = block.memory, (block.F + LANES) * block.rows
    for r in range(rows):
        peak, before = part[at + peaks + r], memory[block.total + peaks + r]
        if peak == -np.inf:
            continue
        top = max(before, peak)
        old, new = np.exp2(before - top), np.exp2(peak - top)
        memory[block.total + peaks + r] = top
        for i in range(r * LANES, peaks, block.rows * LANES):
            for lane in range(i, i + LANES):
                memory[block.total + lane] = memory[block.total + lane] * old + part[at + lane] * new


@kernel(error_model="numpy")
def write_rows(block, head, token, tokens, out):
    """Divide the total sums by their weights and write them as rows token.. of out, [T, H, V].

    Without a weight, where all scores are -inf, that is NaN.
    """
    memory, V = block.memory, out.shape[2]
    for r in range(tokens * block.heads):
        norm = np.float32(0)
        for lane in range(LANES):
            norm += memory[block.total + block.F * block.rows + r * LANES + lane]
        t, h = token + r // block.heads, head * block.heads + r % block.heads
        inverse = np.float32(1) / norm
        for f in range(0, V, LANES):
            at = block.total + f * block.rows + r * LANES
            for lane in range(min(LANES, V - f)):
                out[t, h, f + lane] = memory[at + lane] * inverse
