"""The Modelfile: instructions, one to a line, that say what a model is made of.

The lexical rules are those of Ollama's files: no escapes, a quoted value runs on over lines until a line ends with its
quote, and a carriage return ends a line as a line feed does.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..core.errors import BadRequest
from .options import DEPRECATED, Value, parse_parameter

BLANK = " \t"
ROLES = ("system", "user", "assistant")
INSTRUCTIONS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "requires",
    "parameter",
    "message",
)

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE = re.compile(r"[^\r\n]*[\r\n]|[^\r\n]+")


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation that a model starts from."""

    role: str
    content: str = ""


class ModelfileError(BadRequest):
    """A Modelfile breaks a rule; `line` counts from 1, each carriage return and line feed ending one."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"(line {line}): {problem}")
        self.line = line


class UnexpectedEnd(BadRequest):
    """A Modelfile ends inside an instruction, or a name in it is broken off; `text` is what was read of it."""

    def __init__(self, text: str = "") -> None:
        super().__init__(f"unexpected EOF: {text[:200]}" if text else "unexpected EOF")
        self.text = text


@dataclass(frozen=True)
class Instruction:
    """One instruction as written. name: in lower case; argument: a parameter's name or a message's role."""

    line: int
    name: str
    value: str
    argument: str = ""


class Modelfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a Modelfile says; a text is None if no instruction gives it."""

    sources: tuple[str, ...]  # FROM: names or paths, at least one
    adapters: tuple[str, ...] = ()
    draft: str | None = None  # name or path of a small model that guesses ahead
    template: str | None = None
    system: str | None = None
    licenses: tuple[str, ...] = ()
    parameters: dict[str, Value] = {}
    messages: tuple[Message, ...] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    warnings: tuple[str, ...] = ()  # for the user to read; the instructions they name have no effect


def decode(data: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 if it starts with a byte-order mark. Raises BadRequest."""
    mark, encoding = next((pair for pair in _BYTE_ORDER_MARKS if data.startswith(pair[0])), (b"", "utf-8"))
    try:
        return data.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the Modelfile is not {encoding.upper()} text: byte {error.start} is wrong") from None


def parse(text: str) -> Modelfile:
    """Return what a Modelfile's text says. Raises BadRequest: see the classes above and `options`."""
    instructions = list(read_instructions(text))
    sources = tuple(_values(instructions, "from"))
    if not sources:
        raise BadRequest("no FROM line")
    parameters, warnings = _parameters(instructions)
    return Modelfile(
        sources=sources,
        adapters=tuple(_values(instructions, "adapter"))[-1:],
        draft=_last(instructions, "draft") or None,
        template=_last(instructions, "template"),
        system=_last(instructions, "system"),
        licenses=tuple(_values(instructions, "license")),
        parameters=parameters,
        messages=tuple(Message(item.argument, item.value) for item in instructions if item.name == "message"),
        renderer=_last(instructions, "renderer"),
        parser=_last(instructions, "parser"),
        requires=_last(instructions, "requires"),
        warnings=warnings,
    )


def read_instructions(text: str) -> Iterator[Instruction]:
    """Yield the instructions of a Modelfile in order. Raises ModelfileError, UnexpectedEnd."""
    printable = "".join(char for char in text if char.isprintable() or char in "\t\r\n")
    lines = iter(enumerate(_LINE.findall(printable), start=1))
    for number, line in lines:
        content = line.lstrip(BLANK)
        if content.strip("\r\n") and not content.startswith("#"):
            name, rest = _instruction(number, content)
            argument, rest = _argument(number, name, rest)
            yield Instruction(number, name, _value(rest, lines), argument)


def _instruction(number: int, line: str) -> tuple[str, str]:
    """Split off the instruction's name and the one blank after it."""
    match = re.match(r"([A-Za-z]+)([ \t]?)", line)
    name = match[1].lower() if match else ""
    if match and match.end() == len(line) and not match[2]:
        raise UnexpectedEnd(line)
    if match is None or not match[2] or name not in INSTRUCTIONS:
        raise ModelfileError(number, f"command must be one of {_listed(INSTRUCTIONS)}")
    return name, line[match.end() :]


def _argument(number: int, name: str, rest: str) -> tuple[str, str]:
    """Split off the name of a parameter or the role of a message, and the one blank after it."""
    if name not in ("parameter", "message"):
        return "", rest
    match = re.match(r"([A-Za-z0-9_]*)[ \t]" if name == "parameter" else r"([A-Za-z]*)[ \t]", rest)
    if match is None:
        raise UnexpectedEnd(rest.strip(f"{BLANK}\r\n"))
    if name == "message" and match[1] not in ROLES:
        raise ModelfileError(number, f"message role must be one of {_listed(ROLES)}")
    return match[1], rest[match.end() :]


def _value(start: str, lines: Iterator[tuple[int, str]]) -> str:
    """Return a value that starts with the rest of a line, reading on while its quote is open."""
    read = start
    while (value := _unquoted(read.strip(f"{BLANK}\r\n"))) is None:
        following = next(lines, None)
        if following is None:
            raise UnexpectedEnd(read)
        read += following[1]
    return value


def _unquoted(text: str) -> str | None:
    """Return text without its quotes; None if they are still open."""
    quote = '"""' if text.startswith('"""') else '"' if text.startswith('"') else ""
    if len(text) < 2 * len(quote) or not text.endswith(quote):
        return None
    return text[len(quote) : len(text) - len(quote)]


def _values(instructions: Sequence[Instruction], name: str) -> Iterator[str]:
    return (item.value for item in instructions if item.name == name and item.value)


def _last(instructions: Sequence[Instruction], name: str) -> str | None:
    return next((item.value for item in reversed(instructions) if item.name == name), None)


def _parameters(instructions: Sequence[Instruction]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Return the parameters and the warnings: a repeated name overwrites, `stop` accumulates."""
    parameters: dict[str, Value] = {}
    warnings = []
    for item in instructions:
        if item.name != "parameter":
            continue
        if item.argument in DEPRECATED:
            warnings.append(f"warning: parameter {item.argument} is deprecated")
            continue
        value = parse_parameter(item.argument, item.value)
        before = parameters.get(item.argument)
        parameters[item.argument] = before + value if isinstance(before, list) and isinstance(value, list) else value
    return parameters, tuple(warnings)


def _listed(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])}, or {quoted[-1]}"


def render(
    name: str,
    sources: Sequence[str],
    *,
    adapters: Sequence[str] = (),
    draft: str | None = None,
    template: str | None = None,
    system: str | None = None,
    renderer: str | None = None,
    parser: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    licenses: Sequence[str] = (),
    messages: Sequence[Message] = (),
) -> str:
    """Return a Modelfile that makes the model called name again. Clients read the third line and what follows."""
    lines = [
        '# Modelfile written by "puna show"',
        "# To build a model on this one, put this line in place of the next FROM line:",
        f"# FROM {name}",
        "",
    ]
    lines += [f"FROM {source}" for source in sources[:1]]
    lines += [f"ADAPTER {adapter}" for adapter in adapters]
    lines += [f"FROM {source}" for source in sources[1:]]
    texts = {"DRAFT": draft, "TEMPLATE": template, "SYSTEM": system, "RENDERER": renderer, "PARSER": parser}
    lines += [f"{instruction} {quoted(text)}" for instruction, text in texts.items() if text]
    lines += [f"PARAMETER {line}" for line in parameter_lines(parameters or {})]
    lines += [f"LICENSE {quoted(text)}" for text in licenses]
    lines += [f"MESSAGE {message.role} {quoted(message.content)}" for message in messages]
    return "\n".join(lines) + "\n"


def parameter_lines(
    parameters: Mapping[str, Any], *, width: int = 0, write: Callable[[str], str] | None = None
) -> list[str]:
    """Return `name value` lines, one for each string of a list.

    width: columns that names are padded to. write: how a string looks; as in a Modelfile if not given.
    """
    write = write or quoted
    return [
        f"{name:{width}} {write(item) if isinstance(item, str) else _number(item)}"
        for name, value in parameters.items()
        for item in (value if isinstance(value, list) else [value])
    ]


def quoted(text: str) -> str:
    """Return text with quotes if it would be read back wrongly without."""
    if text and "\n" not in text and "\r" not in text and text == text.strip(BLANK) and not text.startswith('"'):
        return text
    quote = '"""' if '"' in text else '"'
    return f"{quote}{text}{quote}"


def _number(value: Any) -> str:
    """Return a number or a truth value as it is written in a Modelfile."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0")
