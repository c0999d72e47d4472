"""Who runs when: which tokens of which sequences the next step computes. No I/O, no clock, no arrays.

Equal queues give equal plans. Sequences that are growing come first, a token each, so that a long prompt never stalls
running replies for longer than one chunk; prompts fill what is left of the step, oldest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .sequence import Sequence


@dataclass(frozen=True)
class Limits:
    """What a step and an engine may take on."""

    step_tokens: int  # tokens of all sequences in one step; those that are growing get theirs even if there are more
    sequences: int  # sequences in progress at once


@dataclass(frozen=True)
class Share:
    """One sequence's part of a step: its next tokens, in order."""

    sequence: Sequence
    tokens: list[int]
    last: bool  # whether these are all it has, so that a token is sampled after them


class Scheduler:
    """The sequences of one engine."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._running and not self._waiting

    @property
    def sequences(self) -> list[Sequence]:
        """Everything in progress or waiting, oldest first."""
        return [*self._running, *self._waiting]

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was cancelled; its place is taken in the next step."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def plan(self) -> list[Share]:
        """Return the next step's shares, each computed in full before the next plan. Empty only when idle."""
        while self._waiting and len(self._running) < self._limits.sequences:
            self._running.append(self._waiting.popleft())
        growing = [s for s in self._running if s.unread == 1]
        reading = [s for s in self._running if s.unread > 1]
        return [self._share(s, 1) for s in growing] + list(self._chunks(reading, len(growing)))

    def _chunks(self, reading: list[Sequence], taken: int) -> Iterator[Share]:
        room = self._limits.step_tokens - taken
        for sequence in reading:
            if room <= 0:
                return
            count = min(sequence.unread, room, sequence.request.num_batch or room)
            room -= count
            yield self._share(sequence, count)

    def _share(self, sequence: Sequence, count: int) -> Share:
        start = sequence.cache.length
        return Share(sequence, sequence.tokens[start : start + count], last=count == sequence.unread)
