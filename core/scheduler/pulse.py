"""Whether an engine in another process still gets on: a native call in it may hang, which nobody in there can end."""

from __future__ import annotations

from .stats import EngineStats

BEATS = 10  # looks in a row that must find the same, so that one that came late counts for no more than any other


class Pulse:
    """What was seen of an engine lately. Pure: it is asked in equal distances."""

    def __init__(self) -> None:
        self._seen: tuple[int, ...] | None = None
        self._still = 0  # looks since anything has changed

    def stopped(self, stats: EngineStats, *, due: bool) -> bool:
        """Return whether the engine has done nothing for BEATS looks. due: whether a reply is unfinished."""
        seen = stats.steps, stats.encode_ns, stats.finished, stats.failed
        self._still = self._still + 1 if due and seen == self._seen else 0
        self._seen = seen
        return self._still >= BEATS
