"""Values of the literals a Go template may contain. Source: the Go specification, "Lexical elements"."""

from __future__ import annotations

import re

_INT_LIMIT = 1 << 63
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.S
)
_NAMED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", "'": "'", '"': '"'}


def number(text: str) -> int | float:
    """Return the int or float that text spells. Raises ValueError in Go's words."""
    try:
        value = _integer(text)
    except ValueError:
        return _floating(text)
    if not -_INT_LIMIT <= value < _INT_LIMIT:
        raise ValueError(f"{text} overflows int" if value < 2 * _INT_LIMIT else f'integer overflow: "{text}"')
    return value


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if re.fullmatch("0[0-7_]+", digits):  # C's octal, which Python refuses
        return int(text, 8)
    return int(text, 0)


def _floating(text: str) -> float:
    if text.lstrip("+-").isdecimal():  # as 08: digits, but no integer
        raise ValueError(f'integer overflow: "{text}"')
    try:
        value = float.fromhex(text) if "x" in text.lower() and "p" in text.lower() else float(text)
    except (ValueError, OverflowError):
        raise ValueError(f'illegal number syntax: "{text}"') from None
    if value in (float("inf"), float("-inf")):
        raise ValueError(f'illegal number syntax: "{text}"')
    return value


def character(text: str) -> int:
    """Return the code point of a quoted character such as 'a' or '\\n'. Raises ValueError."""
    value = unquote(text)
    if len(value) != 1:
        raise ValueError(f"malformed character constant: {text}")
    return ord(value)


def unquote(text: str) -> str:
    """Return the contents of a quoted string, character or raw string. Raises ValueError.

    Bytes that are not UTF-8 (written as \\xff) become surrogate escapes, as everywhere in the renderer.
    """
    quote, body = text[0], text[1:-1]
    if quote == "`":
        return body.replace("\r", "")
    return _ESCAPE.sub(lambda match: _unescape(match, quote), body) if "\\" in body else body


def _unescape(match: re.Match[str], quote: str) -> str:
    named, octal, byte, short, long, unknown = match.groups()
    if unknown is not None or (named in ("'", '"') and named != quote):
        raise ValueError("invalid syntax")
    if named:
        return _NAMED[named]
    code = int(octal, 8) if octal else int(byte or short or long, 16)
    if octal or byte:
        if code > 0xFF:
            raise ValueError("invalid syntax")
        return chr(code) if code < 0x80 else chr(0xDC00 + code)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise ValueError("invalid syntax")
    return chr(code)
