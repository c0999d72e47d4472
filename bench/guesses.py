"""What guessing tokens ahead is worth: `python -m bench.guesses --model FILE.gguf [--tokens 128] [--repeats 5]`.

One engine answers with guesses and without, in turns: a reply that repeats what it said, alone, and replies that do
not, beside one that does. Which replies repeat themselves depends on the model; a greedy one of random weights does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.scheduler.messages import Finished, Generate
from puna.core.tensor.sampling import SamplingParams
from puna.core.tensor.threads import default_threads

from .engines import Puna, Setting
from .worker import Prompts

COPIED = 24  # tokens that the repeating prompt says again and again ...
TIMES = 8  # ... so many times
BESIDE = 3  # replies that do not repeat themselves
PROMPT = 16  # tokens of their prompts


def rate(end: Finished) -> float:
    """Return tokens in a second after the first."""
    return (end.tokens - 1) / (end.decode_ns / 1e9)


class Replies:
    """The requests of one comparison."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._prompts = tokens, Prompts(0)
        self._copied = self._prompts.next(COPIED) * TIMES

    def repeating(self, guess: int | None) -> Generate:
        """Return a request whose reply repeats itself."""
        return self._request(self._copied, SamplingParams(temperature=0), guess)

    def sampled(self, guess: int | None, seed: int) -> Generate:
        """Return a request whose reply is as random as the model lets it be."""
        return self._request(self._prompts.next(PROMPT), SamplingParams(temperature=1, seed=seed), guess)

    def _request(self, prompt: Sequence[int], sampling: SamplingParams, guess: int | None) -> Generate:
        room = COPIED * TIMES + self._tokens
        return Generate(prompt=list(prompt), sampling=sampling, max_tokens=self._tokens, num_ctx=room, guess=guess)


def alone(engine: Puna, replies: Replies, guess: int | None) -> tuple[float, Finished]:
    """Return how fast a reply is that repeats itself, in tokens a second."""
    end = engine.side_by_side([replies.repeating(guess)])[0]
    return rate(end), end


def beside(engine: Puna, replies: Replies, guess: int | None, run: int) -> float:
    """Return how fast replies are that do not, beside that one: tokens a second of each."""
    others = [replies.sampled(guess, run * BESIDE + i) for i in range(BESIDE)]
    ends = engine.side_by_side([replies.repeating(guess), *others])
    return statistics.mean(rate(end) for end in ends[1:])


def read_arguments() -> Any:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.guesses", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--tokens", type=int, default=128, help="of each reply")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    return parser.parse_args()


def main() -> None:
    """Measure as the command line says."""
    given = read_arguments()
    room = COPIED * TIMES + given.tokens
    engine = Puna(given.model, Setting(given.threads, 2 * room, sequences=1 + BESIDE, speculate=True))
    replies = Replies(given.tokens)
    copying: dict[int | None, list[float]] = {None: [], 0: []}
    others: dict[int | None, list[float]] = {None: [], 0: []}
    beside(engine, replies, 0, 0)  # warms caches and threads up
    for run in range(given.repeats):
        for guess in (None, 0) if run % 2 == 0 else (0, None):
            found, end = alone(engine, replies, guess)
            copying[guess].append(found)
            others[guess].append(beside(engine, replies, guess, run))
            if guess is None:
                print(f"guessed {end.guessed}, of which {end.accepted} came true, in {end.tokens} tokens", flush=True)
    for name, rates in (("repeating, alone", copying), ("others, beside it", others)):
        each = [statistics.median(rates[guess]) for guess in (None, 0)]
        print(f"{name:18} {each[0]:.1f} tokens/s with guesses, {each[1]:.1f} without: {each[0] / each[1]:.3f}")


if __name__ == "__main__":
    main()
