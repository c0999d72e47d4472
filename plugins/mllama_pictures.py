"""Pictures as Llama 3.2 sees them: on a canvas of tiles of one size, from the top left on, the rest of it black.

Source: the processor that was published with the models, which Hugging Face transformers has in its reference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from ..core.plugin import Picture

Canvas = tuple[int, int]  # rows and columns of tiles


@functools.cache
def canvases(most: int) -> list[Canvas]:
    """Return the canvases of up to so many tiles, in the order in which the encoder's tables have them."""
    return [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]


def best_canvas(width: int, height: int, *, side: int, most: int) -> Canvas:
    """Return the canvas for a picture. side: pixels of a tile's.

    Of those that it need not shrink for, the one that it would grow least to fill; otherwise the one that it shrinks
    least for; of several, the smallest.
    """

    def order(canvas: Canvas) -> tuple[bool, float, int]:
        rows, columns = canvas
        scale = min(columns * side / width, rows * side / height)
        return scale < 1, scale if scale >= 1 else -scale, rows * columns

    return min(canvases(most), key=order)


def fitted_size(width: int, height: int, canvas: Canvas, side: int) -> tuple[int, int]:
    """Return the width and height that a picture has on its canvas. It does not grow beyond the side of one tile."""
    high, wide = (min(max(size, side), tiles * side) for size, tiles in zip((height, width), canvas, strict=True))
    across, down = wide / width, high / height
    if across < down:
        return wide, min(math.floor(height * across) or 1, high)
    return min(math.floor(width * down) or 1, wide), high


def tiles_of(picture: Picture, canvas: Canvas, side: int) -> Iterator[Picture]:
    """Yield the tiles of a picture, row by row."""
    shown = picture.resized(*fitted_size(picture.width, picture.height, canvas, side), "bilinear")
    rows, columns = canvas
    for row in range(rows):
        for column in range(columns):
            yield shown.cropped(column * side, row * side, side, side)
