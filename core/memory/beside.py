"""What a step's tokens see beside the text: rows of images, whose keys and values lie in blocks of their own.

They get there in the first step that sees them, layer by layer, and stay as long as there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from ..plugin import Array, CacheLayer
from ..tensor.checks import expect
from ..tensor.cpu_attention import CpuSeen, CpuSpans
from ..tensor.simd import LANES
from ..tensor.tiles import Tiles, store
from .pool import BLOCK

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

TILES = BLOCK // LANES  # of a block


@dataclass(frozen=True)
class Beside:
    """What one sequence's rows of a step see: rows of images, the first of them at the beginning of the first block."""

    blocks: Sequence[int]
    until: Integers  # [n], the last of them that each sees; -1: none
    fresh: tuple[Floats, ...] = ()  # each image's, [R, D], if this step has to keep keys and values of them


class BesideStep:
    """What layers that look beside the text need to know of a step. Its arrays stay where they are."""

    def __init__(self, shares: Sequence[Beside | None], tokens: int, room: int) -> None:
        """Leave room for steps of so many tokens. room: how many times as many blocks there is room for."""
        size = sum(len(seen.blocks) for seen in shares if seen) * TILES * room
        self.until: Integers = np.empty(tokens, np.int32)
        self.sees: Floats = np.empty((tokens, 1), np.float32)
        self.spans: Integers = np.zeros((len(shares), 4), np.int32)  # `CpuSpans.rows`
        self.table: Integers = np.empty(size, np.int32)
        self.fresh: list[tuple[Floats, Integers]] = []  # rows, and where their keys and values go

    def fill(self, parts: Sequence[tuple[int, int, Beside | None]]) -> bool:
        """Say what sequences see; False, and nothing changed, if there is no room. parts: first row, end, and seen."""
        blocks = [block for _, _, seen in parts if seen for block in seen.blocks]
        if len(blocks) * TILES > len(self.table):
            return False
        tiles_of_blocks(np.array(blocks, np.int32), self.table)
        self.until[:] = -1
        self.fresh, begins = [], 0
        for number, (start, stop, seen) in enumerate(parts):
            self.spans[number] = start, stop, 0, begins
            if seen is not None:
                self.until[start:stop] = seen.until
                self.fresh += _placed(seen)
                begins += len(seen.blocks) * TILES
        self.sees[:, 0] = self.until >= 0
        return True


class BesideLayer:
    """One layer's cache of what is beside the text (`puna.core.plugin.LayerCache`)."""

    def __init__(self, declared: CacheLayer, tiles: Tiles, step: BesideStep | None) -> None:
        """step: None if no row sees anything."""
        self._declared, self._tiles, self._step = declared, tiles, step

    def extend(self, k: Any, v: Any) -> CpuSeen:
        """Raise BadModel."""
        raise BadModel("cache.extend in a layer of the kind Media, which keeps no tokens: see cache.look")

    def look(self, keep: Callable[[Array], tuple[Array, Array]]) -> CpuSeen:
        """Return what each row may look at, after keys and values of what is new were stored."""
        step, c = self._step, self._declared
        if step is None:
            raise BadModel("cache.look in a step that sees no media: its `sees` is None")
        for rows, slots in step.fresh:
            k, v = (np.ascontiguousarray(part) for part in keep(rows))
            expect("cache.look: keys", k, (len(rows), c.heads, c.key_size))
            expect("cache.look: values", v, (len(rows), c.heads, c.value_size))
            store(k, v, slots, self._tiles)
        spans = CpuSpans(self._tiles, step.spans, step.table)
        return CpuSeen((spans,), c.value_size, until=step.until, sees=step.sees)


def tiles_of_blocks(blocks: Integers, table: Integers) -> None:
    """Write the numbers of the blocks' tiles to the beginning of a table."""
    tiles = table[: len(blocks) * TILES].reshape(-1, TILES)
    np.add(blocks[:, None] * TILES, np.arange(TILES), tiles, casting="unsafe")


def _placed(seen: Beside) -> list[tuple[Floats, Integers]]:
    """Return the rows whose keys and values are to be kept, with the places that are theirs."""
    blocks, at, placed = np.array(seen.blocks, np.int32), 0, []
    for rows in seen.fresh:
        numbers = np.arange(at, at + len(rows), dtype=np.int32)
        placed.append((rows, blocks[numbers // BLOCK] * BLOCK + numbers % BLOCK))
        at += len(rows)
    return placed
