"""The blocks of one group of layers: who holds them, and by what names they are found."""

from __future__ import annotations

from collections import OrderedDict

BLOCK = 32  # positions


class Pool:
    """The blocks of one group: each is held by some sequences, or kept for its contents, or empty.

    touched: blocks below this number have been in use. returned: how often one came free.
    """

    def __init__(self, count: int) -> None:
        self.count = self.touched = self.returned = 0
        self._empty: list[int] = []
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, the one unused for longest first
        self._holders: list[int] = []
        self._name: list[bytes | None] = []
        self._named: dict[bytes, int] = {}
        self.grow(count)

    def grow(self, count: int) -> None:
        """Have that many blocks, if there are fewer."""
        more = range(self.count, count)
        self._empty = [*reversed(more), *self._empty]  # those that memory was found for already come first
        self._holders += [0] * len(more)
        self._name += [None] * len(more)
        self.count = max(self.count, count)

    @property
    def available(self) -> int:
        """Blocks that `take` could give."""
        return len(self._empty) + len(self._kept)

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.count - self.available

    @property
    def kept(self) -> int:
        """Blocks that nobody holds, whose contents are still good."""
        return len(self._kept)

    def take(self) -> int:
        """Return a block for new contents, held once. There must be one available."""
        if self._empty:
            block = self._empty.pop()
            self.touched = max(self.touched, block + 1)
        else:
            block, _ = self._kept.popitem(last=False)
            del self._named[self._name[block]]  # type: ignore[arg-type]  # what is kept has a name
            self._name[block] = None
        self._holders[block] = 1
        return block

    def find(self, name: bytes) -> int | None:
        """Return the block of that name, if there is one."""
        return self._named.get(name)

    def hold(self, block: int) -> None:
        """Hold a block that `find` returned once more."""
        if self._holders[block] == 0:
            del self._kept[block]
        self._holders[block] += 1

    def name(self, block: int, name: bytes) -> None:
        """Let others find a held block, unless there is one of that name already."""
        if self._named.setdefault(name, block) == block:
            self._name[block] = name

    def forget(self, block: int) -> None:
        """Let nobody find a held block any more."""
        name = self._name[block]
        if name is not None:
            del self._named[name]
            self._name[block] = None

    def give_back(self, block: int) -> None:
        """Hold a block once less."""
        self._holders[block] -= 1
        if self._holders[block] == 0:
            self.returned += 1
            if self._name[block] is None:
                self._empty.append(block)
            else:
                self._kept[block] = None
