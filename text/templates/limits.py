"""What a Jinja template may cost: steps, time, and the size of the texts and lists it makes."""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Sized, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from jinja2.runtime import Undefined
from jinja2.utils import Namespace

from ...core.errors import BadModel

MAX_TEXT = 1 << 24  # characters in one string, and in the output
MAX_ITEMS = 1 << 18  # elements in one list, nested ones included
MAX_STEPS = 500_000  # a conversation of ten thousand messages needs about 100 thousand
MAX_SECONDS = 5.0
MAX_MADE = 1 << 28  # bytes, roughly, of all texts and lists that were made on the way, for a template may keep them all

_BYTES_PER_ELEMENT = 8  # of a list: what it points to was there before
_BYTES_PER_PIECE = 56  # of a list of new texts

T = TypeVar("T")


class _Budget:
    """What one rendering may still cost."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS
        self._room = MAX_MADE

    def charge(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise BadModel(f"chat template needs more than {MAX_STEPS} steps")
        if time.monotonic() > self._deadline:
            raise BadModel(f"chat template needs more than {MAX_SECONDS:g} seconds")

    def spend(self, nbytes: int) -> None:
        self._room -= nbytes
        if self._room < 0:
            raise BadModel(f"chat template makes texts and lists of more than {MAX_MADE} bytes")


_current: ContextVar[_Budget] = ContextVar("budget of the template being rendered")


@contextmanager
def budget() -> Iterator[None]:
    """Give the templates compiled or rendered inside this block a fresh budget."""
    token = _current.set(_Budget())
    try:
        yield
    finally:
        _current.reset(token)


def charge(steps: int = 1) -> None:
    """Take steps from the budget of the template that is running. Raises BadModel once it or the time is used up."""
    _current.get().charge(steps)


def paid(made: T, *, pieces: bool = False) -> T:
    """Return a value that was just made, after taking its size from the budget. pieces: it is a list of new texts.

    Raises BadModel once the budget is used up, or if a list has too many elements.
    """
    if isinstance(made, str):
        _current.get().spend(len(made))
    elif isinstance(made, list | tuple):
        check_items(len(made))
        _current.get().spend(len(made) * (_BYTES_PER_PIECE if pieces else _BYTES_PER_ELEMENT))
    return made


def check_text(characters: int) -> None:
    """Raise BadModel if a text of that length is too long."""
    if characters > MAX_TEXT:
        raise BadModel(f"chat template makes a text of more than {MAX_TEXT} characters")


def check_items(elements: int) -> None:
    """Raise BadModel if a list of that many elements is too long."""
    if elements > MAX_ITEMS:
        raise BadModel(f"chat template makes a list of more than {MAX_ITEMS} elements")


def measured(value: object) -> tuple[int, int]:
    """Return how many elements and, roughly, characters value spells out to, paying a step for each element.

    A list may hold another many times over, so that what is small in memory is huge when printed or compared.
    """
    elements, characters, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        elements += 1
        characters += len(item) + 4 if isinstance(item, str) else 8
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | KeysView | ValuesView | ItemsView):
            waiting += item
        elif isinstance(item, Namespace):
            raise BadModel("chat template puts a namespace into a list")
        check_items(elements + len(waiting))
    charge(elements)
    return elements, characters


def text_of(value: object) -> str:
    """Return value as text, if it is of a kind that templates print and does not grow beyond MAX_TEXT."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | None | Undefined):
        return str(value)
    if isinstance(value, list | tuple | dict):
        check_text(measured(value)[1])
        return str(value)
    raise BadModel(f"chat template prints a {type(value).__name__}")


def concatenated(pieces: Iterable[str], separator: str = "") -> str:
    """Return the pieces as one string. Raises BadModel before it passes MAX_TEXT."""
    kept, characters = [], 0
    for piece in pieces:
        characters += len(piece) + len(separator)
        check_text(characters)
        kept.append(piece)
    return paid(separator.join(kept))


class Steps:
    """An iterable each element of which costs a step."""

    def __init__(self, inner: Iterable[Any]) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        for item in self._inner:
            charge()
            yield item

    def __len__(self) -> int:
        return len(cast(Sized, self._inner))  # TypeError where the inner one has no length, as Jinja expects
