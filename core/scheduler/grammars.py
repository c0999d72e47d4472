"""Opens the grammars of replies on a thread of their own: schemas are hostile, and only their senders wait for them."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import Busy
from ..protocols import Grammar, Grammars

MAX_WAITING = 16  # schemas that were not seen lately, behind the one that is compiled; each may take three seconds


@dataclass
class _Coming:
    """A schema that is to be compiled."""

    grammar: Future[Grammar]
    waiting: int = 0  # replies


class GrammarThread:
    """Makes grammars for the replies of one model. To be used from event loops."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="puna-grammars")
        self._coming: dict[str, _Coming] = {}  # by the schema, so that equal ones are compiled once
        self._closed = False

    async def open(self, schema: str) -> Grammar:
        """Return a new grammar for a reply that follows a JSON Schema: at once if the schema was seen lately.

        Raises what `Grammars.open` raises, and Busy if too many schemas wait already or the thread was closed.
        """
        while (grammar := self._grammars.recall(schema)) is None:
            await self._wait(self._coming.get(schema) or self._submit(schema))
        return grammar

    def close(self) -> None:
        """Turn away who waits, and return when the thread has ended. Blocks while a schema is compiled."""
        self._closed = True
        self._thread.shutdown(cancel_futures=True)

    async def _wait(self, coming: _Coming) -> None:
        """Return when a schema was compiled. One that nobody waits for any more never is, unless that has begun."""
        coming.waiting += 1
        try:
            await asyncio.shield(asyncio.wrap_future(coming.grammar))  # others may wait for it too
        except asyncio.CancelledError:
            if coming.grammar.cancelled():
                raise _closed() from None
            raise
        finally:
            coming.waiting -= 1
            if not coming.waiting:
                coming.grammar.cancel()  # changes nothing if it is done or has begun

    def _submit(self, schema: str) -> _Coming:
        if self._closed:
            raise _closed()
        if len(self._coming) > MAX_WAITING:
            raise Busy(f"server busy, please try again: {MAX_WAITING} other JSON schemas wait to be compiled")
        coming = self._coming[schema] = _Coming(self._thread.submit(self._grammars.open, schema))
        coming.grammar.add_done_callback(lambda _: self._coming.pop(schema))
        return coming


def _closed() -> Busy:
    return Busy("the model was unloaded before the reply was begun")
