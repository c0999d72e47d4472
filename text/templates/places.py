"""Where images stand in a prompt: while a template runs, private characters that nobody wrote stand in for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ...core.errors import BadRequest
from ...core.scheduler.messages import Media
from .messages import Message, Part

_PRIVATE = itertools.chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_CHARACTERS = tuple(map(chr, _PRIVATE))  # that no standard gives a meaning, so that templates have no reason to change


class Places:
    """The images of one conversation, numbered from 0 in their order, and what stands in for them.

    marker: what the model's own template writes for an image; empty if that is not known.
    """

    def __init__(self, messages: Sequence[Message], others: Iterable[Any] = (), *, marker: str = "") -> None:
        """others: all else that a template may write, such as tools. Raises BadRequest if every character is used."""
        self.media = [image for message in messages for image in message.media]
        self.marker = marker
        self._messages = messages
        edge = _unused([*messages, *others]) if self.media else _CHARACTERS[0]
        self._edge, self._stand_in = edge, re.compile(f"{edge}([0-9]+){edge}")
        self._hidden = f"{edge}m{edge}"  # the marker, where it is part of a text

    def flattened(self) -> list[Message]:
        """Return the conversation with stand-ins in its texts instead of images."""
        numbers = map(self._written, itertools.count())
        return [
            message
            if isinstance(message.content, str)
            else replace(message, content="".join(p if isinstance(p, str) else next(numbers) for p in message.content))
            for message in self._messages
        ]

    def count(self, text: str) -> int:
        """Return the number of stand-ins in a text."""
        return len(self._stand_in.findall(text)) if self.media else 0

    def listed(self, text: str) -> str | list[dict[str, str]]:
        """Return a text as templates of multimodal models take it: where there are images in it, a list of its parts.

        The marker is hidden in texts, so that all those that a template puts out are its own.
        """
        if not self.count(text):
            return text.replace(self.marker, self._hidden)
        parts = []
        for number, piece in enumerate(self._stand_in.split(text)):  # texts and numbers by turns
            if number % 2:
                parts.append({"type": "image"})
            elif piece:
                parts.append({"type": "text", "text": piece.replace(self.marker, self._hidden)})
        return parts

    def unlisted(self, output: str) -> str:
        """Return a template's output with stand-ins instead of markers, and with the markers that were hidden."""
        first, *rest = output.split(self.marker)
        marked = first + "".join(self._written(number) + text for number, text in enumerate(rest))
        return marked.replace(self._hidden, self.marker)

    def parts(self, output: str) -> list[Part]:
        """Return a template's output as texts and images. Raises BadRequest if an image is not there."""
        if not self.media:
            return [output]
        pieces = self._stand_in.split(output)
        texts, numbers = pieces[::2], [int(number) for number in pieces[1::2]]
        if set(numbers) != set(range(len(self.media))) or any(self._edge in text for text in texts):
            raise BadRequest("the model's template leaves out images of this conversation")
        found: list[Part] = [texts[0]]
        for number, text in zip(numbers, texts[1:], strict=True):
            found += [self.media[number], text]
        return [part for part in found if part != ""]

    def _written(self, number: int) -> str:
        return f"{self._edge}{number}{self._edge}"


def _unused(values: Iterable[Any]) -> str:
    """Return a private character that none of the texts in values holds."""
    used: set[str] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            used.update(value)
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, Struct) and not isinstance(value, Media):
            waiting += msgspec.structs.astuple(value)
    found = next((character for character in _CHARACTERS if character not in used), None)
    if found is None:
        raise BadRequest("the conversation uses every private character of Unicode; images cannot be placed in it")
    return found
