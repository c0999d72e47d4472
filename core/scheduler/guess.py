"""Guessing the next tokens from what stands in the text already: names, quotations and code come again.

Where a grammar leaves no choice, such as within the name of a property, that is the guess.

A guess is checked in the step that computes the next token anyway, and a token is only taken if it is the very one that
would have been sampled without guessing, so that replies do not change. What does not pay is left alone: each reply has
a credit, in steps, that guesses cost and tokens that came true earn.

Source: prompt lookup decoding, A. Saxena, 2023; checking in one step: "Fast Inference from Transformers via Speculative
Decoding", arXiv:2211.17192.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..protocols import Grammar

LENGTH = 3  # tokens that must be the same for what followed them to be guessed again
MOST = 7  # tokens of a guess: with the one before them, what products multiply without unpacking weights to memory
FIRST, LIMIT = 0.5, 4.0  # steps of credit, to begin with and at most
ALLOWANCE = 0.02  # steps of credit that come with each step: what guessing may cost in vain


class Guesser(Protocol):
    """Proposes what follows in one reply."""

    def guess(self, tokens: Sequence[int], most: int, cost: float) -> list[int]:
        """Return up to `most` tokens that may follow. tokens: of the prompt and the reply; cost: of each, in steps."""

    def learn(self, guessed: int, accepted: int, cost: float) -> None:
        """Take into account how many of the tokens that were checked came true."""

    def close(self) -> None:
        """Give back what it holds: the reply has ended, or was set aside."""


class Credit:
    """Whether guessing pays: what it cost, and what it saved, in steps."""

    def __init__(self, first: float) -> None:
        self._steps = first

    def afford(self, most: int, cost: float) -> int:
        """Return how many tokens at that cost may be guessed now. Call it once a step."""
        self._steps = min(LIMIT, self._steps + ALLOWANCE)
        return min(most, int(self._steps / cost)) if cost > 0 else most

    def learn(self, guessed: int, accepted: int, cost: float) -> None:
        """Pay for what was guessed; each token that came true saved a step."""
        self._steps = min(LIMIT, self._steps + accepted - guessed * cost)


class Lookup:
    """Guesses what has to follow, or else what followed the last time that the last tokens occurred (`Guesser`)."""

    def __init__(self, grammar: Grammar | None = None) -> None:
        """grammar: of the reply, up to its last token, whenever a guess is asked for."""
        self._grammar = grammar
        self._after: dict[tuple[int, ...], int] = {}  # the place behind the latest occurrence of LENGTH tokens
        self._indexed = 0
        self._credit = Credit(FIRST)

    def guess(self, tokens: Sequence[int], most: int, cost: float) -> list[int]:
        """Return what followed before; over and over, if that was just now."""
        place, count = self._place(tokens), self._credit.afford(most, cost)
        if count < 1:
            return []
        if self._grammar is not None and (forced := self._grammar.forced()):
            return forced[:count]
        if place is None:
            return []
        period = len(tokens) - place
        return [tokens[place + i % period] for i in range(count)]

    def learn(self, guessed: int, accepted: int, cost: float) -> None:
        """Change the credit."""
        self._credit.learn(guessed, accepted, cost)

    def close(self) -> None:
        """Hold nothing that need be given back."""

    def _place(self, tokens: Sequence[int]) -> int | None:
        """Return the place behind the latest occurrence of the last tokens, if there was one."""
        self._index(tokens)
        last = tuple(tokens[-LENGTH:])
        place = self._after.get(last)
        if place is not None and tuple(tokens[place - LENGTH : place]) != last:  # a drop that later tokens made up for
            self._forget()
            self._index(tokens)
            place = self._after.get(last)
        return place

    def _forget(self) -> None:
        self._after.clear()
        self._indexed = 0

    def _index(self, tokens: Sequence[int]) -> None:
        if len(tokens) < self._indexed:  # the middle of the text was dropped
            self._forget()
        for place in range(max(LENGTH, self._indexed), len(tokens)):
            self._after[tuple(tokens[place - LENGTH : place])] = place
        self._indexed = len(tokens)
