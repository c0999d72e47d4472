"""llama.cpp's own C interface, as far as the benchmarks need it: load a model, compute a batch, read logits.

The bindings' class `Llama` has one sequence and no batch of several; the functions below it have all of that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

BATCH = 512  # tokens in one pass


@llama_cpp.llama_log_callback
def _silence(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Drop a message of the library's log."""


@dataclass(frozen=True)
class Token:
    """One token of a batch: where it stands, in which sequence, and whether its logits are wanted."""

    id: int
    position: int
    sequence: int = 0
    wanted: bool = False


class LlamaModel:
    """A model and one context of it, for as long as the process lives."""

    def __init__(
        self, path: Path, threads: int, *, context: int, sequences: int = 1, flash: bool = True, outputs: int = 0
    ) -> None:
        """Load a model.

        context: tokens of each sequence; flash: use flash attention; outputs: the most tokens of one batch whose
        logits are wanted, 0 for one of each sequence.
        """
        llama_cpp.llama_log_set(_silence, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        if self._model is None:
            raise RuntimeError(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context * sequences, sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        kinds = (llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        params.flash_attn_type = kinds[flash]
        params.n_outputs_max = outputs
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if self._context is None:
            raise RuntimeError(f"llama.cpp makes no context of {context * sequences} tokens for {path}")
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    @property
    def handle(self) -> Any:
        """The model, for the library's other functions."""
        return self._model

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def decode(self, tokens: Sequence[Token]) -> None:
        """Compute at most BATCH tokens in one pass, behind those that came before."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token.id, token.position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, token.sequence
            batch.logits[i] = token.wanted
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status} for {len(tokens)} tokens")

    def logits(self, place: int) -> npt.NDArray[np.float32]:
        """Return the logits of the token at a place in the last batch, [V]; gone with the next one."""
        found = llama_cpp.llama_get_logits_ith(self._context, place)  # waits until they are computed
        return np.ctypeslib.as_array(found, (self.vocabulary,))
