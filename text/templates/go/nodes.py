"""The tree of a parsed Go template. Offsets (`at`) point into the source, for error messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dot:
    """`.`: the current value."""

    at: int


@dataclass(frozen=True, slots=True)
class Nil:
    """`nil`."""

    at: int


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, number, character or boolean written in the template."""

    at: int
    value: str | int | float | bool
    source: str


@dataclass(frozen=True, slots=True)
class Field:
    """`.A.B`: fields of the current value."""

    at: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x.A.B`: a variable and fields of it. name includes the dollar sign."""

    at: int
    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """The name of a function, called with the operands that follow it."""

    at: int
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """`(pipeline).A.B` or `function.A`: fields of a computed value."""

    at: int
    base: Operand
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """`$x := a | b`: commands, each given the result of the one before; variables that receive the last result."""

    at: int
    declared: tuple[str, ...]
    assigns: bool  # `=` rather than `:=`
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """Operands side by side: a function or a field and its arguments, or a lone value."""

    at: int
    operands: tuple[Operand, ...]


Operand = Dot | Nil | Literal | Field | Variable | Function | Chain | Pipe


@dataclass(frozen=True, slots=True)
class Text:
    """Text outside actions, copied as it stands."""

    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """`{{ pipeline }}`: prints the value, or only sets variables."""

    at: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """`if`, `with` or `range` (the keyword is in `kind`) with its two bodies."""

    at: int
    kind: str
    pipe: Pipe
    body: Block
    otherwise: Block


@dataclass(frozen=True, slots=True)
class Call:
    """`{{ template "name" pipeline }}`."""

    at: int
    name: str
    pipe: Pipe | None


@dataclass(frozen=True, slots=True)
class Jump:
    """`break` or `continue` (in `kind`)."""

    at: int
    kind: str


Node = Text | Action | Branch | Call | Jump
Block = tuple[Node, ...]


def written(operand: Operand) -> str:
    """Return operand as Go's error messages quote it."""
    match operand:
        case Dot():
            return "."
        case Nil():
            return "nil"
        case Literal():
            return operand.source
        case Field():
            return "".join(f".{name}" for name in operand.names)
        case Variable():
            return ".".join((operand.name, *operand.names))
        case Function():
            return operand.name
        case Chain():
            base = written(operand.base)
            return ".".join((f"({base})" if isinstance(operand.base, Pipe) else base, *operand.names))
        case Pipe():
            return _written_pipe(operand)


def _written_pipe(pipe: Pipe) -> str:
    head = ", ".join(pipe.declared) + (" = " if pipe.assigns else " := ") if pipe.declared else ""
    commands = (
        " ".join(f"({written(o)})" if isinstance(o, Pipe) else written(o) for o in command.operands)
        for command in pipe.commands
    )
    return head + " | ".join(commands)
