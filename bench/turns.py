"""What a picture costs that was shown before: a first turn, a second one, and another client's, over HTTP.

The server is the one that `puna serve` runs, with the model in a process of its own; it is in this process so that what
the engine has counted can be read.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
from PIL import Image

from puna.api import serve
from puna.cli.serve import RUNNER
from puna.core.kernel import Kernel
from puna.core.scheduler.inline import TextParts
from puna.core.scheduler.runner import Runner
from puna.core.scheduler.stats import EngineStats
from puna.core.settings import Address, load_settings
from puna.store import Store, digest_of
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer

from .servers import REPLY_TIMEOUT_S

TEMPLATE = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}\n{{ end }}<assistant>"
TOKENS = 8  # of each reply
POLL_S = 0.05  # between two looks whether a runner has reported

Message = dict[str, Any]  # of Ollama's API


@dataclass(frozen=True)
class Turn:
    """One request, and what the engine did for it."""

    name: str
    first_s: float  # from the request to the first text
    prompt: int  # tokens of the prompt
    computed: int  # of those that were
    recomputed: int  # not for the first time
    decoded: int  # pictures
    encoded: int
    hits: int  # pictures that were known


class Clients:
    """Clients of one model of a server in this process."""

    def __init__(self, http: httpx2.AsyncClient, runner: Runner) -> None:
        self._http, self._runner = http, runner

    async def turn(self, name: str, messages: Sequence[Message]) -> tuple[Turn, Message]:
        """Ask, and return what came of it, and the reply."""
        before = self._runner.stats
        body = {"model": "eye", "messages": messages, "options": {"temperature": 0, "num_predict": TOKENS}}
        asked, first, text, prompt = time.perf_counter(), None, "", 0
        async with self._http.stream("POST", "/api/chat", json=body) as answer:
            if not answer.is_success:
                raise RuntimeError((await answer.aread()).decode())
            async for line in answer.aiter_lines():
                first = first or time.perf_counter() - asked
                chunk = json.loads(line)
                text += chunk["message"]["content"]
                prompt = chunk.get("prompt_eval_count", prompt)
        assert first is not None, "a stream has a last line at least"
        done = _difference(before, await self._reported(before.finished + 1))
        return Turn(name, first, prompt, **done), {"role": "assistant", "content": text}

    async def _reported(self, finished: int) -> EngineStats:
        """Return the runner's own figures once they count so many replies: it sends them about once a second."""
        while self._runner.stats.finished < finished or self._runner.stats.running:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(POLL_S)
        return self._runner.stats


def _difference(before: EngineStats, after: EngineStats) -> dict[str, int]:
    return {
        "computed": after.prompt_tokens - before.prompt_tokens,
        "recomputed": after.recomputed_tokens - before.recomputed_tokens,
        "decoded": after.images.prepared - before.images.prepared,
        "encoded": after.images.encoded - before.images.encoded,
        "hits": after.images.hits - before.images.hits,
    }


async def measure(files: Mapping[str, Path], *, side: int, threads: int) -> list[Turn]:
    """Return the turns of two clients about a picture of side x side pixels, after one about another picture."""
    async with _clients(files, threads) as clients:
        await clients.turn("warm", [_question("What is it?", noise(0, side))])  # whatever happens once
        question = _question("What is it?", noise(1, side))
        first, reply = await clients.turn("first turn", [question])
        second, _ = await clients.turn("second turn", [question, reply, _question("And in one word?")])
        other, _ = await clients.turn(
            "another client", [_question("Whose hand is it that one sees in [img]?", noise(1, side))]
        )
    return [first, second, other]


def _question(text: str, *images: str) -> Message:
    return {"role": "user", "content": text, "images": list(images)}


def noise(seed: int, side: int) -> str:
    """Return a picture file in base64."""
    pixels, file = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@asynccontextmanager
async def _clients(files: Mapping[str, Path], threads: int) -> AsyncIterator[Clients]:
    """Serve the model in files on a free port, and load it."""
    with tempfile.TemporaryDirectory(prefix="puna-turns-") as folder:
        settings = replace(
            load_settings(), host=Address("http", "127.0.0.1", 0), models=Path(folder), runner="local",
            num_threads=threads, keep_alive=None,
        )  # fmt: skip
        kernel = Kernel(settings, TextParts(open_tokenizer, StopStrings, Grammars), RUNNER)
        shutdown, port = anyio.Event(), asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            serve(settings, Store(Path(folder)), kernel.models, started=port.set_result, shutdown=shutdown)
        )
        try:
            url = f"http://127.0.0.1:{await port}"
            async with httpx2.AsyncClient(base_url=url, timeout=REPLY_TIMEOUT_S, trust_env=False) as http:
                await _create(http, files)
                (resident,) = kernel.models.loaded()
                yield Clients(http, resident.runner)
        finally:
            shutdown.set()
            await server
            await kernel.close()


async def _create(http: httpx2.AsyncClient, files: Mapping[str, Path]) -> None:
    digests = {name: str(digest_of(path)) for name, path in files.items()}
    for name, path in files.items():
        (await http.post(f"/api/blobs/{digests[name]}", content=_chunks(path))).raise_for_status()
    body = {"model": "eye", "files": digests, "template": TEMPLATE, "stream": False}
    (await http.post("/api/create", json=body)).raise_for_status()
    (await http.post("/api/generate", json={"model": "eye"})).raise_for_status()  # which loads it


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            yield data
