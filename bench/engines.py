"""The engines under comparison, each behind the same calls: one greedy reply, or several at once, timed.

Each imports its engine only when it is made, so that the memory of a process is that of one engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from puna.core.scheduler.messages import Finished, Generate

BATCH = 512  # prompt tokens in one pass


@dataclass(frozen=True)
class Setting:
    """What an engine is made for."""

    threads: int
    context: int  # tokens that one reply may hold, prompt included
    sequences: int = 1  # replies at once
    long: bool = False  # whether replies follow long prompts
    speculate: bool = False  # whether tokens are guessed ahead


@dataclass(frozen=True)
class Reply:
    """How long the two phases of a reply took, in seconds."""

    prompt_s: float  # until the first token was sampled
    decode_s: float  # from then on
    decoded: int  # tokens in decode_s

    @property
    def rate(self) -> float:
        """Tokens per second after the first one."""
        return self.decoded / self.decode_s


class Engine(Protocol):
    """A loaded model, alone in its process. The end token ends no reply, so each has the length asked for."""

    def reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        """Generate a first token and `tokens` more, and time it."""

    def together(self, prompts: Sequence[int], tokens: int) -> float:
        """Continue several prompts of one token each at once, by `tokens` tokens; return all tokens per second."""


class Puna:
    """Puna's engine in this process, as the server runs it: step loop, sampler and detokenizer, without HTTP.

    Weights are where `PUNA_WEIGHTS` says.
    """

    def __init__(self, path: Path, setting: Setting) -> None:
        from puna.core.kernel import find_plugins
        from puna.core.scheduler.engine import EngineOptions
        from puna.core.scheduler.inline import InlineRunner, TextParts
        from puna.core.scheduler.plan import Limits
        from puna.core.settings import read_setting
        from puna.text.grammars import Grammars
        from puna.text.tokenizers import open_tokenizer

        plugins = find_plugins()
        endless = [replace(architecture, stop_tokens=()) for plugin in plugins for architecture in plugin.architectures]
        text = TextParts(lambda source: Endless(open_tokenizer(source)), lambda _: NoStops(), Grammars)
        options = EngineOptions(
            Limits(BATCH, setting.sequences),
            setting.threads,
            "f16",
            setting.sequences * setting.context,
            speculate=setting.speculate,
            mapped=read_setting("weights") == "mmap",
        )
        self._loop = asyncio.Runner()
        self._runner = InlineRunner(path, endless, text, options)
        self._context = setting.context

    def reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        """Generate a first token and `tokens` more."""
        return self._loop.run(self._reply(prompt, tokens))

    def together(self, prompts: Sequence[int], tokens: int) -> float:
        """Submit all prompts at once; the clock runs from the first token of any reply to the last of any."""

        async def timed(token: int) -> tuple[float, float]:
            reply = await self._reply([token], tokens)
            end = time.perf_counter()
            return end - reply.decode_s, end

        async def replies() -> list[tuple[float, float]]:
            return await asyncio.gather(*[timed(token) for token in prompts])

        starts, ends = zip(*self._loop.run(replies()), strict=True)
        return len(prompts) * tokens / (max(ends) - min(starts))

    def side_by_side(self, requests: Sequence[Generate]) -> list[Finished]:
        """Answer requests of any kind at once; return what is known of each at its end."""

        async def replies() -> list[Finished]:
            return await asyncio.gather(*[self._finish(request) for request in requests])

        return self._loop.run(replies())

    async def _reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        from puna.core.scheduler.messages import Generate
        from puna.core.tensor.sampling import SamplingParams

        greedy = SamplingParams(temperature=0)
        request = Generate(prompt=list(prompt), sampling=greedy, max_tokens=tokens + 1, num_ctx=self._context)
        end = await self._finish(request)
        return Reply(end.prompt_ns / 1e9, end.decode_ns / 1e9, end.tokens - 1)

    async def _finish(self, request: Generate) -> Finished:
        from puna.core.scheduler.messages import Finished

        async for event in self._runner.generate(request):
            if isinstance(event, Finished):
                return event
        raise AssertionError("a generation ends with Finished or an error")


class Endless:
    """A tokenizer with no token that ends a reply (`puna.core.protocols.Tokenizer`)."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class NoStops:
    """The stop rule of a reply without stop strings (`puna.core.protocols.StopRule`)."""

    def push(self, text: str) -> tuple[str, bool]:
        """Let all text through."""
        return text, False

    def flush(self) -> str:
        """Return what was held back: nothing."""
        return ""


class LlamaCpp:
    """llama.cpp: its decode call and an arg-max of the logits, without a sampler or a detokenizer.

    Its flash attention reads prompts faster, by half at 2,048 tokens, but replies behind long prompts are several times
    slower with it: each measurement gets the faster one.
    """

    def __init__(self, path: Path, setting: Setting) -> None:
        from .llama import LlamaModel

        self._model = LlamaModel(
            path, setting.threads, context=setting.context, sequences=setting.sequences, flash=not setting.long
        )

    def reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        """Generate a first token and `tokens` more."""
        self._model.clear()
        start = time.perf_counter()
        for at in range(0, len(prompt), BATCH):
            (token,) = self._next([prompt[at : at + BATCH]], at)
        first = time.perf_counter()
        for position in range(len(prompt), len(prompt) + tokens):
            (token,) = self._next([[token]], position)
        return Reply(first - start, time.perf_counter() - first, tokens)

    def together(self, prompts: Sequence[int], tokens: int) -> float:
        """Compute one token of every sequence in each pass."""
        self._model.clear()
        last = self._next([[token] for token in prompts], 0)
        start = time.perf_counter()
        for position in range(1, tokens + 1):
            last = self._next([[token] for token in last], position)
        return len(prompts) * tokens / (time.perf_counter() - start)

    def _next(self, rows: Sequence[Sequence[int]], position: int) -> list[int]:
        """Read the tokens of each sequence from a position on and return the likeliest to follow each."""
        from .llama import Token

        ends, batch = [], []
        for sequence, row in enumerate(rows):
            batch += [Token(token, position + i, sequence, i == len(row) - 1) for i, token in enumerate(row)]
            ends.append(len(batch) - 1)
        self._model.decode(batch)
        return [int(self._model.logits(end).argmax()) for end in ends]


ENGINES: dict[str, type[Puna] | type[LlamaCpp]] = {"puna": Puna, "llama.cpp": LlamaCpp}
