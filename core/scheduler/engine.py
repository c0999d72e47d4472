"""The step loop: one thread that plans, computes and samples, for all sequences of one model."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import Failure
from ..memory.allocation import keep_freed_memory
from ..memory.blocks import BlockTable
from ..memory.cache import Cache, Capacity, ElementType, Insert, Rows
from ..memory.images import ImageCache
from ..model import LoadedModel
from ..protocols import Grammar, Tokenizer
from ..tensor.team import use_threads
from .choose import Chooser
from .draft import DraftModel
from .encoding import Encoding
from .ends import Ends
from .guess import MOST, Guesser, Lookup
from .pace import Pace
from .plan import Limits, Scheduler, Share
from .sequence import Sequence
from .spans import Spans
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
    image_cache: int = 1 << 29  # bytes of pictures and of what encoders made of them
    mapped: bool = False  # whether weights stay in their file


class Engine:
    """Owns the model, the scheduler and every sequence; other threads only submit and cancel."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        *,
        options: EngineOptions,
        draft: LoadedModel | None = None,
        pace: Pace | None = None,
    ) -> None:
        """draft: a small model of the same tokens, which guesses ahead. pace: how long steps take, as far as known."""
        self._options = options
        self._scheduler = Scheduler(options.limits)
        self._pace = pace or Pace()
        together, beside = (model.vision.most_atomic, model.vision.most_beside) if model.vision else (0, 0)
        capacity = Capacity(options.positions, options.limits.sequences, options.limits.step_tokens + together, beside)
        self._beside = beside
        self._cache = Cache(model.cache, options.cache_type, capacity)
        self._steps = Steps(model, self._cache)
        self._draft = DraftModel(draft, options.cache_type, capacity, self._pace) if draft else None
        self.images = ImageCache(options.image_cache, self._cache.blocks.knows)
        self._encoding = Encoding(model.vision, self.images, self._steps.width) if model.vision else None
        self._counts = EngineStats()
        self._ends = Ends(self._scheduler, self._counts)
        self._chooser = Chooser(tokenizer, self._pace, self._ends, self._counts, self.images.note)
        self._inbox: SimpleQueue[_Submit | _Cancel | None] = SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """What was done, and what is held now."""
        caches = [self._cache, self._draft.cache] if self._draft else [self._cache]
        pools, scheduler = [pool for cache in caches for pool in cache.pools], self._scheduler
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
            images=self.images.stats,
        )

    def new_table(self, spans: Spans | None = None) -> BlockTable:
        """Return an empty table for one sequence. spans: of its media."""
        return self._cache.blocks.table(marks=spans.marks) if spans else self._cache.blocks.table()

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
                self._encode()
                self._step(self._plan() if going_on else [])
            except BaseException:  # a bug, or a library that panicked: nobody may wait for ever because of it
                log.exception("planning a step failed")
                self._ends.fail(self._scheduler.sequences, "internal", BROKEN)
        for sequence in self._scheduler.sequences:
            self._ends.finish(sequence, "cancelled")
        self._chooser.close()
        self._ended.set()
        self._turn_away()

    def _turn_away(self) -> None:
        """Cancel what was submitted too late. Called behind the end and behind each submission, so it misses none."""
        with suppress(Empty):
            while True:
                change = self._inbox.get_nowait()
                if isinstance(change, _Submit):
                    change.sequence.emit(change.sequence.finished("cancelled"))

    def _take_changes(self) -> bool:
        """Apply what others asked for, waiting for it while idle; False when the engine is to end."""
        while self._scheduler.idle or not self._inbox.empty():
            change = self._inbox.get()
            if change is None:
                return False
            if isinstance(change, _Submit):
                self._add(change.sequence)
            elif change.sequence in self._scheduler.sequences:
                self._ends.finish(change.sequence, "cancelled")
        return True

    def _add(self, sequence: Sequence) -> None:
        """Queue a sequence, after the cache has become large enough for it alone."""
        self._scheduler.add(sequence)
        longest, widest, room = sequence.longest, sequence.spans.widest, sequence.request.num_ctx
        if widest > max(room, self._beside):  # an image alone may have more: there is room for that in any case
            found = f"images that are seen together have {widest} rows, and the context holds {room}"
            self._ends.fail([sequence], "bad_request", f"{found}: raise num_ctx, or put text between images")
            return
        try:
            self._cache.grow(longest, widest)
            if self._draft:
                self._draft.cache.grow(longest)
        except MemoryError:
            rows = f" and {widest} rows of images" if widest else ""
            self._ends.fail([sequence], "bad_request", f"there is no memory for a context of {longest} tokens{rows}")

    def _encode(self) -> None:
        """Do a slice of what is to be done for images that sequences in progress wait for."""
        if self._encoding is None:
            return
        waiting = {sequence: images for sequence in self._scheduler.running if (images := sequence.images)}
        if not waiting:
            self._encoding.stop()
            return
        try:
            with _compute:
                start = time.perf_counter_ns()
                self._encoding.advance(list(dict.fromkeys(chain.from_iterable(waiting.values()))))
                self._counts.encode_ns += time.perf_counter_ns() - start
        except BaseException as error:  # as in `_step`
            concerned = [s for s, images in waiting.items() if not set(images).isdisjoint(self._encoding.begun)]
            self._encoding.stop()
            if isinstance(error, Failure):
                self._ends.fail(concerned, "bad_model", str(error))
            else:
                log.exception("encoding an image failed")
                self._ends.fail(concerned, "internal", BROKEN)

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
        late = self._draft.begin_step() if self._draft else 0.0
        return self._scheduler.plan(self._pace.room(len(growing), late))

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
            self._counts.recomputed_tokens += sum(share.sequence.again(len(share.tokens)) for share in shares)
            masks = self._chooser.begin(shares)
            logits = self._timed_forward(shares)
            self._chooser.choose(shares, logits, masks)
        except Failure as error:
            self._ends.fail([share.sequence for share in shares], "bad_model", str(error))
        except BaseException:  # whatever would end this thread, such as a plugin that exits: nobody would hear of it
            log.exception("a step failed")
            self._ends.fail([share.sequence for share in shares], "internal", BROKEN)

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
        inserts: list[Insert] = []
        for share in shares:
            rows.append(share.sequence.part(len(tokens), len(share.tokens)))
            inserts += share.sequence.inserts(len(tokens), len(share.tokens))
            tokens += share.tokens
            if share.last:
                wanted += range(len(tokens) - 1 - share.guessed, len(tokens))
        logits = self._steps.logits(tokens, rows, wanted, inserts)
        for share in shares:
            for image, block in share.sequence.advance(len(share.tokens) - share.guessed):
                self.images.note(image, block)
        return logits
