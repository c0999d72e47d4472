"""Pictures as Qwen 3 VL sees them: their size, their patches, where patches lie, and positions in a prompt.

Some patches, two by two in all published models, become one row of a prompt: a unit. Patches are listed unit by unit,
row by row. A video is pairs of frames, each a picture of its own with the time before it, written out.

Source: Qwen3-VL Technical Report, arXiv:2511.21631, section 2; sizes are rounded as the processor does that was
published with the models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.plugin import BadRequest, Prepared

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

PAIR = 2  # frames that a patch spans
FRAMES_A_SECOND = 2.0  # at which videos are shown
LONGEST = 200  # times the other side


def fitting_size(
    width: int, height: int, *, factor: int, least: int, most: int, frames: int | None = None
) -> tuple[int, int]:
    """Return the width and height that a picture gets: multiples of factor, with least to most pixels if it can be.

    frames: of a video, which are counted together; None: it is an image. Raises BadRequest if one side is more than
    200 times as long as the other.
    """
    if max(width, height) > LONGEST * min(width, height):
        raise BadRequest(f"an image of {width} x {height} pixels: no side may be more than {LONGEST} times the other")
    times = 1 if frames is None else max(1, round(frames / PAIR)) * PAIR
    wide, high = (round(side / factor) * factor for side in (width, height))  # halves to even; 0 is below any least
    pixels = (frames or 1) * width * height
    if times * wide * high > most:
        shrink = math.sqrt(pixels / most)
        wide, high = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif times * wide * high < least:
        grow = math.sqrt(least / pixels)
        wide, high = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return wide, high


def patches_of(pairs: Iterator[tuple[Floats, Floats]], *, grid: tuple[int, int, int], patch: int, merge: int) -> Floats:
    """Return a row of numbers for each patch: its colours, in each its frames, in each its rows.

    pairs: of frames, [3, height, width] each; grid: pairs, and patches from top to bottom and from left to right.
    Result: [patches, 3 * 2 * patch * patch].
    """
    times, rows, columns = grid
    found = np.empty((times, rows // merge, columns // merge, merge, merge, 3, PAIR, patch, patch), np.float32)
    for units, pair in zip(found, pairs, strict=True):
        for number, frame in enumerate(pair):
            cut = frame.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
            units[..., number, :, :] = np.einsum("crapubq->ruabcpq", cut)
    return found.reshape(times * rows * columns, -1)


def positions_of(rows: int, columns: int) -> Integers:
    """Return the time, row and column of each unit of a picture, [3, units], from 0. All are of one time."""
    row, column = np.indices((rows, columns), np.int32).reshape(2, -1)
    return np.stack([np.zeros_like(row), row, column])


def times_of(frames: int) -> list[float]:
    """Return the second in which each pair of frames is shown: the mean of its two. An odd last frame counts twice."""
    last = frames - 1
    return [(first + min(first + 1, last)) / 2 / FRAMES_A_SECOND for first in range(0, frames, PAIR)]


@dataclass(frozen=True, eq=False)
class Stretch:
    """Patches that are encoded at once: of one frame, or of several small ones, which do not see each other."""

    pixels: Floats  # [P, numbers], as prepared
    places: Integers  # [2, P], row and column in the frame
    learned: Floats  # [2, P], the same in the grid of learned positions, which covers every frame
    frames: Sequence[int]  # patches in each frame

    def pieces(self, most: int) -> list[slice]:
        """Return which patches are computed at a time: all frames, or up to `most` of one that is larger."""
        count = len(self.pixels)
        if len(self.frames) > 1:
            return [slice(0, count)]
        return [slice(start, min(start + most, count)) for start in range(0, count, most)]


def stretches(images: Sequence[Prepared], *, merge: int, side: int, most: int) -> Iterator[Stretch]:
    """Yield the frames of all images, small ones together while they have no more than `most` patches.

    side: of the grid of learned positions.
    """
    held = list[Stretch]()
    for image in images:
        times, rows, columns = image.grid
        for pixels in np.split(image.pixels, times):
            if held and sum(len(other.pixels) for other in held) + len(pixels) > most:
                yield _joined(held)
                held = []
            held.append(_frame(pixels, rows, columns, merge, side))
    if held:
        yield _joined(held)


def _frame(pixels: Floats, rows: int, columns: int, merge: int, side: int) -> Stretch:
    """Return one frame. Its corners have the places of the corners of the learned grid."""
    units = np.indices((rows, columns), np.int32).reshape(2, rows // merge, merge, columns // merge, merge)
    row, column = units.swapaxes(2, 3).reshape(2, -1)
    down, across = (np.linspace(0, side - 1, count, dtype=np.float32) for count in (rows, columns))
    return Stretch(pixels, np.stack([row, column]), np.stack([down[row], across[column]]), [len(pixels)])


def _joined(frames: Sequence[Stretch]) -> Stretch:
    if len(frames) == 1:
        return frames[0]
    return Stretch(
        np.concatenate([frame.pixels for frame in frames]),
        np.concatenate([frame.places for frame in frames], axis=1),
        np.concatenate([frame.learned for frame in frames], axis=1),
        [size for frame in frames for size in frame.frames],
    )
