"""The engines under comparison, each behind the same call: one greedy reply, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
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


ENGINES = {"llama.cpp": LlamaCpp}
