"""Does what others do ever change a reply? `python -m bench.schedules --count 500`.

Plays random schedules on the engine (arrivals and cancellations at random steps, prompts in chunks of any size, shared
beginnings, guesses that come true or not, caches so small that replies are set aside) and compares every reply with the
same one computed by a plain loop, alone: its tokens and, bit for bit, the logits that each of them was sampled from.
Equal seeds play equal schedules.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.core.kernel import find_plugins
from puna.core.memory.cache import Cache, Capacity, ElementType, Rows, StepView
from puna.core.model import LoadedModel, find_architecture, load_model
from puna.core.plugin import Causal, Chunk, Window
from puna.core.scheduler.engine import Engine, EngineOptions
from puna.core.scheduler.guess import Guesser, Lookup
from puna.core.scheduler.messages import Event, Failed, Finished, Generate
from puna.core.scheduler.plan import Limits
from puna.core.scheduler.reply import Reply
from puna.core.scheduler.sequence import Sequence as Talk
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.sampling import SamplingParams, sample
from puna.core.tensor.weights import open_weights

from .engines import NoStops

Floats = npt.NDArray[np.float32]

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
FILES = (
    "llama-quant/gguf/model-Q4_K_M.gguf", "llama-quant/gguf/model-Q8_0.gguf", "llama-bpe/gguf/model-f32.gguf",
    "llama-bpe/gguf/model-bf16.gguf", "llama-spm/gguf/model-f16.gguf", "mistral-v3/gguf/model-f32.gguf",
    "mistral-swa/hf", "qwen2/gguf/model-f32.gguf", "qwen3/gguf/model-f32.gguf",
    "gemma3-text/gguf/model-f32.gguf", "llama4-scout/hf",
)  # fmt: skip
MIXED = (Causal(), Window(40), Chunk(48), Window(5))  # what layers of a model may see, in turn
TOKENS = 48  # of the longest reply: more than what a place has blocks for when it begins
PROMPTS = 16  # of one model, from which schedules choose
CLOSE = 1e-3  # by how much logits may differ where products go through the matrix library
PATIENCE_S = 300.0


# --- a reply alone ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, in the way it is computed."""

    name: str
    loaded: LoadedModel
    element: ElementType
    precise: bool

    def cache(self, positions: int) -> Cache:
        """Return a cache for one sequence."""
        return Cache(self.loaded.cache, self.element, Capacity(positions, 1, positions))


@cache
def subject(file: str, *, element: ElementType = "f16", precise: bool = False, mixed: bool = False) -> Subject:
    """Return the model in a fixture. mixed: its layers see different parts of the past, which no file asks for."""
    source = open_weights(FIXTURES / file)
    architectures = [a for report in find_plugins() for a in report.architectures]
    loaded = load_model(find_architecture(architectures, source), source, CpuLoader(precise=precise))
    if mixed:
        layout = [replace(layer, kind=MIXED[i % len(MIXED)]) for i, layer in enumerate(loaded.cache)]
        loaded = replace(loaded, cache=layout)
    name = f"{file.split('/')[0]} {Path(file).stem} {element}{' precise' * precise}{' mixed' * mixed}"
    return Subject(name, loaded, element, precise)


def alone(given: Subject, request: Generate) -> Spoken:
    """Return a reply by itself: the prompt at once, then token by token, in a cache that holds nothing else."""
    spoken, model = Spoken(), given.loaded.model
    memory = given.cache(request.num_ctx)
    talk = Talk(request, reply=None, table=memory.blocks.table(), emit=lambda event: None)
    while len(spoken.tokens) < TOKENS:
        if talk.unread > 1:  # the beginning, or what a shift has moved: nothing of it is taken from before
            memory = given.cache(request.num_ctx)
            talk.table = memory.blocks.table()
        here = talk.tokens[talk.table.length :]
        talk.table.reserve(len(talk.tokens))
        view = StepView(memory, [Rows(talk.table, 0, len(here))])
        x = model.forward(model.embed(np.array(here, np.int32)), view)
        talk.table.advance(talk.tokens, len(here))
        logits = np.asarray(model.logits(x[-1:]))
        token = int(sample(logits, [talk.sampler], [talk.tokens])[0])
        spoken.add(token, logits[0])
        talk.append(token)
    return spoken


@dataclass
class Spoken:
    """A reply's tokens and the logits that each was sampled from."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)

    def add(self, token: int, logits: Floats) -> None:
        """Take the next token."""
        self.tokens.append(token)
        self.logits.append(logits.copy())


@cache
def prompts(given: Subject) -> list[tuple[Generate, Spoken]]:
    """Return what may be asked of a model, with the reply that is due; many begin alike, some in full blocks."""
    rng, found = np.random.default_rng(0), []
    vocabulary = given.loaded.config.vocabulary
    texts = [list(map(int, rng.integers(0, vocabulary, 300))) for _ in range(3)]
    texts.append([7, 8, 9, 10, 11] * 60)
    for i in range(PROMPTS):
        shared = int(rng.choice([0, 31, 32, 33, 64, 96, 100, 160]))
        own = list(map(int, rng.integers(0, vocabulary, rng.integers(1, 60))))
        sampling = SamplingParams(temperature=0 if i % 4 or given.precise else 1, seed=i)
        request = Generate(
            prompt=texts[i % 4][:shared] + own,
            sampling=sampling,
            num_ctx=int(rng.choice([1024, 1024, 45])),
            num_keep=int(rng.choice([4, 33])),
        )
        found.append((request, alone(given, request)))
    return found


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

    def __str__(self) -> str:
        limits = f"{self.limits.sequences} places, {self.limits.step_tokens} tokens a step"
        return f"{len(self.visits)} requests, {limits}, {self.positions} positions, cost {self.cost}, room {self.room}"


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
    )


def changed(request: Generate, max_tokens: int, num_batch: int | None, client: str) -> Generate:
    """Return the same request, but for what changes no token of its reply."""
    return Generate(
        prompt=request.prompt, sampling=request.sampling, num_ctx=request.num_ctx, num_keep=request.num_keep,
        max_tokens=max_tokens, num_batch=num_batch, client=client,
    )  # fmt: skip


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

    def __init__(self, model: Any, on_step: Callable[[int], None]) -> None:
        self._model, self._on_step, self._steps = model, on_step, 0
        self.embed, self.logits = model.embed, model.logits

    def forward(self, x: Floats, step: StepView) -> Floats:
        """Say that a step begins, and compute it."""
        self._on_step(self._steps)
        self._steps += 1
        return self._model.forward(x, step)


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


class Play:
    """One schedule on one engine, from the first arrival to the last end."""

    def __init__(self, given: Subject, schedule: Schedule, threads: int) -> None:
        self.outcomes = [Outcome(visit, Spoken()) for visit in schedule.visits]
        self._coming = list(self.outcomes)
        self._leaving: list[tuple[int, Talk]] = []
        self._present = 0
        self._over = threading.Event()
        options = EngineOptions(schedule.limits, threads, given.element, schedule.positions, given.precise)
        stage = Stage(given.loaded.model, self._on_step)
        pace = Steady(schedule.cost, schedule.room)
        self.engine = Engine(replace(given.loaded, model=stage), Text(), options=options, pace=pace)
        for tiles in self.engine._cache.tiles:
            for numbers in tiles:
                numbers.view(np.uint8).fill(0xFF)  # NaN, as another's broken reply might leave behind

    def run(self) -> None:
        """Play to the end. Raises TimeoutError if nothing moves."""
        self._enter(self._coming.pop(0))
        over = self._over.wait(PATIENCE_S)
        self.engine.close()
        if not over:
            raise TimeoutError("the engine stands still")

    def _enter(self, outcome: Outcome) -> None:
        visit = outcome.visit
        self._present += 1
        reply = Reply(Text(), NoStops(), frozenset(), visit.request.max_tokens)
        table, emit = self.engine.new_table(), lambda event: self._hear(outcome, event)
        talk = Recorded(visit.request, reply, table, emit, guesser=visit.guesser)
        talk.spoken = outcome.spoken
        if visit.leaves is not None:
            self._leaving.append((visit.leaves, talk))
        self.engine.submit(talk)

    def _on_step(self, step: int) -> None:
        while self._coming and self._coming[0].visit.arrives <= step:
            self._enter(self._coming.pop(0))
        for leaves, talk in self._leaving:
            if leaves <= step:
                self.engine.cancel(talk)
        self._leaving = [pair for pair in self._leaving if pair[0] > step]

    def _hear(self, outcome: Outcome, event: Event) -> None:
        if not isinstance(event, Finished | Failed):
            return
        outcome.end = event
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
    if (held := play.engine.stats.held_blocks) > 0:
        found.append(f"{held} blocks are held by nobody")
    return found


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


def subjects(*, precise: bool) -> list[Callable[[], Subject]]:
    """Return every model, still to be loaded: all files, then files with mixed layers and other caches."""
    found = [lambda file=file: subject(file, precise=precise, element="f32" if precise else "f16") for file in FILES]
    mixed = FILES[2] if precise else FILES[0]
    found.append(lambda: subject(mixed, precise=precise, element="f32", mixed=True))
    found.append(lambda: subject(FILES[2], precise=precise, element="f32", mixed=True))
    if not precise:
        found.append(lambda: subject(FILES[0], element="q8_0"))
    return found


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
