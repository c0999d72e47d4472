"""Checked access to what a model file says about itself: every number is read by name, with its range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from .errors import BadModel

LARGEST = 1 << 31  # no size in a model file is above this; a larger one is damage or malice


class Keys:
    """A view of a GGUF file's metadata or of a config.json. Reading a missing or absurd value raises BadModel by name.

    Names are looked up as they are and then behind the prefix, so that plugins write "block_count" for
    "llama.block_count". A null counts as missing, as Hugging Face configs use it.
    """

    def __init__(self, values: Mapping[str, Any], *, prefix: str = "", origin: str = "metadata") -> None:
        self._values, self._prefix, self._origin = values, prefix, origin

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def is_null(self, name: str) -> bool:
        """Whether the key is there and holds a null: some configs say so what its absence would not."""
        found = next((key for key in (name, self._prefix + name) if key in self._values), None)
        return found is not None and self._values[found] is None

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = LARGEST) -> int:
        """Return a whole number in low..high."""
        value = self._find(name)
        if value is None:
            value = self._default(name, default)
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise self._wrong(name, value, "a whole number")
        if not low <= value <= high:
            raise self._wrong(name, value, f"a whole number from {low} to {high}")
        return int(value)

    def divisor(self, name: str, of: int, default: int | None = None) -> int:
        """Return a whole number that divides `of`, its default unless there is another: groups of heads, say."""
        value = self.integer(name, of if default is None else default)
        if of % value:
            raise self._wrong(name, value, f"a divisor of {of}")
        return value

    def number(
        self, name: str, default: float | None = None, *, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """Return a finite float in low..high."""
        value = self._find(name)
        return self._finite(name, self._default(name, default) if value is None else value, low, high)

    def numbers(
        self, name: str, default: Sequence[float], *, low: float = -math.inf, high: float = math.inf
    ) -> tuple[float, ...]:
        """Return as many finite floats in low..high as the default has. An empty list counts as missing."""
        found = self.list(name)
        if len(found) == 0:
            return tuple(default)
        if len(found) != len(default):
            raise self._wrong(name, found, f"{len(default)} numbers")
        return tuple(self._finite(name, value, low, high) for value in found)

    def _finite(self, name: str, value: Any, low: float, high: float) -> float:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            raise self._wrong(name, value, "a number")
        try:
            found = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            found = math.inf
        if not (math.isfinite(found) and low <= found <= high):
            raise self._wrong(name, value, f"a finite number from {low} to {high}")
        return found

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return a truth value."""
        value = self._find(name)
        if value is None:
            value = self._default(name, default)
        if not isinstance(value, bool | np.bool_):
            raise self._wrong(name, value, "true or false")
        return bool(value)

    def text(self, name: str, default: str | None = None, *, allowed: Iterable[str] | None = None) -> str:
        """Return a string, one of allowed if that is given."""
        value = self._find(name)
        if value is None:
            value = self._default(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        if allowed is not None and value not in (choices := list(allowed)):
            raise self._wrong(name, value, "one of " + ", ".join(choices))
        return value

    def list(self, name: str) -> Sequence[Any]:
        """Return an array; () if the name is missing."""
        value = self._find(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple | np.ndarray):
            raise self._wrong(name, value, "a list")
        return cast("Sequence[Any]", value)

    def holds_list(self, name: str) -> bool:
        """Whether there is an array: some keys hold one value for all layers, or a value for each."""
        return isinstance(self._find(name), list | tuple | np.ndarray)

    def holds_number(self, name: str) -> bool:
        """Whether there is a number: some keys that hold a truth value now were numbers once."""
        value = self._find(name)
        return isinstance(value, int | float | np.number) and not isinstance(value, bool)

    def section(self, name: str) -> Keys | None:
        """Return the object under name as Keys of its own; None if it is missing."""
        value = self._find(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Keys(value, origin=f"{self._origin}: {name}")

    def wrong(self, name: str, expected: str) -> BadModel:
        """Return the error for a value that is well-formed and yet makes no sense beside others."""
        return self._wrong(name, self._find(name), expected)

    def _find(self, name: str) -> Any:
        value = self._values.get(name)
        return value if value is not None or not self._prefix else self._values.get(self._prefix + name)

    def _default(self, name: str, default: Any) -> Any:
        if default is None:
            raise BadModel(f"{self._origin}: key {self._prefix}{name} is missing")
        return default

    def _wrong(self, name: str, value: object, expected: str) -> BadModel:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return BadModel(f"{self._origin}: key {self._prefix}{name} is {shown}, expected {expected}")
