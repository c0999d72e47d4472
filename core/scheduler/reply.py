"""From sampled tokens to the text of one reply: detokenise, watch for stops, hold back what is not final yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..protocols import Detokenizer, StopRule
from .messages import FinishReason, Piece, SampledLogprob


@dataclass
class _Held:
    """A token whose text may still be cut by a stop string: where that text begins in the reply."""

    start: int
    token: int
    logprob: SampledLogprob | None


@dataclass
class Reply:
    """A pure object: tokens in, pieces out. `reason` is set once the reply is over."""

    detokenizer: Detokenizer
    stops: StopRule
    stop_ids: frozenset[int]
    max_tokens: int | None
    reason: FinishReason | None = None
    tokens: int = 0  # sampled, the end token included
    _decoded: int = 0  # characters that tokens gave so far
    _sent: int = 0  # characters that left in pieces
    _held: list[_Held] = field(default_factory=list)

    def push(self, token: int, logprob: Callable[[], SampledLogprob] | None = None) -> Piece | None:
        """Take the next token and return what became final with it, if anything.

        logprob is only called for tokens that belong to the text: the end token has no entry.
        """
        self.tokens += 1
        if token in self.stop_ids:
            self.reason = "stop"
            return self._flush()
        self._held.append(_Held(self._decoded, token, logprob() if logprob else None))
        text = self.detokenizer.push(token)
        self._decoded += len(text)
        ready, stopped = self.stops.push(text)
        if stopped:
            self.reason = "stop"
            return self._release(ready, cut=True)
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            return self.end("length", ready)
        return self._release(ready)

    def end(self, reason: FinishReason, ready: str = "") -> Piece | None:
        """End the reply for a reason outside its text and return what was held back."""
        self.reason = reason
        return self._flush(ready)

    def _flush(self, ready: str = "") -> Piece | None:
        rest, stopped = self.stops.push(self.detokenizer.flush())
        text = ready + rest if stopped else ready + rest + self.stops.flush()
        return self._release(text, cut=stopped, last=True)

    def _release(self, text: str, *, cut: bool = False, last: bool = False) -> Piece | None:
        """Return text with the tokens it belongs to; when a stop string cut it, drop those behind the cut."""
        self._sent += len(text)
        final = [held for held in self._held if held.start < self._sent or (last and not cut)]
        self._held = [] if cut or last else [held for held in self._held if held.start >= self._sent]
        if not text and not final:
            return None
        logprobs = [held.logprob for held in final if held.logprob is not None]
        return Piece(text, [held.token for held in final], logprobs)
