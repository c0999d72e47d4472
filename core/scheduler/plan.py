"""Who runs when: which tokens of which sequences the next step computes. No I/O, no clock, no arrays.

Equal queues give equal plans. Sequences that are growing come first, a token each and what was guessed to follow it;
prompts fill what is left of the step, oldest first, but none takes more than half of it while others wait, so that a
short one does not stand behind a long one. When blocks of the cache run out, the youngest sequence gives its own back,
and is computed again later from its tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..memory.blocks import BLOCK
from .sequence import Sequence


@dataclass(frozen=True)
class Limits:
    """What a step and an engine may take on."""

    step_tokens: int  # tokens of all sequences in one step; those that are growing get theirs even if there are more
    sequences: int  # sequences in progress at once


@dataclass(frozen=True)
class Share:
    """One sequence's part of a step: its next tokens, in order, for which its table has room."""

    sequence: Sequence
    tokens: list[int]
    last: bool  # whether these are all it has, so that a token is sampled after them
    guessed: int = 0  # how many tokens at the end are guesses, each of which is to be checked


class Scheduler:
    """The sequences of one engine."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []  # in the order in which they came
        self._refused: tuple[Sequence, int] | None = None  # who found no room, and when: see `BlockTable.returned`
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._running and not self._waiting

    @property
    def running(self) -> list[Sequence]:
        """Sequences in progress, oldest first."""
        return list(self._running)

    @property
    def waiting(self) -> int:
        """How many have not begun, or must begin again."""
        return len(self._waiting)

    @property
    def sequences(self) -> list[Sequence]:
        """Everything in progress or waiting, oldest first."""
        return [*self._running, *self._waiting]

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was cancelled; its place and its blocks go to others in the next step."""
        (self._running if sequence in self._running else self._waiting).remove(sequence)
        sequence.put_down()
        self._refused = None  # what was promised to it is free, though it may not have held a block yet

    def plan(self, room: int | None = None) -> list[Share]:
        """Return the next step's shares, each computed in full before the next plan.

        Empty only when idle, or when everybody waits for images to be encoded.

        room: for tokens of prompts while replies grow; None: as much as the step has.
        """
        before = self.preemptions
        shares: dict[Sequence, Share] = {}
        self._plan_growing(shares)
        if self.preemptions == before:  # else what came free is needed by those in progress
            self._admit()
            self._plan_growing(shares)  # some begin with one token only
        left = self._left(shares)
        if shares and room is not None:
            left = min(left, room)
        self._plan_reading(left, shares)
        return list(shares.values())

    def _plan_growing(self, shares: dict[Sequence, Share]) -> None:
        growing = [s for s in self._running if s.unread == 1 and s.readable and s not in shares]
        # Half of what the step has left is for prompts, however much can be guessed.
        guesses = max(0, self._left(shares) - len(growing)) // 2
        for sequence in growing:
            if sequence not in self._running:
                continue  # it made room for an older one
            count = self._make_room(sequence, 1 + min(guesses, len(sequence.guess)), shares)
            if count > 0:
                tokens = [sequence.tokens[-1], *sequence.guess[: count - 1]]
                shares[sequence] = Share(sequence, tokens, last=True, guessed=count - 1)
                guesses -= count - 1

    def _left(self, shares: dict[Sequence, Share]) -> int:
        """Return how many tokens the step may still take; below 0 if more are growing than it has."""
        return self._limits.step_tokens - sum(len(share.tokens) for share in shares.values())

    def _plan_reading(self, room: int, shares: dict[Sequence, Share]) -> None:
        for sequence, wanted in self._chunks([s for s in self._running if s not in shares and s.readable], room):
            if sequence not in self._running or room <= 0:
                continue
            count, start = self._make_room(sequence, min(wanted, room), shares), sequence.table.length
            room -= count  # which may be more than was wanted, once in a step: what must be read together
            if count > 0:
                tokens = sequence.tokens[start : start + count]
                shares[sequence] = Share(sequence, tokens, last=count == sequence.unread)

    def _make_room(self, sequence: Sequence, wanted: int, planned: dict[Sequence, Share]) -> int:
        """Reserve blocks for up to `wanted` more tokens, or for as many as must be read together; return for how many.

        So that there are any, younger sequences that this step has not planned yet give theirs back.
        """
        table = sequence.table
        least = sequence.spans.least(table.length)
        while table.room() < table.length + least:
            younger = self._running[self._running.index(sequence) + 1 :]
            victim = next((other for other in reversed(younger) if other not in planned), None)
            if victim is None:
                return 0
            self._preempt(victim)
        count = sequence.spans.cut(table.length, min(wanted, table.room() - table.length))
        table.reserve(table.length + count)
        return count

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.put_down()
        sequence.preempted += 1
        self._refused = None
        self._waiting.insert(0, sequence)
        self.preemptions += 1

    def _admit(self) -> None:
        """Begin with as many of those who wait as there are places and blocks for."""
        while self._waiting and len(self._running) < self._limits.sequences:
            sequence = self._next()
            if (sequence, sequence.table.returned) == self._refused:
                return
            # What those in progress have yet to read is theirs, and a block more for each to grow into.
            promised = {other.table: len(other.tokens) + BLOCK for other in self._running}
            if promised and not sequence.table.fits(BLOCK, beside=promised):
                return
            sequence.table.adopt(sequence.tokens)
            if promised and not sequence.table.fits(len(sequence.tokens), beside=promised):
                sequence.table.clear()
                self._refused = sequence, sequence.table.returned
                return
            if not sequence.begun_ns:
                sequence.cached_tokens = sequence.table.length
            self._waiting.remove(sequence)
            self._running.append(sequence)

    def _next(self) -> Sequence:
        """Return who is to begin: first those who had begun before, then the clients with the fewest replies."""
        if self._waiting[0].preempted:
            return self._waiting[0]
        busy = Counter(sequence.client for sequence in self._running)
        return min(self._waiting, key=lambda sequence: busy[sequence.client])

    def _chunks(self, reading: list[Sequence], room: int) -> Iterator[tuple[Sequence, int]]:
        """Yield how many tokens each prompt reads in this step, in order of age."""
        wanted = {s: min(s.readable, s.request.num_batch or s.unread) for s in reading}
        parts = dict.fromkeys(reading, 0)
        for halving in (True, False):  # then once more, for what is left over
            for place, sequence in enumerate(reading, 1):
                most = -(-room // 2) if halving and place < len(reading) else room
                part = max(0, min(wanted[sequence] - parts[sequence], most))
                parts[sequence] += part
                room -= part
        yield from ((sequence, part) for sequence, part in parts.items() if part > 0)
