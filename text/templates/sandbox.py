"""A Jinja environment in which a template can neither reach Python's insides nor use up time or memory.

Jinja's own sandbox stops attribute walks, changes to data and long ranges; cost is bounded here. Every loop turn, call
and operation is a step of a budget with a deadline; whatever can make text or lists grow (`+ * % ** ~`, literals,
filters, methods) is checked before it grows; only filters and methods known to be harmless exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from jinja2 import nodes
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ...core.errors import BadModel
from .filters import FILTERS, replaced
from .limits import Steps, charge, concatenated, measured, paid, text_of
from .operators import check_operands


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

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _checked("sliced", node) if isinstance(node.arg, nodes.Slice) else node

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
    concat = staticmethod(concatenated)  # joins what blocks, macros and the whole template put out

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=text_of, **options)
        self.filters = dict(FILTERS)

    def each(self, iterable: Iterable[Any]) -> Iterable[Any]:
        """Return what a loop runs over, so that every turn costs a step."""
        return iterable if isinstance(iterable, Undefined) else Steps(iterable)

    def joined(self, *parts: object) -> str:
        """Return `a ~ b`."""
        return concatenated(map(text_of, parts))

    def measured(self, value: object) -> object:
        """Return a list, tuple or dict written in the template."""
        measured(value)
        return value

    def sliced(self, value: object) -> object:
        """Return a part of a text or a list, which is a copy."""
        charge()
        return paid(value)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use obj.attr."""
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Return None: str.format gets no safe stand-in, it does not exist."""

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: D102  # as in the base class
        charge()
        if isinstance(obj, LoopContext) and args:  # loop(children), the recursive call
            args = (self.each(args[0]), *args[1:])
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return concatenated(map(text_of, args[0]), owner)
        if isinstance(owner, str) and name == "replace":
            return paid(replaced(owner, *args))
        result = super().call(context, obj, *args, **kwargs)
        return self.measured(result) if obj is dict else paid(result, pieces=isinstance(owner, str))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: D102
        charge()
        check_operands(operator, left, right)
        return paid(super().call_binop(context, operator, left, right))
