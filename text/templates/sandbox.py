"""A Jinja environment in which a template can neither reach Python's insides nor use up time or memory.

Jinja's own sandbox stops attribute walks, changes to data and long ranges; cost is bounded here. Every loop turn, call
and operation is a step of a budget with a deadline; whatever can make text or lists grow (`+ * % ** ~`, literals,
filters, methods) is checked before it grows; only filters and methods known to be harmless exist.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sized, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, cast

from jinja2 import filters, nodes, pass_environment
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from ...core.errors import BadModel

MAX_TEXT = 1 << 24  # characters in one string, and in the output
MAX_ITEMS = 1 << 18  # elements in one list, nested ones included
MAX_STEPS = 500_000  # a conversation of ten thousand messages needs about 100 thousand
MAX_SECONDS = 5.0
MAX_INTEGER_BITS = 4096


class _Budget:
    """What one rendering may still cost."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS

    def charge(self, steps: int = 1) -> None:
        """Take steps from the budget. Raises BadModel once it or the time is used up."""
        self._steps -= steps
        if self._steps < 0:
            raise BadModel(f"chat template needs more than {MAX_STEPS} steps")
        if time.monotonic() > self._deadline:
            raise BadModel(f"chat template needs more than {MAX_SECONDS:g} seconds")


_current: ContextVar[_Budget] = ContextVar("budget of the template being rendered")


@contextmanager
def budget() -> Iterator[None]:
    """Give the templates compiled or rendered inside this block a fresh budget."""
    token = _current.set(_Budget())
    try:
        yield
    finally:
        _current.reset(token)


# Sizes


def _check_text(characters: int) -> None:
    if characters > MAX_TEXT:
        raise BadModel(f"chat template makes a text of more than {MAX_TEXT} characters")


def _measured(value: object) -> tuple[int, int]:
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
        if elements + len(waiting) > MAX_ITEMS:
            raise BadModel(f"chat template makes a list of more than {MAX_ITEMS} elements")
    _current.get().charge(elements)
    return elements, characters


def _text(value: object) -> str:
    """Return value as text, if it is of a kind that templates print and does not grow beyond MAX_TEXT."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | None | Undefined):
        return str(value)
    if isinstance(value, list | tuple | dict):
        _check_text(_measured(value)[1])
        return str(value)
    raise BadModel(f"chat template prints a {type(value).__name__}")


def _concatenated(pieces: Iterable[str], separator: str = "") -> str:
    kept, characters = [], 0
    for piece in pieces:
        characters += len(piece) + len(separator)
        _check_text(characters)
        kept.append(piece)
    return separator.join(kept)


class _Steps:
    """An iterable each element of which costs a step."""

    def __init__(self, inner: Iterable[Any]) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        charge = _current.get().charge
        for item in self._inner:
            charge()
            yield item

    def __len__(self) -> int:
        return len(cast(Sized, self._inner))  # TypeError where the inner one has no length, as Jinja expects


# Compilation


class _Guards(NodeTransformer):
    """Puts calls of the environment's own checks around loops, `~` and literals of lists. Jinja gives the names."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _checked("each", cast(nodes.Expr, node.iter))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _checked("joined", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _checked("measured", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx != "load" else _checked("measured", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _checked("measured", node)

    def visit_Name(self, node: nodes.Name) -> nodes.Name:  # noqa: N802
        if node.name in ("varargs", "kwargs"):  # the only way to a list that no literal or operator made
            raise BadModel(f"chat template uses {node.name}, which is not supported")
        return node


def _checked(method: str, *arguments: nodes.Expr) -> nodes.Call:
    guard = nodes.EnvironmentAttribute(method, lineno=arguments[0].lineno)
    return nodes.Call(guard, list(arguments), [], None, None, lineno=arguments[0].lineno)


def guarded(tree: nodes.Template) -> nodes.Template:
    """Return the parsed template with the checks in place that only the compiler can place."""
    _Guards().visit(tree)
    return tree


# Execution

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        [
            "capitalize",
            "count",
            "endswith",
            "find",
            "index",
            "isalnum",
            "isalpha",
            "isdigit",
            "islower",
            "isspace",
            "isupper",
            "join",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
        ]
    ),
    dict: frozenset(["copy", "get", "items", "keys", "values"]),
    list: frozenset(["copy", "count", "index"]),
    tuple: frozenset(["count", "index"]),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
    range: frozenset(),
}


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with bounded operators, filters and methods. Only usable within `budget()`."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])
    concat = staticmethod(_concatenated)  # joins what blocks, macros and the whole template put out

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_text, **options)
        self.filters = _filters()

    def each(self, iterable: Iterable[Any]) -> Iterable[Any]:
        """Return what a loop runs over, so that every turn costs a step."""
        return iterable if isinstance(iterable, Undefined) else _Steps(iterable)

    def joined(self, *parts: object) -> str:
        """Return `a ~ b`."""
        return _concatenated(map(_text, parts))

    def measured(self, value: object) -> object:
        """Return a list, tuple or dict written in the template."""
        _measured(value)
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use obj.attr."""
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Return None: str.format gets no safe stand-in, it does not exist."""

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: D102  # as in the base class
        _current.get().charge()
        if isinstance(obj, LoopContext) and args:  # loop(children), the recursive call
            args = (self.each(args[0]), *args[1:])
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return _concatenated(map(_text, args[0]), owner)
        if isinstance(owner, str) and name == "replace":
            return _replaced(owner, *args)
        result = super().call(context, obj, *args, **kwargs)
        return self.measured(result) if obj is dict else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: D102
        _current.get().charge()
        _BOUNDS[operator](left, right)
        return super().call_binop(context, operator, left, right)


# Operators


def _bound_sum(left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        _check_text(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        _measured([left, right])


def _bound_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            _check_text(len(sequence) * max(times, 0))
            if not isinstance(sequence, str) and _measured(sequence)[0] * times > MAX_ITEMS:
                raise BadModel(f"chat template makes a list of more than {MAX_ITEMS} elements")


def _bound_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_INTEGER_BITS:
        raise BadModel(f"chat template computes an integer of more than {MAX_INTEGER_BITS} bits")


# A width from the arguments or of four digits and more, or a named argument, which may be repeated at will.
_COSTLY_LAYOUT = re.compile(r"%[-+ #0]*(?:\d{4}|\d*\*|\d*\.(?:\d{4}|\*)|\()")


def _bound_remainder(left: Any, right: Any) -> None:
    """`%` is the remainder of numbers, and printf for strings."""
    if not isinstance(left, str):
        return
    if _COSTLY_LAYOUT.search(left):
        raise BadModel("chat template formats text with a width or name that is not supported")
    arguments = right if isinstance(right, tuple) else (right,)
    _check_text(len(left) * 1000 + sum(len(_text(argument)) for argument in arguments))


_BOUNDS: dict[str, Callable[[Any, Any], None]] = {
    "+": _bound_sum,
    "*": _bound_product,
    "**": _bound_power,
    "%": _bound_remainder,
}


# Filters


def _replaced(text: object, old: str, new: str, count: int | None = -1) -> str:
    text = _text(text)
    times = text.count(old) if old else len(text) + 1
    _check_text(len(text) + times * max(len(new) - len(old), 0))
    return text.replace(old, new, -1 if count is None else count)


@pass_environment
def _join(environment: BoundedEnvironment, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = map(filters.make_attrgetter(environment, attribute), values)
    return _concatenated(map(_text, values), _text(d))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return value as JSON, without the HTML escapes of Jinja's own filter (as transformers defines it)."""
    elements, characters = _measured(value)
    width = indent if isinstance(indent, int) else len(indent or "")
    _check_text(characters + elements * max(width, 0) * 8)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indent(text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(text)
    _check_text(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return filters.do_indent(text, width, first, blank)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > 30:
        raise BadModel(f"chat template rounds to {precision} digits")
    return filters.do_round(value, precision, method)


def _html(value: object) -> str:
    return str(escape(_text(value)))


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
    "replace": _replaced,
    "round": _round,
    "safe": _text,  # nothing is escaped on output, so there is nothing to exempt
    "string": _text,
    "tojson": _to_json,
}


def _filters() -> dict[str, Callable[..., Any]]:
    """Return the filters that exist, each call of which costs a step."""
    chosen = {name: filters.FILTERS[name] for name in _HARMLESS} | _OWN
    return {name: _charged(function) for name, function in chosen.items()}


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps the marks by which Jinja passes its context
    def charged(*args: Any, **kwargs: Any) -> Any:
        _current.get().charge()
        return function(*args, **kwargs)

    return charged
