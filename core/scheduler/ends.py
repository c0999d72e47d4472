"""How sequences leave an engine: each is told once, whatever ends it, and counted."""

from __future__ import annotations

from collections.abc import Iterable

from .messages import Failed, FailureKind, FinishReason
from .plan import Scheduler
from .sequence import Sequence
from .stats import EngineStats


class Ends:
    """Takes sequences off the scheduler. Only the engine's thread uses it."""

    def __init__(self, scheduler: Scheduler, counts: EngineStats) -> None:
        self._scheduler, self._counts = scheduler, counts

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence as it should be."""
        self._scheduler.remove(sequence)
        self._counts.finished += 1
        sequence.emit(sequence.finished(reason))

    def fail(self, sequences: Iterable[Sequence], kind: FailureKind, message: str) -> None:
        """End sequences with an error; those that have ended already are left alone."""
        for sequence in sequences:
            if sequence in self._scheduler.sequences:  # it may have ended in the part of the step that went well
                self._scheduler.remove(sequence)
                self._counts.failed += 1
                sequence.emit(Failed(kind, message))
