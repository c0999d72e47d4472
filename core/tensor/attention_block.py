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

from .attention_micro import (
    BLOCK,
    GROUP,
    PAIR,
    bend,
    give_row,
    mix,
    score,
    soften,
    take_query,
    weighted,
    widen,
    widen_codes,
    widen_nibbles,
)
from .jit import kernel
from .simd import LANES
from .tiles import SUB

SPAN = GROUP * LANES  # positions of a group
SEGMENT = 8 * SPAN
ROWS = 256  # rows of a block, unless one token has more: they share what was widened
NEAR = 64  # rows that are scored before their values are mixed: keys, then values, stay in the first cache


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
    keys: int  # of a group, [GROUP, E, 16]
    values: int  # of a group, [SPAN, F]
    scores: int  # [NEAR, SPAN], and then weights
    shrink: int  # [rows], what the sums so far are multiplied with
    part: int  # the state of one segment: sums [F / 16, rows, 16], their weights [rows, 16], peaks [rows]
    total: int  # the state of all segments
    end: int


@kernel
def tokens_of_block(heads):
    """Return how many tokens make a block when so many query heads share a key/value head."""
    return max(1, ROWS // heads)


@kernel
def rows_of_block(heads, tokens):
    """Return the rows that memory for so many tokens has, a multiple of 16."""
    return (tokens * heads + LANES - 1) // LANES * LANES


@kernel
def new_block(heads, tokens, E, F):
    """Return memory for blocks of so many tokens with heads of these sizes."""
    rows = rows_of_block(heads, tokens)
    near = min(rows, NEAR)
    size = rows * (E + 1) + (E + F + near) * SPAN + 2 * state_size(rows, F)
    memory = np.zeros(size + LANES, np.float32)  # what was there before may be sub-normal, and so slow to multiply
    queries = -(memory.ctypes.data // 4) % LANES  # so that no vector lies across two cache lines
    keys = queries + rows * E
    values = keys + SPAN * E
    scores = values + SPAN * F
    shrink = scores + near * SPAN
    part = shrink + rows
    total = part + state_size(rows, F)
    end = total + state_size(rows, F)
    sees = np.empty((rows, 2), np.int64)
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
    E, H = block.E, q.shape[1]
    for t in range(tokens):
        low, high = first_seen(position + t, sight), last_seen(position + t, token + t, sight)
        for g in range(block.heads):
            r, row = t * block.heads + g, (token + t) * H + head * block.heads + g
            block.sees[r, 0], block.sees[r, 1] = low, high
            take_query(q, row * E, scale, E, block.memory, block.queries + r // BLOCK * BLOCK * E + r % BLOCK)


def widen_keys(tiles, at, ahead, block, place):
    """Write the keys of tile and head number `at` as float32, as the group's tile `place`; ask for those of `ahead`."""


@overload(widen_keys)
def _widen_keys(tiles, at, ahead, block, place):
    def numbers(tiles, at, ahead, block, place):
        size = block.E * LANES
        widen(tiles.keys, at * size, ahead * size, block.E, block.memory, block.keys + place * size)

    def codes(tiles, at, ahead, block, place):
        size, memory = block.E * LANES, block.memory
        for i in range(0, size, SUB * LANES):
            source, scales = at * size + i, (at * size + i) // SUB
            to = block.keys + place * size + i
            widen_codes(tiles.keys, source, ahead * size + i, SUB, tiles.key_scales, scales, 16, memory, to)

    def nibbles(tiles, at, ahead, block, place):
        size, memory = block.E * LANES, block.memory
        for i in range(0, size, SUB * LANES):
            source, scales, next_ = (at * size + i) // 2, (at * size + i) // SUB, (ahead * size + i) // 2
            to = block.keys + place * size + i
            widen_nibbles(tiles.keys, source, next_, SUB // 2, tiles.key_scales, scales, 16, memory, to)

    return {1: nibbles, -1: codes}.get(_coding(tiles), numbers)


def widen_values(tiles, at, ahead, block, place):
    """Write the values of a tile and head as `widen_keys` does. Returns whether all are finite."""


@overload(widen_values)
def _widen_values(tiles, at, ahead, block, place):
    def numbers(tiles, at, ahead, block, place):
        size = block.F * LANES
        return widen(tiles.values, at * size, ahead * size, block.F, block.memory, block.values + place * size)

    def codes(tiles, at, ahead, block, place):
        size, memory, finite = block.F * LANES, block.memory, True
        for i in range(0, size, SUB):
            source, scale = at * size + i, (at * size + i) // SUB
            to = block.values + place * size + i
            finite &= widen_codes(tiles.values, source, ahead * size + i, 2, tiles.value_scales, scale, 1, memory, to)
        return finite

    def nibbles(tiles, at, ahead, block, place):
        size, memory, finite = block.F * LANES, block.memory, True
        for i in range(0, size, SUB):
            source, scale, next_ = (at * size + i) // 2, (at * size + i) // SUB, (ahead * size + i) // 2
            to = block.values + place * size + i
            finite &= widen_nibbles(tiles.values, source, next_, 1, tiles.value_scales, scale, 1, memory, to)
        return finite

    return {1: nibbles, -1: codes}.get(_coding(tiles), numbers)


def _coding(tiles: Any) -> int:
    """Return -1 for tiles of signed bytes, 1 for pairs of four bits, 0 for floats."""
    dtype = tiles.types[0].dtype
    return (-1 if dtype.signed else 1) if dtype.bitwidth == 8 else 0


def value_room(tiles):
    """Return F of tiles, padded to a multiple of 16."""


@overload(value_room)
def _value_room(tiles):
    per = 2 if _coding(tiles) == 1 else 1
    return lambda tiles: tiles.values.shape[3] * per


@kernel(inline="always")
def attend_segment(block, rows, tiles, table, table_at, head, bend_to, first, last):
    """Put what the block's rows see in positions first..last of one segment into its state `part`."""
    clear(block, block.part)
    K, end = tiles.keys.shape[1], (last + LANES - 1) // LANES  # of the segment's tiles
    for start in range(first // SPAN * SPAN, last, SPAN):
        low = start // LANES
        begin, stop = max(first // LANES, low), min(end, low + GROUP)
        for tile in range(begin, stop):
            at, ahead = table[table_at + tile], table[table_at + min(tile + GROUP, end - 1)]
            widen_keys(tiles, np.int64(at) * K + head, np.int64(ahead) * K + head, block, tile - low)
        finite = True
        for tile in range(begin, stop):
            at, ahead = table[table_at + tile], table[table_at + min(tile + GROUP, end - 1)]
            finite &= widen_values(tiles, np.int64(at) * K + head, np.int64(ahead) * K + head, block, tile - low)
        for row in range(0, rows, NEAR):
            behind = min(rows, row + NEAR)
            weigh_rows(block, row, behind, start, bend_to)
            mix_rows(block, row, behind, start, finite)


@kernel
def seen_of_group(block, row, count, start):
    """Return the part low..high, within the group from `start` on, that any of `count` rows sees."""
    low, high = SPAN, 0
    for r in range(row, row + count):
        low, high = min(low, block.sees[r, 0] - start), max(high, block.sees[r, 1] - start)
    return max(low, 0), min(high, SPAN)


@kernel
def rows_at_once(rest):
    """Return how many of the remaining rows are computed together: a power of two."""
    count = BLOCK
    while count > rest:
        count //= 2
    return count


@kernel
def weigh_rows(block, near, behind, start, bend_to):
    """Turn the keys of the group from `start` on into weights for rows near..behind, and the sums of those."""
    memory, E = block.memory, block.E
    norms, peaks = block.part + block.F * block.rows, block.part + (block.F + LANES) * block.rows
    row = near
    while row < behind:
        count = rows_at_once(behind - row)
        low, high = seen_of_group(block, row, count, start)
        q, scores = block.queries + row // BLOCK * BLOCK * E + row % BLOCK, block.scores + (row - near) * SPAN
        for tile in range(low // LANES // PAIR * PAIR, (high + LANES - 1) // LANES if low < high else 0, PAIR):
            score(memory, count, q, E, block.keys + tile * E * LANES, scores + tile * LANES)
        for r in range(row, row + count):
            scores, low, high = block.scores + (r - near) * SPAN, block.sees[r, 0] - start, block.sees[r, 1] - start
            if bend_to > 0:
                bend(memory, scores, bend_to)
            soften(memory, scores, low, high, peaks + r, block.shrink + r, norms + r * LANES)
        row += count


@kernel
def mix_rows(block, near, behind, start, finite):
    """Add the values of the group from `start` on to the sums of rows near..behind.

    If they are not all finite, rows are taken one by one: since 0 * NaN is NaN, each must keep away from what it does
    not see.
    """
    memory, F = block.memory, block.F
    row = near
    while row < behind:
        count = rows_at_once(behind - row) if finite else 1
        low, high = seen_of_group(block, row, count, start)
        weights, shrink = block.scores + (row - near) * SPAN, block.shrink + row
        for f in range(0, F if low < high else 0, PAIR * LANES):
            sums, pair = block.part + f * block.rows + row * LANES, min(PAIR, (F - f) // LANES)
            mix(memory, count, weights, low, high, block.values + f, F, pair, shrink, sums, block.rows * LANES)
        row += count


@kernel
def add_state(block, rows, part, at):
    """Put a state, which lies in `part` from `at` on, to the block's total."""
    memory, peaks, step = block.memory, (block.F + LANES) * block.rows, block.rows * LANES
    for r in range(rows):
        peak, before = part[at + peaks + r], memory[block.total + peaks + r]
        if peak == -np.inf:
            continue
        top = max(before, peak)
        memory[block.total + peaks + r] = top
        old, new = np.exp2(before - top), np.exp2(peak - top)
        place = r * LANES
        weighted(memory, block.total + place, old, part, at + place, new, block.F // LANES + 1, step)


@kernel(error_model="numpy")
def write_rows(block, head, token, tokens, out):
    """Divide the total sums by their weights and write them as rows token.. of out, [T, H, V].

    Without a weight, where all scores are -inf, that is NaN.
    """
    memory, V, sums = block.memory, out.shape[2], block.total + block.F * block.rows
    for r in range(tokens * block.heads):
        norm = np.float32(0)
        for lane in range(LANES):
            norm += memory[sums + r * LANES + lane]
        row = (token + r // block.heads) * out.shape[1] + head * block.heads + r % block.heads
        give_row(memory, block.total + r * LANES, block.rows * LANES, np.float32(1) / norm, V, out, row * V)
