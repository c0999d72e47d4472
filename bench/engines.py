"""The engines under comparison, each behind the same call: one greedy reply, timed.

Each imports its engine only when it is made, so that the memory of a process is that of one engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

CONTEXT = 1024  # tokens; holds the longest prompt and its reply
BATCH = 512  # prompt tokens in one pass


@dataclass(frozen=True)
class Reply:
    """How long the two phases of a reply took, in seconds."""

    prompt_s: float  # until the first token was sampled
    decode_s: float  # from then on
    decoded: int  # tokens in decode_s


class Engine(Protocol):
    """A loaded model, alone in its process."""

    def reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        """Generate a first token and up to `tokens` more, and time it."""


class Puna:
    """Puna's engine in this process, as the server runs it: step loop, sampler and detokenizer, without HTTP."""

    def __init__(self, path: Path, threads: int) -> None:
        from puna.core.kernel import find_plugins
        from puna.core.scheduler.inline import EngineOptions, InlineRunner, TextParts
        from puna.core.scheduler.plan import Limits
        from puna.text.tokenizers import open_tokenizer

        architectures = [architecture for plugin in find_plugins() for architecture in plugin.architectures]
        text = TextParts(open_tokenizer, lambda _: NoStops())
        options = EngineOptions(Limits(step_tokens=BATCH, sequences=1), threads, cache_type="f16")
        self._loop = asyncio.Runner()
        self._runner = InlineRunner(path, architectures, text, options)

    def reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        """Generate a first token and up to `tokens` more: fewer if the model ends its turn."""
        return self._loop.run(self._reply(prompt, tokens))

    async def _reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        from puna.core.scheduler.messages import Finished, Generate
        from puna.core.tensor.sampling import SamplingParams

        greedy = SamplingParams(temperature=0)
        request = Generate(prompt=list(prompt), sampling=greedy, max_tokens=tokens + 1, num_ctx=CONTEXT)
        async for event in self._runner.generate(request):
            if isinstance(event, Finished):
                return Reply(event.prompt_ns / 1e9, event.decode_ns / 1e9, event.tokens - 1)
        raise AssertionError("a generation ends with Finished or an error")


class NoStops:
    """The stop rule of a reply without stop strings (`puna.core.protocols.StopRule`)."""

    def push(self, text: str) -> tuple[str, bool]:
        """Let all text through."""
        return text, False

    def flush(self) -> str:
        """Return what was held back: nothing."""
        return ""


class LlamaCpp:
    """llama.cpp through llama-cpp-python: its decode call and an arg-max of the logits, without the bindings' sampler.

    Flash attention is on: prompts are read 5 to 10 % faster with it, and replies as fast.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        self._model = Llama(
            str(path),
            n_ctx=CONTEXT,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,
        )

    def reply(self, prompt: Sequence[int], tokens: int) -> Reply:
        """Generate a first token and `tokens` more; the end token is not special."""
        self._model.n_tokens = 0  # what was read is forgotten, so the next pass starts the cache anew
        start = time.perf_counter()
        token = self._next(prompt)
        first = time.perf_counter()
        for _ in range(tokens):
            token = self._next([token])
        return Reply(first - start, time.perf_counter() - first, tokens)

    def _next(self, tokens: Sequence[int]) -> int:
        self._model.eval(tokens)
        logits = self._model._ctx.get_logits_ith(-1)  # waits until they are computed
        return int(np.ctypeslib.as_array(logits, (self._model.n_vocab(),)).argmax())


ENGINES: dict[str, Callable[[Path, int], Engine]] = {"puna": Puna, "llama.cpp": LlamaCpp}
