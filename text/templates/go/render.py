"""Runs a parsed Go template over data. Source: text/template/exec, with the option missingkey=zero.

A hostile template must end: every node costs a step, long strings cost more, and no text passes MAX_TEXT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from ....core.errors import BadModel
from .formatting import text_of
from .functions import FUNCTIONS, Refused
from .nodes import (
    Action,
    Block,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Nil,
    Operand,
    Pipe,
    Text,
    Variable,
    written,
)
from .values import MAX_TEXT, Record, TooLarge, Value, truth, type_name, utf8

MAX_STEPS = 1_000_000  # nodes; a conversation of ten thousand messages needs about 300 thousand
MAX_CALLS = 50  # templates that call one another; the sum with nested blocks stays within Python's own stack
_CHARACTERS_PER_STEP = 256  # what a function may produce for the price of one node

_Place = Operand | Command | Call | Text  # what an error may point at

_NOTHING: Any = object()  # there is no value from an earlier stage of the pipeline


class _Break(Exception):
    """`{{break}}`."""


class _Continue(Exception):
    """`{{continue}}`."""


class Renderer:
    """One run of a template. Raises BadModel in Go's words, with line, column and the offending expression."""

    def __init__(self, source: str, blocks: Mapping[str, Block], data: Value) -> None:
        self._source = source
        self._blocks = blocks
        self._data = data
        self._steps = MAX_STEPS
        self._room = MAX_TEXT
        self._pieces: list[str] = []
        self._variables: list[list[Any]] = [["$", data]]  # name and value, innermost last
        self._called: list[str] = [""]

    def run(self) -> str:
        """Return the rendered text."""
        try:
            self._walk(self._blocks[""], self._data)
        except RecursionError:
            raise BadModel("template: exceeded maximum template depth") from None
        text = "".join(self._pieces)
        return text if text.isascii() else utf8(text).decode("utf-8", "replace")

    def _fail(self, node: _Place, problem: str) -> NoReturn:
        line_start = self._source.rfind("\n", 0, node.at) + 1
        line = self._source.count("\n", 0, node.at) + 1
        column = len(utf8(self._source[line_start : node.at]))
        raise BadModel(
            f'template: :{line}:{column}: executing "{self._called[-1]}" at <{_quoted(node)}>: {problem}'
        ) from None

    def _spend(self, node: Operand | Command, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            self._fail(node, f"the template needs more than {MAX_STEPS} steps")

    # Nodes

    def _walk(self, block: Block, dot: Value) -> None:
        for node in block:
            self._steps -= 1
            _WALK[type(node)](self, node, dot)

    def _text(self, node: Text, dot: Value) -> None:
        self._write(node.text, node)

    def _write(self, text: str, node: Text | Pipe) -> None:
        self._room -= len(text)
        if self._room < 0:
            self._fail(node, str(TooLarge()))
        self._pieces.append(text)

    def _action(self, node: Action, dot: Value) -> None:
        value = self._pipe(node.pipe, dot)
        if node.pipe.declared:
            return
        try:
            self._write("<no value>" if value is None else text_of(value), node.pipe)
        except (TooLarge, ValueError) as problem:
            self._fail(node.pipe, str(problem))

    def _jump(self, node: Jump, dot: Value) -> None:
        raise _Break if node.kind == "break" else _Continue

    def _branch(self, node: Branch, dot: Value) -> None:
        scope = len(self._variables)
        value = self._pipe(node.pipe, dot)
        if node.kind == "range":
            self._range(node, value, dot)
        elif truth(value):
            self._walk(node.body, value if node.kind == "with" else dot)
        else:
            self._walk(node.otherwise, dot)
        del self._variables[scope:]

    def _range(self, node: Branch, value: Value, dot: Value) -> None:
        scope, empty = len(self._variables), True
        try:
            for index, item in self._items(node, value):
                empty = False
                self._spend(node.pipe, 1)
                self._set_loop_variables(node.pipe, index, item)
                with suppress(_Continue):
                    self._walk(node.body, item)
                del self._variables[scope:]
        except _Break:
            return
        if empty:
            self._walk(node.otherwise, dot)

    def _items(self, node: Branch, value: Value) -> Iterable[tuple[Value, Value]]:
        match value:
            case list() | bytes():
                return enumerate(value)
            case dict():
                return sorted(value.items())
            case None:
                return ()
        if not isinstance(value, int) or isinstance(value, bool):
            self._fail(node.pipe, f"range can't iterate over {text_of(value)}")
        if len(node.pipe.declared) > 1:
            self._fail(node.pipe, f"can't use {value} to iterate over more than one variable")
        return ((None, number) for number in range(value))

    def _set_loop_variables(self, pipe: Pipe, index: Value, item: Value) -> None:
        """`range $i, $x` sets both; `range $x` sets the item."""
        for name, value in zip(reversed(pipe.declared), (item, index), strict=False):
            self._variable(pipe, name)[1] = value

    def _template(self, node: Call, dot: Value) -> None:
        block = self._blocks.get(node.name)
        if block is None:
            self._fail(node, f'template "{node.name}" not defined')
        if len(self._called) > MAX_CALLS:
            self._fail(node, f"exceeded maximum template depth ({MAX_CALLS})")
        value = self._pipe(node.pipe, dot) if node.pipe else None
        outer = self._variables
        self._variables = [["$", value]]  # a template sees none of its caller's variables
        self._called.append(node.name)
        self._walk(block, value)
        self._called.pop()
        self._variables = outer

    # Pipelines

    def _pipe(self, pipe: Pipe, dot: Value) -> Value:
        value: Value = _NOTHING
        for command in pipe.commands:
            value = self._command(command, dot, value)
        for name in pipe.declared:
            if pipe.assigns:
                self._variable(pipe, name)[1] = value
            else:
                self._variables.append([name, value])
        return value

    def _variable(self, node: Variable | Pipe, name: str) -> list[Any]:
        """Return the innermost variable of that name. The parser cannot know whether `=` or `and` ever made one."""
        found: list[Any] | None = next(
            (variable for variable in reversed(self._variables) if variable[0] == name), None
        )
        if found is None:
            self._fail(node, f"undefined variable: {name}")
        return found

    def _command(self, command: Command, dot: Value, final: Value) -> Value:
        self._spend(command, 1)
        first = command.operands[0]
        if type(first) is Function:
            return self._call(first, command, dot, final)
        if isinstance(first, Nil):
            self._fail(first, "nil is not a command")
        if len(command.operands) > 1 or final is not _NOTHING:
            self._fail(first, _no_function(first))
        return _EVALUATE[type(first)](self, first, dot)

    def _operand(self, operand: Operand, dot: Value) -> Value:
        return _EVALUATE[type(operand)](self, operand, dot)

    def _field(self, node: Field, dot: Value) -> Value:
        return self._fields(node, dot, node.names)

    def _variable_fields(self, node: Variable, dot: Value) -> Value:
        return self._fields(node, self._variable(node, node.name)[1], node.names)

    def _chain(self, node: Chain, dot: Value) -> Value:
        if isinstance(node.base, Nil):
            self._fail(node, f"indirection through explicit nil in {written(node)}")
        return self._fields(node, self._operand(node.base, dot), node.names)

    def _fields(self, node: Operand, receiver: Any, names: tuple[str, ...]) -> Value:
        for position, name in enumerate(names):
            if isinstance(receiver, dict):
                receiver = receiver.get(name)
            elif isinstance(receiver, Record) and name in receiver.fields:
                receiver = receiver.fields[name]
            elif receiver is None and position == 0:
                return None  # Go gives nothing for fields of a value that is missing altogether
            elif receiver is None:
                self._fail(node, f"nil pointer evaluating interface {{}}.{name}")
            else:
                self._fail(node, f"can't evaluate field {name} in type {type_name(receiver)}")
        return receiver

    def _lone_function(self, node: Function, dot: Value) -> Value:
        return self._call(node, Command(node.at, (node,)), dot, _NOTHING)

    def _call(self, function: Function, command: Command, dot: Value, final: Value) -> Value:
        operands, given = command.operands[1:], () if final is _NOTHING else (final,)
        if function.name in ("and", "or"):
            return self._and_or(function, operands, given, dot)
        builtin = FUNCTIONS[function.name]
        arguments = [*(self._operand(operand, dot) for operand in operands), *given]
        if len(arguments) < builtin.least or (len(arguments) > builtin.least and not builtin.variadic):
            self._wrong_count(function, builtin.least, len(arguments), at_least=builtin.variadic)
        try:
            value = builtin.call(*arguments)
        except (Refused, TooLarge) as problem:
            self._fail(command, f"error calling {function.name}: {problem}")
        if isinstance(value, str):
            self._spend(command, len(value) // _CHARACTERS_PER_STEP)
            if len(value) > MAX_TEXT:
                self._fail(command, f"error calling {function.name}: {TooLarge()}")
        return value

    def _and_or(self, function: Function, operands: tuple[Operand, ...], given: tuple[Value, ...], dot: Value) -> Value:
        """Return the first argument that decides; those behind it are not evaluated."""
        if not operands and not given:
            self._wrong_count(function, 1, 0, at_least=True)
        value: Value = None
        for operand in operands:
            value = self._operand(operand, dot)
            if truth(value) == (function.name == "or"):
                return value
        return given[0] if given else value

    def _wrong_count(self, function: Function, want: int, got: int, *, at_least: bool) -> NoReturn:
        bound = f"at least {want}" if at_least else f"{want}"
        self._fail(function, f"wrong number of args for {function.name}: want {bound} got {got}")


def _quoted(node: _Place) -> str:
    """Return the expression that Go would show for node."""
    match node:
        case Command():
            return written(Pipe(node.at, (), False, (node,)))
        case Text():
            return node.text[:20]
        case Call():
            argument = f" {written(node.pipe)}" if node.pipe else ""
            return f'{{{{template "{node.name}"{argument}}}}}'
    return written(node)


def _no_function(operand: Operand) -> str:
    if isinstance(operand, Field | Chain) or (isinstance(operand, Variable) and operand.names):
        return f"{operand.names[-1]} is not a method but has arguments"
    return f"can't give argument to non-function {written(operand)}"


_WALK: dict[type, Callable[[Renderer, Any, Value], None]] = {
    Text: Renderer._text,
    Action: Renderer._action,
    Branch: Renderer._branch,
    Call: Renderer._template,
    Jump: Renderer._jump,
}
_EVALUATE: dict[type, Callable[[Renderer, Any, Value], Value]] = {
    Field: Renderer._field,
    Variable: Renderer._variable_fields,
    Literal: lambda _, node, dot: node.value,
    Dot: lambda _, node, dot: dot,
    Nil: lambda _, node, dot: None,
    Pipe: Renderer._pipe,
    Chain: Renderer._chain,
    Function: Renderer._lone_function,
}
