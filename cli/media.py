"""Finds the image files that a prompt names, for models that see."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import BadRequest

_MAX_BYTES = 100 * 2**20
# A path starts with ./ or / (on Windows also a drive letter or backslash) and ends in an image's suffix; blanks in it
# may be plain or, as a terminal pastes a dropped file, escaped.
_PATH = re.compile(r"(?:[a-zA-Z]:)?(?:\./|/|\\)[^\n]{1,1024}?\.(?:jpe?g|png|webp)\b", re.IGNORECASE)
_ESCAPED = re.compile(r"\\(.)")


def take_images(prompt: str) -> tuple[str, list[str]]:
    """Return prompt without the paths of existing images, and those images as base64. Names each one on stderr.

    A path to nothing stays in the text. Raises BadRequest for a file that is no image, too large or not readable.
    """
    images: list[str] = []
    text, at = "", 0
    for start, end in _existing(prompt):
        path = _unescaped(prompt[start:end])
        images.append(_read(Path(path), path))
        print(f"Added image '{path}'", file=sys.stderr)
        if start > at and prompt[start - 1] in "'\"" and prompt[start - 1] == prompt[end : end + 1]:
            start, end = start - 1, end + 1
        text, at = text + prompt[at:start], end
    return (text + prompt[at:]).strip() if images else prompt, images


def starts_with_image(text: str) -> bool:
    """Return whether text begins with what looks like the path of an image."""
    return _PATH.match(text) is not None


def _existing(prompt: str) -> Iterator[tuple[int, int]]:
    """Yield where the paths of files begin and end; one may start inside what looked like a path and was none."""
    at = 0
    while match := _PATH.search(prompt, at):
        found = _is_file(Path(_unescaped(match[0])))
        at = match.end() if found else match.start() + 1
        if found:
            yield match.span()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False  # too long to be a name


def _unescaped(written: str) -> str:
    r"""Undo a shell's backslashes; a Windows path, which starts with C:\ or \, keeps its own."""
    return written if re.match(r"(?:[a-zA-Z]:)?\\", written) else _ESCAPED.sub(r"\1", written)


def _read(path: Path, written: str) -> str:
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise BadRequest(f"{written}: the image has {size} bytes, the limit is {_MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{written}: {error.strerror}") from None
    if not (data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP")):
        raise BadRequest(f"{written}: not a JPEG, PNG or WebP image")
    return base64.b64encode(data).decode()
