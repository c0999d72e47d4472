"""Turns a runner's events into the objects that /api/generate and /api/chat send, one a line or one in all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from ...core.scheduler.messages import Piece, SampledLogprob, TokenLogprob
from ..replies import Ended
from ..times import utc_now
from .schema import AnswerMessage, ChatChunk, Chunk, DebugInfo, GenerateChunk, LogprobEntry, TokenEntry

C = TypeVar("C", bound=Chunk)


class NativeWriter(ABC, Generic[C]):
    """Writes one reply; the subclasses say where a chunk keeps its text."""

    def __init__(self, model: str) -> None:
        self._model = model

    def piece(self, piece: Piece) -> Iterator[C]:
        """Yield the chunk of some new text."""
        yield self._chunk(piece.text, logprobs=_logprobs(piece.logprobs))

    def end(self, ended: Ended) -> Iterator[C]:
        """Yield the last chunk of a stream."""
        yield self._chunk("", **_metrics(ended))

    def whole(self, piece: Piece, ended: Ended) -> C:
        """Return the answer to a request that wants no stream."""
        return self._chunk(piece.text, logprobs=_logprobs(piece.logprobs), **_metrics(ended))

    def rendered(self, prompt: str, images: int) -> C:
        """Return the answer to a request that only wants to see the prompt."""
        return self._chunk("", debug_info=DebugInfo(prompt, images))

    @abstractmethod
    def _chunk(self, text: str, **fields: Any) -> C:
        """Return a chunk with some text and, besides the model and the time, these fields."""


class GenerateWriter(NativeWriter[GenerateChunk]):
    """Writes one reply of /api/generate."""

    def _chunk(self, text: str, *, done: bool = False, **fields: Any) -> GenerateChunk:
        return GenerateChunk(model=self._model, created_at=utc_now(), response=text, done=done, **fields)


class ChatWriter(NativeWriter[ChatChunk]):
    """Writes one reply of /api/chat, which has no `context`."""

    def _chunk(self, text: str, *, done: bool = False, **fields: Any) -> ChatChunk:
        return ChatChunk(model=self._model, created_at=utc_now(), message=AnswerMessage(text), done=done, **fields)


def _metrics(ended: Ended) -> dict[str, Any]:
    fields: dict[str, Any] = {"done": True, "done_reason": ended.reason, "context": list(ended.context)}
    if ended.finished is None:
        return fields
    return fields | {
        "total_duration": ended.total_ns,
        "load_duration": ended.load_ns,
        "prompt_eval_count": ended.finished.prompt_tokens,
        "prompt_eval_duration": ended.finished.prompt_ns,
        "eval_count": ended.finished.tokens,
        "eval_duration": ended.finished.decode_ns,
        "prompt_cached_count": ended.finished.cached_tokens,
        "prompt_truncated_count": ended.finished.truncated,
        "context_shifted_count": ended.finished.shifted,
    }


def _logprobs(sampled: list[SampledLogprob]) -> list[LogprobEntry]:
    return [
        LogprobEntry(*_fields(token.chosen), top_logprobs=[TokenEntry(*_fields(other)) for other in token.top])
        for token in sampled
    ]


def _fields(token: TokenLogprob) -> tuple[str, float, list[int]]:
    return token.text, token.logprob, list(token.data)
