"""Where the keys and values lie of what tokens look at beside the text: the rows of images, in blocks of their own.

They are found by their contents, so that whoever is shown the same looks at the same blocks; those that nobody looks
at stay until their place is wanted. A sequence looks at one view at a time, so that as many blocks as the largest view
has, for each sequence in progress, are always enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .pool import BLOCK, Pool


class Look:
    """What one sequence looks at."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._view: bytes | None = None
        self._blocks: list[int] = []
        self.fresh = False  # whether the step in progress has to fill the blocks

    @property
    def blocks(self) -> Sequence[int]:
        """The view's blocks, row 0 at the beginning of the first."""
        return self._blocks

    def turn(self, view: bytes, rows: int) -> None:
        """Look at another view, or still at the same. view: tells contents from all others. rows: how many it has.

        If it is fresh, the step to come fills its blocks: others of that step can count on them already. If the step
        fails, all of them `clear`.
        """
        if view == self._view:
            return
        self.clear()
        names = [hashlib.sha256(view + at.to_bytes(8)).digest() for at in range(-(-rows // BLOCK))]
        found = [self._pool.find(name) for name in names]
        self._view, self.fresh = view, None in found
        # Noted one by one, so that `clear` gives all of them back if there are not enough.
        for block in found:
            if block is not None:
                self._pool.hold(block)
                self._blocks.append(block)
        # Some may have gone; what is left of the rest is not worth telling which rows it lacks.
        for place, (block, name) in enumerate(zip(found, names, strict=True)):
            if block is None:
                self._blocks.insert(place, self._take(name))

    def _take(self, name: bytes) -> int:
        block = self._pool.take()
        self._pool.name(block, name)
        return block

    def clear(self) -> None:
        """Look at nothing."""
        for block in self._blocks:
            if self.fresh:
                self._pool.forget(block)
            self._pool.give_back(block)
        self._view, self._blocks, self.fresh = None, [], False
