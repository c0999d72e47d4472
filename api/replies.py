"""One reply of a model, between the runner that produces it and the API that words it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.responses import Response

from ..core.scheduler.messages import Finished, Piece, SampledLogprob
from .streaming import SINGLE, Chunks, Framing, ProducedResponse


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of a reply. A request that only loads or unloads a model ends so at once, with nothing finished."""

    reason: str  # "stop", "length", "load", "unload"
    finished: Finished | None = None
    context: tuple[int, ...] = ()  # tokens of prompt and answer, for a later request
    load_ns: int = 0  # from the request's arrival until a runner was ready
    total_ns: int = 0  # since the request's arrival


Events = AsyncGenerator[Piece | Ended, None]
"""The pieces of a reply, then exactly one Ended."""


class Writer(Protocol):
    """Words one reply in the shapes of an API. Pure: no I/O, so a test can call it."""

    def piece(self, piece: Piece, /) -> Iterable[msgspec.Struct]:
        """Return the chunks that carry some new text."""

    def end(self, ended: Ended, /) -> Iterable[msgspec.Struct]:
        """Return the chunks that close a stream."""

    def whole(self, piece: Piece, ended: Ended, /) -> msgspec.Struct:
        """Return the answer to a request that wants no stream; piece holds the whole reply."""


def respond(events: Events, writer: Writer, framing: Framing) -> ProducedResponse:
    """Return the response that carries a reply: its events one by one, or, with SINGLE, all at once."""
    chunks = _whole(events, writer) if framing is SINGLE else _stream(events, writer)
    return ProducedResponse(chunks, framing)


def json_response(answer: msgspec.Struct) -> Response:
    """Return the response that carries one finished object."""
    return Response(msgspec.json.encode(answer), media_type=SINGLE.media_type)


async def _stream(events: Events, writer: Writer) -> Chunks:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Ended):
                chunks = writer.end(event)
            elif event.text or event.logprobs:
                chunks = writer.piece(event)
            else:
                continue  # a token whose text is still held back
            for chunk in chunks:
                yield chunk


async def _whole(events: Events, writer: Writer) -> Chunks:
    texts: list[str] = []
    logprobs: list[SampledLogprob] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Ended):
                yield writer.whole(Piece("".join(texts), logprobs=logprobs), event)
            else:
                texts.append(event.text)
                logprobs += event.logprobs
