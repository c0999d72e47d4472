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
from .simd import LANES
from .team import TEAM
from .tiles import Tiles, new_tiles, store

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

LITTLE = 1 << 18  # products of numbers that one thread is done with before others have woken up
OWN = np.empty(0, np.int32)  # `until` of rows that see up to themselves


@dataclass(frozen=True)
class CpuSpans:
    """Sequences of a step whose tiles lie in the same arrays."""

    tiles: Tiles
    rows: Integers  # [n, 4], of each: first row, the row behind its last, position of the first, where table begins
    table: Integers  # positions 16 i to 16 i + 15 of a sequence lie in tile table[i], i counted from where it begins


@dataclass(frozen=True)
class CpuSeen:
    """What one layer of a step may look at."""

    spans: tuple[CpuSpans, ...]
    value_size: int
    window: int = 0  # 0: everything before
    chunk: int = 0  # 0: everything before
    until: Integers | None = None  # [T], the last position that each row sees; None: its own


@ops.attend.register(np.ndarray)
def attend(q: Floats, seen: CpuSeen, *, scale: float, soft_cap: float | None = None) -> Floats:
    """Return each row's mixture of values, [T, H · F] float32."""
    T, H, E = q.shape
    out = np.empty((T, H, seen.value_size), np.float32)
    sight = Sight(seen.window, seen.chunk, OWN if seen.until is None else seen.until)
    bend_to = 0.0 if soft_cap is None else soft_cap / math.log(2)
    factor = scale / math.log(2) if soft_cap is None else scale / soft_cap
    q = np.ascontiguousarray(q)
    for span in seen.spans:
        _, K, size, _ = span.tiles.keys.shape
        if H % K or size != E:  # the kernel trusts its shapes
            raise BadModel(f"attention of {H} query heads of {E} over {K} key heads of {size}: they do not fit")
        work = q, span.tiles, span.rows, span.table, sight, np.float32(factor), np.float32(bend_to)
        alone = T * H * E * LANES * len(span.table) < LITTLE * len(span.rows)  # each row sees one sequence's tiles
        attend_spans(TEAM.ready(), *work, alone, out)
    return out.reshape(T, -1)


@ops.attend_all.register(np.ndarray)
def attend_all(q: Floats, k: Floats, v: Floats, *, scale: float, lengths: Sequence[int] | None = None) -> Floats:
    """Return each row's mixture of the values of its own stretch, [P, H · F] float32.

    Keys and values are put into tiles once, each stretch beginning a tile of its own.
    """
    sizes = np.array([len(q)] if lengths is None else lengths, np.int32)
    if sizes.sum() != len(q) or (sizes < 0).any() or not len(q) == len(k) == len(v):
        raise BadModel(f"attention of {len(q)} rows over {len(k)} in stretches of {sizes.tolist()}: they do not fit")
    counts = -(-sizes // LANES)  # of tiles
    stops, first_tiles = np.cumsum(sizes, dtype=np.int32), np.cumsum(counts, dtype=np.int32) - counts
    starts = stops - sizes
    tiles = new_tiles(int(counts.sum()), k.shape[1], k.shape[2], v.shape[2], "f32")
    slots = np.arange(len(q), dtype=np.int32) + np.repeat(first_tiles * LANES - starts, sizes)
    store(np.ascontiguousarray(k), np.ascontiguousarray(v), slots, tiles)
    rows = np.stack([starts, stops, np.zeros_like(starts), first_tiles], axis=1)
    spans = CpuSpans(tiles, rows, np.arange(len(tiles.keys), dtype=np.int32))
    until = np.repeat(sizes - 1, sizes)
    seen: Floats = attend(q, CpuSeen((spans,), v.shape[2], until=until), scale=scale)
    return seen
