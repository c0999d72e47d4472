"""Which block of the key/value cache belongs to whom: bookkeeping without arrays, equal calls give equal blocks.

Positions are handed out in blocks. Layers that see alike (all of the past, a window, a chunk) form a group, and each
group numbers blocks of its own, because windows give back what nobody sees any more. A block that was computed in full
has a name: a hash over everything that it depends on, which is every token before its end. Whoever comes with the same
beginning takes the blocks of those names instead of computing them. Full blocks never change, so that no copy is ever
needed; blocks that nobody holds stay until their place is wanted, the one unused for longest going first.

Source: paged attention, arXiv:2309.06180, sections 4.2 to 4.5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..plugin import CacheLayer, Causal, Chunk, Media, Window
from .looks import Look
from .pool import BLOCK, Pool

__all__ = ["BLOCK", "BlockTable", "Blocks", "Capacity", "Pool", "blocks_of", "first_seen", "kinds_of"]

Kind = Causal | Window | Chunk


@dataclass(frozen=True)
class Capacity:
    """How much the cache of one engine holds."""

    positions: int  # of layers that see everything, over all sequences
    sequences: int  # in progress at once
    step_tokens: int  # that all of them together add in one step
    beside: int = 0  # rows beside the text that one of them looks at


def kinds_of(layout: Sequence[CacheLayer]) -> list[Kind]:
    """Return the kinds of layers that keep tokens, each once, in the order in which they occur."""
    return list(dict.fromkeys(layer.kind for layer in layout if not isinstance(layer.kind, Media)))


def blocks_of(kind: Kind, capacity: Capacity) -> int:
    """Return how many blocks a group needs for sequences that fill the capacity in whatever way."""
    whole = -(-capacity.positions // BLOCK) + capacity.sequences - 1  # each may end in a block of its own
    if isinstance(kind, Causal):
        return whole
    # What a step adds is shared among them.
    return min(whole, capacity.sequences * most_held(kind) + -(-capacity.step_tokens // BLOCK))


def blocks_beside(capacity: Capacity) -> int:
    """Return how many blocks keep what sequences look at beside the text, whatever that is."""
    return capacity.sequences * -(-capacity.beside // BLOCK)


def most_held(kind: Window | Chunk) -> int:
    """Return how many blocks one sequence holds between steps at most: the first and the last may be seen in part."""
    return -(-kind.size // BLOCK) + 2


def first_seen(kind: Kind, position: int) -> int:
    """Return the first position that a token at `position` sees."""
    if isinstance(kind, Window):
        return max(0, position + 1 - kind.size)
    return position - position % kind.size if isinstance(kind, Chunk) else 0


Marks = Callable[[int, int], bytes]


def no_marks(start: int, stop: int) -> bytes:
    """Return nothing: ids tell all."""
    return b""


class Blocks:
    """All blocks of one engine, by group."""

    def __init__(self, kinds: Sequence[Kind], capacity: Capacity) -> None:
        self.kinds, self.capacity = kinds, capacity
        self.pools = [Pool(blocks_of(kind, capacity)) for kind in kinds]
        self.beside = Pool(blocks_beside(capacity))  # of rows that tokens look at, not of tokens

    def knows(self, name: bytes) -> bool:
        """Whether a block of that name is there."""
        return any(pool.find(name) is not None for pool in self.pools)

    def grow(self, positions: int, beside: int = 0) -> None:
        """Hold that many positions, and for each sequence as many rows beside the text, if these are more than now."""
        capacity = self.capacity = replace(self.capacity, positions=positions, beside=max(beside, self.capacity.beside))
        for kind, pool in zip(self.kinds, self.pools, strict=True):
            pool.grow(blocks_of(kind, capacity))
        self.beside.grow(blocks_beside(capacity))

    def table(self, salt: bytes = b"", *, back: int = 0, marks: Marks = no_marks) -> BlockTable:
        """Return the table of a new sequence. Only those of equal salt share blocks: it stands for what else counts.

        back: positions that `rewind` may have to take back; with it nothing is shared. marks: of a stretch of tokens,
        what besides their ids tells it from others, such as the contents of an image.
        """
        return BlockTable(self, salt, back, marks)


class BlockTable:
    """Where one sequence's positions are: `length` of them are computed. `look`: what it sees beside them."""

    def __init__(self, blocks: Blocks, salt: bytes, back: int, marks: Marks) -> None:
        self.length = 0
        self._blocks, self._salt, self._back, self._marks = blocks, salt, back, marks
        self._tables: list[list[int]] = [[] for _ in blocks.pools]
        self._gone = [0] * len(blocks.pools)  # leading blocks that the sequence no longer sees and has given back
        self._names: list[bytes] = []  # of the blocks that are full
        self.look = Look(blocks.beside)

    @property
    def returned(self) -> int:
        """How often any block of the engine came free: before that, what did not fit does not fit now."""
        return sum(pool.returned for pool in self._blocks.pools)

    def name_of(self, position: int) -> bytes | None:
        """Return the name of the block that a position lies in; None if it is not full yet, or has none."""
        return self._names[position // BLOCK] if position // BLOCK < len(self._names) else None

    def places(self, group: int) -> list[int]:
        """Return the group's block for each BLOCK positions; any number where they are no longer seen."""
        return self._tables[group]

    def adopt(self, tokens: Sequence[int]) -> int:
        """Take over what others have computed of these tokens, all but the last at most; return how many positions.

        The table must be empty. A beginning counts only if each group still has all that the next token sees.
        """
        assert self.length == 0 and not self._names, "only an empty table can adopt"
        names = self._names_of(tokens, (len(tokens) - 1) // BLOCK)
        found = [[pool.find(name) for name in names] for pool in self._blocks.pools]
        count = self._usable(found)
        for group, pool in enumerate(self._blocks.pools):
            first = first_seen(self._blocks.kinds[group], count * BLOCK) // BLOCK
            self._gone[group] = min(first, count)
            for block in found[group][self._gone[group] : count]:
                pool.hold(block)  # type: ignore[arg-type]  # `_usable` saw that it is there
            self._tables[group] = [block or 0 for block in found[group][:count]]
        self._names = names[:count]
        self.length = count * BLOCK
        return self.length

    def _usable(self, found: list[list[int | None]]) -> int:
        """Return the most leading blocks after which every group has what the next token sees."""
        if not found:
            return 0
        runs = [_runs(blocks) for blocks in found]  # how many in a row there are before each
        for count in range(len(found[0]), 0, -1):
            firsts = (first_seen(kind, count * BLOCK) // BLOCK for kind in self._blocks.kinds)
            if all(run[count] >= count - first for run, first in zip(runs, firsts, strict=True)):
                return count
        return 0

    def reserve(self, positions: int) -> bool:
        """Make room for that many positions in all; False, and nothing changed, if there is not enough."""
        count = -(-positions // BLOCK)
        pairs = list(zip(self._tables, self._blocks.pools, strict=True))
        if any(count - len(table) > pool.available for table, pool in pairs):
            return False
        for table, pool in pairs:
            table.extend(pool.take() for _ in range(count - len(table)))
        return True

    def room(self) -> int:
        """Return how many positions in all `reserve` would grant."""
        pairs = zip(self._tables, self._blocks.pools, strict=True)
        return min((len(table) + pool.available for table, pool in pairs), default=1 << 40) * BLOCK

    def fits(self, positions: int, beside: Mapping[BlockTable, int]) -> bool:
        """Whether there are blocks until the sequence is that long, and until each of the others is as long as it says.

        `room` is what there is at once; a long sequence needs less of a window, which gives back as it goes.
        """
        wanted = [(self, positions), *beside.items()]
        return all(
            sum(table._missing(group, length) for table, length in wanted) <= pool.available
            for group, pool in enumerate(self._blocks.pools)
        )

    def _missing(self, group: int, positions: int) -> int:
        """Return how many blocks more the group will hold until the sequence is that long."""
        kind, gone = self._blocks.kinds[group], self._gone[group]
        wanted = -(-positions // BLOCK) - gone
        if not isinstance(kind, Causal):
            wanted = min(wanted, most_held(kind))
        return max(0, wanted - (len(self._tables[group]) - gone))

    def advance(self, tokens: Sequence[int], count: int) -> None:
        """Note that `count` more positions are computed. tokens: all of the sequence's, from the first on."""
        self.length += count
        self.look.fresh = False
        if self.length // BLOCK > len(self._names) and not self._back:
            full = len(self._names)
            self._names = self._names_of(tokens, self.length // BLOCK)
            for group, pool in enumerate(self._blocks.pools):
                for i in range(max(full, self._gone[group]), len(self._names)):
                    pool.name(self._tables[group][i], self._names[i])
        for group, kind in enumerate(self._blocks.kinds):
            self._forget_before(group, first_seen(kind, max(0, self.length - self._back)) // BLOCK)

    def rewind(self, length: int) -> None:
        """Hold no more than that many positions: those behind are to be computed again, by at most `back`."""
        assert self.length - self._back <= length <= self.length, (length, self.length, self._back)
        self.length = length

    def _forget_before(self, group: int, first: int) -> None:
        for i in range(self._gone[group], first):
            self._blocks.pools[group].give_back(self._tables[group][i])
        self._gone[group] = max(self._gone[group], first)

    def clear(self) -> None:
        """Give everything back and hold no position."""
        for group, pool in enumerate(self._blocks.pools):
            # The end first: what others may want, the beginning, is then kept for longer.
            for block in reversed(self._tables[group][self._gone[group] :]):
                pool.give_back(block)
            self._tables[group], self._gone[group] = [], 0
        self._names = []
        self.length = 0
        self.look.clear()

    def _names_of(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Return the names of the first `count` blocks, each a hash of the one before and its own tokens."""
        names = list(self._names)
        before = names[-1] if names else hashlib.sha256(self._salt).digest()
        for i in range(len(names), count):
            here = np.array(tokens[i * BLOCK : i * BLOCK + BLOCK], np.int64).tobytes()
            before = hashlib.sha256(before + here + self._marks(i * BLOCK, i * BLOCK + BLOCK)).digest()
            names.append(before)
        return names


def _runs(found: Sequence[int | None]) -> list[int]:
    """Return how many blocks in a row are there before each place and before the end."""
    runs = [0]
    for block in found:
        runs.append(0 if block is None else runs[-1] + 1)
    return runs
