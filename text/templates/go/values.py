"""The values a Go template works on, seen from Python, and what Go says about them: truth, type, order, JSON.

| Go                                  | here                       |
| ----------------------------------- | -------------------------- |
| nil, a missing map key              | None                       |
| bool, int, float64, string          | bool, int, float, str      |
| []byte                              | bytes                      |
| slice, map[string]any               | list, dict                 |
| map that remembers the order sent   | Ordered                    |
| slice that prints itself as JSON    | Listed                     |
| struct                              | Record                     |

A string cut between the bytes of a character holds the halves as surrogate escapes.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal

Value = object

MAX_TEXT = 1 << 24  # characters in any one string a template makes, and in its output


class TooLarge(Exception):
    """A string would pass MAX_TEXT. The renderer turns it into an error with a position."""

    def __init__(self) -> None:
        super().__init__(f"text grows beyond {MAX_TEXT} characters")


class Ordered(dict[str, Value]):
    """A map whose JSON keeps the order in which keys were sent; a template still ranges over it in key order."""


class Listed(list[Value]):
    """A list that prints as JSON; any other prints as [a b]."""


class Shape:
    """The type of a Record: its name, and for each field the key it has in JSON.

    A key ending in "?" is left out of the JSON when the field is empty (Go's omitempty).
    """

    def __init__(self, name: str, **keys: str) -> None:
        self.name = name
        self.keys = {field: (key.rstrip("?"), key.endswith("?")) for field, key in keys.items()}


class Record:
    """Named values of one Shape, like a Go struct that prints itself as JSON."""

    __slots__ = ("fields", "shape")

    def __init__(self, shape: Shape, fields: Mapping[str, Value]) -> None:
        self.shape = shape
        self.fields = fields

    def json_items(self) -> Iterator[tuple[str, Value]]:
        """Yield the keys and values of the record's JSON object."""
        for field, (key, optional) in self.shape.keys.items():
            value = self.fields[field]
            if not (optional and not truth(value)):
                yield key, value


def truth(value: Value) -> bool:
    """Return whether `if` takes value for true: anything but false, 0, nil and empty strings, lists and maps."""
    return True if isinstance(value, Record) else bool(value)


def type_name(value: Value) -> str:
    """Return the Go type of value, as error messages print it."""
    match value:
        case None:
            return "<nil>"
        case Record():
            return value.shape.name
        case list():
            return "[]interface {}"
        case dict():
            return "map[string]interface {}"
        case bytes():
            return "[]uint8"
    return {bool: "bool", int: "int", float: "float64", str: "string"}[type(value)]


def utf8(text: str) -> bytes:
    """Return the bytes of text, restoring halves of characters; what is no text at all becomes `?`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def from_utf8(data: bytes) -> str:
    """Return data as text, with bytes that are not UTF-8 as surrogate escapes."""
    return data.decode("utf-8", "surrogateescape")


_JSON_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    | {chr(code): "\ufffd" for code in range(0xD800, 0xE000)}
)


def go_json(value: Value) -> str:
    """Return value as Go's encoding/json writes it: no spaces, `<>&` escaped, keys of plain maps sorted.

    Raises ValueError for infinities and NaN, TooLarge past MAX_TEXT.
    """
    pieces: list[str] = []
    room = MAX_TEXT
    for piece in _json(value):
        pieces.append(piece)
        room -= len(piece)
        if room < 0:
            raise TooLarge
    return "".join(pieces)


def _json(value: Value) -> Iterator[str]:
    match value:
        case None:
            yield "null"
        case bool():
            yield "true" if value else "false"
        case int():
            yield str(value)
        case float():
            yield _json_float(value)
        case str():
            yield json.dumps(value, ensure_ascii=False).translate(_JSON_ESCAPES)
        case bytes():
            yield f'"{base64.b64encode(value).decode()}"'
        case list():
            for index, item in enumerate(value):
                yield "," if index else "["
                yield from _json(item)
            yield "]" if value else "[]"
        case dict() | Record():
            yield from _json_object(value)


def _json_object(value: dict[str, Value] | Record) -> Iterator[str]:
    if isinstance(value, Record):
        items = list(value.json_items())
    else:
        items = list(value.items()) if isinstance(value, Ordered) else sorted(value.items())
    for index, (key, item) in enumerate(items):
        yield "," if index else "{"
        yield from _json(key)
        yield ":"
        yield from _json(item)
    yield "}" if items else "{}"


def _json_float(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"json: unsupported value: {value}")
    if value and not 1e-6 <= abs(value) < 1e21:
        return scientific(value).replace("e-0", "e-")
    return positional(value)


def scientific(value: float) -> str:
    """Return the shortest decimal of value in the form 1.5e+06."""
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    exponent = Decimal(repr(value)).adjusted() if value else 0
    fraction = "".join(map(str, digits[1:]))
    return f"{'-' * sign}{digits[0]}{'.' * bool(fraction)}{fraction}e{exponent:+03d}"


def positional(value: float) -> str:
    """Return the shortest decimal of value without an exponent."""
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
