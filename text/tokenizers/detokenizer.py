"""Decodes tokens one by one, without ever showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .pieces import Pieces

_utf8 = codecs.getincrementaldecoder("utf-8")

LONGEST_CHARACTER = 4  # bytes


class IncrementalDecoder:
    """Implements `core.protocols.Detokenizer`. Control tokens add nothing. Not for use by several threads."""

    def __init__(self, pieces: Pieces, prompt: Sequence[int] = ()) -> None:
        self._bytes = pieces.hidden
        self._decoder = _utf8(errors="replace")
        self._at_start = pieces.dummy_prefix and not any(map(self._bytes, prompt))
        self._decoder.decode(self._tail(prompt))  # a character that the prompt left unfinished is finished here

    def push(self, token: int) -> str:
        """Return the text that became complete with this token."""
        data = self._bytes(token)
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return U+FFFD for bytes that never became a character, else ""; the decoder is then at its start again."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    def _tail(self, prompt: Sequence[int]) -> bytes:
        """Return the end of the prompt, long enough to hold any unfinished character."""
        tail = b""
        for token in reversed(prompt):
            tail = self._bytes(token) + tail
            if len(tail) >= LONGEST_CHARACTER:
                break
        return tail
