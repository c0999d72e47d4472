"""Splits a Go template into tokens: text between actions, and the words inside `{{ }}`. Source: text/template/parse."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import NamedTuple, NoReturn

from ....core.errors import BadRequest

SPACE = " \t\r\n"
KEYWORDS = frozenset(["block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"])


def quoted(text: str) -> str:
    """Return text in double quotes, escaped."""
    return json.dumps(text, ensure_ascii=False)


class Token(NamedTuple):
    """One lexical element. kind: "text", "{{", "}}", "eof", "space", a keyword, or a group name of `_INSIDE`."""

    kind: str
    text: str
    at: int  # offset into the source, in characters

    def __str__(self) -> str:
        if self.kind == "eof":
            return "EOF"
        if self.kind in KEYWORDS or self.kind == ".":
            return f"<{self.text}>"
        return quoted(self.text) if len(self.text) <= 10 else f"{quoted(self.text[:10])}..."


def syntax_error(source: str, at: int, problem: str) -> NoReturn:
    """Raise BadRequest in Go's words, with the line that holds offset `at`."""
    raise BadRequest(f"template: :{source.count(chr(10), 0, at) + 1}: {problem}")


# A minus after white space that touches the closing braces trims; any other minus belongs to a number.
_INSIDE = re.compile(
    r"""
    (?P<close>[ \t\r\n]-\}\}|\}\})
  | (?P<space>[ \t\r\n]+?(?=[ \t\r\n]-\}\})|[ \t\r\n]+)
  | (?P<string>"(?:\\.|[^"\\\n])*")
  | (?P<raw>`[^`]*`)
  | (?P<char>'(?:\\.|[^'\\\n])*')
  | (?P<number>[+-]?\.?[0-9](?:[eEpP][+-]|[\w.])*)
  | (?P<field>\.\w+)
  | (?P<variable>\$\w*)
  | (?P<word>[^\W\d]\w*)
  | (?P<symbol>:=|[!#$%&()*,./;<=>?@\[\\\]^{|}~])
    """,
    re.VERBOSE,
)
_UNFINISHED = {
    '"': "unterminated quoted string",
    "`": "unterminated raw quoted string",
    "'": "unterminated character constant",
}
# What may follow a field, a variable, a word or a lone dot.
_TERMINATOR = re.compile(r"[ \t\r\n.,|:()]|\}\}|\Z")


def tokens(source: str) -> Iterator[Token]:
    """Yield the tokens of source, the last of kind "eof". Raises BadRequest with the line for what cannot be split."""
    at, trim = 0, False
    while (start := source.find("{{", at)) >= 0:
        trims_left = source[start + 2 : start + 3] == "-" and source[start + 3 : start + 4] in tuple(SPACE)
        yield from _text(source[at:start], at, left=trim, right=trims_left)
        inside = start + 2 + (2 if trims_left else 0)
        if source.startswith("/*", inside):
            at = _skip_comment(source, inside)
        else:
            yield Token("{{", "{{", start)
            at = yield from _action(source, inside)
        trim = source[at - 3 : at - 2] == "-"
    yield from _text(source[at:], at, left=trim, right=False)
    yield Token("eof", "", len(source))


def _text(text: str, at: int, *, left: bool, right: bool) -> Iterator[Token]:
    text = text.lstrip(SPACE) if left else text
    text = text.rstrip(SPACE) if right else text
    if text:
        yield Token("text", text, at)


def _skip_comment(source: str, at: int) -> int:
    end = source.find("*/", at)
    if end < 0:
        syntax_error(source, at, "unclosed comment")
    close = re.compile(r"(?:[ \t\r\n]-)?\}\}").match(source, end + 2)
    if close is None:
        syntax_error(source, at, "comment ends before closing delimiter")
    return close.end()


def _action(source: str, at: int) -> Generator[Token, None, int]:
    """Yield the tokens up to and with the closing braces; return the offset behind them."""
    depth = 0
    while True:
        match = _INSIDE.match(source, at)
        if match is None:
            _bad_character(source, at)
        kind, text = match.lastgroup or "", match.group()
        depth += (text == "(") - (text == ")")
        if depth < 0:
            syntax_error(source, at, "unexpected right paren")
        if kind == "close":
            if depth:
                syntax_error(source, at, "unclosed left paren")
            yield Token("}}", "}}", at)
            return match.end()
        if kind in ("field", "variable", "word") and not _TERMINATOR.match(source, match.end()):
            syntax_error(source, at, f"bad character {_code_point(source[match.end()])}")
        yield Token(_kind(kind, text), text, at)
        at = match.end()


def _kind(group: str, text: str) -> str:
    if group == "symbol" or text in KEYWORDS:
        return text
    return "bool" if text in ("true", "false") else group


def _bad_character(source: str, at: int) -> NoReturn:
    character = source[at : at + 1]
    if not character:
        syntax_error(source, at, "unclosed action")
    if character in _UNFINISHED:
        syntax_error(source, at, _UNFINISHED[character])
    if character in "+-":
        syntax_error(source, at, f'illegal number syntax: "{character}"')
    if character == ":":
        syntax_error(source, at, "expected :=")
    syntax_error(source, at, f"unrecognized character in action: {_code_point(character)}")


def _code_point(character: str) -> str:
    shown = f" '{character}'" if character.isprintable() else ""
    return f"U+{ord(character):04X}{shown}"
