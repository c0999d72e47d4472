"""The key/value cache of running sequences on the CPU, and the step's view of it.

Each sequence owns one growing run of tiles a layer. Growth is geometric, so a reply costs a handful of copies, and
never passes what the sequence's context may hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadSetting
from ..plugin import CacheLayer, Chunk, LayerCache, Window
from ..tensor.cpu_attention import CpuSeen, CpuSpans
from ..tensor.simd import LANES
from ..tensor.tiles import SUB, ElementType, Tiles, new_tiles, store

__all__ = ["ElementType", "Rows", "SequenceCache", "StepView", "check_element"]

Integers = npt.NDArray[np.int32]

FIRST = 64  # positions that a new sequence has room for


def check_element(layout: Sequence[CacheLayer], element: ElementType) -> None:
    """Raise BadSetting if the model's heads cannot be kept in this element type."""
    for layer in layout:
        for size in (layer.key_size, layer.value_size):
            if element == "q8_0" and size % SUB:
                wanted = f"f16 or f32 for this model: {size} dimensions of a head are not a multiple of {SUB}"
                raise BadSetting(name="PUNA_KV_CACHE_TYPE", value=element, allowed=wanted)


class SequenceCache:
    """What one sequence holds: `length` positions in every layer, in tiles as `puna.core.tensor.tiles` has them."""

    def __init__(self, layout: Sequence[CacheLayer], capacity: int, element: ElementType) -> None:
        """Raises BadSetting as `check_element` does."""
        check_element(layout, element)
        self.length = 0
        self._limit, self._room = capacity, 0
        self._layout, self._element = layout, element
        self.tiles = self._new_tiles(0)  # of each layer

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(tiles.nbytes for tiles in self.tiles)

    def reserve(self, positions: int) -> None:
        """Make room for that many positions; the caller keeps within the sequence's context."""
        assert positions <= self._limit, (positions, self._limit)
        if positions <= self._room:
            return
        count = -(-min(self._limit, max(FIRST, positions, 2 * self._room)) // LANES)
        self._room = count * LANES
        old, self.tiles = self.tiles, self._new_tiles(count)
        for before, now in zip(old, self.tiles, strict=True):
            for source, target in zip(before, now, strict=True):
                target[: len(source)] = source

    def clear(self) -> None:
        """Forget every position and keep the room."""
        self.length = 0

    def _new_tiles(self, count: int) -> list[Tiles]:
        return [new_tiles(count, c.heads, c.key_size, c.value_size, self._element) for c in self._layout]


@dataclass(frozen=True)
class Rows:
    """One sequence's share of a step: rows start..stop of the batch."""

    cache: SequenceCache
    start: int
    stop: int

    @property
    def positions(self) -> Integers:
        """The place of each row in its sequence."""
        return np.arange(self.cache.length, self.cache.length + self.stop - self.start, dtype=np.int32)


@dataclass(frozen=True)
class Share:
    """What attention needs to know of one sequence's share, the same in every layer."""

    rows: Rows
    slots: Integers  # where each row's key and value go
    spans: Integers  # `CpuSpans.rows`
    table: Integers


def share_of(rows: Rows) -> Share:
    """Return the share of a sequence that owns its tiles: each lies where its number says."""
    slots, length = rows.positions, rows.cache.length + rows.stop - rows.start
    spans = np.array([[rows.start, rows.stop, rows.cache.length, 0]], np.int32)
    return Share(rows, slots, spans, np.arange(-(-length // LANES), dtype=np.int32))


class StepLayer:
    """One layer's cache for the sequences of one step (`puna.core.plugin.LayerCache`)."""

    def __init__(self, layer: int, declared: CacheLayer, shares: Sequence[Share]) -> None:
        self._layer, self._declared, self._shares = layer, declared, shares

    def extend(self, k: Any, v: Any) -> CpuSeen:
        """Store the step's keys and values, [T, K, E] each, and return what each row may look at."""
        k, v = np.ascontiguousarray(k), np.ascontiguousarray(v)
        spans = []
        for share in self._shares:
            rows, tiles = slice(share.rows.start, share.rows.stop), share.rows.cache.tiles[self._layer]
            store(k[rows], v[rows], share.slots, tiles)
            spans.append(CpuSpans(tiles, share.spans, share.table))
        kind = self._declared.kind
        return CpuSeen(
            tuple(spans),
            self._declared.value_size,
            window=kind.size if isinstance(kind, Window) else 0,
            chunk=kind.size if isinstance(kind, Chunk) else 0,
        )


class StepView:
    """What one forward pass works on (`puna.core.plugin.Step`)."""

    def __init__(self, layout: Sequence[CacheLayer], rows: Sequence[Rows]) -> None:
        shares = [share_of(part) for part in rows]
        self.positions: Integers = np.concatenate([share.slots for share in shares])
        self.cache: list[LayerCache] = [StepLayer(i, declared, shares) for i, declared in enumerate(layout)]
