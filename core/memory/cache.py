"""The key/value cache of running sequences on the CPU, and the step's view of it.

Each sequence owns one growing run of positions a layer. Growth is geometric, so a reply costs a handful of copies, and
never passes what the sequence's context may hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..plugin import CacheLayer, LayerCache, Window
from ..tensor.attention import store_keys
from ..tensor.cpu_attention import CpuSeen, CpuSpan
from ..tensor.simd import LANES

Floats = npt.NDArray[np.float32]
ElementType = Literal["f16", "f32"]

FIRST = 64  # positions that a new sequence has room for


class SequenceCache:
    """What one sequence holds: `length` positions in every layer.

    Keys lie in tiles of sixteen positions, [tiles, K, E, 16], values in rows, [positions, K, F] with F padded to whole
    vectors: what `puna.core.tensor.attention` reads. float16 is kept as its bits.
    """

    def __init__(self, layout: Sequence[CacheLayer], capacity: int, element: ElementType) -> None:
        self.length = 0
        self._limit, self._room = capacity, 0
        self._dtype: Any = np.float32 if element == "f32" else np.uint16
        self._value_sizes = [layer.value_size for layer in layout]
        self._keys = [self._zeros(0, layer.heads, layer.key_size, LANES) for layer in layout]
        self._values = [self._zeros(0, layer.heads, -(-layer.value_size // LANES) * LANES) for layer in layout]

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(array.nbytes for array in (*self._keys, *self._values))

    def reserve(self, positions: int) -> None:
        """Make room for that many positions; the caller keeps within the sequence's context."""
        assert positions <= self._limit, (positions, self._limit)
        if positions <= self._room:
            return
        tiles = -(-min(self._limit, max(FIRST, positions, 2 * self._room)) // LANES)
        self._room = tiles * LANES
        self._keys = [self._grown(array, tiles) for array in self._keys]
        self._values = [self._grown(array, self._room) for array in self._values]

    def clear(self) -> None:
        """Forget every position and keep the room."""
        self.length = 0

    def store(self, layer: int, k: Floats, v: Floats) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Write rows behind the current length and return the layer's keys and values."""
        if self._dtype is np.uint16:
            k, v = k.astype(np.float16).view(np.uint16), v.astype(np.float16).view(np.uint16)
        keys, values = self._keys[layer], self._values[layer]
        store_keys(np.ascontiguousarray(k), self.length, keys)
        values[self.length : self.length + len(v), :, : self._value_sizes[layer]] = v
        return keys, values

    def _zeros(self, *shape: int) -> npt.NDArray[Any]:
        """Return an array without a NaN in it: weights of 0 must hide what was never written."""
        return np.zeros(shape, self._dtype)

    def _grown(self, old: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
        new = self._zeros(rows, *old.shape[1:])
        new[: len(old)] = old
        return new


@dataclass(frozen=True)
class Rows:
    """One sequence's share of a step: rows start..stop of the batch."""

    cache: SequenceCache
    start: int
    stop: int


class StepLayer:
    """One layer's cache for the sequences of one step (`puna.core.plugin.LayerCache`)."""

    def __init__(self, layer: int, declared: CacheLayer, rows: Sequence[Rows]) -> None:
        self._layer, self._declared, self._rows = layer, declared, rows

    def extend(self, k: Any, v: Any) -> CpuSeen:
        """Store the step's keys and values, [T, K, E] each, and return what each row may look at."""
        spans = []
        for part in self._rows:
            keys, values = part.cache.store(self._layer, k[part.start : part.stop], v[part.start : part.stop])
            spans.append(CpuSpan(part.start, part.stop, part.cache.length, keys, values, self._declared.value_size))
        kind = self._declared.kind
        return CpuSeen(tuple(spans), kind.size if isinstance(kind, Window) else 0)


class StepView:
    """What one forward pass works on (`puna.core.plugin.Step`)."""

    def __init__(self, layout: Sequence[CacheLayer], rows: Sequence[Rows]) -> None:
        spans = [np.arange(r.cache.length, r.cache.length + r.stop - r.start, dtype=np.int32) for r in rows]
        self.positions: npt.NDArray[np.int32] = np.concatenate(spans)
        self.cache: list[LayerCache] = [StepLayer(i, declared, rows) for i, declared in enumerate(layout)]
