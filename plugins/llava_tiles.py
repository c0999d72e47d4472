"""Pictures in tiles, as LLaVA 1.6 sees them beside the whole.

Source: LLaVA-NeXT: Improved reasoning, OCR, and world knowledge (2024), "dynamic high resolution"; sizes are rounded as
the processor does that was published with the models. Patches that show nothing of a picture become no rows, and each
line of patches ends in a row of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from ..core.plugin import Keys, Picture

Integers = npt.NDArray[np.intp]
Size = tuple[int, int]  # width and height

USUAL = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # heights and widths, where a config has none
MOST_SIZES, MOST_TILES = 256, 64  # that a config may list, and of one picture; far above any model's


@dataclass(frozen=True)
class Tiling:
    """The tiles of one picture, in lines from the top, and the patches of them that become rows."""

    columns: int  # tiles
    lines: int
    left: int  # patches on the left, and as many on the right, that show nothing
    top: int

    @classmethod
    def of(cls, picture: Picture, size: Size, side: int, patches: int) -> Tiling:
        """Return the tiling of a picture on a ground of this size. side: of a tile, in pixels; patches: the same."""
        columns, lines = size[0] // side, size[1] // side
        width, height = columns * patches, lines * patches
        if picture.width * height > picture.height * width:
            shown = int(round(picture.height * (width / picture.width), 7))
            return cls(columns, lines, 0, (height - shown) // 2)
        shown = int(round(picture.width * (height / picture.height), 7))
        return cls(columns, lines, (width - shown) // 2, 0)

    def order(self, patches: int) -> Integers:
        """Return which rows a picture becomes. patches: along a tile's side.

        Numbers count the patches of the whole picture, then those of tile after tile; -1 is the end of a line.
        """
        whole = np.arange(patches**2)
        height, width = self.lines * patches, self.columns * patches
        tiled = np.arange(height * width).reshape(self.lines, self.columns, patches, patches) + len(whole)
        ground = tiled.swapaxes(1, 2).reshape(height, width)
        shown = ground[self.top : height - self.top, self.left : width - self.left]
        return np.concatenate([whole, np.pad(shown, ((0, 0), (0, 1)), constant_values=-1).reshape(-1)])

    @property
    def numbers(self) -> tuple[int, ...]:
        """The same as plain numbers, in the order of the fields."""
        return astuple(self)


def best_size(picture: Picture, sizes: Sequence[Size]) -> Size:
    """Return the size in which most of a picture's own pixels can be seen, and least of the ground; else the first."""

    def worth(size: Size) -> tuple[int, int]:
        scale = min(size[0] / picture.width, size[1] / picture.height)
        pixels = int(picture.width * scale) * int(picture.height * scale)
        seen = min(pixels, picture.width * picture.height)
        return seen, seen - size[0] * size[1]

    return max(sizes, key=worth)


def tiles(picture: Picture, size: Size, side: int) -> list[Picture]:
    """Return the tiles of a picture in the middle of a black ground of this size, line by line."""
    across, down = size[0] / picture.width, size[1] / picture.height
    if across < down:
        width, height = size[0], min(math.ceil(picture.height * across), size[1])
    else:
        width, height = min(math.ceil(picture.width * down), size[0]), size[1]
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    ground = picture.resized(width, height, "bicubic").cropped(-left, -top, *size)
    return [ground.cropped(x, y, side, side) for y in range(0, size[1], side) for x in range(0, size[0], side)]


def sizes_of(keys: Keys, name: str, side: int, *, flat: bool) -> tuple[Size, ...]:
    """Return the sizes that pictures may be put on; none if the key is missing.

    flat: widths and heights in turn, as GGUF files have them, and not pairs of a height and a width.
    """
    given = keys.list(name)
    wrong = keys.wrong(name, f"up to {MOST_SIZES} sizes of up to {MOST_TILES} tiles {side} pixels wide and high")
    try:
        pairs = np.array(given if len(given) <= 2 * MOST_SIZES else None).reshape(-1, 2)
    except ValueError:
        raise wrong from None
    if len(given) == 0:
        return ()
    if len(pairs) != len(given) // (2 if flat else 1) or len(pairs) > MOST_SIZES or pairs.dtype.kind not in "iu":
        raise wrong
    most = MOST_TILES * side
    if (pairs < side).any() or (pairs > most).any() or (pairs % side).any() or (pairs.prod(1) > most * side).any():
        raise wrong
    return tuple((int(a), int(b)) if flat else (int(b), int(a)) for a, b in pairs)
