"""Pictures as Llama 4 sees them: cut into tiles of one size, with the whole in small behind them.

A canvas is a grid of tiles. The one that shows most of a picture is filled with it from the top left on, in its own
proportions; what is left is black.

Source: the processor that was published with the models, which Hugging Face transformers has in its reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.plugin import Picture, Rows

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int32]
Grid = tuple[int, int]  # rows and columns of tiles

START, END = "<|image_start|>", "<|image_end|>"
BESIDE, BELOW = "<|tile_x_separator|>", "<|tile_y_separator|>"  # between tiles of a row; behind each row
WHOLE = "<|image|>"  # before the tile that shows everything

WEIGHT_BITS, MOST_BITS = 15, 22  # of the largest weight; behind the point
BAND = 256  # rows that are resized at a time, so that a large picture is not in memory several times


def best_grid(width: int, height: int, *, side: int, most: int) -> Grid:
    """Return the canvas of at most so many tiles for a picture. side: pixels of a tile's.

    Of those that a picture need not shrink for, the one that it grows least for; otherwise the one that it shrinks
    least for; of several, the smallest.
    """
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]

    def order(grid: Grid) -> tuple[bool, float, int]:
        rows, columns = grid
        scale = min(columns * side / width, rows * side / height)
        return scale < 1, abs(math.log(scale)), rows * columns

    return min(grids, key=order)


def fitted_size(width: int, height: int, grid: Grid, side: int) -> tuple[int, int]:
    """Return the width and height that a picture has on its canvas. It does not grow beyond the side of one tile."""
    high, wide = (min(max(size, side), tiles * side) for size, tiles in zip((height, width), grid, strict=True))
    if wide / width < high / height:
        return wide, max(1, min(math.floor(height * (wide / width)), high))
    return max(1, min(math.floor(width * (high / height)), wide)), high


def tiles_of(picture: Picture, grid: Grid, side: int) -> Iterator[Picture]:
    """Yield the tiles of a picture, row by row, and last the whole of it, squeezed into one, unless it is just one."""
    rows, columns = grid
    canvas = resized(picture, *fitted_size(picture.width, picture.height, grid, side))
    for row in range(rows):
        for column in range(columns):
            yield canvas.cropped(column * side, row * side, side, side)
    if rows * columns > 1:
        yield resized(picture, side, side)


def resized(picture: Picture, width: int, height: int) -> Picture:
    """Return the whole picture in another size, to the bit as the reference does.

    The filter is Pillow's, but its weights have 15 bits where those of Pillow have 22, and so some colours get the next
    shade.
    """
    colours = np.asarray(picture.image, np.uint8)  # [height, width, 3]
    if picture.width != width:
        bands = (colours[at : at + BAND].transpose(1, 0, 2) for at in range(0, picture.height, BAND))
        across = [_resampled(band, width).transpose(1, 0, 2) for band in bands]
        colours = np.concatenate(across)
    return Picture(Image.fromarray(colours if picture.height == height else _resampled(colours, height)))


def _resampled(colours: Bytes, size: int) -> Bytes:
    """Return as many lines of colours, each mixed of some that are given. colours: [lines, length of a line, 3]."""
    lines = colours.reshape(len(colours), -1)
    first, weights, bits = _weights(len(lines), size)
    sums = np.full((size, lines.shape[1]), 1 << (bits - 1), np.int32)  # one half, to round
    for tap, weight in enumerate(weights):
        sums += lines[np.minimum(first + tap, len(lines) - 1)] * weight[:, None]
    mixed: Bytes = np.clip(sums >> bits, 0, 255).astype(np.uint8)
    return mixed.reshape(size, *colours.shape[1:])


def _weights(length: int, size: int) -> tuple[Integers, Integers, int]:
    """Return what each of `size` numbers is mixed of, of `length` that there are.

    The place of its first, [size]; the weights of that and those behind it, [taps, size]; their bits behind the point.
    """
    scale = length / size
    reach, steep = max(scale, 1.0), min(1 / scale, 1.0)
    centres = scale * (np.arange(size) + 0.5)
    first = np.maximum((centres - reach + 0.5).astype(np.int32), 0)
    stop = np.minimum((centres + reach + 0.5).astype(np.int32), length)
    places = first + np.arange((stop - first).max())[:, None]
    weights = np.maximum(1 - np.abs((places - centres + 0.5) * steep), 0) * (places < stop)
    weights /= weights.sum(axis=0)
    bits = next(b for b in range(MOST_BITS, 0, -1) if int(weights.max() * (1 << b) + 0.5) < 1 << WEIGHT_BITS)
    return first, (weights * (1 << bits) + 0.5).astype(np.int32), bits


def parts_of(grid: Grid, tile: Rows) -> tuple[str | Rows, ...]:
    """Return what stands for a picture in a prompt. tile: the rows of one tile."""
    rows, columns = grid
    line: tuple[str | Rows, ...] = (tile, *(BESIDE, tile) * (columns - 1), BELOW)
    tiles = line * rows if rows * columns > 1 else ()
    return (START, *tiles, WHOLE, tile, END)


def numbers_of(picture: Picture, mean: Sequence[float], deviation: Sequence[float]) -> Floats:
    """Return (colour / 255 - mean) / deviation, [3, height, width], each step rounded to bfloat16 as in training."""
    shades = _rounded(np.arange(256, dtype=np.float32) * np.float32(1 / 255))
    colours = np.asarray(picture.image, np.uint8).transpose(2, 0, 1)
    middles, spreads = (_rounded(np.array(values, np.float32)) for values in (mean, deviation))
    tables = [_rounded(_rounded(shades - m) / s) for m, s in zip(middles, spreads, strict=True)]
    return np.stack([table[colour] for table, colour in zip(tables, colours, strict=True)])


def _rounded(numbers: Floats) -> Floats:
    """Return numbers with the eight significant bits of bfloat16, halfway to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)
