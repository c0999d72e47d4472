"""Answers that are produced while they are sent: one JSON object, a stream of lines, or server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..core.errors import Failure
from .errors import native_body, openai_body

log = logging.getLogger("puna.api")

Chunks = AsyncGenerator[msgspec.Struct, None]


@dataclass(frozen=True)
class Framing:
    """How chunks become bytes."""

    media_type: str
    before: bytes = b""  # each chunk
    after: bytes = b""
    end: bytes = b""  # after the last chunk of a stream that did not fail
    error_body: Callable[[Exception], msgspec.Struct] | None = None  # None: nothing may fail after the first chunk

    def encode(self, chunk: msgspec.Struct) -> bytes:
        """Return the bytes of one chunk."""
        return self.before + msgspec.json.encode(chunk) + self.after


SINGLE = Framing("application/json; charset=utf-8")
NDJSON = Framing("application/x-ndjson", after=b"\n", error_body=native_body)
EVENTS = Framing("text/event-stream", before=b"data: ", after=b"\n\n", end=b"data: [DONE]\n\n", error_body=openai_body)


class _ClientLeft(Exception):
    """The connection broke while something was being sent."""


class ProducedResponse(Response):
    """Sends what a generator yields, one body message a chunk, and pulls the next chunk only when that one is gone.

    A failure before the first chunk is raised, so that it becomes a status; one after it becomes the last chunk. When
    the client leaves, the generator is closed, and that is awaited.
    """

    def __init__(self, chunks: Chunks, framing: Framing) -> None:
        # Status, headers and body, the base class's business, are not known before the first chunk is.
        self._chunks, self._framing = chunks, framing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the response; see the ASGI specification."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
            try:
                await self._send_all(_telling(send))
            except _ClientLeft:
                pass
            except Exception as error:  # carried out of the task group, which would wrap it
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await self._chunks.aclose()
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _send_all(self, send: Send) -> None:
        body = self._framing.encode(await anext(self._chunks))
        single = self._framing is SINGLE
        extra = (b"content-length", str(len(body)).encode()) if single else (b"cache-control", b"no-cache")
        headers = [(b"content-type", self._framing.media_type.encode()), extra]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(_part(body, last=single))
        if single:
            return
        try:
            async for chunk in self._chunks:
                await send(_part(self._framing.encode(chunk)))
        except _ClientLeft:
            raise
        except Exception as error:
            await send(_part(self._last_words(error), last=True))
        else:
            await send(_part(self._framing.end, last=True))

    def _last_words(self, error: Exception) -> bytes:
        assert self._framing.error_body is not None
        if not isinstance(error, Failure):
            log.error("a stream broke off", exc_info=error)
        return self._framing.encode(self._framing.error_body(error))


def _part(body: bytes, *, last: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": not last}


def _telling(send: Send) -> Send:
    """Return a send that tells a broken connection from other input and output that fails."""

    async def telling_send(message: Message) -> None:
        try:
            await send(message)
        except OSError as error:
            raise _ClientLeft from error

    return telling_send


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel scope when the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
