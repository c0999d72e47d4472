"""Which models are loaded: on demand, shared by all who use them, kept a while, evicted when others need the place."""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import Busy, RunnerDied
from .backoff import Backoff
from .runner import Runner

log = logging.getLogger(__name__)

STEADY_S = 10.0  # a runner that lived so long does not die in a loop
_CLOSED = "the server is shutting down"


class Unset(enum.Enum):
    """The type of UNSET: a request that says nothing about how long its model should stay."""

    TOKEN = 0


UNSET: Final = Unset.TOKEN
KeepAlive = float | None | Unset  # seconds; None: forever


@dataclass(frozen=True)
class ModelFiles:
    """What identifies a loaded model: two names with the same weights and the same draft share a runner."""

    key: str  # digest of the weights, and of the draft's if there is one
    files: Mapping[str, Path]  # original file name -> where its bytes lie
    draft: Mapping[str, Path] = field(default_factory=dict)  # likewise, of a small model that guesses ahead


@dataclass(frozen=True)
class Resident:
    """One line of what is in memory."""

    key: str
    name: str
    runner: Runner | None  # None while loading
    expires_at: float | None  # unix seconds; None: never

    @property
    def loading(self) -> bool:
        """Whether it is not ready yet."""
        return self.runner is None


@dataclass(eq=False)
class _Entry:
    key: str
    name: str
    loading: asyncio.Task[Runner]
    keep_alive: float | None
    users: int = 0
    used: int = 0  # place in the order of use
    useful: bool = False  # a request ended well
    loaded_at: float = 0.0  # on the monotonic clock
    expires_at: float | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ModelLimits:
    """What the operator allows."""

    loaded: int  # models in memory
    requests: int  # requests in progress or waiting, over all models
    keep_alive: float | None  # seconds that an idle model stays when no request says otherwise; None: forever


class Models:
    """The loaded models. Belongs to one event loop."""

    def __init__(self, load: Callable[[ModelFiles], Awaitable[Runner]], limits: ModelLimits) -> None:
        self._load, self._limits = load, limits
        self._entries: dict[str, _Entry] = {}
        self._requests = 0
        self._clock = itertools.count()
        self._backoff = Backoff()
        self._changed = asyncio.Event()  # set, and replaced, whenever a place may have come free
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def lease(self, model: ModelFiles, *, name: str, keep_alive: KeepAlive = UNSET) -> AsyncIterator[Runner]:
        """Hold a runner of model, loading it first if need be. It is not unloaded while it is held.

        Raises Busy if too many requests wait already or its runner died too often lately, and what loading raises.
        """
        if self._requests >= self._limits.requests:
            raise Busy("server busy, please try again.  maximum pending requests exceeded")
        self._requests += 1
        try:
            entry = await self._hold(model, name)
            if keep_alive is not UNSET:
                entry.keep_alive = keep_alive
            self._set_expiry(entry)
            try:
                yield await _runner(entry)
                entry.useful = True
                self._backoff.lived(entry.key)
            finally:
                self._let_go(entry)
        finally:
            self._requests -= 1

    def loaded(self) -> list[Resident]:
        """Return what is in memory or on its way there."""
        self._bury()
        return [
            Resident(e.key, e.name, e.loading.result() if _ready(e) else None, e.expires_at)
            for e in self._entries.values()
        ]

    async def unload(self, key: str) -> bool:
        """Unload a model now if it is idle, else when its last request ends. False if it is not loaded."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        entry.keep_alive = 0
        if entry.users == 0:
            await asyncio.shield(self._discard(entry))
        return True

    async def close(self) -> None:
        """Unload everything, in use or not. Requests that wait for a model, or come later, are told Busy."""
        self._closed = True
        for entry in list(self._entries.values()):
            self._discard(entry)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _hold(self, model: ModelFiles, name: str) -> _Entry:
        """Return the entry of model with one user more, making it as soon as there is room for another."""
        self._bury()
        while (entry := self._entries.get(model.key)) is None and len(self._entries) >= self._limits.loaded:
            idle = [e for e in self._entries.values() if e.users == 0]
            if idle:
                self._discard(min(idle, key=lambda e: e.used))
            else:
                await self._changed.wait()
                self._bury()
        if self._closed:
            raise Busy(_CLOSED)
        if entry is None:
            self._backoff.check(model.key, time.monotonic())
            entry = self._entries[model.key] = self._start(model, name)
        entry.users += 1
        entry.used = next(self._clock)
        return entry

    def _start(self, model: ModelFiles, name: str) -> _Entry:
        async def load() -> Runner:
            if self._closing:  # a model that is being evicted gives its memory back before the next one takes it
                await asyncio.wait(self._closing)
            try:
                return await self._load(model)
            except RunnerDied as death:
                self._backoff.died(model.key, death, time.monotonic())
                raise

        task = asyncio.get_running_loop().create_task(load(), name=f"load {name}")
        entry = _Entry(model.key, name, task, self._limits.keep_alive)
        task.add_done_callback(lambda task: self._note_loaded(entry))
        return entry

    def _note_loaded(self, entry: _Entry) -> None:
        entry.loaded_at = time.monotonic()
        if not _ready(entry):
            self._forget(entry)

    def _bury(self) -> None:
        """Take runners that died off the list; the requests they had are told by themselves."""
        for entry in list(self._entries.values()):
            death = entry.loading.result().death if _ready(entry) else None
            if death is not None:
                if entry.useful or time.monotonic() - entry.loaded_at > STEADY_S:
                    self._backoff.lived(entry.key)
                else:
                    self._backoff.died(entry.key, death, time.monotonic())
                self._discard(entry)

    def _let_go(self, entry: _Entry) -> None:
        entry.users -= 1
        self._bury()
        if entry.users > 0 or self._entries.get(entry.key) is not entry:
            return  # in use, or on its way out
        if entry.keep_alive == 0:
            self._discard(entry)
        else:
            self._set_expiry(entry)
            self._wake()  # whoever waits for a place may evict it

    def _set_expiry(self, entry: _Entry) -> None:
        """Note when the model would go, and arm the timer if nobody uses it."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        entry.expires_at = None if entry.keep_alive is None else time.time() + entry.keep_alive
        if entry.users == 0 and entry.keep_alive is not None:
            entry.timer = asyncio.get_running_loop().call_later(entry.keep_alive, self._discard, entry)

    def _discard(self, entry: _Entry) -> asyncio.Task[None]:
        """Start to unload an entry; its key and its place are free at once. Returns the task that does it."""
        self._forget(entry)
        task = asyncio.get_running_loop().create_task(_unload(entry), name=f"unload {entry.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    def _forget(self, entry: _Entry) -> None:
        """Take an entry off the list, if it is still there."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        if entry.timer is not None:
            entry.timer.cancel()
        self._wake()

    def _wake(self) -> None:
        """Let those who wait for a place look again, in the order in which they came."""
        self._changed.set()
        self._changed = asyncio.Event()


async def _runner(entry: _Entry) -> Runner:
    """Return the runner once it is loaded. Raises what loading raised; being cancelled leaves the load alone."""
    await asyncio.wait([entry.loading])
    if entry.loading.cancelled():  # only `close` cancels a load that somebody waits for
        raise Busy(_CLOSED)
    return entry.loading.result()


async def _unload(entry: _Entry) -> None:
    """Give an entry's memory back, ending its load if that is not done."""
    entry.loading.cancel()  # changes nothing if it is done
    await asyncio.wait([entry.loading])
    if _ready(entry):
        try:
            await entry.loading.result().close()
        except Exception:
            log.exception("%s was not unloaded as it should", entry.name)


def _ready(entry: _Entry) -> bool:
    return entry.loading.done() and not entry.loading.cancelled() and entry.loading.exception() is None
