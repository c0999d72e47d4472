"""Command-line options that several benchmarks share."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=str)


def some_of(known: Sequence[T]) -> Callable[[str], list[T]]:
    """Return a type for argparse: a list such as "prefill,load" becomes those of the known it names, in their order."""

    def read(names: str) -> list[T]:
        wanted = names.split(",")
        if unknown := [name for name in wanted if name not in known]:
            raise ArgumentTypeError(f"{', '.join(unknown)}: expected some of {','.join(known)}")
        return [name for name in known if name in wanted]

    return read
