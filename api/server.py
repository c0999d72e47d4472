"""The server process: the application behind hypercorn, on one listening socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import anyio
import hypercorn.asyncio
from hypercorn.config import Config
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.errors import Failure
from ..core.scheduler.models import Models
from ..core.settings import Address, Settings
from ..store import Store
from .app import create_app

BACKLOG = 1024
SHUTDOWN_S = 3.0  # what running replies get to finish
FAREWELL_S = 1.0  # what those that did not get to say so to their clients
STALLED_MS = 60_000  # a client that accepts nothing for so long is gone, and gives up its slot


async def serve(
    settings: Settings, store: Store, models: Models, *, started: Callable[[int], None], shutdown: anyio.Event
) -> None:
    """Serve until shutdown is set. Calls started with the port as soon as clients can connect.

    Then new connections are refused and running replies get a few seconds; those that need more end with an error, and
    what is left is cancelled. Raises Failure if the address cannot be listened on.
    """
    listener = listen(settings.host)
    port = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.backlog = BACKLOG
    config.graceful_timeout = SHUTDOWN_S + FAREWELL_S
    config.include_server_header = False
    config.loglevel = "WARNING"
    started(port)
    app = BodyDrain(create_app(settings=settings, store=store, models=models))
    # No task group: hypercorn leaves a mark of its own cancellation on the task, which a group takes for another one.
    ending = asyncio.create_task(_end_replies(models, shutdown))
    try:
        await hypercorn.asyncio.serve(app, config, shutdown_trigger=shutdown.wait, mode="asgi")  # type: ignore[arg-type]
    finally:
        ending.cancel()
        await asyncio.wait([ending])


async def _end_replies(models: Models, shutdown: anyio.Event) -> None:
    """Unload every model some time after shutdown, which ends the replies that are not done by then."""
    await shutdown.wait()
    await anyio.sleep(SHUTDOWN_S)
    await models.close()


def listen(address: Address) -> socket.socket:
    """Return a socket that already queues connections to address. Raises Failure if that is not possible."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, where = found[0]
        dual = family == socket.AF_INET6 and address.host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(where[:2], family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        raise Failure(f"cannot listen on {address.host}:{address.port}: {error.strerror or error}") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
    return listener


class BodyDrain:
    """ASGI middleware that lets an endpoint answer before it has read the whole body.

    Hypercorn queues a few pieces of a body and then waits, forever, for an application that is already done with it.
    So what arrives while the last part of a response is being sent is read and dropped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with a `send` that drains."""

        async def draining_send(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            broken: OSError | None = None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_drain, receive)
                try:
                    await send(message)
                except OSError as error:  # carried out of the task group, which would wrap it
                    broken = error
                tasks.cancel_scope.cancel()
            if broken is not None:
                raise broken

        await self._app(scope, receive, draining_send)


async def _drain(receive: Receive) -> None:
    while True:
        await receive()
