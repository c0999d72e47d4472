"""Attention on numpy arrays: what a cache hands over for the sequences of a step, and the operations over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from . import ops
from .attention import attend_spans
from .attention_block import Sight
from .checks import ANY, INT32, expect
from .simd import LANES
from .tape import contiguous, do, room
from .team import TEAM
from .tiles import Tiles, new_tiles, store

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

OWN = np.empty(0, np.int32)  # `until` of rows that see up to themselves


@dataclass(frozen=True)
class CpuSpans:
    """Sequences of a step whose tiles lie in the same arrays."""

    tiles: Tiles
    # [n, 4], n > 0, in order, of each: first row, the row behind its last, position of the first, where table begins
    rows: Integers
    table: Integers  # positions 16 i to 16 i + 15 of a sequence lie in tile table[i], i counted from where it begins


@dataclass(frozen=True)
class CpuSeen:
    """What one layer of a step may look at."""

    spans: tuple[CpuSpans, ...]  # in the order of their rows
    value_size: int
    window: int = 0  # 0: everything before
    chunk: int = 0  # 0: everything before
    until: Integers | None = None  # [T], the last position that each row sees; None: its own
    sees: Floats | None = None  # [T, 1], 0 for rows that see nothing, which get zeros; None: all see something


@ops.sharpness.register(np.ndarray)
def sharpness(positions: Integers, *, scale: float, floor: float) -> Floats:
    """Return what the queries of each token are multiplied with, [T, 1, 1]."""
    expect("sharpness: positions", positions, (ANY,), INT32)
    out = room((len(positions), 1, 1))
    do(_sharpen, positions, np.float32(scale), np.float32(floor), out)
    return out


def _sharpen(positions: Integers, scale: np.float32, floor: np.float32, out: Floats) -> None:
    steps = np.floor((positions.astype(np.float32) + np.float32(1)) / floor)
    out[:, 0, 0] = np.log(steps + np.float32(1)) * scale + np.float32(1)  # in float32, as the references do


@ops.attend.register(np.ndarray)
def attend(q: Floats, seen: CpuSeen, *, scale: float, soft_cap: float | None = None) -> Floats:
    """Return each row's mixture of values, [T, H · F] float32."""
    expect("attend: q", q, (ANY, ANY, ANY))
    T, H, E = q.shape
    wanted = seen.spans[-1].rows[-1, 1] if seen.spans else 0
    if wanted != T:
        raise BadModel(f"attention of {T} rows, expected {wanted}: one for each token of the step")
    out = room((T, H, seen.value_size))
    sight = Sight(seen.window, seen.chunk, OWN if seen.until is None else seen.until)
    bend_to = 0.0 if soft_cap is None else soft_cap / math.log(2)
    factor = scale / math.log(2) if soft_cap is None else scale / soft_cap
    q = contiguous(q)
    for span in seen.spans:
        K, size = span.tiles.keys.shape[1], span.tiles.key_size
        if H % K or size != E:  # the kernel trusts its shapes
            raise BadModel(f"attention of {H} query heads of {E} over {K} key heads of {size}: they do not fit")
        work = q, span.tiles, span.rows, span.table, sight, np.float32(factor), np.float32(bend_to)
        do(attend_spans, TEAM.ready(), *work, out)
    if seen.sees is not None:
        do(_blank, seen.sees, out)
    return out.reshape(T, H * seen.value_size)


def _blank(sees: Floats, out: Floats) -> None:
    """Write zeros where the kernel has nothing to divide by."""
    out[sees[:, 0] == 0] = 0


@ops.attend_all.register(np.ndarray)
def attend_all(q: Floats, k: Floats, v: Floats, *, scale: float, lengths: Sequence[int] | None = None) -> Floats:
    """Return each row's mixture of the values of its own stretch, [P, H · F] float32.

    Keys and values are put into tiles once, each stretch beginning a tile of its own.
    """
    expect("attend_all: q", q, (ANY, ANY, ANY))
    N, H, E = q.shape
    expect("attend_all: k", k, (ANY if lengths is None else N, ANY, E))
    P, K, _ = k.shape
    expect("attend_all: v", v, (P, K, ANY))
    F = v.shape[2]
    sizes = np.array([P] if lengths is None else lengths, np.int32)
    if sizes.sum() != P or (sizes < 0).any() or (P == 0 and N > 0):
        raise BadModel(f"attention of {N} rows in stretches of {sizes.tolist()}: they do not fit")
    if N == 0:
        return np.empty((0, H * F), np.float32)
    counts = -(-sizes // LANES)  # of tiles
    stops, first_tiles = np.cumsum(sizes, dtype=np.int32), np.cumsum(counts, dtype=np.int32) - counts
    starts = stops - sizes
    tiles = new_tiles(int(counts.sum()), K, E, F, "f32", filled=True)
    for kept in (tiles.keys, tiles.values):  # a stretch may end within a tile
        kept[(first_tiles + counts - 1)[sizes % LANES > 0]] = 0
    tiles.values[..., F:] = 0
    slots = np.arange(P, dtype=np.int32) + np.repeat(first_tiles * LANES - starts, sizes)
    store(np.ascontiguousarray(k), np.ascontiguousarray(v), slots, tiles)
    asking = sizes if lengths is not None else np.array([N], np.int32)
    rows = np.stack([starts, starts + asking, np.zeros_like(starts), first_tiles], axis=1)
    spans = CpuSpans(tiles, rows, np.arange(len(tiles.keys), dtype=np.int32))
    until = np.repeat(sizes - 1, asking)
    seen: Floats = attend(q, CpuSeen((spans,), F, until=until), scale=scale)
    return seen
