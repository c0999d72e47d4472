"""Guessing ahead with a second, small model of the same vocabulary.

Source: "Fast Inference from Transformers via Speculative Decoding", arXiv:2211.17192. As the small model's likeliest
token is the only one guessed, taking it exactly when it is what the large one samples leaves replies as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from ..memory.cache import Cache, Capacity, ElementType, Rows
from ..model import LoadedModel
from ..protocols import Tokenizer
from .guess import MOST, Credit
from .pace import Pace, Price
from .steps import Steps

SHARE = 0.5  # of the time by which steps may be late, for what the small model reads: prompts want some of it, too
FIRST = 4.0  # steps of credit: a draft model was chosen, so it is tried for longer than chance repetitions are


@contextmanager
def speaking_of_draft() -> Iterator[None]:
    """Let a BadModel say that it is about the draft model."""
    try:
        yield
    except BadModel as error:
        raise BadModel(f"the draft model: {error}") from None


def check_same_tokens(model: Tokenizer, draft: Tokenizer) -> None:
    """Raise BadModel unless both number the same tokens alike."""
    if model.size != draft.size:
        raise BadModel(f"it has {draft.size} tokens, expected the model's own {model.size}")
    for token in range(model.size):
        found, expected = draft.piece(token, special=True), model.piece(token, special=True)
        if found != expected:
            raise BadModel(f"its token {token} is {found!r}, expected the model's own {expected!r}")


class DraftModel:
    """The small model and its key/value cache. Only the engine's thread uses it."""

    def __init__(
        self,
        model: LoadedModel,
        element: ElementType,
        capacity: Capacity,
        pace: Pace,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """pace: of the large model's steps. clock: in seconds."""
        self.pace, self.clock = pace, clock
        self.cache = Cache(model.cache, element, capacity)
        self.steps = Steps(model, self.cache)
        self._step_tokens = capacity.step_tokens
        self._price = Price()
        self._spent = 0.0  # seconds of reading, in this step

    def guesser(self) -> Draft:
        """Return what guesses in one reply (`Guesser`)."""
        return Draft(self)

    def room(self) -> int:
        """Return how many tokens may be read now, which makes everybody's next step late."""
        left = SHARE * self.pace.spare - self._spent
        return min(self._step_tokens, self._price.fits(left)) if left > 0 or not self._spent else 0

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Measure how long it takes to read so many tokens."""
        start = self.clock()
        yield
        took = self.clock() - start
        self._price.learn(tokens, took / tokens)
        self._spent += took

    def begin_step(self) -> float:
        """Return the seconds that were spent on reading since the last step began: a step begins now."""
        spent, self._spent = self._spent, 0.0
        return spent


class Draft:
    """Guesses what the small model finds likeliest, one token after the other."""

    def __init__(self, draft: DraftModel) -> None:
        self._draft = draft
        self._table = draft.cache.blocks.table(back=MOST + 1)
        self._read: list[int] = []  # tokens that the table holds
        self._credit = Credit(FIRST)
        self._took = 0.0  # seconds for one token, lately

    def guess(self, tokens: Sequence[int], most: int, cost: float) -> list[int]:
        """Return up to `most` tokens; none while there is more to read first than there is time for."""
        count = self._credit.afford(most, cost + self._own_cost)
        if count < 1:
            return []
        self._agree(tokens)
        if not self._catch_up(tokens) or not self._table.reserve(len(tokens) + count):
            return []
        guessed: list[int] = []
        unread = list(tokens[len(self._read) :])
        start = self._draft.clock()
        while len(guessed) < count:
            unread = [self._next(unread)]
            guessed += unread
        self._took = (self._draft.clock() - start) / count
        return guessed

    def learn(self, guessed: int, accepted: int, cost: float) -> None:
        """Change the credit."""
        self._credit.learn(guessed, accepted, cost + self._own_cost)

    def close(self) -> None:
        """Give the cache's blocks back."""
        self._table.clear()
        self._read = []

    @property
    def _own_cost(self) -> float:
        """What computing a token takes, in steps of the large model."""
        step = self._draft.pace.seconds
        return self._took / step if step else 0.0

    def _agree(self, tokens: Sequence[int]) -> None:
        """Forget what was guessed wrong; all, if the text has changed before that. The last token is always unread."""
        count = min(len(self._read), len(tokens) - 1)
        if self._read[:count] != list(tokens[:count]):
            count = next(i for i in range(count) if self._read[i] != tokens[i])
        if len(self._read) - count > MOST + 1:
            self.close()
        else:
            self._table.rewind(count)
            del self._read[count:]

    def _catch_up(self, tokens: Sequence[int]) -> bool:
        """Read what is far behind the last token, as much as there is time for; return whether that was all of it."""
        behind = len(tokens) - 1 - len(self._read)
        if behind <= MOST:
            return True
        count = min(behind, self._draft.room())
        end = len(self._read) + count
        if count < 1 or not self._table.reserve(end):
            return False
        with self._draft.reading(count):
            self._forward(list(tokens[len(self._read) : end]))
        return count == behind

    def _next(self, tokens: list[int]) -> int:
        """Read tokens and return the likeliest to follow."""
        return int(self._forward(tokens, [len(tokens) - 1])[0].argmax())

    def _forward(self, tokens: list[int], wanted: Sequence[int] = ()) -> npt.NDArray[np.float32]:
        """Read tokens, for which the table has room, and return the logits behind the wanted of them, [N, V]."""
        logits = self._draft.steps.logits(tokens, [Rows(self._table, 0, len(tokens))], wanted)
        self._read += tokens
        self._table.advance(self._read, len(tokens))
        return logits
