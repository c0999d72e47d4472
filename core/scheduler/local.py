"""A runner in a process of its own: it may crash without harm to the server, and its end gives all memory back."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Ids
from typing import Any

from ..errors import Busy, Failure, RunnerDied
from .child import Child
from .messages import Finished, Generate, Media, Piece, Sight
from .outbox import Outbox
from .pulse import BEATS, Pulse
from .runner import RunnerFacts
from .stats import EngineStats
from .wire import (
    Ask,
    Cancel,
    Close,
    Detokenize,
    FromRunner,
    Load,
    Look,
    Ready,
    Refused,
    Said,
    Seen,
    Status,
    Text,
    Tokenize,
    Tokens,
    WireError,
)

log = logging.getLogger(__name__)

GRACE_S = 5.0  # what a runner gets to end its replies and itself


class LocalRunner:
    """A loaded model in another process of this machine (`puna.core.scheduler.runner.Runner`)."""

    def __init__(self, child: Child, facts: RunnerFacts, *, step_timeout_s: float | None = None) -> None:
        """step_timeout_s: the process is ended if its engine gets no further for so long, though replies are due."""
        self._child, self._channel, self._facts = child, child.channel, facts
        self._ids = itertools.count(1)
        self._replies: dict[int, Outbox] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._status = Status(EngineStats(), facts.weight_bytes)
        self._death: RunnerDied | None = None
        self._verdict: RunnerDied | None = None  # what it will have died of, if we end it
        self._closing: asyncio.Task[None] | None = None
        self._listening = asyncio.create_task(self._listen(), name=f"runner {child.pid}")
        if step_timeout_s is not None:
            watching = asyncio.create_task(self._watch(step_timeout_s), name=f"watch {child.pid}")
            self._listening.add_done_callback(lambda _: watching.cancel())

    @classmethod
    async def start(
        cls, entry: str, load: Load, *, timeout_s: float | None = None, step_timeout_s: float | None = None
    ) -> LocalRunner:
        """Start a process and load a model in it. entry: the module that it runs, which calls `serve_runner`.

        Raises what loading raises there, and RunnerDied if the process ends meanwhile or takes longer than timeout_s.
        step_timeout_s: how long its engine may then take for a step.
        """
        child = await Child.start(entry)
        try:
            async with asyncio.timeout(timeout_s):
                return cls(child, await _load(child, load), step_timeout_s=step_timeout_s)
        except BaseException as error:
            child.kill()
            await child.ended()
            if isinstance(error, TimeoutError):
                raise RunnerDied(f"loading was given up after {timeout_s:g} s") from None
            raise

    @property
    def facts(self) -> RunnerFacts:
        """What was loaded."""
        return self._facts

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights and of key/value cache in use, about a second ago at most."""
        return self._status.memory_bytes

    @property
    def stats(self) -> EngineStats:
        """What was done, and what was held about a second ago at most."""
        return self._status.stats

    @property
    def death(self) -> RunnerDied | None:
        """What its process died of, unless it was closed."""
        return self._death

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._child.pid

    async def tokenize(self, text: str, *, special: bool = True, start: bool = True) -> list[int]:
        """Return the token ids of text."""
        tokens: list[int] = await self._call(Tokenize(next(self._ids), text, special, start))
        return tokens

    async def detokenize(self, tokens: Ids[int]) -> str:
        """Return the text of tokens. Raises BadRequest for ids outside the vocabulary."""
        text: str = await self._call(Detokenize(next(self._ids), list(tokens)))
        return text

    async def look(self, media: Media) -> Sight:
        """Return what stands for media in a prompt. Raises BadRequest for what the model cannot read."""
        sight: Sight = await self._call(Look(next(self._ids), media))
        return sight

    async def generate(self, request: Generate) -> AsyncGenerator[Piece | Finished, None]:
        """Yield the reply's pieces and, last, a Finished."""
        self._check()
        id, outbox = next(self._ids), Outbox()
        self._replies[id] = outbox
        try:
            await self._channel.send(Ask(id, request))
            async for event in outbox:
                yield event
        finally:
            del self._replies[id]
            if not outbox.ended:
                self._channel.send_soon(Cancel(id))

    async def close(self) -> None:
        """End every reply and the process; returns when it is gone."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close runner {self.pid}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._channel.send_soon(Close())
        await asyncio.wait([self._listening], timeout=GRACE_S)
        self._child.kill()
        await asyncio.wait([self._listening])

    async def _call(self, message: Tokenize | Detokenize | Look) -> Any:
        """Send a message and return the value it is answered with."""
        self._check()
        answer = self._calls[message.id] = asyncio.get_running_loop().create_future()
        try:
            await self._channel.send(message)
            return await answer
        finally:
            del self._calls[message.id]

    def _check(self) -> None:
        """Raise if nobody is there to answer."""
        if self._listening.done() or self._closing is not None:
            raise self._reason()

    def _reason(self) -> Failure:
        """Return why what was asked is not answered."""
        if self._death is not None:
            return RunnerDied(str(self._death))  # each its own, since raising one changes it
        return Busy("the model was unloaded before the reply was done")

    async def _listen(self) -> None:
        """Hand messages to those who wait for them, until the process ends."""
        try:
            while (message := await self._channel.receive()) is not None:
                self._take(message)
        except WireError as error:
            self._verdict = RunnerDied(f"its process sent {error}")
            self._child.kill()
        except asyncio.CancelledError:  # the event loop ends
            self._child.kill()
            raise
        finally:
            ended = await self._child.ended()
            self._bury(self._verdict or ended)

    async def _watch(self, step_timeout_s: float) -> None:
        """End the process when it gets no further. Whatever it says itself comes from threads that may do well."""
        pulse, stopped = Pulse(), False
        while not stopped:
            await asyncio.sleep(step_timeout_s / BEATS)
            due = any(not outbox.ended for outbox in self._replies.values())
            stopped = pulse.stopped(self._status.stats, due=due)
        self._verdict = RunnerDied(f"its process got no further for {step_timeout_s:g} s and was ended")
        await self._child.kill_stuck()

    def _bury(self, death: RunnerDied) -> None:
        """Tell everybody who waits for something."""
        if self._closing is None:
            self._death = death
            log.error("runner %d died: %s", self.pid, death)
        for outbox in self._replies.values():
            outbox.fail(self._reason())
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self._reason())

    def _take(self, message: FromRunner) -> None:
        match message:
            case Said():
                outbox = self._replies.get(message.id)
                if outbox is not None and not outbox.put(message.event):
                    self._channel.send_soon(Cancel(message.id))
            case Tokens() | Text() | Seen():
                answer = self._calls.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message.value)
            case Refused():
                self._refuse(message)
            case Status():
                self._status = message

    def _refuse(self, message: Refused) -> None:
        if (outbox := self._replies.get(message.id)) is not None:
            outbox.fail(message.error)
        elif (answer := self._calls.get(message.id)) is not None and not answer.done():
            answer.set_exception(message.error)


async def _load(child: Child, load: Load) -> RunnerFacts:
    """Have a process load a model, and return what it says of it."""
    try:
        await child.channel.greet()
        await child.channel.send(load)
        answer = await child.channel.receive()
    except WireError as error:
        raise RunnerDied(f"its process sent {error}") from None
    if isinstance(answer, Refused):
        raise answer.error
    if answer is None:
        raise await child.ended()
    if not isinstance(answer, Ready):
        raise RunnerDied(f"its process answered a load with {answer!r}")
    return answer.facts
