"""Many clients at once, over HTTP: `python -m bench.load --model FILE.gguf --clients 64 --seconds 60 [--peer]`.

Clients share system prompts, ask questions and want replies of mixed lengths, and some leave in the middle. Other
measurements, instead of that one: --prefix, --beside, --soak. Each server has the machine to itself while it is
measured; with --peer, llama.cpp's takes turns with Puna's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from puna.core.tensor.threads import default_threads

from .servers import Messages, Refused, Server, Setting, llama_server, puna_server, resident_bytes

WORDS = (
    "water", "stone", "river", "light", "garden", "winter", "paper", "window", "number", "letter", "music", "morning",
    "question", "answer", "table", "road",
)  # fmt: skip
SYSTEMS = [50, 200, 200, 800]  # tokens of the system prompts that clients share
QUESTIONS = [10, 40, 150, 500]  # tokens
REPLIES = [16, 64, 128]  # tokens
LEAVERS = 0.05  # share of requests whose client leaves in the middle
STREAMS = 4  # replies that run beside a long prompt
SETTLE = 0.2  # share of the requests of a soak after which memory is watched
PROBE = 100  # words of the prompt that tells how many tokens a word has


# --- what clients hear ------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """One reply as its client saw it, times in seconds."""

    asked: float
    parts: list[float] = field(default_factory=list)  # when each part with text came
    ended: float = 0.0
    tokens: int = 0
    left: bool = False
    error: str | None = None

    @property
    def first_s(self) -> float:
        """Time to the first token that has a text; to the end, if none has."""
        return (self.parts[0] if self.parts else self.ended) - self.asked

    def gaps(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Return the times from part to part, of those parts that came within a stretch of time."""
        return [b - a for a, b in itertools.pairwise(self.parts) if since <= a and b <= until]


async def listen(server: Server, messages: Messages, max_tokens: int, *, heard: Heard, leave_after: int = 0) -> Heard:
    """Ask and hear the reply, or its first parts only; return `heard`, which is filled meanwhile."""
    try:
        async with aclosing(server.reply(messages, max_tokens)) as parts:  # type: ignore[type-var]
            async for part in parts:
                if part.text:
                    heard.parts.append(time.perf_counter())
                if part.tokens is not None:
                    heard.tokens = part.tokens[1]
                if leave_after and len(heard.parts) >= leave_after:
                    heard.left = True
                    break
    except (Refused, httpx2.HTTPError) as error:
        heard.error = f"{type(error).__name__}: {error}"
    heard.ended = time.perf_counter()
    heard.tokens = heard.tokens or len(heard.parts)
    return heard


async def ask(server: Server, messages: Messages, max_tokens: int, leave_after: int = 0) -> Heard:
    """Ask now and return what was heard."""
    return await listen(server, messages, max_tokens, heard=Heard(time.perf_counter()), leave_after=leave_after)


def words(rng: random.Random, count: int) -> str:
    """Return a text of so many words."""
    return " ".join(rng.choices(WORDS, k=count))


async def words_per_token(server: Server) -> float:
    """Return how many words a token of the model has."""
    text = words(random.Random(0), PROBE)
    with_text, without = [await server.prompt_tokens(chat(system, "?")) for system in (text, "")]
    return PROBE / (with_text - without)


def chat(system: str, question: str) -> Messages:
    """Return a conversation of one question."""
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


# --- load -------------------------------------------------------------------------------------------------------------


class Visitors:
    """Clients that come again and again, each with its own questions. Equal seeds ask alike."""

    def __init__(self, server: Server, seed: int, per_token: float) -> None:
        """per_token: words."""
        self._server, self._rng, self._per_token = server, random.Random(seed), per_token
        self._systems = [self._text(random.Random(i), tokens) for i, tokens in enumerate(SYSTEMS)]
        self.heard: list[Heard] = []

    def _text(self, rng: random.Random, tokens: int) -> str:
        return words(rng, max(1, round(tokens * self._per_token)))

    async def come(self, clients: int, more: Callable[[int], bool], seconds: float | None = None) -> None:
        """Have clients ask for as long as there are more requests to make; when the seconds are over, all leave."""
        asking = [asyncio.create_task(self._client(more)) for _ in range(clients)]
        done, pending = await asyncio.wait(asking, timeout=seconds)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()  # raises what went wrong in it

    async def _client(self, more: Callable[[int], bool]) -> None:
        while more(len(self.heard)):
            rng, heard = self._rng, Heard(time.perf_counter())
            self.heard.append(heard)
            messages = chat(rng.choice(self._systems), self._text(rng, rng.choice(QUESTIONS)))
            tokens = rng.choice(REPLIES)
            leaves = rng.randint(1, 5) if rng.random() < LEAVERS else 0
            await listen(self._server, messages, tokens, heard=heard, leave_after=leaves)


async def load(server: Server, arguments: Any, run: int) -> dict[str, list[float]]:
    """Return what many clients saw: the first-token and the inter-token times in ms, and sums in lists of one."""
    visitors = Visitors(server, run, await words_per_token(server))
    await visitors.come(arguments.clients, lambda made: True, arguments.seconds)
    good = [heard for heard in visitors.heard if heard.error is None]
    begun = [heard for heard in good if heard.parts]
    for error in sorted({heard.error for heard in visitors.heard if heard.error is not None}):
        print(f"  error: {error[:200]}")
    return {
        "tokens/s": [sum(heard.tokens or len(heard.parts) for heard in good) / arguments.seconds],
        "requests": [len(good)],
        "ended": [sum(heard.ended > 0 for heard in good)],
        "left": [sum(heard.left for heard in good)],
        "errors": [len(visitors.heard) - len(good)],
        "first token ms": [1000 * heard.first_s for heard in begun],
        "inter-token ms": [1000 * gap for heard in begun for gap in heard.gaps()],
    }


# --- special measurements ---------------------------------------------------------------------------------------------


async def prefix(server: Server, arguments: Any, run: int) -> dict[str, list[float]]:
    """Return how long two clients wait whose prompts begin with the same tokens, one after the other."""
    rng = random.Random(f"prefix {run}")
    shared = words(rng, int(arguments.prefix * await words_per_token(server)))
    first, second = [await ask(server, chat(shared, words(rng, 5)), 4) for _ in range(2)]
    for heard in (first, second):
        if heard.error is not None:
            raise RuntimeError(f"no reply to a prompt of {arguments.prefix} tokens: {heard.error}")
    return {
        "first client ms": [1000 * first.first_s],
        "second client ms": [1000 * second.first_s],
        "times sooner": [first.first_s / second.first_s],
    }


async def beside(server: Server, arguments: Any, run: int) -> dict[str, list[float]]:
    """Return the inter-token times of running replies, undisturbed and while a long prompt is read."""
    rng = random.Random(f"beside {run}")
    long = chat(words(rng, int(arguments.beside * await words_per_token(server))), "?")
    running: list[Heard] = []
    streams = [asyncio.create_task(_stream_on(server, words(rng, 20), running)) for _ in range(STREAMS)]
    await asyncio.sleep(arguments.seconds / 2)  # until all have begun
    quiet = time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    asked = time.perf_counter()
    reading = await ask(server, long, 1)
    read = time.perf_counter()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    if reading.error is not None:
        raise RuntimeError(f"no reply to a prompt of {arguments.beside} tokens: {reading.error}")
    undisturbed = [1000 * gap for heard in running for gap in heard.gaps(quiet, asked)]
    disturbed = [1000 * gap for heard in running for gap in heard.gaps(asked, read)]
    if not undisturbed or not disturbed:
        raise RuntimeError("no replies ran: more --seconds, or a longer prompt")
    return {
        "prompt read in s": [read - asked],
        "undisturbed ms": undisturbed,
        "beside the prompt ms": disturbed,
        "p95 times longer": [float(np.percentile(disturbed, 95) / np.percentile(undisturbed, 95))],
    }


async def _stream_on(server: Server, question: str, running: list[Heard]) -> None:
    for turn in itertools.count():
        running.append(Heard(time.perf_counter()))
        await listen(server, chat("Go on.", f"{question} {turn}"), 1024, heard=running[-1])


async def soak(server: Server, arguments: Any, run: int) -> dict[str, list[float]]:
    """Return how memory grows from request to request, once the first of them have warmed the server up."""
    visitors, seen = Visitors(server, run, await words_per_token(server)), []

    def more(made: int) -> bool:
        if made >= arguments.soak * SETTLE:
            seen.append((made, resident_bytes(server.pid)))
        return made < arguments.soak

    await visitors.come(arguments.clients, more)
    made, resident = np.array(seen, np.float64).T
    slope = np.polyfit(made, resident, 1)[0] if np.ptp(made) > 0 else 0.0
    return {
        "requests": [len(visitors.heard)],
        "errors": [sum(heard.error is not None for heard in visitors.heard)],
        "resident MB": [resident[0] / 1e6, resident[-1] / 1e6],
        "bytes a request": [float(slope)],
    }


# --- the report -------------------------------------------------------------------------------------------------------

Measurement = Callable[[Server, Any, int], Coroutine[Any, Any, dict[str, list[float]]]]
Start = Callable[[Setting], AbstractContextManager[Server]]


def figure(values: list[float]) -> str:
    """Return the values of one row for the eye: one as it is, a few as a range, many as percentiles."""
    if len(values) <= 10:
        return " to ".join(f"{value:.4g}" for value in dict.fromkeys((min(values), max(values)))) if values else "none"
    marks = ", ".join(f"p{mark} {np.percentile(values, mark):.4g}" for mark in (50, 95, 99))
    return f"{marks} of {len(values)}"


def show(name: str, rows: dict[str, list[float]]) -> None:
    """Print what was measured of one server."""
    print(name)
    for row, values in rows.items():
        print(f"  {row:22} {figure(values)}", flush=True)


def measure(
    measurement: Measurement, start: Start, setting: Setting, arguments: Any, run: int
) -> dict[str, list[float]]:
    """Start a server, measure it once, and stop it."""

    async def measured(server: Server) -> dict[str, list[float]]:
        await ask(server, chat("Be brief.", "Hello?"), 8)  # loads the model
        return await measurement(server, arguments, run)

    with start(setting) as server:
        return asyncio.run(measured(server))


def read_arguments() -> Any:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30, help="for which clients come, or replies run undisturbed")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each server, in turns")
    parser.add_argument("--peer", action="store_true", help="measure llama.cpp's server too")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--places", type=int, default=8, help="replies that Puna computes at once")
    parser.add_argument("--context", type=int, default=16384, help="tokens of one reply, prompt included")
    special = parser.add_mutually_exclusive_group()
    special.add_argument("--prefix", type=int, nargs="?", const=4096, help="a prompt that begins as another's did")
    special.add_argument("--beside", type=int, nargs="?", const=8192, help="replies beside a long prompt")
    special.add_argument("--soak", type=int, help="how memory grows over so many requests")
    return parser.parse_args()


def main() -> None:
    """Measure as the command line says."""
    arguments = read_arguments()
    wanted = {"prefix": prefix, "beside": beside, "soak": soak}
    measurement = next((made for name, made in wanted.items() if getattr(arguments, name)), load)
    setting = Setting(arguments.model, arguments.context, arguments.places, arguments.threads)
    starts: dict[str, Start] = {"Puna": puna_server, **({"llama.cpp": llama_server} if arguments.peer else {})}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in starts}
    for run in range(arguments.repeats):
        for name in starts if run % 2 == 0 else reversed(starts):
            for row, values in measure(measurement, starts[name], setting, arguments, run).items():
                found[name].setdefault(row, []).extend(values)
    for name, rows in found.items():
        show(name, rows)


if __name__ == "__main__":
    main()
