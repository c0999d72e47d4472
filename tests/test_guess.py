"""Guesses: what is found in the text, what may be spent on it, and that no reply changes because of them."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.scheduler import engine
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.guess import ALLOWANCE, FIRST, LENGTH, LIMIT, MOST, Lookup
from puna.core.scheduler.inline import InlineRunner, TextParts
from puna.core.scheduler.messages import Finished, Generate
from puna.core.scheduler.plan import Limits
from puna.core.tensor.sampling import SamplingParams
from puna.plugins import llama
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer

FREE, CHEAP = 0.0, 0.01  # cost of a token, in steps


# ---- what is guessed -----------------------------------------------------------------------------------------------


def test_what_followed_before_is_guessed_again():
    assert Lookup().guess([1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 2, FREE) == [4, 5]


def test_the_latest_of_several_places_counts():
    assert Lookup().guess([1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3], 1, FREE) == [5]


def test_a_repetition_goes_on_beyond_the_end_of_the_text():
    assert Lookup().guess([9, 1, 2, 1, 2, 1, 2], 7, FREE) == [1, 2, 1, 2, 1, 2, 1]
    assert Lookup().guess([8, 8, 8, 8], 3, FREE) == [8, 8, 8]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 9, 1, 2]])
def test_nothing_new_is_guessed(tokens):
    assert Lookup().guess(tokens, MOST, FREE) == []


def test_no_more_than_was_asked_for():
    assert Lookup().guess([8] * 20, 0, FREE) == []
    assert len(Lookup().guess([8] * 20, MOST, FREE)) == MOST


@given(st.lists(st.integers(0, 2), max_size=60), st.lists(st.integers(0, 2), max_size=30), st.integers(0, MOST))
def test_a_text_that_grows_is_searched_as_one_that_is_read_at_once(text, more, most):
    growing = Lookup()
    growing.guess(text, most, FREE)
    for end in range(len(text), len(text) + len(more) + 1):
        tokens = (text + more)[:end]
        assert growing.guess(tokens, most, FREE) == Lookup().guess(tokens, most, FREE)


@given(
    text=st.lists(st.integers(0, 3), min_size=8, max_size=40),
    cuts=st.tuples(st.integers(0, 5), st.integers(1, 5)),
    more=st.lists(st.integers(0, 3), max_size=40),
)
def test_a_text_whose_middle_was_dropped_is_searched_as_it_is_now(text, cuts, more):
    """More may have come since than was dropped, before the guesser is asked again."""
    lookup, (keep, drop) = Lookup(), cuts
    lookup.guess(text, MOST, FREE)
    shifted = text[:keep] + text[keep + drop :] + more
    found = lookup.guess(shifted, MOST, FREE)
    places = [i for i in range(LENGTH, len(shifted)) if shifted[i - LENGTH : i] == shifted[-LENGTH:]]
    assert found in [[], *[repeated(shifted[place:]) for place in places]]


def repeated(tokens):
    return [tokens[i % len(tokens)] for i in range(MOST)]


def test_a_text_that_is_shorter_than_before_is_searched_anew():
    lookup = Lookup()
    lookup.guess([1, 2, 3, 4, 5, 6, 7, 8, 9], MOST, FREE)
    assert lookup.guess([5, 6, 7, 9, 5, 6, 7], 1, FREE) == [9]


# ---- what it may cost ----------------------------------------------------------------------------------------------


def spent_in_vain(lookup, steps, cost):
    """Ask in every step for guesses of which none comes true; return the tokens checked."""
    total = 0
    for _ in range(steps):
        guess = lookup.guess([8] * 20, MOST, cost)
        total += len(guess)
        if guess:
            lookup.learn(len(guess), 0, cost)
    return total


@given(st.integers(1, 300), st.floats(1e-3, 1.0))
def test_guessing_in_vain_costs_no_more_than_the_allowance(steps, cost):
    assert spent_in_vain(Lookup(), steps, cost) * cost <= FIRST + ALLOWANCE * steps + 1e-9


def test_guessing_in_vain_is_tried_again_now_and_then():
    assert spent_in_vain(Lookup(), 300, 0.1) * 0.1 > ALLOWANCE * 300 / 2


@given(
    st.lists(st.tuples(st.integers(0, MOST), st.floats(1e-3, 1.0), st.floats(1e-3, 1.0)), max_size=100),
)
def test_all_that_is_ever_spent_was_allowed_or_earned(steps):
    """Though the cost be another one when a guess was checked: then a step's guesses are at most what is overdrawn."""
    lookup, balance, worst = Lookup(), FIRST, 0.0
    for hits, cost, cost_then in steps:
        balance += ALLOWANCE
        guess = lookup.guess([8] * 20, MOST, cost)
        assert len(guess) * cost <= max(0.0, balance) + 1e-9
        if guess:
            accepted = min(hits, len(guess))
            lookup.learn(len(guess), accepted, cost_then)
            balance += accepted - len(guess) * cost_then
            worst = max(worst, len(guess) * cost_then)
        assert balance >= -worst - 1e-9


def test_credit_from_good_times_is_limited():
    lookup = Lookup()
    for _ in range(100):
        lookup.learn(MOST, MOST, CHEAP)
    assert spent_in_vain(lookup, 100, 0.1) * 0.1 <= LIMIT + ALLOWANCE * 100 + 1e-9


def test_a_guess_that_comes_true_pays_for_the_next():
    lookup, tokens, asked = Lookup(), [8] * 20, []
    for _ in range(20):
        guess = lookup.guess(tokens, MOST, 0.3)
        asked.append(len(guess))
        lookup.learn(len(guess), len(guess), 0.3)
    assert asked[0] == 1  # the first credit
    assert all(later >= earlier for earlier, later in pairwise(asked))
    assert asked[-1] == MOST


# ---- what comes of it ----------------------------------------------------------------------------------------------

GGUF = Path(__file__).parent / "fixtures" / "llama-quant" / "gguf" / "model-Q4_K_M.gguf"


class Eager(Lookup):
    """Guesses whatever the cost, so that what is guessed does not depend on the clock."""

    def guess(self, tokens, most, cost):
        return super().guess(tokens, most, FREE)


def replies(requests, *, speculate):
    """Return the tokens of each reply, and how many guesses were checked and came true in all."""
    text = TextParts(open_tokenizer, StopStrings, Grammars)
    options = EngineOptions(Limits(64, 4), threads=2, cache_type="f16", positions=4096, speculate=speculate)
    runner = InlineRunner(GGUF, [replace(llama.architectures()[0], stop_tokens=())], text, options)

    async def reply(request):
        events = [event async for event in runner.generate(request)]
        assert isinstance(events[-1], Finished)
        return [token for event in events[:-1] for token in event.tokens]

    async def one_by_one():
        found = [await reply(request) for request in requests]
        stats = runner.stats
        await runner.close()
        return found, stats.guessed_tokens, stats.accepted_tokens

    return asyncio.run(one_by_one())


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 0.3, "repeat_penalty": 1.3, "frequency_penalty": -0.5},
        {"temperature": 0},
    ],
    ids=str,
)
def test_a_sampled_reply_is_the_same_with_and_without_guesses(monkeypatch, sampling):
    monkeypatch.setattr(engine, "Lookup", Eager)
    requests = [
        Generate(
            prompt=[5, 6, 7, 8] * length, sampling=SamplingParams(seed=seed, **sampling), max_tokens=60, num_ctx=80
        )
        for seed, length in enumerate([1, 5, 12, 18])
    ]
    plain, guessed, _ = replies(requests, speculate=False)
    assert guessed == 0
    ahead, guessed, accepted = replies(requests, speculate=True)
    assert ahead == plain
    assert 0 < accepted <= guessed
