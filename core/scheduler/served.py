"""The runner's side of a process of its own: loads a model, answers the server's messages, and never outlives it."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from pathlib import Path

from ..errors import Failure, RunnerDied
from ..kernel import find_plugins
from .child import WHERE
from .engine import BROKEN
from .inline import InlineRunner, TextParts
from .wire import (
    Ask,
    Cancel,
    Channel,
    Close,
    Detokenize,
    FromServer,
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
)

log = logging.getLogger(__name__)

STATUS_S = 1.0  # between two reports
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def serve_runner(end: socket.socket, text: TextParts) -> None:
    """Load what the server at the other end asks for and serve it, until it says Close or is gone.

    Logs to stderr. Returns after Close, or after a load that failed; a server that has gone ends the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a service manager sends them to everybody at once, ...
        signal.signal(number, signal.SIG_IGN)  # ... but the server lets replies end first, and then says Close
    faulthandler.register(WHERE)
    end_with_server(end)
    asyncio.run(_serve(end, text))


def end_with_server(end: socket.socket) -> None:
    """Make this process end at once when the one at the other end of a socket does, whatever it is doing then."""
    if sys.platform == "linux":  # also works while something keeps all of Python waiting
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    threading.Thread(target=_watch, args=(os.dup(end.fileno()),), name="puna-watch", daemon=True).start()


def _watch(end: int) -> None:
    """End the process when a socket is hung up; that happened before a signal was asked for, at the latest."""
    poll = select.poll()
    poll.register(end, 0)  # nothing but the hang-up
    poll.poll()
    os._exit(1)


async def _serve(end: socket.socket, text: TextParts) -> None:
    channel = await Channel[FromServer].over(end, FromServer)
    await channel.greet()
    load = await channel.receive()
    if not isinstance(load, Load):
        return
    logging.getLogger("puna").setLevel(logging.DEBUG if load.debug else logging.INFO)
    try:
        runner = await asyncio.to_thread(_load, load, text)
    except Failure as error:
        await channel.send(Refused.because(0, error))
        return
    except Exception:
        log.exception("loading failed")
        await channel.send(Refused.because(0, RunnerDied(BROKEN)))
        return
    await channel.send(Ready(runner.facts))
    await _Served(channel, runner).run()


def _load(load: Load, text: TextParts) -> InlineRunner:
    files, draft = ({name: Path(path) for name, path in paths.items()} for paths in (load.files, load.draft))
    architectures = [a for report in find_plugins(load.plugins) for a in report.architectures]
    return InlineRunner(files, architectures, text, load.options, draft=draft)


class _Served:
    """A loaded model behind a channel: one task for each request in progress."""

    def __init__(self, channel: Channel[FromServer], runner: InlineRunner) -> None:
        self._channel, self._runner = channel, runner
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._busy = asyncio.Event()

    async def run(self) -> None:
        """Serve until Close, or the server's end."""
        reports = asyncio.create_task(self._report())
        while not isinstance(message := await self._channel.receive(), Close | None):
            self._take(message)
        await self._runner.close()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        reports.cancel()
        await self._channel.close()

    def _take(self, message: FromServer) -> None:
        match message:
            case Ask():
                self._start(message.id, partial(self._reply, message))
            case Tokenize():
                self._start(message.id, partial(self._tokenize, message))
            case Detokenize():
                self._start(message.id, partial(self._detokenize, message))
            case Look():
                self._start(message.id, partial(self._look, message))
            case Cancel() if message.id in self._tasks:
                self._tasks[message.id].cancel()

    def _start(self, id: int, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._busy.set()
        task = self._tasks[id] = asyncio.get_running_loop().create_task(self._answered(id, work))
        task.add_done_callback(lambda _: self._tasks.pop(id))

    async def _answered(self, id: int, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()  # made here: a task that is cancelled before its first step would leave it unawaited
        except Failure as error:
            await self._channel.send(Refused.because(id, error))
        except Exception:
            log.exception("a request failed")
            await self._channel.send(Refused.because(id, RunnerDied(BROKEN)))

    async def _reply(self, message: Ask) -> None:
        async with aclosing(self._runner.generate(message.request)) as events:
            async for event in events:
                await self._channel.send(Said(message.id, event))

    async def _tokenize(self, message: Tokenize) -> None:
        tokens = await self._runner.tokenize(message.text, special=message.special, start=message.start)
        await self._channel.send(Tokens(message.id, tokens))

    async def _detokenize(self, message: Detokenize) -> None:
        await self._channel.send(Text(message.id, await self._runner.detokenize(message.tokens)))

    async def _look(self, message: Look) -> None:
        await self._channel.send(Seen(message.id, await self._runner.look(message.media)))

    async def _report(self) -> None:
        """Tell the server how things are while there is work, and once after it."""
        while True:
            await self._busy.wait()
            if not self._tasks:
                self._busy.clear()
            await self._channel.send(Status(self._runner.stats, self._runner.memory_bytes))
            await asyncio.sleep(STATUS_S)
