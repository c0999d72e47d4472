"""How the C library deals with the memory of activations, which every step takes and gives back."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Parameters of mallopt(3), of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
LARGEST = 32 << 20  # bytes of an array that is kept; the library allows no more
KEPT = 512 << 20  # bytes that may stay with the process after they were freed


def use_one_heap() -> None:
    """Have threads that begin from now on share the first one's heap, so that activations reuse what loading freed.

    Heaps of other threads are also given to the system in parts of 64 MB when those are free, whatever was asked for.
    Only where the C library is GNU's; elsewhere nothing changes.
    """
    set_parameter = _function("mallopt")
    if set_parameter is not None:
        set_parameter(_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Give the system what was freed, by any thread. Only where the C library is GNU's; elsewhere nothing changes."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Have freed arrays kept for the next step, instead of given to the system and taken from it again.

    The system clears each page that it gives, which took a tenth of the time of a prompt. Only where the C library is
    GNU's; elsewhere nothing changes.
    """
    set_parameter = _function("mallopt")
    if set_parameter is not None:
        set_parameter(_MMAP_THRESHOLD, LARGEST)
        set_parameter(_TRIM_THRESHOLD, KEPT)


def _function(name: str) -> Any:
    """Return a function of the GNU C library; None where it is another."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
