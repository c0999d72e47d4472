"""How the C library deals with the memory of activations, which every step takes and gives back."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3), of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20  # bytes of an array that is kept; the library allows no more
KEPT = 512 << 20  # bytes that may stay with the process after they were freed


def keep_freed_memory() -> None:
    """Have freed arrays kept for the next step, instead of given to the system and taken from it again.

    The system clears each page that it gives, which took a tenth of the time of a prompt. Only where the C library is
    GNU's; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    set_parameter = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_parameter is not None:
        set_parameter(_MMAP_THRESHOLD, LARGEST)
        set_parameter(_TRIM_THRESHOLD, KEPT)
