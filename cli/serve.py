"""`puna serve`: the server, in the foreground."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys
from typing import cast

import anyio

from .. import __version__
from ..api.server import serve
from ..core.converting import Converter
from ..core.kernel import Kernel
from ..core.scheduler.inline import TextParts
from ..core.settings import Settings
from ..core.tensor.tiles import ElementType
from ..core.tensor.warmup import jobs, missing
from ..store import Store
from ..text.grammars import Grammars
from ..text.stops import StopStrings
from ..text.tokenizers import open_tokenizer, tokenizer_keys
from .warmup import make_ready

log = logging.getLogger("puna.serve")

RUNNER = "puna.cli.runner"  # what the process of a model runs

_EXPOSED = """\
WARNING: Puna listens on {host}, not only on this machine. It asks for no password: whoever reaches
WARNING: port {port} can use, change and delete your models. PUNA_HOST=127.0.0.1 keeps it to yourself.
"""


def run_server(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises Failure if the address cannot be listened on."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("hypercorn.error").propagate = False  # it writes its own lines
    logging.getLogger("puna").setLevel(logging.DEBUG if settings.debug else logging.INFO)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    shutdown = _on_signal()
    kernel = Kernel(settings, TextParts(open_tokenizer, StopStrings, Grammars), RUNNER)
    store = Store(settings.models, Converter(kernel.architectures, tokenizer_keys))
    await asyncio.to_thread(_tidy, store, prune=not settings.noprune)
    wanted = jobs(elements={"f32", cast("ElementType", settings.kv_cache_type)})
    if settings.runner == "inline" or missing(wanted):  # else this process computes nothing
        await asyncio.to_thread(make_ready, wanted)
    try:
        await serve(settings, store, kernel.models, started=lambda port: announce(settings, port), shutdown=shutdown)
    finally:
        await kernel.close()


def _tidy(store: Store, *, prune: bool) -> None:
    store.adopt()
    if prune:
        for name in store.prune():
            log.info("deleted %s, which no model uses", name)


def _on_signal() -> anyio.Event:
    """Return an event that the first SIGINT or SIGTERM sets; the second one ends the process at once."""
    shutdown = anyio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.info("shutting down; once more to quit at once")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        shutdown.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return shutdown


def announce(settings: Settings, port: int) -> None:
    """Say on stdout that clients can connect, and on stderr what the operator should know."""
    host = settings.host.host
    where = f"[{host}]" if ":" in host else host
    print(f"Puna {__version__} listens on http://{where}:{port}, models are in {settings.models}", flush=True)
    if is_exposed(host):
        sys.stderr.write(_EXPOSED.format(host=host, port=port))


def is_exposed(host: str) -> bool:
    """Return whether other machines may reach a server that listens on host."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")
