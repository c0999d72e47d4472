"""The events of one reply on their way from the engine to whoever reads it, however slowly they do.

Text that nobody has taken yet is joined, so a reader that is behind finds one large piece instead of thousands of small
ones; a reader that takes nothing at all ends its reply, because what is held for it is bounded.
"""

from __future__ import annotations

import asyncio
import io
import threading

from ..errors import BadModel, BadRequest, Failure, RunnerDied
from .messages import Event, Failed, FailureKind, Finished, Piece, SampledLogprob

MAX_UNREAD = 8 * 2**20  # bytes, about

_ERRORS: dict[FailureKind, type[Failure]] = {"bad_request": BadRequest, "bad_model": BadModel, "internal": RunnerDied}


class Outbox:
    """An asynchronous iterator over a reply's pieces and its Finished. Any thread may put; one coroutine reads.

    Made on the event loop that reads it. Reading raises what the reply failed with.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._reader_waits = False
        self._end: Finished | Exception | None = None
        self._over = False  # the end was read
        self._given_up = False
        self._empty()

    @property
    def ended(self) -> bool:
        """Whether nothing more will be put: the reply is over for whoever writes it."""
        return self._end is not None

    def put(self, event: Event) -> bool:
        """Add an event; those behind the end are dropped.

        Returns False when the reader is so far behind that the reply was given up and should be cancelled.
        """
        with self._lock:
            if self._end is None:
                if isinstance(event, Piece):
                    self._add(event)
                else:
                    self._end = _ERRORS[event.kind](event.message) if isinstance(event, Failed) else event
                self._wake()
            return not self._given_up

    def fail(self, error: Exception) -> None:
        """End the reply with an error, which is raised behind the pieces put so far."""
        with self._lock:
            if self._end is None:
                self._end = error
                self._wake()

    def __aiter__(self) -> Outbox:
        return self

    async def __anext__(self) -> Piece | Finished:
        """Return all text since the last call in one piece, waiting for some, or the end."""
        while True:
            with self._lock:
                if self._held:
                    return self._take()
                if self._end is not None:
                    return self._take_end()
                self._ready.clear()
                self._reader_waits = True
            await self._ready.wait()

    def _add(self, piece: Piece) -> None:
        self._text.write(piece.text)
        self._tokens += piece.tokens
        self._logprobs += piece.logprobs
        self._held += _weight(piece)
        if self._held > MAX_UNREAD:
            self._given_up = True
            self._end = BadRequest(f"the reply was ended: its client left {self._held / 2**20:.0f} MB of it unread")

    def _take(self) -> Piece:
        piece = Piece(self._text.getvalue(), self._tokens, self._logprobs)
        self._empty()
        return piece

    def _take_end(self) -> Finished:
        if self._over:
            raise StopAsyncIteration
        self._over = True
        if isinstance(self._end, Finished):
            return self._end
        assert self._end is not None
        raise self._end

    def _empty(self) -> None:
        self._text = io.StringIO()
        self._tokens: list[int] = []
        self._logprobs: list[SampledLogprob] = []
        self._held = 0  # bytes

    def _wake(self) -> None:
        """Tell a reader that waits, on its own loop; one whose loop has closed no longer wants to know."""
        if not self._reader_waits:
            return
        self._reader_waits = False
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


def _weight(piece: Piece) -> int:
    """Return about how many bytes a piece takes; at least 1."""
    candidates = sum(1 + len(logprob.top) for logprob in piece.logprobs)
    return 1 + len(piece.text) + 8 * len(piece.tokens) + 256 * candidates
