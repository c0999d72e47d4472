"""When Python looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Put off the search for cyclic garbage while hundreds of thousands of objects are made, none of which is any.

    The search goes through every object of the process, again and again as their number grows: a fifth of the time
    that opening a large vocabulary takes in a server. Of two threads that use this the first to end puts an end to it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
