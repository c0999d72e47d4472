"""A runner inside this process: the engine's thread, bridged to asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Ids
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadRequest, RunnerDied, Unsupported
from ..memory.allocation import give_back_freed_memory, use_one_heap
from ..model import LoadedModel, find_architecture, load_model
from ..plugin import Architecture, Encoder
from ..protocols import Grammar, Grammars, StopRule, Tokenizer
from ..tensor.cpu import CpuLoader
from ..tensor.mapped import MappedBytes
from ..tensor.source import WeightSource
from ..tensor.team import TEAM
from ..tensor.weights import open_weights
from .draft import check_same_tokens, speaking_of_draft
from .engine import Engine, EngineOptions
from .grammars import GrammarThread
from .messages import Event, Finished, Generate, Media, Piece, Sight
from .outbox import Outbox
from .reply import Reply
from .runner import RunnerFacts
from .sequence import Sequence
from .spans import Spans
from .stats import EngineStats
from .viewer import Viewer


@dataclass(frozen=True)
class TextParts:
    """What the engine needs from the text side, put in from outside the core."""

    open_tokenizer: Callable[[WeightSource], Tokenizer]
    stop_rule: Callable[[Ids[str]], StopRule]
    open_grammars: Callable[[Tokenizer, frozenset[int]], Grammars]  # the ids: those that end a reply


Files = Path | dict[str, Path]  # a file or folder, or the original names of files and where their bytes lie


class InlineRunner:
    """A loaded model in this process (`puna.core.scheduler.runner.Runner`)."""

    def __init__(
        self,
        files: Files,
        architectures: Ids[Architecture],
        text: TextParts,
        options: EngineOptions,
        *,
        draft: Files | None = None,
    ) -> None:
        """Load a model, and the small one that guesses ahead for it, if any. Blocks: call it off the event loop."""

        self._mapped = MappedBytes()
        loader = CpuLoader(precise=options.precise, mapped=self._mapped if options.mapped else None)

        def load(files: Files) -> tuple[LoadedModel, Tokenizer]:
            return _load(files, architectures, text.open_tokenizer, loader)

        use_one_heap()
        TEAM.resize(options.threads)  # which pack the weights, too
        model, self._tokenizer = load(files)
        guessing = None
        if draft and options.speculate:
            with speaking_of_draft():
                guessing, its_tokenizer = load(draft)
                check_same_tokens(self._tokenizer, its_tokenizer)
        give_back_freed_memory()
        self._stop_ids = _stop_ids(self._tokenizer, model.architecture)
        self._stop_rule = text.stop_rule
        weight_bytes = model.weight_bytes + (guessing.weight_bytes if guessing else 0)
        self._grammars = GrammarThread(text.open_grammars(self._tokenizer, self._stop_ids))
        encoder = model.vision
        self._facts = RunnerFacts(
            model.architecture.name,
            model.config.context_length,
            model.config.vocabulary,
            weight_bytes,
            encoder.media if encoder else frozenset(),
            encoder.marker if encoder else "",
        )
        self._engine = Engine(model, self._tokenizer, options=options, draft=guessing)
        self._streams = model.architecture.streams
        self._viewer = Viewer(encoder, self._engine.images, self._placeholder(encoder)) if encoder else None

    @property
    def facts(self) -> RunnerFacts:
        """What was loaded."""
        return self._facts

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights, of key/value cache, and of images and what became of them, in use now.

        Of weights that stay in their file, as much as the system has in memory for this process.
        """
        weight_bytes = self._facts.weight_bytes + self._mapped.resident
        return weight_bytes + self._engine.stats.resident_bytes + self._engine.images.alive_bytes

    @property
    def stats(self) -> EngineStats:
        """What was done, and what is held now."""
        return self._engine.stats

    @property
    def death(self) -> RunnerDied | None:
        """None: it ends with this process only."""
        return None

    async def tokenize(self, text: str, *, special: bool = True, start: bool = True) -> list[int]:
        """Return the token ids of text."""
        return await asyncio.to_thread(self._tokenizer.encode, text, special=special, start=start)

    async def detokenize(self, tokens: Ids[int]) -> str:
        """Return the text of tokens. Raises BadRequest for ids outside the vocabulary."""
        self._check(tokens)
        return await asyncio.to_thread(self._tokenizer.decode, tokens, special=True)

    async def look(self, media: Media) -> Sight:
        """Return what stands for media in a prompt. Raises BadRequest."""
        if self._viewer is None:
            raise Unsupported("this model reads no images")
        return await self._viewer.look(media)

    async def generate(self, request: Generate) -> AsyncGenerator[Piece | Finished, None]:
        """Yield the reply's pieces and, last, a Finished."""
        if not request.prompt:
            raise BadRequest("the prompt has no tokens")
        self._check(request.prompt)
        async with AsyncExitStack() as held:
            spans = None
            if request.media:
                if self._viewer is None:
                    raise Unsupported("this model reads no images")
                spans = Spans(await self._viewer.place(request, held), self._streams)
            async with aclosing(self._generate(request, spans)) as events:
                async for event in events:
                    yield event

    async def _generate(self, request: Generate, spans: Spans | None) -> AsyncGenerator[Piece | Finished, None]:
        grammar = None if request.schema is None else await self._grammars.open(request.schema)
        outbox = Outbox()

        def emit(event: Event) -> None:
            if not outbox.put(event):
                self._engine.cancel(sequence)

        sequence = self._sequence(request, spans, grammar, emit)
        self._engine.submit(sequence)
        try:
            async for event in outbox:
                yield event
        finally:
            self._engine.cancel(sequence)

    async def close(self) -> None:
        """End every reply and give all memory back."""
        await asyncio.to_thread(self._engine.close)
        await asyncio.to_thread(self._grammars.close)
        if self._viewer is not None:
            self._viewer.close()

    def _sequence(
        self, request: Generate, spans: Spans | None, grammar: Grammar | None, emit: Callable[[Event], None]
    ) -> Sequence:
        reply = Reply(
            self._tokenizer.detokenizer(request.prompt),
            self._stop_rule(request.stop),
            self._stop_ids,
            request.max_tokens,
        )
        guesser = self._engine.new_guesser(grammar)
        table = self._engine.new_table(spans)
        return Sequence(request, reply, table, emit, guesser=guesser, grammar=grammar, spans=spans)

    def _placeholder(self, encoder: Encoder) -> int:
        """Return the id that stands for a row of an image. Some vocabularies have none, or no embedding for it."""
        ids = self._tokenizer.encode(encoder.placeholder, special=True, start=False)
        return ids[0] if len(ids) == 1 and ids[0] < self._facts.vocabulary else 0

    def _check(self, tokens: Ids[int]) -> None:
        for token in tokens:
            if not 0 <= token < self._facts.vocabulary:
                raise BadRequest(f"token {token} is outside the model's vocabulary of {self._facts.vocabulary}")


def _load(
    files: Files,
    architectures: Ids[Architecture],
    open_tokenizer: Callable[[WeightSource], Tokenizer],
    loader: CpuLoader,
) -> tuple[LoadedModel, Tokenizer]:
    """Return a model and its tokenizer, which is opened meanwhile: weights are packed without Python's lock."""
    with closing(open_weights(files)) as source, ThreadPoolExecutor(1, "puna-tokenizer") as beside:
        architecture = find_architecture(architectures, source)
        # Kernels are loaded with the lock held, so before the tokenizer wants it too.
        loader.get_ready({info.format for info in source.tensors.values() if len(info.shape) > 1})
        tokenizer = beside.submit(open_tokenizer, source)
        return load_model(architecture, source, loader), tokenizer.result()


def _stop_ids(tokenizer: Tokenizer, architecture: Architecture) -> frozenset[int]:
    """Return the ids that end a reply: the tokenizer's, and those of the architecture's that this vocabulary has."""
    extra = [tokenizer.encode(name, special=True, start=False) for name in architecture.stop_tokens]
    return tokenizer.stop_ids | {ids[0] for ids in extra if len(ids) == 1}
