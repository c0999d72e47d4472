"""Activations in the order that products read them: chunks of columns, in a chunk tiles of up to six tokens.

In a tile the columns of one step lie beside those of the other tokens: four bytes each, or one float. Where codes are
multiplied as 16-bit integers, a step has two columns: of four, first 0 and 2, then 1 and 3. A product with
8-bit activations has step sizes that cover as many columns as the weights' unit, 32 or 256, as the formats' partners in
ggml do (Q8_0, Q8_K).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .jit import kernel
from .layouts import SUB, WORDS
from .micro import CHUNK, CODE_BYTES, PAIRS, SUMS, quantise_block
from .simd import LANES
from .sixteen import round_block
from .team import TEAM, shared
from .wide import WIDE_CHUNK, side_by_side

WIDTH = 6  # tokens of a full tile
WIDE = CHUNK * SUB  # columns of a chunk
LITTLE = 1 << 15  # numbers that one thread is done with before others have looked up
AS_FLOATS, IN_SIXTEEN = 1, 2  # stand for the columns of a step size where weights are floats, of 32 or of 16 bits
CODE = np.int8 if CODE_BYTES == 1 else np.int16


@dataclass(frozen=True)
class Quantised:
    """Activations [T, D] in 8 bits: value = step size * code. D is a multiple of 32, and of the unit.

    Everything is laid out in chunks of 256 columns (the last may have fewer), in a chunk tiles of `width` tokens.
    """

    count: int  # T
    unit: int  # columns of one step size
    codes: npt.NDArray[np.int8] | npt.NDArray[np.int16]  # tiles of [subs, DOTS, width, 4 or 2], flat
    starts: npt.NDArray[
        np.int32
    ]  # [subs, 3, width]: -128 * sum of 16 codes, the next 16, all 32; if the unit is 32, from ORIGIN
    pairs: npt.NDArray[np.int32]  # [12, width] if the unit is 256: int16 sums of 16 codes, two by two, then of 32
    steps: npt.NDArray[np.float32]  # [width], or, if the unit is 32, [subs, 3, width]: step, -ORIGIN * step, step * sum


def quantise(x: npt.NDArray[np.float32], unit: int) -> Quantised:
    """Return x, [T, D] float32, in 8 bits."""
    codes, *others = prepared(TEAM.ready(), x, unit)
    return Quantised(len(x), unit, codes.view(CODE), *others)


@kernel
def width_of(rest):
    """Return the width of a tile that has `rest` tokens left to hold: 1, 2, 4 or 6."""
    if rest > 4:
        return WIDTH
    return rest if rest < 3 else 4


@kernel
def padded_count(count):
    """Return the tokens that the tiles of `count` tokens have room for."""
    rest = count % WIDTH
    return count - rest + (width_of(rest) if rest > 0 else 0)


@kernel
def quantise_rows(x, count, first, unit, codes, starts, pairs, steps):
    """Fill, in every chunk of `count` tokens, the tile that begins with token `first`. x: its own rows, [.., D]."""
    D = x.shape[1]
    flat, padded, width = x.reshape(-1), padded_count(count), width_of(count - first)
    for j in range(min(width, len(x))):
        for at in range(0, D, unit):
            chunk, sub = at // WIDE, at % WIDE // SUB
            subs = min(CHUNK, D // SUB - chunk * CHUNK)  # of this chunk
            before = chunk * CHUNK * padded + first * subs + sub * width  # sub-blocks laid out before
            source, start_at = j * D + at, before * SUMS + j
            code_at = before * SUB * CODE_BYTES + 4 * j  # in bytes
            if unit == WIDE:
                step_at = chunk * padded + first
                pair_at = step_at * PAIRS + j
                quantise_block(
                    flat, source, WIDE, width, codes, code_at, starts, start_at, pairs, pair_at, steps, step_at + j
                )
            else:
                quantise_block(flat, source, SUB, width, codes, code_at, starts, start_at, pairs, 0, steps, start_at)


@kernel
def padded_columns(D):
    """Return the columns that whole blocks have room for."""
    return (D + SUB - 1) // SUB * SUB


@kernel
def copy_rows(x, count, first, out):
    """Do what `quantise_rows` does, for floats: [columns, width], in chunks of WIDE_CHUNK blocks."""
    D, width, padded = x.shape[1], width_of(count - first), padded_count(count)
    every = padded_columns(D)
    for start in range(0, D, WIDE_CHUNK * SUB):
        here = min(WIDE_CHUNK * SUB, every - start)
        at, columns = start * padded + first * here, min(here, D - start)
        whole = columns // LANES * LANES if len(x) == WIDTH else 0
        for column in range(0, whole, LANES):
            side_by_side(WIDTH, x, start + column, D, out, at + column * WIDTH)
        for column in range(whole, columns):
            for j in range(min(width, len(x))):
                out[at + column * width + j] = x[j, start + column]


@kernel
def round_rows(x, count, first, codes, steps):
    """Do what `quantise_rows` does, in 16 bits: codes, of two columns, [.., WORDS, width], and steps, [.., width]."""
    D, width, padded = x.shape[1], width_of(count - first), padded_count(count)
    flat, subs, rest = x.reshape(-1), padded_columns(D) // SUB, np.zeros(SUB, np.float32)
    for j in range(min(width, len(x))):
        for sub in range(subs):
            chunk = sub // CHUNK * CHUNK
            here = min(CHUNK, subs - chunk)
            before = chunk * padded + first * here + (sub - chunk) * width  # blocks laid out before
            if sub * SUB + SUB <= D:
                round_block(flat, j * D + sub * SUB, width, codes, before * WORDS + j, steps, before + j)
            else:
                rest[: D - sub * SUB] = x[j, sub * SUB :]
                round_block(rest, 0, width, codes, before * WORDS + j, steps, before + j)


@kernel
def fill_rows(x, count, first, unit, codes, starts, pairs, steps):
    """Fill, in every chunk of `count` tokens, the tile that begins with token `first`. x: its own rows, [.., D]."""
    if unit == AS_FLOATS:
        copy_rows(x, count, first, codes.view(np.float32))
    elif unit == IN_SIXTEEN:
        round_rows(x, count, first, codes.view(np.int32), steps)
    else:
        quantise_rows(x, count, first, unit, codes, starts, pairs, steps)


@kernel
def fill_tile(x, unit, codes, starts, pairs, steps, tile):
    """Fill one tile in every chunk."""
    first = tile * WIDTH
    fill_rows(x[first : first + WIDTH], len(x), first, unit, codes, starts, pairs, steps)


share_filling = shared(fill_tile)


@kernel
def bytes_of(unit):
    """Return the bytes of an activation."""
    if unit == AS_FLOATS:
        return 4
    return 2 if unit == IN_SIXTEEN else CODE_BYTES


@kernel
def room_for(padded, D, unit, cleared):
    """Return codes, in bytes, starts, pairs and steps for tiles of so many tokens. cleared: whether they are zeros.

    They are as in `Quantised`, or as `copy_rows` and `round_rows` fill them; what a unit has no use for is empty.
    """
    every, eights = padded_columns(D), unit in (SUB, WIDE)
    steps = 1 if unit == IN_SIXTEEN else SUMS if unit == SUB else 0  # of 32 columns
    codes = np.empty(padded * every * bytes_of(unit), np.uint8)
    starts = np.empty(padded * (D // SUB) * SUMS if eights else 0, np.int32)
    pairs = np.empty(padded * (D // WIDE) * PAIRS if unit == WIDE else 0, np.int32)
    sizes = np.empty(padded * (D // WIDE if unit == WIDE else every // SUB * steps), np.float32)
    if cleared:
        codes[:] = 0
        starts[:] = 0
        pairs[:] = 0
        sizes[:] = 0
    return codes, starts, pairs, sizes


@kernel
def prepared(table, x, unit):
    """Return x, [T, D] float32, as weights of that unit take it: what `room_for` returns, filled.

    D is padded with zeros to whole blocks of 32 columns. table: of the team.
    """
    T, D = x.shape
    padded = padded_count(T)
    codes, starts, pairs, steps = room_for(padded, D, unit, padded > T or padded_columns(D) > D)
    tiles = (T + WIDTH - 1) // WIDTH
    if x.size < LITTLE:
        for tile in range(tiles):
            fill_tile(x, unit, codes, starts, pairs, steps, tile)
    else:
        share_filling(table, tiles, (x, unit, codes, starts, pairs, steps))
    return codes, starts, pairs, steps
