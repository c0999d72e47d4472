"""The step loop: one thread that plans, computes, samples and hands text out, for all sequences of one model."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt

from ..errors import Failure
from ..memory.cache import ElementType, Rows, SequenceCache, StepView
from ..model import LoadedModel
from ..protocols import Tokenizer
from ..tensor.sampling import BadLogits, log_probabilities, sample
from ..tensor.team import use_threads
from .messages import Failed, FailureKind, Finished, FinishReason, Piece, SampledLogprob, TokenLogprob
from .plan import Limits, Scheduler, Share
from .sequence import Sequence

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

BROKEN = "an error was encountered while running the model; the server's log has the details"

# Kernels use every core they are given, so two engines in one process take turns instead of slowing each other down.
_compute = threading.Lock()


@dataclass(frozen=True)
class _Submit:
    sequence: Sequence


@dataclass(frozen=True)
class _Cancel:
    sequence: Sequence


class Engine:
    """Owns the model, the scheduler and every sequence; other threads only submit and cancel."""

    def __init__(
        self, model: LoadedModel, tokenizer: Tokenizer, *, limits: Limits, threads: int, cache_type: ElementType
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._threads, self._cache_type = threads, cache_type
        self._scheduler = Scheduler(limits)
        self._inbox: SimpleQueue[_Submit | _Cancel | None] = SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)
        self._thread.start()

    @property
    def cache_bytes(self) -> int:
        """Bytes of key/value cache in use now."""
        return sum(sequence.cache.nbytes for sequence in self._scheduler.sequences)

    def new_cache(self, positions: int) -> SequenceCache:
        """Return an empty cache for one sequence of at most that many positions."""
        return SequenceCache(self._model.cache, positions, self._cache_type)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Its events arrive on the engine's thread; once that has ended, at once: it is cancelled."""
        self._inbox.put(_Submit(sequence))
        if self._ended.is_set():
            self._turn_away()

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence before its next step; its last event says so. One that has ended is left alone."""
        self._inbox.put(_Cancel(sequence))

    def close(self) -> None:
        """End every sequence and the thread; returns when both are gone."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        use_threads(self._threads)
        while self._take_changes():
            try:
                self._step(self._scheduler.plan())
            except Exception:  # a bug of ours, outside the model: nobody may wait for ever because of it
                log.exception("planning a step failed")
                self._fail(self._scheduler.sequences, "internal", BROKEN)
        for sequence in self._scheduler.sequences:
            self._finish(sequence, "cancelled")
        self._ended.set()
        self._turn_away()

    def _turn_away(self) -> None:
        """Cancel what was submitted too late. Called behind the end and behind each submission, so it misses none."""
        with suppress(Empty):
            while True:
                change = self._inbox.get_nowait()
                if isinstance(change, _Submit):
                    self._emit_finished(change.sequence, "cancelled")

    def _take_changes(self) -> bool:
        """Apply what others asked for, waiting for it while idle; False when the engine is to end."""
        while self._scheduler.idle or not self._inbox.empty():
            change = self._inbox.get()
            if change is None:
                return False
            if isinstance(change, _Submit):
                self._scheduler.add(change.sequence)
            elif change.sequence in self._scheduler.sequences:
                self._finish(change.sequence, "cancelled")
        return True

    def _step(self, shares: list[Share]) -> None:
        if not shares:
            return
        try:
            with _compute:
                logits = self._forward(shares)
            due = [share.sequence for share in shares if share.last]
            for sequence, row, token in self._sample(due, logits):
                self._commit(sequence, row, token)
        except Failure as error:
            self._fail([share.sequence for share in shares], "bad_model", str(error))
        except (Exception, SystemExit):  # a plugin that exits would end this thread, and nobody would hear of it
            log.exception("a step failed")
            self._fail([share.sequence for share in shares], "internal", BROKEN)

    def _forward(self, shares: list[Share]) -> Floats:
        """Run the model over the shares' tokens and return the logits of the rows to sample from, [N, V]."""
        rows: list[Rows] = []
        wanted: list[int] = []
        tokens: list[int] = []
        for share in shares:
            share.sequence.cache.reserve(share.sequence.cache.length + len(share.tokens))
            rows.append(Rows(share.sequence.cache, len(tokens), len(tokens) + len(share.tokens)))
            tokens += share.tokens
            if share.last:
                wanted.append(len(tokens) - 1)
        model = self._model.model
        x = model.forward(model.embed(np.array(tokens, np.int32)), StepView(self._model.cache, rows))
        for share in shares:
            share.sequence.cache.length += len(share.tokens)
        if not wanted:
            return np.empty((0, self._model.config.vocabulary), np.float32)
        return model.logits(x[np.array(wanted)])  # type: ignore[return-value]

    def _sample(self, due: list[Sequence], logits: Floats) -> list[tuple[Sequence, Floats, int]]:
        """Return each sequence with its logits and its token; one whose logits are no numbers fails alone."""
        while due:
            try:
                tokens = sample(logits, [s.sampler for s in due], [s.tokens for s in due])
                return list(zip(due, logits, map(int, tokens), strict=True))
            except BadLogits as error:
                self._fail([due[error.row]], "bad_model", str(error))
                due = due[: error.row] + due[error.row + 1 :]
                logits = np.delete(logits, error.row, axis=0)
        return []

    def _commit(self, sequence: Sequence, logits: Floats, token: int) -> None:
        """Give one sequence its token: text out, and either on to the next step or to its end."""
        sequence.first_token_ns = sequence.first_token_ns or time.perf_counter_ns()
        reply, top = sequence.reply, sequence.request.logprobs
        self._send(sequence, reply.push(token, None if top is None else partial(self._logprob, logits, token, top)))
        if reply.reason is None and not sequence.append(token):
            self._send(sequence, reply.end("length"))
        if reply.reason is not None:
            self._finish(sequence, reply.reason)

    def _send(self, sequence: Sequence, piece: Piece | None) -> None:
        if piece is not None:
            sequence.emit(piece)

    def _logprob(self, logits: Floats, token: int, top: int) -> SampledLogprob:
        found = log_probabilities(logits, token, top)
        return SampledLogprob(self._named(token, found.chosen), [self._named(t, p) for t, p in found.likeliest])

    def _named(self, token: int, logprob: float) -> TokenLogprob:
        data = self._tokenizer.piece(token, special=True)
        return TokenLogprob(token, data.decode("utf-8", "replace"), data, logprob)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._scheduler.remove(sequence)
        self._emit_finished(sequence, reason)

    def _emit_finished(self, sequence: Sequence, reason: FinishReason) -> None:
        now = time.perf_counter_ns()
        first = sequence.first_token_ns or now
        sequence.emit(
            Finished(
                reason=reason,
                prompt_tokens=sequence.prompt_tokens,
                prompt_ns=first - sequence.started_ns,
                tokens=sequence.reply.tokens,
                decode_ns=now - first,
                truncated=sequence.truncated,
                shifted=sequence.shifted,
            )
        )

    def _fail(self, sequences: list[Sequence], kind: FailureKind, message: str) -> None:
        for sequence in sequences:
            if sequence in self._scheduler.sequences:  # it may have ended in the part of the step that went well
                self._scheduler.remove(sequence)
                sequence.emit(Failed(kind, message))
