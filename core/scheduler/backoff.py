"""When a model whose runner keeps dying may be started again."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Busy, RunnerDied

FREE = 3  # deaths in a row before the next start has to wait
FIRST_S = 1.0  # of waiting; each further death doubles it
MOST_S = 60.0


@dataclass(frozen=True)
class _Deaths:
    """How often runners of one model died in a row, and when the next may be started."""

    count: int
    reason: str
    until: float


class Backoff:
    """The deaths of runners that did nobody any good. Pure: times are handed in, in seconds of one clock."""

    def __init__(self) -> None:
        self._deaths: dict[str, _Deaths] = {}

    def check(self, key: str, now: float) -> None:
        """Raise Busy, with the reason and when to come again, while a model may not be started."""
        deaths = self._deaths.get(key)
        if deaths is not None and now < deaths.until:
            raise Busy(
                f"the model's runner died {deaths.count} times in a row, at last because {deaths.reason}; "
                f"it can be started again in {max(1, round(deaths.until - now))} s"
            )

    def died(self, key: str, death: RunnerDied, now: float) -> None:
        """Note that a runner died before it was of use."""
        count = 1 + (self._deaths[key].count if key in self._deaths else 0)
        wait = min(MOST_S, FIRST_S * 2.0 ** (count - FREE)) if count >= FREE else 0.0
        self._deaths[key] = _Deaths(count, str(death), now + wait)

    def lived(self, key: str) -> None:
        """Note that a runner of a model was of use: what comes now is no loop."""
        self._deaths.pop(key, None)
