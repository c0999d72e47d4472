"""The key/value cache on the CPU: tiles for every block, and a step's view of them.

All memory is reserved when a model is loaded, so that nothing is allocated while it runs; the system gives pages only
to what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadModel, BadSetting
from ..plugin import CacheLayer, Chunk, LayerCache, Window
from ..tensor.checks import expect
from ..tensor.cpu_attention import CpuSeen, CpuSpans
from ..tensor.simd import LANES
from ..tensor.tiles import CODED, SUB, ElementType, Tiles, new_tiles, store
from .blocks import BLOCK, Blocks, BlockTable, Capacity, blocks_of, kinds_of

__all__ = ["Cache", "Capacity", "ElementType", "Rows", "StepView", "check_element"]

Integers = npt.NDArray[np.int32]

TILES = BLOCK // LANES  # of a block


def check_element(layout: Sequence[CacheLayer], element: ElementType) -> None:
    """Raise BadSetting if the model's heads cannot be kept in this element type."""
    for layer in layout:
        for size in (layer.key_size, layer.value_size):
            if element in CODED and size % SUB:
                wanted = f"f16 or f32 for this model: {size} dimensions of a head are not a multiple of {SUB}"
                raise BadSetting(name="PUNA_KV_CACHE_TYPE", value=element, allowed=wanted)


class Cache:
    """What all sequences of one engine hold, in every layer."""

    def __init__(self, layout: Sequence[CacheLayer], element: ElementType, capacity: Capacity) -> None:
        """Raises BadSetting as `check_element` does, and BadModel if there is not as much memory."""
        check_element(layout, element)
        self.layout = layout
        kinds = kinds_of(layout)
        self.group_of = [kinds.index(layer.kind) for layer in layout]
        self.blocks = Blocks(kinds, capacity)
        self._element = element
        try:
            self.tiles = self._new_tiles(capacity)
        except MemoryError:
            cure = "lower PUNA_CONTEXT_LENGTH or PUNA_NUM_PARALLEL"
            raise BadModel(f"no memory for a key/value cache of {capacity.positions} tokens: {cure}") from None

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(tiles.nbytes for tiles in self.tiles)

    @property
    def held_bytes(self) -> int:
        """Bytes of the blocks that sequences hold now."""
        return self._bytes_of([pool.held for pool in self.blocks.pools])

    @property
    def resident_bytes(self) -> int:
        """Bytes that have been written to, and so are memory and not just addresses."""
        return self._bytes_of([pool.touched for pool in self.blocks.pools])

    def grow(self, positions: int) -> None:
        """Hold that many positions, if it is less now. Raises MemoryError, and nothing has changed then."""
        if positions <= self.blocks.capacity.positions:
            return
        positions = max(positions, self.blocks.capacity.positions * 3 // 2)  # as growing copies what there is
        tiles = self._new_tiles(replace(self.blocks.capacity, positions=positions))
        for new, old, group in zip(tiles, self.tiles, self.group_of, strict=True):
            used = self.blocks.pools[group].touched * TILES
            for target, source in zip(new, old, strict=True):
                target[:used] = source[:used]
        self.blocks.grow(positions)
        self.tiles = tiles

    def _new_tiles(self, capacity: Capacity) -> list[Tiles]:
        counts = [blocks_of(kind, capacity) * TILES for kind in self.blocks.kinds]
        return [
            new_tiles(counts[group], c.heads, c.key_size, c.value_size, self._element)
            for c, group in zip(self.layout, self.group_of, strict=True)
        ]

    def _bytes_of(self, counts: Sequence[int]) -> int:
        """Return the bytes of so many blocks of each group, in all its layers."""
        pools = self.blocks.pools
        pairs = zip(self.tiles, self.group_of, strict=True)
        return sum(tiles.nbytes // pools[group].count * counts[group] for tiles, group in pairs)


@dataclass(frozen=True)
class Rows:
    """One sequence's share of a step: rows start..stop of the batch."""

    table: BlockTable
    start: int
    stop: int

    @property
    def positions(self) -> Integers:
        """The place of each row in its sequence."""
        return np.arange(self.table.length, self.table.length + self.stop - self.start, dtype=np.int32)


@dataclass(frozen=True)
class GroupStep:
    """What layers of one group need to know of a step."""

    slots: Integers  # where each row's key and value go
    spans: Integers  # `CpuSpans.rows`
    table: Integers


def group_step(group: int, rows: Sequence[Rows], positions: Integers) -> GroupStep:
    """Return where the rows of every sequence lie, in the tiles of one group."""
    tables: list[Integers] = []
    spans = np.empty((len(rows), 4), np.int32)
    slots = np.empty_like(positions)
    at = 0
    for i, part in enumerate(rows):
        blocks: Integers = np.fromiter(part.table.places(group), np.int32)
        tiles: Integers = np.add.outer(blocks * TILES, np.arange(TILES, dtype=np.int32)).reshape(-1)
        spans[i] = part.start, part.stop, part.table.length, at
        here = positions[part.start : part.stop]
        slots[part.start : part.stop] = tiles[here // LANES] * LANES + here % LANES
        tables.append(tiles)
        at += len(tiles)
    return GroupStep(slots, spans, np.concatenate(tables))


class StepLayer:
    """One layer's cache for the sequences of one step (`puna.core.plugin.LayerCache`)."""

    def __init__(self, declared: CacheLayer, tiles: Tiles, step: GroupStep) -> None:
        self._declared, self._tiles, self._step = declared, tiles, step

    def extend(self, k: Any, v: Any) -> CpuSeen:
        """Store the step's keys and values, [T, K, E] each, and return what each row may look at."""
        step, kind = self._step, self._declared.kind
        T, K, E = len(step.slots), self._declared.heads, self._declared.key_size
        expect("cache.extend: k", k, (T, K, E))
        expect("cache.extend: v", v, (T, K, self._declared.value_size))
        store(np.ascontiguousarray(k), np.ascontiguousarray(v), step.slots, self._tiles)
        return CpuSeen(
            (CpuSpans(self._tiles, step.spans, step.table),),
            self._declared.value_size,
            window=kind.size if isinstance(kind, Window) else 0,
            chunk=kind.size if isinstance(kind, Chunk) else 0,
        )


class StepView:
    """What one forward pass works on (`puna.core.plugin.Step`)."""

    def __init__(self, cache: Cache, rows: Sequence[Rows]) -> None:
        """rows: one behind the other, each with room reserved in its table."""
        self.positions: Integers = np.concatenate([part.positions for part in rows])
        groups = [group_step(group, rows, self.positions) for group in range(len(cache.blocks.kinds))]
        self.cache: list[LayerCache] = [
            StepLayer(declared, tiles, groups[group])
            for declared, tiles, group in zip(cache.layout, cache.tiles, cache.group_of, strict=True)
        ]
