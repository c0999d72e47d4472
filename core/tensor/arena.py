"""Memory for weights: large regions, out of which arrays are cut one behind the other, each at the start of a vector.

numpy asks for huge pages for what is large, and those are cleared, and on a virtual machine found, only when they are
touched: loading took four times as long. Products read both at the same speed.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

REGION = 256 << 20  # bytes; only what is used becomes resident
ALIGNMENT = 64  # a vector


class Arena:
    """Hands out memory that lives as long as an array in its region does."""

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.void]:
        """Return an array whose contents are undefined."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        taken = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if taken > self._free.size:
            self._free = _region(max(REGION, taken))
        found, self._free = self._free[:nbytes], self._free[taken:]
        return found.view(dtype).reshape(shape)


def _region(nbytes: int) -> npt.NDArray[np.uint8]:
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    return np.frombuffer(mmap.mmap(-1, nbytes, **private), np.uint8)  # pages begin where vectors do
