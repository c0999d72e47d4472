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
from .wide import side_by_side

WIDTH = 6  # tokens of a full tile
WIDE = CHUNK * SUB  # columns of a chunk
LITTLE = 1 << 15  # numbers that one thread is done with before others have looked up
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
    return Quantised(len(x), unit, *quantised(TEAM.ready(), x, unit))


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
def quantise_tile(x, unit, codes, starts, pairs, steps, tile):
    """Fill one tile in every chunk."""
    T, D = x.shape
    flat, padded, first = x.reshape(-1), padded_count(T), tile * WIDTH
    width = width_of(T - first)
    for j in range(min(width, T - first)):
        for at in range(0, D, unit):
            chunk, sub = at // WIDE, at % WIDE // SUB
            subs = min(CHUNK, D // SUB - chunk * CHUNK)  # of this chunk
            before = chunk * CHUNK * padded + first * subs + sub * width  # sub-blocks laid out before
            source, start_at = (first + j) * D + at, before * SUMS + j
            code_at = before * SUB * CODE_BYTES + 4 * j  # in bytes
            if unit == WIDE:
                step_at = chunk * padded + first
                pair_at = step_at * PAIRS + j
                quantise_block(
                    flat, source, WIDE, width, codes, code_at, starts, start_at, pairs, pair_at, steps, step_at + j
                )
            else:
                quantise_block(flat, source, SUB, width, codes, code_at, starts, start_at, pairs, 0, steps, start_at)


share_quantising = shared(quantise_tile)


@kernel
def quantised(table, x, unit):
    """Return codes, starts, pairs and steps of `Quantised` for x, [T, D] float32. table: of the team."""
    T, D = x.shape
    padded = padded_count(T)
    codes = np.empty(padded * D, CODE)
    starts = np.empty(padded * (D // SUB) * SUMS, np.int32)
    pairs = np.empty(padded * (D // WIDE) * PAIRS if unit == WIDE else 0, np.int32)
    steps = np.empty(padded * (D // unit) * (1 if unit == WIDE else SUMS), np.float32)
    if padded > T:  # what fills the last tile
        codes[:] = 0
        starts[:] = 0
        pairs[:] = 0
        steps[:] = 0
    tiles = (T + WIDTH - 1) // WIDTH
    if x.size < LITTLE:
        for tile in range(tiles):
            quantise_tile(x, unit, codes, starts, pairs, steps, tile)
    else:
        share_quantising(table, tiles, (x, unit, codes, starts, pairs, steps))
    return codes, starts, pairs, steps


@kernel
def copy_tile(x, chunk, subs, padded, out, tile):
    """Fill one tile of every chunk."""
    T, D = x.shape
    first = tile * WIDTH
    width = width_of(T - first)
    for start in range(0, D, chunk):
        here = min(chunk, subs * SUB - start)
        at, columns = start * padded + first * here, min(here, D - start)
        whole = columns // LANES * LANES if first + WIDTH <= T else 0
        for column in range(0, whole, LANES):
            side_by_side(WIDTH, x, first * D + start + column, D, out, at + column * WIDTH)
        for column in range(whole, columns):
            for j in range(min(width, T - first)):
                out[at + column * width + j] = x[first + j, start + column]


share_copying = shared(copy_tile)


@kernel
def floats_in_tiles(table, x, chunk):
    """Return x, [T, D] float32, in tiles of [columns, width], in chunks of `chunk` columns; D is padded with zeros.

    The result has whole blocks of 32 columns, and is flat. table: of the team.
    """
    T, D = x.shape
    subs, padded = (D + SUB - 1) // SUB, padded_count(T)
    out = np.empty(padded * subs * SUB, np.float32)
    if padded > T or subs * SUB > D:
        out[:] = 0
    tiles = (T + WIDTH - 1) // WIDTH
    if x.size < LITTLE:
        for tile in range(tiles):
            copy_tile(x, chunk, subs, padded, out, tile)
    else:
        share_copying(table, tiles, (x, chunk, subs, padded, out))
    return out


@kernel
def round_tile(x, codes, steps, tile):
    """Fill one tile in every chunk."""
    T, D = x.shape
    flat, padded, first, subs = x.reshape(-1), padded_count(T), tile * WIDTH, (D + SUB - 1) // SUB
    width, rest = width_of(T - first), np.zeros(SUB, np.float32)
    for j in range(min(width, T - first)):
        for sub in range(subs):
            chunk = sub // CHUNK * CHUNK
            here = min(CHUNK, subs - chunk)
            before = chunk * padded + first * here + (sub - chunk) * width  # blocks laid out before
            source = (first + j) * D + sub * SUB
            if sub * SUB + SUB <= D:
                round_block(flat, source, width, codes, before * WORDS + j, steps, before + j)
            else:
                rest[: D - sub * SUB] = x[first + j, sub * SUB :]
                round_block(rest, 0, width, codes, before * WORDS + j, steps, before + j)


share_rounding = shared(round_tile)


@kernel
def sixteens(table, x):
    """Return x, [T, D] float32, in 16 bits: codes, two columns in each int32, and step sizes of 32 columns.

    Both lie in chunks of 256 columns, in a chunk tiles of `width` tokens: [blocks, WORDS, width], and [blocks, width].
    D is padded with zeros to whole blocks. table: of the team.
    """
    T, D = x.shape
    padded, subs = padded_count(T), (D + SUB - 1) // SUB
    codes, steps = np.empty(padded * subs * WORDS, np.int32), np.empty(padded * subs, np.float32)
    if padded > T:  # what fills the last tile
        codes[:] = 0
        steps[:] = 0
    tiles = (T + WIDTH - 1) // WIDTH
    if x.size < LITTLE:
        for tile in range(tiles):
            round_tile(x, codes, steps, tile)
    else:
        share_rounding(table, tiles, (x, codes, steps))
    return codes, steps
