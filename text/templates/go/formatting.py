"""How Go prints values: fmt's %v, Sprint, Sprintln and Sprintf. Source: pkg.go.dev/fmt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .values import (
    MAX_TEXT,
    Listed,
    Ordered,
    Record,
    TooLarge,
    Value,
    from_utf8,
    go_json,
    positional,
    scientific,
    type_name,
    utf8,
)

MAX_WIDTH = 1_000_000  # Go's own limit on a width or precision


def text_of(value: Value) -> str:
    """Return value as %v prints it. Raises TooLarge."""
    if isinstance(value, str):
        return value
    return join(_pieces(value))


def join(pieces: Iterator[str] | Sequence[str], separator: str = "") -> str:
    """Return the pieces as one string. Raises TooLarge before it passes MAX_TEXT."""
    kept, room = [], MAX_TEXT
    for piece in pieces:
        room -= len(piece) + len(separator)
        if room < 0:
            raise TooLarge
        kept.append(piece)
    return separator.join(kept)


def _pieces(value: Value) -> Iterator[str]:
    match value:
        case None:
            yield "<nil>"
        case bool():
            yield "true" if value else "false"
        case float():
            yield _shortest(value)
        case bytes():
            yield f"[{join([str(byte) for byte in value], ' ')}]"
        case Record() | Ordered() | Listed():
            yield go_json(value)
        case list():
            for index, item in enumerate(value):
                yield " " if index else "["
                yield from _pieces(item)
            yield "]" if value else "[]"
        case dict():
            yield from _map_pieces(value)
        case _:
            yield str(value)


def _map_pieces(value: dict[str, Value]) -> Iterator[str]:
    yield "map["
    for index, (key, item) in enumerate(sorted(value.items())):
        yield f"{' ' * bool(index)}{key}:"
        yield from _pieces(item)
    yield "]"


def _shortest(value: float) -> str:
    """Return %v of a float: the fewest digits that give it back, with an exponent below 1e-4 and from 1e6."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:+}".capitalize().replace("inf", "Inf")
    if value and not 1e-4 <= abs(value) < 1e6:
        return scientific(value)
    return positional(value)


def sprint(values: Sequence[Value]) -> str:
    """Return Sprint: operands side by side, a space between two that are both no strings."""
    pieces: list[str] = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            pieces.append(" ")
        pieces.append(text_of(value))
    return join(pieces)


def sprintln(values: Sequence[Value]) -> str:
    """Return Sprintln: operands with spaces between them and a line break at the end."""
    return join([text_of(value) for value in values], " ") + "\n"


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\*|\d+)?(?P<dot>\.(?P<precision>\*|\d*))?(?P<verb>.)?", re.S)


def sprintf(layout: str, arguments: Sequence[Value]) -> str:
    """Return Sprintf of layout. Mistakes in it show up in the text, as in Go: %!d(string=x), %!s(MISSING).

    Explicit argument indexes (%[1]d) are not supported and print as a wrong verb. Raises TooLarge.
    """
    rest = _Arguments(arguments)
    pieces: list[str] = []
    at, room = 0, MAX_TEXT
    for match in _VERB.finditer(layout):
        pieces += layout[at : match.start()], _formatted(match, rest)
        at = match.end()
        room -= len(pieces[-1])
        if room < 0:
            raise TooLarge
    return join([*pieces, layout[at:], rest.extra()])


class _Arguments:
    """Hands out printf's arguments one after another."""

    def __init__(self, values: Sequence[Value]) -> None:
        self._left = list(reversed(values))

    def __bool__(self) -> bool:
        return bool(self._left)

    def take(self) -> Value:
        return self._left.pop()

    def size(self, written: str | None) -> int | None:
        """Return a width or precision; `*` takes it from the arguments. Raises ValueError if it is no fair number."""
        if written is None:
            return None
        value = self._left.pop() if written == "*" and self._left else written or 0
        if isinstance(value, str) and value.isdecimal():
            value = int(value[:8])
        if type(value) is not int or abs(value) > MAX_WIDTH:
            raise ValueError(written)
        return value

    def extra(self) -> str:
        """Return Go's note on arguments that no verb used."""
        if not self._left:
            return ""
        notes = [f"{type_name(value)}={text_of(value)}" if value is not None else "<nil>" for value in self._left[::-1]]
        return f"%!(EXTRA {join(notes, ', ')})"


@dataclass(frozen=True, slots=True)
class _Directive:
    """One verb with its flags, width and precision."""

    verb: str
    flags: str
    width: int
    precision: int | None

    def pad(self, text: str) -> str:
        if "-" in self.flags:
            return text.ljust(self.width)
        return text.rjust(self.width, "0" if "0" in self.flags else " ")

    def pad_number(self, digits: str, negative: bool) -> str:
        sign = "-" if negative else "+" if "+" in self.flags else " " if " " in self.flags else ""
        if "0" in self.flags and "-" not in self.flags:
            digits = digits.rjust(self.width - len(sign), "0")
        return sign + digits if len(sign + digits) >= self.width else self.pad(sign + digits)


def _formatted(match: re.Match[str], rest: _Arguments) -> str:
    verb, notes = match["verb"], ""
    sizes: list[int | None] = []
    for name in ("width", "precision"):
        try:
            sizes.append(rest.size(match[name]))
        except ValueError:
            sizes.append(None)
            notes += "%!(BADWIDTH)" if name == "width" else "%!(BADPREC)"
    if verb is None:
        return notes + "%!(NOVERB)"
    if verb == "%":
        return notes + "%"
    if not rest:
        return f"{notes}%!{verb}(MISSING)"
    width, precision = sizes
    flags = match["flags"].replace("+", "" if verb == "v" else "+") + "-" * (width is not None and width < 0)
    return notes + _verb(_Directive(verb, flags, abs(width or 0), precision), rest.take())


def _verb(directive: _Directive, value: Value, *, nested: bool = False) -> str:
    if directive.verb == "T":
        return directive.pad(type_name(value))
    if value is None:
        if nested:
            return "<nil>"
        return directive.pad("<nil>") if directive.verb == "v" else f"%!{directive.verb}(<nil>)"
    if isinstance(value, Record | Ordered | Listed):
        value = go_json(value)
    formatter = _FORMATTERS.get(type(value))
    text = formatter(directive, value) if formatter else None
    if text is not None:
        return text
    return f"%!{directive.verb}({type_name(value)}={_verb(replace(directive, verb='v'), value)})"


def _format_bool(directive: _Directive, value: bool) -> str | None:
    return directive.pad("true" if value else "false") if directive.verb in "tv" else None


def _format_int(directive: _Directive, value: int) -> str | None:
    match directive.verb:
        case "d" | "v" | "b" | "o" | "x" | "X":
            base = "d" if directive.verb == "v" else directive.verb
            prefix = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(base, "") if "#" in directive.flags else ""
            digits = prefix + format(abs(value), base).rjust(directive.precision or 0, "0")
            plain = replace(directive, flags=directive.flags.replace("0", "")) if directive.precision else directive
            return plain.pad_number(digits, value < 0)
        case "c" | "q" | "U":
            letter = chr(value) if 0 <= value < 0xD800 or 0xE000 <= value < 0x110000 else "\ufffd"
            shown = {"c": letter, "q": _quoted(letter, "'"), "U": f"U+{value:04X}"}[directive.verb]
            return directive.pad(shown)
    return None


def _format_float(directive: _Directive, value: float) -> str | None:
    if directive.verb not in "vgGeEfF" or not math.isfinite(value):
        return directive.pad(_shortest(value)) if directive.verb in "vgGeEfF" else None
    size, verb = abs(value), directive.verb.replace("v", "g")
    if directive.precision is None and verb in "gG":
        digits = _shortest(size) if verb == "g" else _shortest(size).upper()
    else:
        digits = f"{size:.{6 if directive.precision is None else directive.precision}{verb}}"
    return directive.pad_number(digits, math.copysign(1, value) < 0)


def _format_string(directive: _Directive, value: str) -> str | None:
    match directive.verb:
        case "s" | "v" if not ("#" in directive.flags and directive.verb == "v"):
            return directive.pad(value[: directive.precision])
        case "v" | "q":
            if "#" in directive.flags and directive.verb == "q" and "`" not in value and value.isprintable():
                return directive.pad(f"`{value}`")
            return directive.pad(_quoted(value[: directive.precision], '"', ascii_only="+" in directive.flags))
        case "x" | "X":
            data = utf8(value)[: directive.precision]
            digits = data.hex(" ") if " " in directive.flags else data.hex()
            return directive.pad(digits if directive.verb == "x" else digits.upper())
    return None


def _format_bytes(directive: _Directive, value: bytes) -> str | None:
    if directive.verb in "sqxX":
        return _format_string(directive, from_utf8(value))
    return _format_list(directive, list(value))


def _format_list(directive: _Directive, value: list[Value]) -> str:
    return f"[{join([_verb(directive, item, nested=True) for item in value], ' ')}]"


def _format_map(directive: _Directive, value: dict[str, Value]) -> str:
    return (
        "map["
        + join(
            [f"{_verb(directive, key)}:{_verb(directive, item, nested=True)}" for key, item in sorted(value.items())],
            " ",
        )
        + "]"
    )


_FORMATTERS: dict[type, Callable[[_Directive, Any], str | None]] = {
    bool: _format_bool,
    int: _format_int,
    float: _format_float,
    str: _format_string,
    bytes: _format_bytes,
    list: _format_list,
    dict: _format_map,
}

_QUOTED = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\"}


def _quoted(text: str, quote: str, *, ascii_only: bool = False) -> str:
    """Return text as a Go literal (strconv.Quote)."""
    return quote + "".join(_quoted_character(c, quote, ascii_only) for c in text) + quote


def _quoted_character(character: str, quote: str, ascii_only: bool) -> str:
    code = ord(character)
    if character == quote:
        return "\\" + quote
    if character in _QUOTED:
        return _QUOTED[character]
    if character.isprintable() and (code < 0x7F or not ascii_only):
        return character
    if 0xDC80 <= code < 0xDD00:  # half a character
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
