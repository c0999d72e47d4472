"""How long steps take: a line through those that were, and what it grants to prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.scheduler.pace import LEAST, SLOWDOWN, UNKNOWN, Pace


def learned(*steps):
    """A pace that has seen these steps, tokens and seconds each."""
    pace = Pace()
    for tokens, seconds in steps:
        pace.learn(tokens, seconds)
    return pace


def line(base, each, sizes):
    return [(size, base + each * size) for size in sizes]


def test_nothing_is_known_before_the_first_step():
    assert Pace().cost is None
    assert Pace().room(1) == UNKNOWN


def test_steps_of_one_size_tell_no_cost():
    assert learned(*[(4, 0.1)] * 50).cost is None
    assert learned(*[(4, 0.1)] * 50).room(4) == UNKNOWN


@pytest.mark.parametrize(("base", "each"), [(0.1, 0.01), (0.001, 0.0001), (5.0, 0.5)])
def test_the_cost_of_a_token_is_its_share_of_a_step_of_one(base, each):
    assert learned(*line(base, each, [1, 30, 1, 200, 7])).cost == pytest.approx(each / (base + each))


@given(
    base=st.floats(1e-4, 1.0),
    each=st.floats(1e-5, 1e-1),
    sizes=st.lists(st.integers(1, 512), min_size=2, max_size=30).filter(lambda sizes: max(sizes) - min(sizes) > 20),
    growing=st.integers(1, 32),
)
def test_a_prompt_slows_replies_by_the_share_that_is_granted(base, each, sizes, growing):
    room = learned(*line(base, each, sizes)).room(growing)
    without, beside = base + each * growing, base + each * (growing + room)
    if room > LEAST:
        assert beside <= without * SLOWDOWN * 1.01
    assert beside + each >= without * SLOWDOWN * 0.99 or room == LEAST  # one token more would be too many


def test_a_token_that_costs_as_much_as_a_step_leaves_prompts_the_least():
    assert learned(*line(0.0, 0.01, [1, 2, 50])).room(1) == LEAST


def test_tokens_that_cost_nothing_are_not_limited():
    pace = learned((1, 0.1), (100, 0.1), (1, 0.1))
    assert pace.cost == pytest.approx(0, abs=1e-9)
    faster = learned((1, 0.2), (100, 0.1))
    assert faster.cost == 0
    assert faster.room(1) > 1 << 20


def test_a_line_that_begins_below_nothing_counts_as_one_through_nothing():
    assert learned((10, 0.01), (100, 1.0)).cost == 1
    assert learned((10, 0.01), (100, 1.0)).room(3) == LEAST


def test_old_steps_are_forgotten():
    slow, fast = line(1.0, 0.1, [1, 100] * 50), line(0.1, 0.0001, [1, 100] * 200)
    assert learned(*slow, *fast).cost == pytest.approx(learned(*fast).cost, rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(0, 100)), max_size=40), st.integers(0, 64))
def test_prompts_always_advance_whatever_was_measured(steps, growing):
    pace = learned(*steps)
    assert pace.cost is None or 0 <= pace.cost <= 1
    assert pace.room(growing) >= LEAST
