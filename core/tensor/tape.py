"""Calls noted down in the order in which a step makes them, and made again without the step.

What a step does depends on its shapes alone, so one that was recorded once can be played for other numbers in the same
memory: no checks, no allocation, none of the Python between the kernels. Implementations of operations therefore take
memory for results from `room`, and let `do` call whatever reads or writes numbers; both do nothing more than that
while no tape runs.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

FLOAT32 = np.dtype(np.float32)
LINE = 64  # bytes that arrays are aligned to

Anything = npt.NDArray[Any]


class Memory:
    """What recorded steps write to: places that become free again as soon as no array of a recording uses them.

    Several tapes may share one, if what one of them leaves there is not needed once another runs.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []
        self._lent: dict[int, tuple[weakref.ref[Anything], bytearray]] = {}  # by the identity of the array lent
        self.nbytes = 0

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Anything:
        """Return an array, of any content, whose place others get when it and all views of it are gone."""
        place = self._place(dtype.itemsize * int(np.prod(shape)) + LINE)
        # Not an array's memory: numpy would make that array the base of views, and they must keep this one alive.
        start = -np.frombuffer(place, np.uint8).ctypes.data % LINE
        lent: Anything = np.ndarray(shape, dtype, place, start)
        self._lent[id(lent)] = weakref.ref(lent, partial(self._take_back, id(lent))), place
        return lent

    def _place(self, nbytes: int) -> bytearray:
        """Return the smallest free place that is large enough, lately used if possible, so that a core's cache has it.

        If more than half of it would be wasted, a new one is better.
        """
        fitting = [place for place in reversed(self._free) if nbytes <= len(place) <= 2 * nbytes]
        if not fitting:
            self.nbytes += nbytes
            return bytearray(nbytes)
        best = min(fitting, key=len)
        self._free = [place for place in self._free if place is not best]
        return best

    def _take_back(self, identity: int, _: object) -> None:
        self._free.append(self._lent.pop(identity)[1])

    def twin(self, array: Anything) -> Anything:
        """Return an array over the same numbers that does not keep its place from being lent again."""
        owner: Any = array
        while id(owner) not in self._lent:
            owner = owner.base
            if not isinstance(owner, np.ndarray):
                return array
        place = self._lent[id(owner)][1]
        start = array.ctypes.data - np.frombuffer(place, np.uint8).ctypes.data
        return np.ndarray(array.shape, array.dtype, place, start, array.strides)


class Tape:
    """What one step has done."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._calls: list[Callable[[], object]] = []

    def add(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        """Note a call down."""
        self._calls.append(partial(function, *self._twins(args)))

    def _twins(self, args: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(
            self.memory.twin(arg) if isinstance(arg, np.ndarray) else self._twins(arg) if type(arg) is tuple else arg
            for arg in args
        )

    def play(self) -> None:
        """Make the calls again. Raises what they raise; the rest is not done then."""
        for call in self._calls:
            call()


class _Running(threading.local):
    tape: Tape | None = None


_running = _Running()


@contextmanager
def recording(tape: Tape | None) -> Iterator[None]:
    """Have tape note down what this thread does; None: nothing."""
    before, _running.tape = _running.tape, tape
    try:
        yield
    finally:
        _running.tape = before


def do(function: Callable[..., object], *args: object) -> None:
    """Call function(*args) now and, if a tape runs, each time it is played.

    Arrays among the arguments, or in tuples among them, are known by their place: later calls find other numbers there.
    """
    tape = _running.tape
    if tape is None:
        function(*args)
        return
    with recording(None):  # what it does itself is noted with it
        function(*args)
    tape.add(function, args)


def room(shape: tuple[int, ...], dtype: np.dtype[Any] = FLOAT32) -> Anything:
    """Return an array for results, of any content."""
    if _running.tape is None:
        return np.empty(shape, dtype)
    return _running.tape.memory.take(shape, dtype)


def contiguous(x: Anything) -> Anything:
    """Return x, or a copy if its numbers do not lie one behind the other."""
    if x.flags.c_contiguous:
        return x
    copy = room(x.shape, x.dtype)
    do(np.copyto, copy, x)
    return copy
