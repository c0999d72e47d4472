"""The step loop: one thread that plans, computes, samples and hands text out, for all sequences of one model."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import BadRequest, Failure
from ..memory.allocation import keep_freed_memory
from ..memory.blocks import BlockTable
from ..memory.cache import Cache, Capacity, ElementType, Rows
from ..model import LoadedModel
from ..protocols import Grammar, Tokenizer
from ..tensor.sampling import BadLogits, DeadEnd, Mask, log_probabilities, sample
from ..tensor.team import use_threads
from .draft import DraftModel
from .guess import MOST, Guesser, Lookup
from .messages import Failed, FailureKind, Finished, FinishReason, Piece, SampledLogprob, TokenLogprob
from .pace import Pace
from .plan import Limits, Scheduler, Share
from .sequence import Sequence
from .stats import EngineStats
from .steps import Steps

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


@dataclass(frozen=True)
class EngineOptions:
    """What stays fixed while a model is loaded."""

    limits: Limits
    threads: int
    cache_type: ElementType
    positions: int  # that the key/value cache holds, over all sequences
    precise: bool = False
    speculate: bool = True  # whether to guess tokens ahead where that pays


class Engine:
    """Owns the model, the scheduler and every sequence; other threads only submit and cancel."""

    def __init__(
        self, model: LoadedModel, tokenizer: Tokenizer, *, options: EngineOptions, draft: LoadedModel | None = None
    ) -> None:
        """draft: a small model of the same tokens, which guesses ahead."""
        self._tokenizer, self._options = tokenizer, options
        self._scheduler = Scheduler(options.limits)
        self._pace = Pace()
        capacity = Capacity(options.positions, options.limits.sequences, options.limits.step_tokens)
        self._cache = Cache(model.cache, options.cache_type, capacity)
        self._steps = Steps(model, self._cache)
        self._draft = DraftModel(draft, options.cache_type, capacity, self._pace) if draft else None
        self._masks = ThreadPoolExecutor(1, "puna-grammar")
        self._counts = EngineStats()
        self._inbox: SimpleQueue[_Submit | _Cancel | None] = SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """What was done, and what is held now."""
        caches = [self._cache, self._draft.cache] if self._draft else [self._cache]
        pools, scheduler = [pool for cache in caches for pool in cache.blocks.pools], self._scheduler
        return msgspec.structs.replace(
            self._counts,
            preemptions=scheduler.preemptions,
            running=len(scheduler.running),
            waiting=scheduler.waiting,
            blocks=sum(pool.count for pool in pools),
            held_blocks=sum(pool.held for pool in pools),
            kept_blocks=sum(pool.kept for pool in pools),
            held_bytes=sum(cache.held_bytes for cache in caches),
            resident_bytes=sum(cache.resident_bytes for cache in caches),
        )

    def new_table(self) -> BlockTable:
        """Return an empty table for one sequence."""
        return self._cache.blocks.table()

    def new_guesser(self, grammar: Grammar | None = None) -> Guesser | None:
        """Return what guesses ahead in one reply, if anything does. grammar: of the reply."""
        if not self._options.speculate:
            return None
        return self._draft.guesser() if self._draft else Lookup(grammar)

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
        use_threads(self._options.threads)
        keep_freed_memory()
        going_on = True
        while going_on:
            try:
                going_on = self._take_changes()
                self._step(self._plan() if going_on else [])
            except BaseException:  # a bug, or a library that panicked: nobody may wait for ever because of it
                log.exception("planning a step failed")
                self._fail(self._scheduler.sequences, "internal", BROKEN)
        for sequence in self._scheduler.sequences:
            self._finish(sequence, "cancelled")
        self._masks.shutdown()
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
                self._add(change.sequence)
            elif change.sequence in self._scheduler.sequences:
                self._finish(change.sequence, "cancelled")
        return True

    def _add(self, sequence: Sequence) -> None:
        """Queue a sequence, after the cache has become large enough for it alone."""
        self._scheduler.add(sequence)
        try:
            self._cache.grow(sequence.longest)
            if self._draft:
                self._draft.cache.grow(sequence.longest)
        except MemoryError:
            self._fail([sequence], "bad_request", f"there is no memory for a context of {sequence.longest} tokens")

    def _plan(self) -> list[Share]:
        """Return the next step, after every growing reply was given a guess if that is likely to pay."""
        growing = [s for s in self._scheduler.running if s.unread == 1]
        cost, room = self._pace.cost, self._pace.room(len(growing))
        for sequence in growing:
            most = min(sequence.guessable, (MOST + 1) // len(growing) - 1) if room > 0 else 0
            if sequence.guesser is None or cost is None or most < 1:
                sequence.guess = []
                continue
            sequence.guess = self._guess(sequence, sequence.guesser, most, cost)
        return self._scheduler.plan(room)

    def _guess(self, sequence: Sequence, guesser: Guesser, most: int, cost: float) -> list[int]:
        """Return what may follow; nothing, from now on, if the guesser fails: no reply needs it."""
        try:
            with _compute:  # a draft model runs
                return guesser.guess(sequence.tokens, most, cost)
        except BaseException:
            log.exception("guessing ahead failed")
            guesser.close()
            sequence.guesser = None
            return []

    def _step(self, shares: list[Share]) -> None:
        if not shares:
            return
        try:
            masks = {
                share.sequence: self._masks.submit(share.sequence.grammar.mask)
                for share in shares
                if share.last and share.sequence.grammar is not None
            }
            logits = self._timed_forward(shares)
            self._sample_all([share for share in shares if share.last], logits, masks)
        except Failure as error:
            self._fail([share.sequence for share in shares], "bad_model", str(error))
        except BaseException:  # whatever would end this thread, such as a plugin that exits: nobody would hear of it
            log.exception("a step failed")
            self._fail([share.sequence for share in shares], "internal", BROKEN)

    def _timed_forward(self, shares: list[Share]) -> Floats:
        for sequence in [share.sequence for share in shares if share.sequence.begun_ns is None]:
            sequence.begun_ns = time.perf_counter_ns()
            self._counts.cached_tokens += sequence.cached_tokens
        growing, guessed = sum(share.sequence.unread == 1 for share in shares), sum(share.guessed for share in shares)
        prompt = sum(len(share.tokens) for share in shares) - growing - guessed
        self._counts.prompt_tokens += prompt
        with _compute:
            start = time.perf_counter_ns()
            logits = self._forward(shares)
            took = time.perf_counter_ns() - start
        self._pace.learn(growing, guessed, prompt, took / 1e9)
        self._counts.steps += 1
        self._counts.step_ns += took
        return logits

    def _forward(self, shares: list[Share]) -> Floats:
        """Run the model over the shares' tokens and return the logits of the rows to sample from, [N, V].

        Those are the rows of each share that is a sequence's last, one for each guess and one before.
        """
        rows: list[Rows] = []
        wanted: list[int] = []
        tokens: list[int] = []
        for share in shares:
            rows.append(Rows(share.sequence.table, len(tokens), len(tokens) + len(share.tokens)))
            tokens += share.tokens
            if share.last:
                wanted += range(len(tokens) - 1 - share.guessed, len(tokens))
        logits = self._steps.logits(tokens, rows, wanted)
        for share in shares:
            share.sequence.table.advance(share.sequence.tokens, len(share.tokens) - share.guessed)
        return logits

    def _sample_all(self, due: list[Share], logits: Floats, masks: dict[Sequence, Future[Mask | None]]) -> None:
        """Give every sequence that is due its token, and then those whose guess came true the next ones."""
        starts = np.cumsum([0, *(1 + share.guessed for share in due)])
        alive = list(zip(due, starts, strict=False))
        place = 0
        while alive:
            ready = self._ready([share.sequence for share, _ in alive], masks)
            alive = [(share, start) for share, start in alive if share.sequence in ready]
            chosen = self._sample([s.sequence for s, _ in alive], logits[[start + place for _, start in alive]], ready)
            for sequence, row, token in chosen:
                self._commit(sequence, row, token)
            taken = {sequence: token for sequence, _, token in chosen}
            alive = [(s, start) for s, start in alive if self._came_true(s, place, taken.get(s.sequence))]
            for share, _ in alive:
                share.sequence.table.advance(share.sequence.tokens, 1)
                if share.sequence.grammar is not None:
                    masks[share.sequence] = self._masks.submit(share.sequence.grammar.mask)
            place += 1
        for share in due:
            if share.guessed:
                self._learn(share)

    def _ready(self, due: list[Sequence], masks: dict[Sequence, Future[Mask | None]]) -> dict[Sequence, Mask | None]:
        """Return the mask of each sequence, None for one without grammar; one whose grammar gives up fails alone."""
        ready: dict[Sequence, Mask | None] = {}
        for sequence in due:
            try:
                ready[sequence] = masks.pop(sequence).result() if sequence in masks else None
            except BadRequest as error:
                self._fail([sequence], "bad_request", str(error))
        return ready

    def _came_true(self, share: Share, place: int, token: int | None) -> bool:
        """Whether the logits behind the next guess count: it is what was sampled, and the reply goes on."""
        if token is None or place >= share.guessed or share.sequence.reply.reason is not None:
            return False
        true = share.tokens[len(share.tokens) - share.guessed + place] == token
        share.sequence.accepted += true
        return true

    def _learn(self, share: Share) -> None:
        sequence = share.sequence
        accepted = sequence.accepted - sequence.learned
        sequence.learned = sequence.accepted
        sequence.guessed += share.guessed
        self._counts.guessed_tokens += share.guessed
        self._counts.accepted_tokens += accepted
        if sequence.guesser is not None:
            sequence.guesser.learn(share.guessed, accepted, self._pace.cost or 0.0)

    def _sample(
        self, due: list[Sequence], logits: Floats, masks: dict[Sequence, Mask | None]
    ) -> list[tuple[Sequence, Floats, int]]:
        """Return each sequence with its logits and its token; one from whose logits none can be drawn fails alone."""
        while due:
            try:
                tokens = sample(logits, [s.sampler for s in due], [s.tokens for s in due], [masks.get(s) for s in due])
                return list(zip(due, logits, map(int, tokens), strict=True))
            except (BadLogits, DeadEnd) as error:
                kind: FailureKind = "bad_model" if isinstance(error, BadLogits) else "bad_request"
                self._fail([due[error.row]], kind, str(error))
                due = due[: error.row] + due[error.row + 1 :]
                logits = np.delete(logits, error.row, axis=0)
        return []

    def _commit(self, sequence: Sequence, logits: Floats, token: int) -> None:
        """Give one sequence its token: text out, and either on to the next step or to its end."""
        sequence.first_token_ns = sequence.first_token_ns or time.perf_counter_ns()
        self._counts.sampled_tokens += 1
        reply, top = sequence.reply, sequence.request.logprobs
        if sequence.grammar is not None and token not in reply.stop_ids:
            sequence.grammar.accept(token)
        self._send(sequence, reply.push(token, None if top is None else partial(self._logprob, logits, token, top)))
        if reply.reason is None and sequence.grammar is not None and sequence.grammar.ended:
            self._send(sequence, reply.end("stop"))
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
        self._counts.finished += 1
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
                cached_tokens=sequence.cached_tokens,
                queue_ns=(sequence.begun_ns or now) - sequence.started_ns,
                guessed=sequence.guessed,
                accepted=sequence.accepted,
                preempted=sequence.preempted,
            )
        )

    def _fail(self, sequences: list[Sequence], kind: FailureKind, message: str) -> None:
        for sequence in sequences:
            if sequence in self._scheduler.sequences:  # it may have ended in the part of the step that went well
                self._scheduler.remove(sequence)
                self._counts.failed += 1
                sequence.emit(Failed(kind, message))
