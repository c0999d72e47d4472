"""What the engine asks of text: small protocols that `puna.text` implements and a runner's entry point plugs in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Tokenizer(Protocol):
    """Turns text into token ids and ids into bytes. Safe to call from several threads."""

    @property
    def size(self) -> int:
        """Number of token ids; every id is below it."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation: end of sequence, of turn, of message."""

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """Return the ids of text.

        special: markers such as <|eot_id|> written in the text become their control tokens (a rendered template);
        without it they are spelled out as ordinary text (untrusted input).
        start: put the model's beginning-of-sequence token (and, for encoders, the end token) around it, once, if the
        model wants one; text that already begins with it gets no second one.
        """

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that token adds to a text, not always UTF-8; b"" for a control token unless special."""

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of a whole sequence (invalid UTF-8 becomes U+FFFD), with the dummy prefix space removed."""

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """Return an incremental decoder for tokens that follow prompt."""


class Detokenizer(Protocol):
    """Decodes tokens one by one; the concatenation of what it returns is the exact text, never half a character."""

    def push(self, token: int) -> str:
        """Return the text that became complete with this token; "" while a UTF-8 sequence is unfinished."""

    def flush(self) -> str:
        """Return what is left at the end: "" or U+FFFD for bytes that never became a character."""


class StopRule(Protocol):
    """Watches the text of one reply for stop strings and holds back what could still become one."""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be sent now and whether a stop string was met (it is never sent)."""

    def flush(self) -> str:
        """Return the text that was held back, at the end of a reply that met no stop string."""


class Grammar(Protocol):
    """What one reply may consist of. `mask` is called on a thread of its own, never while another call runs."""

    def mask(self) -> npt.NDArray[np.int32] | None:
        """Return the tokens that may come next, a bit each (see `puna.core.tensor.sampling.sample`); None: all.

        Those that end a reply are among them exactly where it may end. Raises BadRequest, which ends this reply alone.
        """

    def accept(self, token: int) -> None:
        """Take note of the next token, one that the last mask allowed and that does not end the reply."""

    def forced(self) -> list[int]:
        """Return tokens that spell what has to come next, [] if there is a choice. There may be other spellings."""

    @property
    def ended(self) -> bool:
        """Whether the reply is complete and nothing but its end may follow."""


class Grammars(Protocol):
    """Makes grammars for the replies of one model. Safe to call from several threads."""

    def open(self, schema: str) -> Grammar:
        """Return a new grammar for a reply that follows a JSON Schema. Takes a while: keep it off event loops.

        Raises BadRequest for a text that is no schema, and for a schema that could not be followed to the letter; Busy
        if the machine cannot find out just now.
        """

    def recall(self, schema: str) -> Grammar | None:
        """Return what `open` returns, or raise what it raises, but only if that takes no time; None if it would."""
