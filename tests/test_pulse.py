"""When an engine is taken to hang."""

import pytest

from puna.core.scheduler.pulse import BEATS, Pulse
from puna.core.scheduler.stats import EngineStats


def looks(pulse, count, stats, due=True):
    return [pulse.stopped(stats, due=due) for _ in range(count)]


def test_an_engine_that_does_nothing_though_a_reply_is_due_is_found_after_so_many_looks():
    assert looks(Pulse(), BEATS + 1, EngineStats()) == [False] * BEATS + [True]


@pytest.mark.parametrize("change", ["steps", "finished", "failed"])
def test_whatever_it_does_counts(change):
    pulse = Pulse()
    for count in range(5):
        assert not any(looks(pulse, BEATS, EngineStats(**{change: count})))
    assert pulse.stopped(EngineStats(**{change: 4}), due=True)


def test_an_engine_that_has_nothing_to_do_may_rest():
    pulse = Pulse()
    assert not any(looks(pulse, 5 * BEATS, EngineStats(), due=False))
    assert looks(pulse, BEATS, EngineStats()) == [False] * (BEATS - 1) + [True]


def test_what_only_says_how_full_it_is_is_no_step():
    pulse = Pulse()
    assert [pulse.stopped(EngineStats(waiting=count), due=True) for count in range(BEATS + 1)][-1]
