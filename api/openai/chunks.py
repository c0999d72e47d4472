"""Turns a runner's events into chat chunks, completions and their streams, in the shapes OpenAI's SDKs parse."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from ...core.scheduler.messages import Finished, Piece, SampledLogprob, TokenLogprob
from ..replies import Ended
from .schema import (
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionLogprobs,
    Delta,
    LogprobEntry,
    Message,
    MessageChoice,
    PromptTokens,
    TextChoice,
    TokenEntry,
    Usage,
)

FINGERPRINT = "fp_ollama"


class ChatWriter:
    """Writes one reply of /v1/chat/completions. Every chunk of a stream carries the same id and time."""

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        self._id, self._created = _new_id("chatcmpl"), int(time.time())
        self._model, self._include_usage = model, include_usage
        self._started = False

    def piece(self, piece: Piece) -> Iterator[ChatChunk]:
        """Yield the chunk of some new text."""
        delta = Delta(role=None if self._started else "assistant", content=piece.text)
        self._started = True
        yield self._chunk([ChunkChoice(delta=delta, logprobs=_chat_logprobs(piece))])

    def end(self, ended: Ended) -> Iterator[ChatChunk]:
        """Yield what closes a stream: the reason, then the usage if it was asked for."""
        if not self._started:
            yield from self.piece(Piece(""))
        yield self._chunk([ChunkChoice(delta=Delta(), finish_reason=ended.reason)])
        if self._include_usage:
            yield self._chunk([], _usage(ended.finished))

    def whole(self, piece: Piece, ended: Ended) -> ChatCompletion:
        """Return the answer to a request that wants no stream."""
        choice = MessageChoice(message=Message(piece.text), finish_reason=ended.reason, logprobs=_chat_logprobs(piece))
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            system_fingerprint=FINGERPRINT,
            choices=[choice],
            usage=_usage(ended.finished),
        )

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=usage,
        )


class CompletionWriter:
    """Writes one reply of /v1/completions. With include_usage every chunk carries a usage: zeros, but for the last."""

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        self._id, self._created = _new_id("cmpl"), int(time.time())
        self._model, self._include_usage = model, include_usage
        self._characters = 0

    def piece(self, piece: Piece) -> Iterator[Completion]:
        """Yield the chunk of some new text."""
        yield self._completion([self._choice(piece)], self._no_usage())

    def end(self, ended: Ended) -> Iterator[Completion]:
        """Yield what closes a stream: the reason, then the usage if it was asked for."""
        yield self._completion([TextChoice(text="", finish_reason=ended.reason)], self._no_usage())
        if self._include_usage:
            yield self._completion([], _usage(ended.finished))

    def whole(self, piece: Piece, ended: Ended) -> Completion:
        """Return the answer to a request that wants no stream."""
        choice = self._choice(piece)
        choice.finish_reason = ended.reason
        return self._completion([choice], _usage(ended.finished))

    def _choice(self, piece: Piece) -> TextChoice:
        logprobs = _completion_logprobs(piece.logprobs, self._characters) if piece.logprobs else None
        self._characters += len(piece.text)
        return TextChoice(text=piece.text, logprobs=logprobs)

    def _no_usage(self) -> Usage | None:
        return Usage(0, 0, 0) if self._include_usage else None

    def _completion(self, choices: list[TextChoice], usage: Usage | None) -> Completion:
        return Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=usage,
        )


def _new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.randbelow(10**9)}"  # a number as clients know it, but one that does not soon come again


def _usage(finished: Finished | None) -> Usage:
    if finished is None:
        return Usage(0, 0, 0)
    details = PromptTokens(finished.cached_tokens, finished.truncated, finished.shifted)
    return Usage(
        finished.prompt_tokens,
        finished.tokens,
        finished.prompt_tokens + finished.tokens,
        None if details == PromptTokens() else details,
    )


def _chat_logprobs(piece: Piece) -> ChatLogprobs | None:
    if not piece.logprobs:
        return None
    return ChatLogprobs(
        [
            LogprobEntry(*_fields(sampled.chosen), top_logprobs=[TokenEntry(*_fields(other)) for other in sampled.top])
            for sampled in piece.logprobs
        ]
    )


def _fields(token: TokenLogprob) -> tuple[str, float, list[int]]:
    return token.text, token.logprob, list(token.data)


def _completion_logprobs(sampled: list[SampledLogprob], offset: int) -> CompletionLogprobs:
    answer = CompletionLogprobs([], [], [], [])
    for token in sampled:
        answer.tokens.append(token.chosen.text)
        answer.token_logprobs.append(token.chosen.logprob)
        answer.top_logprobs.append({other.text: other.logprob for other in token.top})
        answer.text_offset.append(offset)
        offset += len(token.chosen.text)
    return answer
