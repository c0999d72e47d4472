"""Pictures as Mistral Small 3.1 sees them: their size, and the pieces in which they are encoded.

Source: Pixtral 12B, arXiv:2410.07073, section 2.1: pictures in about their own size and shape. Sizes are rounded as the
processor does that was published with the models. Four patches, two by two, become one row of a prompt: a square.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.plugin import Prepared

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


def fitting_size(width: int, height: int, *, longest: int, factor: int) -> tuple[int, int]:
    """Return the width and height that a picture gets: multiples of factor, at most `longest` before they are such."""
    ratio = max(width / longest, height / longest)
    if ratio > 1:
        width, height = (max(1, math.floor(side / ratio)) for side in (width, height))
    return -(-width // factor) * factor, -(-height // factor) * factor


@dataclass(frozen=True, eq=False)
class Piece:
    """Patches that are computed at once, P in all: a strip of an image, or several small images one after the other."""

    pixels: tuple[Floats, ...]  # of the strip or of each image, [3, height, width]
    places: Integers  # [2, P], row and column in the image
    squares: Integers  # [units, patches of a square]: which of them become one row of a prompt


@dataclass(frozen=True)
class Cut:
    """How images are cut into pieces."""

    patch: int  # pixels along a patch's side
    merge: int  # patches along a square's side
    most: int  # patches of a piece, unless a single strip has more

    def groups(self, images: Sequence[Prepared]) -> Iterator[tuple[list[Piece], list[int]]]:
        """Yield the pieces that are encoded together, and how many patches each image in them has.

        Those are the strips of one image, or one piece of several images.
        """
        small, sizes = list[Piece](), list[int]()
        for image in images:
            size = math.prod(image.grid)
            if small and sum(sizes) + size > self.most:
                yield [_joined(small)], sizes
                small, sizes = [], []
            strips = list(self._strips(image))
            if len(strips) > 1:
                yield strips, [size]
            else:
                small, sizes = small + strips, [*sizes, size]
        if small:
            yield [_joined(small)], sizes

    def _strips(self, image: Prepared) -> Iterator[Piece]:
        """Yield the whole image from top to bottom, in runs of whole rows of squares."""
        rows, columns = image.grid
        each = max(1, self.most // (columns * self.merge)) * self.merge
        for top in range(0, rows, each):
            yield self._strip(image, top, min(top + each, rows))

    def _strip(self, image: Prepared, top: int, bottom: int) -> Piece:
        rows, columns, merge = bottom - top, image.grid[1], self.merge
        row, column = np.indices((rows, columns), np.int32).reshape(2, -1)
        numbers = np.arange(rows * columns, dtype=np.int32).reshape(rows // merge, merge, columns // merge, merge)
        return Piece(
            (image.pixels[:, top * self.patch : bottom * self.patch],),
            places=np.stack([row + top, column]),
            squares=numbers.transpose(0, 2, 1, 3).reshape(-1, merge * merge),
        )


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Return several pieces as one."""
    starts = np.cumsum([0, *(piece.places.shape[1] for piece in pieces[:-1])])
    squares = [piece.squares + start for piece, start in zip(pieces, starts, strict=True)]
    return Piece(
        tuple(pixels for piece in pieces for pixels in piece.pixels),
        places=np.concatenate([piece.places for piece in pieces], axis=1),
        squares=np.concatenate(squares).astype(np.int32),
    )
