"""Pictures as Qwen 2.5 VL sees them: their size, their patches, the windows these lie in, and positions in a prompt.

Four patches, two by two, become one row of a prompt: a unit. Patches are listed unit by unit, row by row.

Sources: Qwen2.5-VL Technical Report, arXiv:2502.13923, sections 2.1.1 and 2.1.2; sizes are rounded as the processor
does that was published with the models.
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
LONGEST = 200  # times the other side


def fitting_size(width: int, height: int, *, factor: int, least: int, most: int) -> tuple[int, int]:
    """Return the width and height that a picture gets: multiples of factor, with least to most pixels if it can be.

    Raises BadRequest if one side is more than 200 times as long as the other.
    """
    if max(width, height) > LONGEST * min(width, height):
        raise BadRequest(f"an image of {width} x {height} pixels: no side may be more than {LONGEST} times the other")
    sides = width, height
    rounded = [round(side / factor) * factor for side in sides]  # halves to even; 0 is below any least
    if math.prod(rounded) > most:
        shrink = math.sqrt(width * height / most)
        rounded = [max(factor, math.floor(side / shrink / factor) * factor) for side in sides]
    elif math.prod(rounded) < least:
        grow = math.sqrt(least / (width * height))
        rounded = [math.ceil(side * grow / factor) * factor for side in sides]
    return rounded[0], rounded[1]


def patches_of(pairs: Iterator[tuple[Floats, Floats]], *, grid: tuple[int, int, int], patch: int, merge: int) -> Floats:
    """Return a row of numbers for each patch: its colours, in each its frames, in each its rows.

    pairs: of frames, [3, height, width] each; grid: pairs, and patches from top to bottom and from left to right.
    Result: [patches, 3 * 2 * patch * patch].
    """
    times, rows, columns = grid
    units = rows // merge, columns // merge
    out = np.empty((times, *units, merge, merge, 3, PAIR, patch, patch), np.float32)
    for target, pair in zip(out, pairs, strict=True):
        for i, frame in enumerate(pair):
            cut = frame.reshape(3, units[0], merge, patch, units[1], merge, patch)
            target[..., i, :, :] = cut.transpose(1, 4, 2, 5, 0, 3, 6)
    return out.reshape(times * rows * columns, -1)


def positions_of(times: int, rows: int, columns: int, *, interval: float) -> Integers:
    """Return the time, row and column of each unit, [3, units], from 0. interval: positions from a pair to the next."""
    time, row, column = np.indices((times, rows, columns), np.int32).reshape(3, -1)
    return np.stack([np.floor(time * interval).astype(np.int32), row, column])


@dataclass(frozen=True, eq=False)
class Stretch:
    """Patches that are encoded at once: of one frame, or of several small ones, which do not see each other."""

    pixels: Floats  # [P, numbers], as prepared
    order: Integers  # [P], which of them comes when they are listed window by window
    places: Integers  # [2, P], row and column in the frame, in that order
    windows: Sequence[int]  # patches in each window
    frames: Sequence[int]  # patches in each frame

    def pieces(self, most: int) -> Iterator[tuple[slice, Sequence[int]]]:
        """Yield runs of whole windows of up to `most` patches: where they are in the order, and patches in each."""
        start, sizes = 0, list[int]()
        for size in self.windows:
            if sizes and sum(sizes) + size > most:
                yield slice(start, start + sum(sizes)), sizes
                start, sizes = start + sum(sizes), []
            sizes.append(size)
        yield slice(start, start + sum(sizes)), sizes

    def units(self, merge: int) -> Integers:
        """Return where each unit of the frames, in their own order, comes in the order by windows."""
        comes: Integers = np.argsort(self.order[:: merge * merge]).astype(np.int32)
        return comes


def stretches(images: Sequence[Prepared], *, window: int, merge: int, most: int) -> Iterator[Stretch]:
    """Yield the frames of all images, small ones together while they have no more than `most` patches.

    window: units along a window's side.
    """
    held = list[Stretch]()
    for image in images:
        times, *grid = image.grid
        for pixels in np.split(image.pixels, times):
            frame = _frame(pixels, grid[0], grid[1], window, merge)
            if held and sum(len(other.order) for other in held) + len(frame.order) > most:
                yield _joined(held)
                held = []
            held.append(frame)
    if held:
        yield _joined(held)


def _frame(pixels: Floats, rows: int, columns: int, window: int, merge: int) -> Stretch:
    """Return one frame, its units sorted by the window that they are in; those at the edge may be smaller."""
    row, column = np.indices((rows // merge, columns // merge), np.int32).reshape(2, -1)
    across = -(-columns // merge // window)
    number = row // window * across + column // window
    units = np.argsort(number, kind="stable")
    inner = np.indices((merge, merge), np.int32).reshape(2, 1, -1)  # rows and columns within a unit
    places = np.stack([row, column])[:, units, None] * merge + inner
    return Stretch(
        pixels,
        order=(units[:, None] * merge**2 + np.arange(merge**2)).reshape(-1).astype(np.int32),
        places=places.reshape(2, -1),
        windows=(np.bincount(number) * merge**2).tolist(),
        frames=[rows * columns],
    )


def _joined(frames: Sequence[Stretch]) -> Stretch:
    if len(frames) == 1:
        return frames[0]
    starts = np.cumsum([0, *(len(frame.order) for frame in frames[:-1])])
    return Stretch(
        np.concatenate([frame.pixels for frame in frames]),
        np.concatenate([frame.order + start for frame, start in zip(frames, starts, strict=True)]).astype(np.int32),
        np.concatenate([frame.places for frame in frames], axis=1),
        [size for frame in frames for size in frame.windows],
        [size for frame in frames for size in frame.frames],
    )
