"""How long steps take, learned from those that were: what a prompt may add to one while others stream.

Steps in which replies only grow tell what their clients are used to; what longer ones took beyond that is the price of
the tokens in them. The price is looked at anew in every step, as it grows with the text that a prompt has behind it.
"""

from __future__ import annotations

SLOWDOWN = 1.7  # times a reply's next token may take as long because somebody's prompt is read beside it
LEAST = 4  # tokens of prompts in a step, so that they advance whatever is measured
FIRST = 8  # the same, before any have been measured
PROBE = 50  # steps after which one without prompts shows again what that takes
LATEST = 0.2  # share of the latest step in what is known
GUESS = 0.1  # what a guessed token costs, in steps, before any have been measured


class Price:
    """What a token takes that is read beside replies, and how many of them a step has time for."""

    def __init__(self) -> None:
        self._each: float | None = None  # seconds
        self._most = FIRST  # tokens that a step may have: it grows by steps, as larger ones cost less each

    def learn(self, tokens: int, each: float) -> None:
        """Take into account that so many were read at once, in `each` seconds each."""
        self._each = _blend(self._each, each)
        self._most = max(self._most, 2 * tokens)

    def fits(self, seconds: float) -> int:
        """Return how many tokens to read in that time."""
        if self._each is None:
            return FIRST
        return max(LEAST, int(min(seconds / self._each if self._each > 0 else self._most, self._most)))


class Pace:
    """Seconds of steps, and of tokens beyond those that replies grow by."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds of a step in which so many replies grew, and nothing else
        self._growing = 1  # replies in the latest step
        self._since = 0  # steps since the last plain one
        self._prompt = Price()
        self._guess: float | None = None  # seconds of a guessed token

    def learn(self, growing: int, guessed: int, prompt: int, seconds: float) -> None:
        """Take a step into account: replies that grew, and tokens that were guessed or belong to prompts."""
        if growing == 0:
            return
        self._growing = growing
        if guessed == prompt == 0:
            self._plain[growing] = _blend(self._plain.get(growing), seconds)
            self._since = 0
            return
        self._since += 1
        base = self._base(growing)
        if base is None:
            return
        each = max(0.0, seconds - base) / (guessed + prompt)
        if prompt:
            self._prompt.learn(prompt, each)
        else:
            self._guess = _blend(self._guess, each)

    @property
    def cost(self) -> float | None:
        """What guessing a token takes, as a share of a step; None while that is not known."""
        base = self._base(self._growing)
        if not base:
            return None
        return GUESS if self._guess is None else self._guess / base

    @property
    def seconds(self) -> float:
        """What a step takes in which replies only grow; 0 while that is not known."""
        return self._base(self._growing) or 0.0

    @property
    def spare(self) -> float:
        """Seconds that a step may take longer because of what is read beside replies; 0 while that is not known."""
        return (SLOWDOWN - 1) * self.seconds

    def room(self, growing: int, spent: float = 0.0) -> int:
        """Return how many tokens of prompts may join a step in which so many replies grow.

        spent: seconds that the step is late already. 0: it is to show what it takes without prompts, and so should have
        no guesses either.
        """
        base = self._base(growing)
        if base is None or self._since >= PROBE:
            return 0
        return self._prompt.fits((SLOWDOWN - 1) * base - spent)

    def _base(self, growing: int) -> float | None:
        """Return the seconds of a plain step of so many replies, or of the nearest number that there was."""
        if not self._plain:
            return None
        return self._plain[min(self._plain, key=lambda known: abs(known - growing))]


def _blend(before: float | None, latest: float) -> float:
    return latest if before is None else before + LATEST * (latest - before)
