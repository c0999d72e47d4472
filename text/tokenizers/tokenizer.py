"""The tokenizer that the engine and the API see, whatever file it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .detokenizer import IncrementalDecoder
from .engine import Engine
from .pieces import Pieces


@dataclass(frozen=True)
class Frame:
    """What goes around a text that starts a sequence: nothing, a BOS token, or CLS and SEP."""

    before: list[int]
    after: list[int]

    def around(self, ids: list[int]) -> list[int]:
        """Return ids inside the frame; a side that is already there is not put there again."""
        if ids[: len(self.before)] != self.before:
            ids = self.before + ids
        if ids[len(ids) - len(self.after) :] != self.after:
            ids = ids + self.after
        return ids


class TextTokenizer:
    """Implements `core.protocols.Tokenizer`. Immutable, so any number of threads may use it."""

    def __init__(
        self,
        engine: Engine,
        pieces: Pieces,
        frame: Frame,
        *,
        stop_ids: frozenset[int],
        bos_token: str = "",
        eos_token: str = "",
        vocab_size: int = 0,
    ) -> None:
        """vocab_size: rows of the model's embedding, which may be more than the tokenizer has tokens."""
        self._engine, self._pieces, self._frame = engine, pieces, frame
        self._stop_ids = stop_ids
        self._size = max(len(pieces.texts), vocab_size)
        self.bos_token, self.eos_token = bos_token, eos_token  # as chat templates write them; "" if there is none

    @property
    def size(self) -> int:
        """Number of token ids, counting those that pad the model's vocabulary and mean nothing."""
        return self._size

    @property
    def frame(self) -> Frame:
        """What goes around a text that starts a sequence."""
        return self._frame

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        return self._stop_ids

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """Return the ids of text; see `core.protocols.Tokenizer`. Half a surrogate pair is read as U+FFFD."""
        ids = self._engine.encode(_without_surrogates(text), special=special)
        return self._frame.around(ids) if start else ids

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that token adds to a text; b"" for ids that only pad the vocabulary."""
        return self._pieces.shown(token) if special else self._pieces.hidden(token)

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of a whole sequence, without the dummy prefix."""
        data = b"".join([self.piece(token, special=special) for token in tokens])
        if self._pieces.dummy_prefix:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def detokenizer(self, prompt: Sequence[int] = ()) -> IncrementalDecoder:
        """Return an incremental decoder for tokens that follow prompt; only the very first text loses its prefix."""
        return IncrementalDecoder(self._pieces, prompt)


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
