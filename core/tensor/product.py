"""Products of packed weights with activations in 8 bits.

Activations are quantised once and laid out for the micro-kernels: tiles of up to six columns, in a tile the four
bytes of one step beside those of the other columns. A step size covers as many columns as the weights' unit: 32, or
256, as the formats' partners in ggml do (Q8_0, Q8_K).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import prange
from numba.extending import overload

from .jit import kernel
from .layouts import GROUP, STEPS, SUB, layout_of
from .micro import PAIR, multiply, quantise_block, unpack
from .threads import default_threads

WIDTH = 6  # columns of a full tile
CHUNK = 8  # sub-blocks of 32 columns that are unpacked at once: 16 KB of codes for a pair stay in the first cache
ROWS = PAIR * GROUP
SHARES = 4 * default_threads()  # a few for each thread, so that none waits long for another


@dataclass(frozen=True)
class Quantised:
    """Activations [T, D] in 8 bits: value = step size * code."""

    count: int  # T
    unit: int  # columns of one step size
    codes: npt.NDArray[np.int8]  # tiles of [subs, STEPS, width, 4], flat
    sums: npt.NDArray[np.int32]  # tiles of [subs, 3, width]: of the first 16 codes, the next 16, and all 32
    totals: npt.NDArray[np.float32]  # the same sums
    steps: npt.NDArray[np.float32]  # tiles of [units, width]


def last_width(count: int) -> int:
    """Return the width of the tile that holds what is left beside full tiles: 1, 2, 4 or 8 columns; 0 for nothing."""
    rest = count % WIDTH
    return 0 if rest == 0 else next(width for width in (1, 2, 4, WIDTH) if width >= rest)


def quantise(x: npt.NDArray[np.float32], unit: int) -> Quantised:
    """Return x, [T, D] float32, in 8 bits. D is a multiple of 32, and of unit."""
    T, D = x.shape
    padded = T // WIDTH * WIDTH + last_width(T)
    codes = np.empty(padded * D, np.int8)
    sums = np.empty(padded * D // SUB * 3, np.int32)
    totals = np.empty(len(sums), np.float32)
    steps = np.empty(padded * D // unit, np.float32)
    quantise_tiles(x, unit, codes, sums, totals, steps)
    return Quantised(T, unit, codes, sums, totals, steps)


def multiply_packed(x: Quantised, data: npt.NDArray[np.void], rows: int) -> npt.NDArray[np.float32]:
    """Return x · weightsᵀ, [T, rows] float32. data: records [groups, units] whose unit is that of x."""
    out = np.empty((x.count, rows), np.float32)
    shares = min(data.shape[0] // PAIR, SHARES)
    product(data, shares, x.count, x.codes, x.sums, x.totals, x.steps, out)
    return out


@kernel(parallel=True)
def quantise_tiles(x, unit, codes, sums, totals, steps):
    """Fill the tiles of `Quantised` from x, [T, D] float32."""
    T, D = x.shape
    flat = x.reshape(-1)
    for tile in prange((T + WIDTH - 1) // WIDTH):
        first = tile * WIDTH
        width = width_of(T - first)
        for j in range(width):
            for block in range(D // unit):
                at = first * (D // unit) + block * width + j
                code_at = first * D + (block * unit * width) + 4 * j
                sum_at = (first * (D // SUB) + block * (unit // SUB) * width) * 3 + j
                if first + j >= T:
                    steps[at] = 0
                    for step in range(unit // 4):
                        codes[code_at + step * width * 4 : code_at + step * width * 4 + 4] = 0
                    for part in range(unit // SUB * 3):
                        sums[sum_at + part * width] = 0
                        totals[sum_at + part * width] = 0
                elif unit == 256:
                    start = (first + j) * D + block * 256
                    steps[at] = quantise_block(flat, start, 256, codes, code_at, width, sums, totals, sum_at)
                else:
                    start = (first + j) * D + block * 32
                    steps[at] = quantise_block(flat, start, 32, codes, code_at, width, sums, totals, sum_at)


@kernel
def width_of(rest):
    """Return the width of a tile that has `rest` columns left to hold."""
    if rest > 4:
        return WIDTH
    return rest if rest < 3 else 4


def columns_of_unit(data):
    """Return the columns of a record; known when a kernel is compiled."""
    return layout_of(data).unit


@overload(columns_of_unit)
def _columns_of_unit(data):
    columns = layout_of(data).unit
    return lambda data: columns


@kernel
def multiply_pairs(data, first_pair, last_pair, count, x, sums, totals, steps, out):
    """out[:, rows of the pairs] = activations · weightsᵀ. out: float32 [T, O]."""
    unit = columns_of_unit(data)
    D = data.shape[1] * unit
    subs = D // SUB
    tiles = (count + WIDTH - 1) // WIDTH
    codes = np.empty(CHUNK * STEPS * PAIR * 64, np.uint8)
    scales = np.empty(2 * CHUNK * ROWS, np.float32)
    minimums = np.empty(2 * CHUNK * ROWS, np.float32)
    inner = np.zeros(WIDTH * ROWS, np.float32)
    total = np.empty(tiles * WIDTH * ROWS, np.float32)
    for pair in range(first_pair, last_pair):
        total[:] = 0
        for first in range(0, subs, CHUNK):
            here = min(CHUNK, subs - first)
            for lane in range(PAIR):
                for sub in range(0, here, unit // SUB):
                    unpack(data, pair * PAIR + lane, (first + sub) * SUB // unit, lane, sub, codes, scales, minimums)
            for tile in range(tiles):
                base = tile * WIDTH
                width = width_of(count - base)
                x_at = base * D + first * SUB * width
                sums_at = (base * subs + first * width) * 3
                steps_at = base * (D // unit) + first * SUB // unit * width
                at = base * ROWS
                # The width is part of the compiled code: how many sums it holds in registers.
                if width == WIDTH:
                    multiply(
                        data, WIDTH, codes, scales, minimums, here, x, x_at, sums, totals, sums_at, steps, steps_at,
                        inner, total, at,
                    )  # fmt: skip
                elif width == 4:
                    multiply(
                        data, 4, codes, scales, minimums, here, x, x_at, sums, totals, sums_at, steps, steps_at,
                        inner, total, at,
                    )  # fmt: skip
                elif width == 2:
                    multiply(
                        data, 2, codes, scales, minimums, here, x, x_at, sums, totals, sums_at, steps, steps_at,
                        inner, total, at,
                    )  # fmt: skip
                else:
                    multiply(
                        data, 1, codes, scales, minimums, here, x, x_at, sums, totals, sums_at, steps, steps_at,
                        inner, total, at,
                    )  # fmt: skip
        low = pair * ROWS
        rows = min(ROWS, out.shape[1] - low)
        for j in range(count):
            for row in range(rows):
                out[j, low + row] = total[j * ROWS + row]


@kernel(parallel=True)
def product(data, shares, count, x, sums, totals, steps, out):
    """out = activations · weightsᵀ, pairs of groups dealt out in shares among the threads. See `multiply_pairs`."""
    pairs = data.shape[0] // PAIR
    for share in prange(shares):
        multiply_pairs(data, share * pairs // shares, (share + 1) * pairs // shares, count, x, sums, totals, steps, out)
