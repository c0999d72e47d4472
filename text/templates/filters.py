"""The filters that chat templates may use: Jinja's harmless ones, and bounded versions of those that make text grow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from jinja2 import Environment, filters, pass_environment
from markupsafe import escape

from ...core.errors import BadModel
from .limits import charge, check_items, check_text, concatenated, measured, paid, text_of


def replaced(text: object, old: str, new: str, count: int | None = -1) -> str:
    """Return text with old replaced by new, the first count times. Raises BadModel if that is too long."""
    text = text_of(text)
    times = text.count(old) if old else len(text) + 1
    check_text(len(text) + times * max(len(new) - len(old), 0))
    return text.replace(old, new, -1 if count is None else count)


@pass_environment
def _join(environment: Environment, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = map(filters.make_attrgetter(environment, attribute), values)
    return concatenated(map(text_of, values), text_of(d))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return value as JSON, without the HTML escapes of Jinja's own filter (as transformers defines it)."""
    elements, characters = measured(value)
    width = indent if isinstance(indent, int) else len(indent or "")
    check_text(characters + elements * max(width, 0) * 8)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indent(text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(text)
    check_text(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return filters.do_indent(text, width, first, blank)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > 30:
        raise BadModel(f"chat template rounds to {precision} digits")
    return filters.do_round(value, precision, method)


def _html(value: object) -> str:
    return str(escape(text_of(value)))


_HARMLESS = [
    "abs",
    "attr",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "groupby",
    "int",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "sort",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
]

_OWN: dict[str, Callable[..., Any]] = {
    "e": _html,
    "escape": _html,
    "indent": _indent,
    "join": _join,
    "replace": replaced,
    "round": _round,
    "safe": text_of,  # nothing is escaped on output, so there is nothing to exempt
    "string": text_of,
    "tojson": _to_json,
}


# These go through their input character by character if it is a text.
_ITERATING = frozenset(
    ["groupby", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique"]
)


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps the marks by which Jinja passes its context
    def charged(*args: Any, **kwargs: Any) -> Any:
        charge()
        if name in _ITERATING:
            for text in args:
                check_items(len(text) if isinstance(text, str) else 0)
        return paid(function(*args, **kwargs))

    return charged


FILTERS = {
    name: _charged(name, function)
    for name, function in ({name: filters.FILTERS[name] for name in _HARMLESS} | _OWN).items()
}
"""The filters that exist, by name; each call costs a step, and the size of what it returns."""
