"""Attention of all rows of a step over tiles of keys and values, and how the work is shared among threads.

Threads take pieces of work, the long ones first, until none is left. A piece is a block of rows over all that it sees;
where that makes too few pieces, as for one token of a long text, each segment of positions is one.

Source: flash-decoding (pieces along the positions), "Flash-Decoding for long-context inference", Dao et al., 2023.
"""

from __future__ import annotations

import numpy as np

from .attention_block import (
    SEGMENT,
    add_state,
    attend_segment,
    clear,
    first_seen,
    last_seen,
    load_queries,
    new_block,
    rows_of_block,
    state_size,
    tokens_of_block,
    value_room,
    write_rows,
)
from .attention_micro import take
from .jit import kernel
from .team import shared, threads_of

ENOUGH = 4  # pieces for each thread
LITTLE = 1 << 18  # products of numbers that one thread is done with before others have woken up


@kernel
def whole_blocks(spans, sight, each):
    """Return one piece for each block of `each` tokens, [n, 5]: span, first row, rows, positions from .. to."""
    count = 0
    for s in range(len(spans)):
        count += (spans[s, 1] - spans[s, 0] + each - 1) // each
    pieces = np.empty((count, 5), np.int64)
    n = 0
    for s in range(len(spans)):
        start, stop, position = np.int64(spans[s, 0]), np.int64(spans[s, 1]), np.int64(spans[s, 2])
        for token in range(start + (stop - start - 1) // each * each, start - 1, -each):
            tokens = min(each, stop - token)
            low = first_seen(position + token - start, sight)
            high = 0
            for t in range(token, token + tokens):
                high = max(high, last_seen(position + t - start, t, sight))
            pieces[n, 0], pieces[n, 1], pieces[n, 2], pieces[n, 3], pieces[n, 4] = s, token, tokens, low, high
            n += 1
    return pieces


@kernel
def cut_at_segments(blocks):
    """Return the pieces that each block makes when it is cut at the bounds of segments, in order."""
    count = 0
    for b in range(len(blocks)):
        count += (blocks[b, 4] - 1) // SEGMENT - blocks[b, 3] // SEGMENT + 1
    pieces = np.empty((count, 5), np.int64)
    n = 0
    for b in range(len(blocks)):
        low, high = blocks[b, 3], blocks[b, 4]
        for start in range(low // SEGMENT * SEGMENT, high, SEGMENT):
            pieces[n] = blocks[b]
            pieces[n, 3], pieces[n, 4] = max(low, start), min(high, start + SEGMENT)
            n += 1
    return pieces


@kernel
def most_tokens(pieces):
    """Return how many tokens the largest piece has."""
    most = 1
    for n in range(len(pieces)):
        most = max(most, pieces[n, 2])
    return most


@kernel(inline="always")
def attend_piece(block, q, tiles, spans, table, sight, scale, bend_to, piece, head):
    """Fill the total of a block with what its rows see between the piece's positions."""
    s, token, tokens, low, high = piece[0], piece[1], piece[2], piece[3], piece[4]
    rows = tokens * block.heads
    load_queries(block, q, sight, scale, head, token, tokens, np.int64(spans[s, 2]) + token - spans[s, 0])
    clear(block, block.total)
    for start in range(low // SEGMENT * SEGMENT, high, SEGMENT):
        first, last = max(low, start), min(high, start + SEGMENT)
        attend_segment(block, rows, tiles, table, np.int64(spans[s, 3]), head, bend_to, first, last)
        add_state(block, rows, block.memory, block.part)


@kernel
def take_pieces(q, tiles, spans, table, sight, scale, bend_to, pieces, counter, states, out, thread):
    """Compute pieces until none is left. Whole blocks are written to out; of parts, states keeps what they end with."""
    K = tiles.keys.shape[1]
    block = new_block(q.shape[1] // K, most_tokens(pieces), q.shape[2], value_room(tiles))
    item = take(counter)
    while item < len(pieces) * K:
        piece, head = pieces[item // K], item % K
        attend_piece(block, q, tiles, spans, table, sight, scale, bend_to, piece, head)
        if len(states) > 0:
            for i in range(states.shape[1]):
                states[item, i] = block.memory[block.total + i]
        else:
            write_rows(block, head, piece[1], piece[2], out)
        item = take(counter)


@kernel
def join_parts(q, tiles, pieces, states, out):
    """Put together the parts of each block, which follow each other, and write its rows."""
    K = tiles.keys.shape[1]
    block = new_block(q.shape[1] // K, most_tokens(pieces), q.shape[2], value_room(tiles))
    for head in range(K):
        for n in range(len(pieces)):
            token, tokens = pieces[n, 1], pieces[n, 2]
            if n == 0 or pieces[n - 1, 1] != token:
                clear(block, block.total)
            add_state(block, tokens * block.heads, states[n * K + head], 0)
            if n + 1 == len(pieces) or pieces[n + 1, 1] != token:
                write_rows(block, head, token, tokens, out)


share_pieces = shared(take_pieces)


@kernel
def attend_spans(team, q, tiles, spans, table, sight, scale, bend_to, out):
    """Attention of the rows of several sequences.

    q: [T, H, E] float32. tiles: `Tiles`. spans: int32 [n, 4], of each sequence its first row, the row behind its last,
    the position of the first, and where its tiles begin in `table`, int32: positions 16 i to 16 i + 15 lie in tile
    table[i]. sight: `Sight`. scale: of the scores, times log2(e) / bend_to. bend_to: 0, or what limits the scores,
    times log2(e). out: [T, H, V] float32 with V up to the values' F. team: its table.
    """
    K, group = tiles.keys.shape[1], q.shape[1] // tiles.keys.shape[1]
    pieces = whole_blocks(spans, sight, tokens_of_block(group))
    seen = (pieces[:, 2] * (pieces[:, 4] - pieces[:, 3])).sum()
    threads = 1 if seen * q.shape[1] * q.shape[2] < LITTLE else threads_of(team)
    whole = threads == 1 or len(pieces) * K >= ENOUGH * threads
    if not whole:
        pieces = cut_at_segments(pieces)
    size = state_size(rows_of_block(group, most_tokens(pieces)), value_room(tiles))
    states = np.empty((0 if whole else len(pieces) * K, size), np.float32)
    counter = np.zeros(1, np.int64)
    share_pieces(team, threads, (q, tiles, spans, table, sight, scale, bend_to, pieces, counter, states, out))
    if not whole:
        join_parts(q, tiles, pieces, states, out)
