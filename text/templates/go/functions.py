"""The functions a template may call: Go's built-ins and the few that model templates add.

A function gets evaluated arguments and returns a value; a wrong argument raises Refused in Go's words. `and` and `or`
stop early and so belong to the renderer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import quote_plus

from .formatting import join, sprint, sprintf, sprintln
from .values import Record, Value, from_utf8, go_json, truth, type_name, utf8


class Refused(Exception):
    """A function cannot work on what it was given."""


@dataclass(frozen=True, slots=True)
class Builtin:
    """A function and how many arguments it takes: exactly `least`, or at least that many."""

    call: Callable[..., Value]
    least: int
    variadic: bool = False


def _length(value: Value) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(utf8(value))
    if isinstance(value, list | dict | bytes):
        return len(value)
    raise Refused("len of nil pointer" if value is None else f"len of type {type_name(value)}")


def _position(index: Value, limit: int) -> int:
    if type(index) is not int:
        raise Refused(f"cannot index slice/array with {'nil' if index is None else f'type {type_name(index)}'}")
    if not 0 <= index <= limit:
        raise Refused(f"index out of range: {index}")
    return index


def _index(item: Value, *indexes: Value) -> Value:
    if item is None:
        raise Refused("index of untyped nil")
    for index in indexes:
        match item:
            case dict():
                if not isinstance(index, str):
                    raise Refused(f"value has type {type_name(index)}; should be string")
                item = item.get(index)
            case list() | bytes() | str():
                sequence: Any = utf8(item) if isinstance(item, str) else item
                position = _position(index, len(sequence))
                if position == len(sequence):
                    raise Refused(f"reflect: {'string' if isinstance(item, str) else 'slice'} index out of range")
                item = sequence[position]
            case None:
                raise Refused("index of nil pointer")
            case _:
                raise Refused(f"can't index item of type {type_name(item)}")
    return item


def _slice(item: Value, *indexes: Value) -> Value:
    if item is None:
        raise Refused("slice of untyped nil")
    if not isinstance(item, str | list | bytes):
        raise Refused(f"can't slice item of type {type_name(item)}")
    if len(indexes) > 3:
        raise Refused(f"too many slice indexes: {len(indexes)}")
    if isinstance(item, str):
        if len(indexes) == 3:
            raise Refused("cannot 3-index slice a string")
        return item if not indexes else from_utf8(_cut(utf8(item), indexes))
    return _cut(item, indexes)


def _cut(sequence: Any, indexes: tuple[Value, ...]) -> Any:
    bounds = [_position(index, len(sequence)) for index in indexes]
    for low, high in pairwise(bounds):
        if low > high:
            raise Refused(f"invalid slice index: {low} > {high}")
    start = bounds[0] if bounds else 0
    return sequence[start : bounds[1] if len(bounds) > 1 else len(sequence)]


def _kind(value: Value) -> type | None:
    """Return the class of values that value may be compared with, None if it has no order."""
    return type(value) if isinstance(value, bool | int | float | str) else None


def _equal(first: Value, *others: Value) -> bool:
    if not others:
        raise Refused("missing argument for comparison")
    return any(_same(first, other) for other in others)


def _same(first: Value, second: Value) -> bool:
    if first is None or second is None:
        return first is second
    if _kind(first) is not _kind(second):
        raise Refused(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")
    if _kind(first) is None:
        if type(first) is not type(second) or not isinstance(first, Record):
            raise Refused(f"non-comparable type {sprint([second])}: {type_name(second)}")
        return first is second
    return first == second


def _less(first: Any, second: Any) -> bool:
    kinds = _kind(first), _kind(second)
    if None in kinds or kinds == (bool, bool):
        raise Refused("invalid type for comparison")
    if kinds[0] is not kinds[1]:
        raise Refused(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")
    return bool(first < second)


def _call(function: Value, *_arguments: Value) -> Value:
    """Templates are given no functions as data, so there is nothing to call."""
    raise Refused("call of nil" if function is None else f"non-function of type {type_name(function)}")


def _printf(layout: Value, *arguments: Value) -> str:
    if not isinstance(layout, str):
        raise Refused(f"wrong type for value; expected string; got {type_name(layout)}")
    return sprintf(layout, arguments)


def _json(value: Value) -> str:
    try:
        return go_json(value)
    except ValueError:  # an infinity: Go's function drops the error and prints nothing
        return ""


_HTML = str.maketrans({'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"})
_JS = str.maketrans({"\\": "\\\\", "'": "\\'", '"': '\\"'} | {c: f"\\u{ord(c):04X}" for c in "<>&="})


def _printed(values: tuple[Value, ...]) -> str:
    return sprint(["<no value>" if value is None else value for value in values])


def _js(*values: Value) -> str:
    text = _printed(values).translate(_JS)
    return join([c if c.isprintable() else f"\\u{ord(c):04X}" for c in text])


def _type_script(schema: Value) -> str:
    """Return the TypeScript type of a tool's property (a Record with AnyOf and Type)."""
    if not isinstance(schema, Record) or "AnyOf" not in schema.fields:
        raise Refused(f"wrong type for value; expected ToolProperty; got {type_name(schema)}")
    match schema.fields["AnyOf"], schema.fields["Type"]:
        case [first, *more], _:
            return " | ".join(_type_script(option) for option in (first, *more))
        case _, list() as names if names:
            return " | ".join(_TYPE_SCRIPT.get(str(name), "any") for name in names)
        case _, name:
            return _TYPE_SCRIPT.get(str(name), "any")


_TYPE_SCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def _date(*, days_ago: int) -> Callable[..., str]:
    return lambda *_: (datetime.now() - timedelta(days=days_ago)).strftime("%Y-%m-%d")  # the local day is meant


FUNCTIONS = {
    "not": Builtin(lambda value: not truth(value), 1),
    "eq": Builtin(_equal, 1, variadic=True),
    "ne": Builtin(lambda a, b: not _same(a, b), 2),
    "lt": Builtin(_less, 2),
    "le": Builtin(lambda a, b: _less(a, b) or _same(a, b), 2),
    "gt": Builtin(lambda a, b: not (_less(a, b) or _same(a, b)), 2),
    "ge": Builtin(lambda a, b: not _less(a, b), 2),
    "len": Builtin(_length, 1),
    "index": Builtin(_index, 1, variadic=True),
    "slice": Builtin(_slice, 1, variadic=True),
    "print": Builtin(lambda *values: sprint(values), 0, variadic=True),
    "printf": Builtin(_printf, 1, variadic=True),
    "println": Builtin(lambda *values: sprintln(values), 0, variadic=True),
    "html": Builtin(lambda *values: _printed(values).translate(_HTML), 0, variadic=True),
    "js": Builtin(_js, 0, variadic=True),
    "urlquery": Builtin(lambda *values: quote_plus(utf8(_printed(values)), safe="-_.~"), 0, variadic=True),
    "call": Builtin(_call, 1, variadic=True),
    "json": Builtin(_json, 1),
    "currentDate": Builtin(_date(days_ago=0), 0, variadic=True),
    "yesterdayDate": Builtin(_date(days_ago=1), 0, variadic=True),
    "toTypeScriptType": Builtin(_type_script, 1),
}
