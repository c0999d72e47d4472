"""The key/value cache on the CPU: tiles for every block, and a step's view of them.

All memory is reserved when a model is loaded, so that nothing is allocated while it runs; the system gives pages only
to what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadModel, BadSetting
from ..plugin import Array, CacheLayer, Chunk, LayerCache, Media, Window
from ..tensor.checks import expect
from ..tensor.cpu_attention import CpuSeen, CpuSpans
from ..tensor.ops import add_rows
from ..tensor.tiles import CODED, SUB, ElementType, Tiles, new_tiles, store
from .beside import TILES, Beside, BesideLayer, BesideStep, tiles_of_blocks
from .blocks import BLOCK, Blocks, BlockTable, Capacity, blocks_beside, blocks_of, kinds_of
from .pool import Pool

__all__ = ["Cache", "Capacity", "ElementType", "Insert", "Rows", "StepView", "check_element"]

Integers = npt.NDArray[np.int32]
# In place of which token the first of an image's rows stands, and the rows, [n, (1 + deeper) · D].
Insert = tuple[int, npt.NDArray[np.float32]]


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
        # Layers that keep no tokens but what is beside them come last: they are a group of their own.
        self.group_of = [kinds.index(layer.kind) if layer.kind in kinds else len(kinds) for layer in layout]
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
    def pools(self) -> list[Pool]:
        """The blocks of each group."""
        return [*self.blocks.pools, self.blocks.beside]

    @property
    def held_bytes(self) -> int:
        """Bytes of the blocks that sequences hold now."""
        return self._bytes_of([pool.held for pool in self.pools])

    @property
    def resident_bytes(self) -> int:
        """Bytes that have been written to, and so are memory and not just addresses."""
        return self._bytes_of([pool.touched for pool in self.pools])

    def grow(self, positions: int, beside: int = 0) -> None:
        """Hold that many positions, and rows beside the text that a sequence looks at, if it is less now.

        Raises MemoryError, and nothing has changed then.
        """
        now = self.blocks.capacity
        wanted = now
        if positions > now.positions:
            positions = max(positions, now.positions * 3 // 2)  # as growing copies what there is
            wanted = replace(wanted, positions=positions)
        if beside > now.beside:
            wanted = replace(wanted, beside=beside)
        if wanted == now:
            return
        tiles, pools = self._new_tiles(wanted), self.pools
        for new, old, group in zip(tiles, self.tiles, self.group_of, strict=True):
            used = pools[group].touched * TILES
            for target, source in zip(new, old, strict=True):
                target[:used] = source[:used]
        self.blocks.grow(wanted.positions, wanted.beside)
        self.tiles = tiles

    def _new_tiles(self, capacity: Capacity) -> list[Tiles]:
        counts = [*(blocks_of(kind, capacity) for kind in self.blocks.kinds), blocks_beside(capacity)]
        return [
            new_tiles(counts[group] * TILES, c.heads, c.key_size, c.value_size, self._element)
            for c, group in zip(self.layout, self.group_of, strict=True)
        ]

    def _bytes_of(self, counts: Sequence[int]) -> int:
        """Return the bytes of so many blocks of each group, in all its layers."""
        sizes = [pool.count for pool in self.pools]
        pairs = zip(self.tiles, self.group_of, strict=True)
        return sum(tiles.nbytes // sizes[group] * counts[group] for tiles, group in pairs if counts[group])


@dataclass(frozen=True)
class Rows:
    """One sequence's share of a step: rows start..stop of the batch."""

    table: BlockTable
    start: int
    stop: int
    positions: Integers | None = None  # [streams, n]; None: the tokens' own numbers in their sequence, in each stream
    until: Integers | None = None  # [n], the last token that each sees; None: itself
    beside: Beside | None = None  # what they see beside the text


class GroupStep:
    """What layers of one group need to know of a step. Its arrays stay where they are when they are filled anew."""

    def __init__(self, group: int, tokens: int, sequences: int, tiles: int) -> None:
        """Leave room for steps of so many tokens and sequences, which lie in up to so many tiles."""
        self._group = group
        self.slots: Integers = np.empty(tokens, np.int32)  # where each row's key and value go
        self.spans: Integers = np.empty((sequences, 4), np.int32)  # `CpuSpans.rows`
        self.table: Integers = np.empty(tiles, np.int32)

    def fill(self, rows: Sequence[Rows], numbers: Integers) -> None:
        """Say where the rows of every sequence lie. numbers: of the tokens in their sequences."""
        places = [part.table.places(self._group) for part in rows]
        starts = [0, *accumulate(map(len, places))]  # where each sequence's blocks begin
        blocks = np.fromiter(chain.from_iterable(places), np.int32, starts[-1])
        tiles_of_blocks(blocks, self.table)
        self.spans[:] = [
            (part.start, part.stop, part.table.length, start * TILES) for part, start in zip(rows, starts, strict=False)
        ]
        first = np.repeat(starts[:-1], [part.stop - part.start for part in rows])
        self.slots[:] = blocks[first + numbers // BLOCK] * BLOCK + numbers % BLOCK


class StepLayer:
    """One layer's cache for the sequences of one step (`puna.core.plugin.LayerCache`)."""

    def __init__(self, declared: CacheLayer, tiles: Tiles, step: GroupStep, until: Integers | None) -> None:
        self._declared, self._tiles, self._step, self._until = declared, tiles, step, until

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
            until=self._until,
        )

    def look(self, keep: Callable[[Array], tuple[Array, Array]]) -> CpuSeen:
        """Raise BadModel."""
        raise BadModel(f"cache.look in a layer of the kind {self._declared.kind}: only those of the kind Media can")


class StepView:
    """What one forward pass works on (`puna.core.plugin.Step`)."""

    def __init__(
        self,
        cache: Cache,
        rows: Sequence[Rows],
        *,
        streams: int = 1,
        room: int = 1,
        inserts: Sequence[Insert] = (),
    ) -> None:
        """rows: one behind the other, each with room reserved in its table. streams: of positions.

        room: how many times as long as now sequences can become before `refill` finds no room for them. inserts: of
        images, whose deeper embeddings the forward pass may ask for.
        """
        T, self._inserts = rows[-1].stop, inserts
        self._numbers: Integers = np.empty(T, np.int32)  # of tokens in their sequences
        self.positions: Integers = np.empty(T if streams == 1 else (streams, T), np.int32)
        until = np.empty(T, np.int32) if any(part.until is not None for part in rows) else None
        sizes = [size * room for size in tiles_of(cache, rows)]
        self._groups = [GroupStep(group, T, len(rows), size) for group, size in enumerate(sizes)]
        shares = [part.beside for part in rows]
        self._beside = BesideStep(shares, T, room) if any(shares) else None
        self.cache: list[LayerCache] = [
            BesideLayer(declared, tiles, self._beside)
            if isinstance(declared.kind, Media)
            else StepLayer(declared, tiles, self._groups[group], until)
            for declared, tiles, group in zip(cache.layout, cache.tiles, cache.group_of, strict=True)
        ]
        self.refill(cache, rows)
        if until is not None:
            until[:] = self._numbers
            for part in rows:
                if part.until is not None:
                    until[part.start : part.stop] = part.until

    @property
    def sees(self) -> npt.NDArray[np.float32] | None:
        """[T, 1]: which rows see anything beside the text."""
        return None if self._beside is None else self._beside.sees

    def deepen(self, x: Array, number: int) -> Array:
        """Return x with the number-th deeper embedding of images' rows added to them, where they have so many."""
        D = x.shape[1]
        for at, rows in self._inserts:
            if rows.shape[1] >= (number + 2) * D:
                x = add_rows(x, rows[:, (number + 1) * D : (number + 2) * D], at)
        return x

    def refill(self, cache: Cache, rows: Sequence[Rows]) -> bool:
        """Work on other rows, as many for as many sequences; False, and nothing changed, if there is no room.

        How far they see in the text is not changed: that is for rows that see no further than to themselves.
        """
        sizes = tiles_of(cache, rows)
        if any(len(group.table) < size for group, size in zip(self._groups, sizes, strict=True)):
            return False
        if self._beside is not None and not self._beside.fill([(part.start, part.stop, part.beside) for part in rows]):
            return False
        shift = [part.table.length - part.start for part in rows]
        self._numbers[:] = np.repeat(shift, [part.stop - part.start for part in rows])
        self._numbers += np.arange(len(self._numbers), dtype=np.int32)
        self.positions[:] = self._numbers
        for part in rows:
            if part.positions is not None:
                self.positions[..., part.start : part.stop] = part.positions
        for group in self._groups:
            group.fill(rows, self._numbers)
        return True


def tiles_of(cache: Cache, rows: Sequence[Rows]) -> list[int]:
    """Return how many tiles the sequences of a step have in each group."""
    groups = range(len(cache.blocks.kinds))
    return [sum(len(part.table.places(group)) for part in rows) * TILES for group in groups]
