"""How long steps take, learned from those that were: what a prompt may add to one while others stream."""

from __future__ import annotations

from dataclasses import dataclass

SLOWDOWN = 1.8  # times a reply's next token may take as long because somebody's prompt is read beside it
MEMORY = 0.97  # of what is known, kept from step to step: a few dozen steps count
LEAST = 4  # tokens of prompts in any step, so that they advance whatever is measured
UNKNOWN = 64  # the same, until steps of different sizes have been seen


@dataclass
class Pace:
    """Seconds of a step as base + tokens * each: a straight line through recent steps, the latest counting most."""

    _weight: float = 0.0
    _tokens: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """Take a step into account."""
        self._weight = self._weight * MEMORY + 1
        self._tokens = self._tokens * MEMORY + tokens
        self._seconds = self._seconds * MEMORY + seconds
        self._squares = self._squares * MEMORY + tokens * tokens
        self._products = self._products * MEMORY + tokens * seconds

    @property
    def cost(self) -> float | None:
        """What a token more adds to a step of one token, as a share of it; None while that is not known."""
        if self._weight == 0:
            return None
        mean, took = self._tokens / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - mean * mean
        if spread < 0.25:  # all of one size
            return None
        each = (self._products / self._weight - mean * took) / spread
        base = took - each * mean
        if each <= 0:  # larger steps were no slower
            return 0.0
        return each / (base + each) if base > 0 else 1.0

    @property
    def seconds(self) -> float:
        """What steps took lately, on average; 0 before the first."""
        return self._seconds / self._weight if self._weight else 0.0

    def room(self, growing: int) -> int:
        """Return how many tokens of prompts may join a step in which so many replies grow."""
        cost = self.cost
        if cost is None:
            return UNKNOWN
        if cost == 0:
            return 1 << 30
        return max(LEAST, int((SLOWDOWN - 1) * (1 / cost + growing - 1)))
