"""Does what others do ever change a reply? `python -m bench.schedules --count 500`.

Plays random schedules on the engine (arrivals and cancellations at random steps, prompts in chunks of any size, shared
beginnings, pictures that others see too, guesses that come true or not, caches so small that replies are set aside and
pictures forgotten) and compares every reply with the same one computed by a plain loop, alone: its tokens and, bit
for bit, the logits that each of them was sampled from. Equal seeds play equal schedules.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from puna.core.memory.cache import StepView
from puna.core.memory.images import Image
from puna.core.plugin import Encoder, Prepared
from puna.core.scheduler.engine import Engine, EngineOptions
from puna.core.scheduler.guess import Guesser, Lookup
from puna.core.scheduler.messages import Event, Failed, Finished, Generate
from puna.core.scheduler.plan import Limits
from puna.core.scheduler.reply import Reply
from puna.core.scheduler.sequence import Sequence as Talk
from puna.core.scheduler.spans import Spans
from puna.core.scheduler.viewer import Viewer

from .engines import NoStops
from .subjects import PLACEHOLDER, PROMPTS, TOKENS, Spoken, Subject, prompts, seen, subjects

Floats = npt.NDArray[np.float32]

CLOSE = 1e-3  # by how much logits may differ where products go through the matrix library
PATIENCE_S = 300.0


# --- a schedule -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """One request of a schedule."""

    request: Generate
    due: Spoken
    guesser: Guesser | None
    arrives: int  # step
    leaves: int | None  # step; None: it stays to the end


@dataclass(frozen=True)
class Schedule:
    """What happens to an engine, and how it is made."""

    limits: Limits
    positions: int
    cost: float | None  # what the engine takes a guess to cost, in steps
    room: int  # for tokens of prompts beside replies
    visits: list[Visit]  # in the order of their arrival
    image_cache: int = 1 << 29  # bytes

    def __str__(self) -> str:
        limits = f"{self.limits.sequences} places, {self.limits.step_tokens} tokens a step"
        caches = f"{self.positions} positions, {self.image_cache} bytes of pictures"
        return f"{len(self.visits)} requests, {limits}, {caches}, cost {self.cost}, room {self.room}"


class Tipster:
    """Knows the reply that is due and tells it, with a mistake now and then (`Guesser`)."""

    def __init__(self, request: Generate, due: Spoken, seed: int) -> None:
        self._request, self._due, self._rng = request, due, np.random.default_rng(seed)

    def guess(self, tokens: Sequence[int], most: int, cost: float) -> list[int]:
        """Return the next tokens, if the text tells how many there were; it does not once its middle is gone."""
        start = max(0, len(tokens) - len(self._request.prompt))
        right = self._due.tokens[start : start + most]
        return [token if self._rng.random() < 0.8 else 0 for token in right]

    def learn(self, guessed: int, accepted: int, cost: float) -> None:
        """Go on as before."""

    def close(self) -> None:
        """Hold nothing."""


def random_schedule(given: Subject, seed: int) -> Schedule:
    """Return a schedule; equal seeds give equal ones."""
    rng = np.random.default_rng(seed)
    guesses = str(rng.choice(["none", "lookup", "tips"]))
    visits, step = [], 0
    for i in range(int(rng.integers(1, 40))):
        request, due = prompts(given)[rng.integers(PROMPTS)]
        chunk = (None, None, 1, 5, 32, 50)[rng.integers(6)]
        request = changed(request, int(rng.integers(1, TOKENS + 1)), chunk, f"client {rng.integers(3)}")
        guesser = {"none": None, "lookup": Lookup(), "tips": Tipster(request, due, i)}[guesses]
        leaves = step + int(rng.integers(0, 30)) if rng.random() < 0.15 else None
        visits.append(Visit(request, due, guesser, step, leaves))
        step += int(rng.choice([0, 0, 0, 1, 3, 10]))
    return Schedule(
        Limits(int(rng.choice([2, 8, 33, 64, 512])), int(rng.choice([1, 3, 8, 32]))),
        int(rng.choice([1, 300, 600, 4000])),
        cost=(None, 0.01, 0.5)[rng.integers(3)] if guesses != "none" else None,
        room=int(rng.choice([4, 50, 1 << 30])),
        visits=visits,
        image_cache=int(rng.choice([0, 5_000, 60_000, 300_000, 1 << 29])),
    )


def changed(request: Generate, max_tokens: int, num_batch: int | None, client: str) -> Generate:
    """Return the same request, but for what changes no token of its reply."""
    return msgspec.structs.replace(request, max_tokens=max_tokens, num_batch=num_batch, client=client)


# --- playing it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steady:
    """A pace that nothing changes, so that equal schedules take equal steps (`Pace`)."""

    cost: float | None
    width: int

    def learn(self, growing: int, guessed: int, prompt: int, seconds: float) -> None:
        """Look at no clock."""

    def room(self, growing: int, spent: float = 0.0) -> int:
        """Return how many tokens of prompts may join a step."""
        return self.width


class Recorded(Talk):
    """A reply that keeps the logits of every token it is given."""

    spoken: Spoken

    def take(self, token: int, logits: Floats, tokenizer: Any) -> None:
        """Keep them, and go on as any reply."""
        self.spoken.add(token, logits)
        super().take(token, logits, tokenizer)


class Stage:
    """A model in whose steps visitors come and go: all that happens, happens on the engine's own thread."""

    def __init__(self, model: Any, on_step: Callable[[], None]) -> None:
        self._model, self._on_step = model, on_step
        self.embed, self.logits = model.embed, model.logits

    def forward(self, x: Floats, step: StepView) -> Floats:
        """Say that a step begins, and compute it."""
        self._on_step()
        return self._model.forward(x, step)


class Eye:
    """A model's encoder of pictures, between whose slices they come and go too."""

    def __init__(self, encoder: Encoder, on_step: Callable[[], None]) -> None:
        self._encoder, self._on_step = encoder, on_step
        self.config, self.together, self.most_atomic = encoder.config, encoder.together, encoder.most_atomic
        self.deeper, self.most_beside, self.prepare = encoder.deeper, encoder.most_beside, encoder.prepare

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Any]]:
        """Encode as the model does, and say when a slice begins."""
        self._on_step()
        work = self._encoder.encode(images)
        while True:
            try:
                next(work)
            except StopIteration as finished:
                return finished.value
            yield
            self._on_step()


class Text:
    """A detokenizer and tokenizer of tokens without text."""

    def push(self, token: int) -> str:
        """Return no text."""
        return ""

    def flush(self) -> str:
        """Return no text."""
        return ""


@dataclass
class Outcome:
    """What came of a visit."""

    visit: Visit
    spoken: Spoken
    end: Finished | Failed | None = None
    images: list[Image] = field(default_factory=list)  # that it was shown
    held: AsyncExitStack = field(default_factory=AsyncExitStack)  # they are, while it is computed


class Play:
    """One schedule on one engine, from the first arrival to the last end."""

    def __init__(self, given: Subject, schedule: Schedule, threads: int) -> None:
        self.outcomes = [Outcome(visit, Spoken()) for visit in schedule.visits]
        self._coming = list(self.outcomes)
        self._leaving: list[tuple[int, Talk]] = []
        self._present = self._steps = 0
        self._over = threading.Event()
        options = EngineOptions(
            schedule.limits, threads, given.element, schedule.positions, given.precise, image_cache=schedule.image_cache
        )
        loaded = replace(given.loaded, model=Stage(given.loaded.model, self._on_step))
        if loaded.vision is not None:
            loaded = replace(loaded, vision=Eye(loaded.vision, self._on_step))
        self._streams = loaded.architecture.streams
        self.engine = Engine(loaded, Text(), options=options, pace=Steady(schedule.cost, schedule.room))
        self._viewer = Viewer(loaded.vision, self.engine.images, PLACEHOLDER) if loaded.vision else None
        for tiles in self.engine._cache.tiles:
            for numbers in tiles:
                numbers.view(np.uint8).fill(0xFF)  # NaN, as another's broken reply might leave behind

    def run(self) -> None:
        """Play to the end. Raises TimeoutError if nothing moves."""
        with closing(asyncio.new_event_loop()) as self._loop:  # for the viewer, for whom those who enter wait
            self._enter(self._coming.pop(0))
            over = self._over.wait(PATIENCE_S)
            self.engine.close()
        if self._viewer is not None:
            self._viewer.close()
        if not over:
            raise TimeoutError("the engine stands still")

    def _enter(self, outcome: Outcome) -> None:
        visit = outcome.visit
        self._present += 1
        reply = Reply(Text(), NoStops(), frozenset(), visit.request.max_tokens)
        spans = self._looked(outcome)
        table, emit = self.engine.new_table(spans), lambda event: self._hear(outcome, event)
        talk = Recorded(visit.request, reply, table, emit, guesser=visit.guesser, spans=spans)
        talk.spoken = outcome.spoken
        if visit.leaves is not None:
            self._leaving.append((visit.leaves, talk))
        self.engine.submit(talk)

    def _looked(self, outcome: Outcome) -> Spans | None:
        """Look at the pictures of a visit, as a server does: for the prompt first, and then for the reply."""
        if self._viewer is None or not outcome.visit.request.media:
            return None
        for placed in outcome.visit.request.media:
            self._loop.run_until_complete(self._viewer.look(placed.media))
        spans = self._loop.run_until_complete(self._viewer.place(outcome.visit.request, outcome.held))
        outcome.images = [span.image for span in spans]
        return Spans(spans, self._streams)

    def _on_step(self) -> None:
        while self._coming and self._coming[0].visit.arrives <= self._steps:
            self._enter(self._coming.pop(0))
        for leaves, talk in self._leaving:
            if leaves <= self._steps:
                self.engine.cancel(talk)
        self._leaving = [pair for pair in self._leaving if pair[0] > self._steps]
        self._steps += 1

    def _hear(self, outcome: Outcome, event: Event) -> None:
        if not isinstance(event, Finished | Failed):
            return
        outcome.end = event
        self._loop.run_until_complete(outcome.held.aclose())
        self._present -= 1
        if not self._present and self._coming:
            self._enter(self._coming.pop(0))
        elif not self._present:
            self._over.set()


# --- the verdict ------------------------------------------------------------------------------------------------------


def faults(given: Subject, schedule: Schedule, *, threads: int = 2) -> list[str]:
    """Play a schedule and return what was not as it should be, a line each."""
    play = Play(given, schedule, threads)
    play.run()
    return faults_of(given, play)


def faults_of(given: Subject, play: Play) -> list[str]:
    """Return what was not as it should be in a schedule that was played."""
    found = [fault for outcome in play.outcomes if (fault := _fault(given, outcome)) is not None]
    found += [fault for outcome in play.outcomes for fault in _rows_off(given, outcome)]
    if (held := play.engine.stats.held_blocks) > 0:
        found.append(f"{held} blocks are held by nobody")
    if held := {image for outcome in play.outcomes for image in outcome.images if image.holders}:
        found.append(f"{len(held)} pictures are held by nobody")
    return found


def _rows_off(given: Subject, outcome: Outcome) -> Iterator[str]:
    """Say which pictures, as far as they are kept, were encoded to other rows than they are alone."""
    due = dict.fromkeys(seen(given, placed.media.frames[0]) for placed in outcome.visit.request.media)
    for alone, image in zip(due, dict.fromkeys(outcome.images), strict=bool(outcome.images)):
        off = 0.0 if image.rows is None else np.abs(image.rows - alone.rows).max()
        if not off <= (CLOSE if given.precise else 0.0):
            yield f"the rows of a picture are off by {off:.3g}"


def _fault(given: Subject, outcome: Outcome) -> str | None:
    visit, spoken = outcome.visit, outcome.spoken
    if isinstance(outcome.end, Failed):
        return f"failed: {outcome.end.message}"
    if outcome.end is None:
        return "never ended"
    if outcome.end.reason == "length" and len(spoken.tokens) != visit.request.max_tokens:
        return f"{len(spoken.tokens)} tokens instead of {visit.request.max_tokens}"
    if outcome.end.reason == "cancelled" and visit.leaves is None:
        return f"cancelled after {len(spoken.tokens)} tokens, though nobody left"
    compare = _first_far if given.precise else _first_other
    place = compare(spoken, visit.due)
    return None if place is None else _described(visit, spoken, place)


def _first_other(spoken: Spoken, due: Spoken) -> int | None:
    """Return the place of the first token or logits that are not bit for bit what is due."""
    for place, (token, logits) in enumerate(zip(spoken.tokens, spoken.logits, strict=True)):
        if token != due.tokens[place] or logits.tobytes() != due.logits[place].tobytes():
            return place
    return None


def _first_far(spoken: Spoken, due: Spoken) -> int | None:
    """Return the place of the first logits that are not close, or of another token where the choice was clear."""
    for place, (token, logits) in enumerate(zip(spoken.tokens, spoken.logits, strict=True)):
        if not np.abs(logits - due.logits[place]).max() <= CLOSE:
            return place
        if token != due.tokens[place]:
            second, first = np.sort(due.logits[place])[-2:]
            return place if first - second > 2 * CLOSE else None  # from here on the texts differ
    return None


def _described(visit: Visit, spoken: Spoken, place: int) -> str:
    off = np.abs(spoken.logits[place] - visit.due.logits[place]).max()
    request = visit.request
    return (
        f"prompt of {len(request.prompt)}, chunks of {request.num_batch}, context {request.num_ctx}: token {place} is "
        f"{spoken.tokens[place]}, expected {visit.due.tokens[place]}; logits off by {off:.3g}"
    )


def main() -> None:
    """Play as many schedules as the command line says; exit with 1 if a reply was changed."""
    parser = argparse.ArgumentParser(prog="python -m bench.schedules", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="seed of the first schedule")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precise", action="store_true", help="in float32, where logits need only be close")
    arguments = parser.parse_args()
    models, wrong = subjects(precise=arguments.precise), 0
    for seed in range(arguments.first, arguments.first + arguments.count):
        given = models[seed % len(models)]()
        schedule = random_schedule(given, seed)
        found = faults(given, schedule, threads=arguments.threads)
        wrong += bool(found)
        for line in found:
            print(f"seed {seed}, {given.name}, {schedule}: {line}", flush=True)
    print(f"{arguments.count} schedules, {wrong} of them with replies that were changed")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
