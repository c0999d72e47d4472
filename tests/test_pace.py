"""How long steps take, and what that grants to prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.scheduler.pace import FIRST, GUESS, LEAST, PROBE, SLOWDOWN, Pace, Price


def learned(*steps):
    """A pace that has seen these steps: growing, guessed, prompt, seconds."""
    pace = Pace()
    for step in steps:
        pace.learn(*step)
    return pace


def run(pace, steps, growing, base, each):
    """Let an endless prompt be read beside replies; return how long each step took, and how many tokens it read."""
    found = []
    for _ in range(steps):
        room = pace.room(growing)
        took = base + each * room
        pace.learn(growing, 0, room, took)
        found.append((took, room))
    return found


def test_the_first_step_shows_what_replies_take_alone():
    pace = Pace()
    assert (pace.cost, pace.seconds, pace.room(1)) == (None, 0.0, 0)
    pace.learn(1, 0, 0, 0.05)
    assert (pace.cost, pace.seconds, pace.room(1)) == (GUESS, 0.05, FIRST)


def test_steps_without_replies_tell_nothing():
    assert learned((0, 0, 512, 2.0)).room(1) == 0


@given(base=st.floats(1e-3, 1.0), share=st.floats(1e-3, 0.3), growing=st.integers(1, 32))
def test_a_prompt_slows_replies_by_no_more_than_is_granted(base, share, growing):
    steps = run(Pace(), 120, growing, base, share * base)
    assert all(took <= base * SLOWDOWN * 1.001 or room == LEAST for took, room in steps[2:])
    assert steps[-1][1] == pytest.approx(max(LEAST, (SLOWDOWN - 1) / share), abs=1.01)


def test_a_token_that_becomes_dearer_gets_rarer():
    pace = learned((1, 0, 0, 0.1))
    cheap = run(pace, 40, 1, 0.1, 0.002)[-1][1]
    dear = run(pace, 40, 1, 0.1, 0.008)[-1][1]
    assert cheap == pytest.approx(35, abs=1)
    assert dear == pytest.approx(8, abs=1)


def test_now_and_then_a_step_without_prompts_shows_what_replies_take_by_now():
    steps = run(Pace(), 4 * PROBE, 2, 0.1, 0.001)
    plain = [i for i, (_, room) in enumerate(steps) if room == 0]
    assert plain == [0, PROBE + 1, 2 * PROBE + 2, 3 * PROBE + 3]


def test_another_number_of_replies_is_measured_by_the_nearest_until_it_is_known():
    pace = learned((1, 0, 0, 0.1), (8, 0, 0, 0.2))
    assert pace.seconds == 0.2
    pace.learn(7, 0, 10, 0.3)
    assert pace.room(7) == pytest.approx((SLOWDOWN - 1) * 0.2 / 0.01, abs=1)


def test_the_cost_of_a_guess_is_its_share_of_a_step():
    assert learned((1, 0, 0, 0.1), (1, 5, 0, 0.125)).cost == pytest.approx(0.05)
    assert learned((1, 0, 0, 0.1), (1, 5, 0, 0.09)).cost == 0  # a step that was no slower


def test_tokens_that_cost_nothing_are_let_in_by_and_by():
    rooms = [room for _, room in run(Pace(), 12, 1, 0.1, 0.0)]
    assert rooms[:4] == [0, FIRST, 2 * FIRST, 4 * FIRST]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 512), st.floats(0, 100)), max_size=60))
def test_prompts_wait_for_one_plain_step_at_most(steps):
    pace = learned(*steps)
    if pace.room(3) == 0:
        pace.learn(3, 0, 0, 0.1)
    assert pace.room(3) >= LEAST
    assert pace.cost is None or pace.cost >= 0


def test_a_step_that_is_late_already_has_less_room_for_prompts():
    pace = learned((1, 0, 0, 0.1), *[(1, 0, 50, 0.15)] * 3)  # 1 ms for each token
    assert pace.spare == pytest.approx(0.07)
    assert [pace.room(1), pace.room(1, 0.05), pace.room(1, 0.2)] == [
        pytest.approx(70, abs=1),
        pytest.approx(20, abs=1),
        LEAST,
    ]
    assert [learned().room(1, 0.1), learned().spare] == [0, 0.0]


def test_what_fits_in_a_time_is_known_from_what_was_read():
    price = Price()
    assert price.fits(1.0) == FIRST
    price.learn(8, 0.01)
    assert [price.fits(0.1), price.fits(1.0), price.fits(0.0)] == [10, 16, LEAST]
