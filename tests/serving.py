"""A live server on a free port for tests: the real application and store, with a scripted runner or the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import anyio
import httpx2
import msgspec

from puna.api import serve
from puna.cli.serve import RUNNER
from puna.core.converting import Converter
from puna.core.errors import BadRequest, Failure
from puna.core.kernel import Kernel, find_plugins
from puna.core.scheduler.inline import TextParts
from puna.core.scheduler.messages import Finished, Generate, Media, Piece, SampledLogprob, Sight, TokenLogprob
from puna.core.scheduler.models import ModelLimits, Models
from puna.core.scheduler.runner import RunnerFacts
from puna.core.scheduler.stats import EngineStats
from puna.core.settings import Address, Settings
from puna.store import CreateRequest, Store, digest_of
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer, tokenizer_keys

FIXTURES = Path(__file__).parent / "fixtures"
GGUF = FIXTURES / "llama-bpe" / "gguf" / "model-f32.gguf"
PROJECTOR = FIXTURES / "gemma3-vl" / "gguf" / "mmproj-f32.gguf"
CHECKPOINT = FIXTURES / "llama-bpe" / "hf"


ROW = "\ufffc"  # the token that stands for a row of an image


@dataclass
class ScriptedRunner:
    """A runner whose tokens are characters and whose replies are written beforehand."""

    words: Sequence[str] = ("Hello", " there", ".")
    failure: Failure | None = None  # raised after `fails_after` words
    fails_after: int = 0
    endless: bool = False  # goes on with the last word until the reply is cancelled
    reason: str = "stop"
    context_length: int = 1024
    media: frozenset[str] = frozenset()  # what it reads besides text: "image", "video"
    image_marker: str = ""
    looked: list[Media] = field(default_factory=list)
    seen: list[Generate] = field(default_factory=list)
    running: int = 0  # replies in progress
    ended: anyio.Event = field(default_factory=anyio.Event)  # a reply was over, one way or another
    closed: bool = False

    death = None
    memory_bytes = 1234
    stats = EngineStats()

    @property
    def facts(self) -> RunnerFacts:
        return RunnerFacts("scripted", self.context_length, 0x110000, 1000, self.media, self.image_marker)

    @property
    def prompt(self) -> str:
        """The text of the last prompt."""
        return "".join(map(chr, self.seen[-1].prompt))

    @property
    def shown(self) -> str:
        """The same with the images in it: the contents of each where its rows begin."""
        text, request = self.prompt, self.seen[-1]
        for placed in reversed(request.media):
            for start, count in reversed(placed.at):
                assert text[start : start + count] == ROW * count
                text = text[:start] + b"+".join(placed.media.frames).decode() + text[start + count :]
        return text

    async def tokenize(self, text: str, *, special: bool = True, start: bool = True) -> list[int]:
        return [ord(character) for character in text]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        if not all(0 <= token < 0x110000 for token in tokens):
            raise BadRequest("token outside the vocabulary")
        return "".join(map(chr, tokens))

    async def look(self, media: Media) -> Sight:
        """Return a sight of one stretch of rows for each frame, as many rows as it has bytes."""
        self.looked.append(media)
        if any(frame == b"broken" for frame in media.frames):
            raise BadRequest("an image is damaged: it cannot be decoded")
        stretches = [piece for frame in media.frames for piece in (len(frame), "|")]
        return Sight(["\n(", *stretches[:-1], ")\n"], ord(ROW))

    async def generate(self, request: Generate) -> AsyncGenerator[Piece | Finished, None]:
        self.seen.append(request)
        self.running += 1
        try:
            for number, word in enumerate(self.words):
                if self.failure is not None and number == self.fails_after:
                    raise self.failure
                yield self._piece(word, request)
            if self.failure is not None:
                raise self.failure
            while self.endless:
                await asyncio.sleep(0)
                yield self._piece(self.words[-1], request)
            yield Finished(
                reason=self.reason, prompt_tokens=len(request.prompt), prompt_ns=5, tokens=len(self.words), decode_ns=7
            )
        finally:
            self.running -= 1
            self.ended.set()

    def _piece(self, word: str, request: Generate) -> Piece:
        if request.logprobs is None:
            return Piece(word, [1])
        token = TokenLogprob(1, word, word.encode(), -0.5)
        return Piece(word, [1], [SampledLogprob(token, [token] * request.logprobs)])

    async def close(self) -> None:
        self.closed = True


@dataclass
class Live:
    """A running server."""

    url: str
    settings: Settings
    store: Store
    models: Models
    http: httpx2.AsyncClient  # without time-outs that a slow machine could hit


@cache
def converter() -> Converter:
    """Return what converts models of the installed architectures."""
    return Converter([a for report in find_plugins() for a in report.architectures], tokenizer_keys)


@asynccontextmanager
async def running_server(
    root: Path, runner: ScriptedRunner | None = None, *, local: bool = False, **settings: object
) -> AsyncIterator[Live]:
    """Serve a store in root on a free port: with runner for every model, or else with the real engine.

    That runs inline, unless local asks for a process for each model, as `puna serve` has it.
    """
    where = "local" if local else "inline"
    chosen = replace(Settings(host=Address("http", "127.0.0.1", 0), models=root, runner=where), **settings)
    async with _models(chosen, runner) as models, anyio.create_task_group() as tasks:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        shutdown = anyio.Event()
        store = Store(root, converter())
        tasks.start_soon(_serve, chosen, store, models, port, shutdown)
        url = f"http://127.0.0.1:{await port}"
        async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            yield Live(url, chosen, store, models, http)
        shutdown.set()


async def _serve(
    settings: Settings, store: Store, models: Models, port: asyncio.Future[int], shutdown: anyio.Event
) -> None:
    await serve(settings, store, models, started=port.set_result, shutdown=shutdown)


@asynccontextmanager
async def _models(settings: Settings, runner: ScriptedRunner | None) -> AsyncIterator[Models]:
    if runner is None:
        kernel = Kernel(settings, TextParts(open_tokenizer, StopStrings, Grammars), RUNNER)
        try:
            yield kernel.models
        finally:
            await kernel.close()
        return

    async def load(model: object) -> ScriptedRunner:
        return runner

    models = Models(load, ModelLimits(settings.max_loaded_models, settings.max_queue, settings.keep_alive))
    try:
        yield models
    finally:
        await models.close()


async def make_model(store: Store, name: str, *, sees: bool = False, **fields: object) -> None:
    """Put the small Llama model into the store, with whatever else the request says. sees: beside it a projector."""
    files = {"model.gguf": GGUF} | ({"mmproj.gguf": PROJECTOR} if sees else {})
    digests = {file: await upload(store, path) for file, path in files.items()}
    request = msgspec.convert({"model": name, "files": digests} | fields, CreateRequest)
    await anyio.to_thread.run_sync(lambda: list(store.create(request)))


async def upload(store: Store, path: Path) -> str:
    """Put a file into the store and return its digest."""
    digest, data = str(digest_of(path)), await anyio.Path(path).read_bytes()

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    await store.add_blob(digest, chunks())
    return digest
