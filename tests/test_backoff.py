"""How long a model whose runners die in a row is left alone."""

import pytest

from puna.core.errors import Busy, RunnerDied
from puna.core.scheduler.backoff import Backoff

DEATH = RunnerDied("its process exited with status 7")


def wait_after(backoff, now):
    """Return when the model may be started again, in seconds from now."""
    wait = 0
    while True:
        try:
            backoff.check("a", now + wait)
        except Busy:
            wait += 1
        else:
            return wait


def test_each_death_in_a_row_doubles_the_wait_up_to_a_minute():
    backoff, waits = Backoff(), []
    for _ in range(12):
        backoff.died("a", DEATH, now=1000.0)
        waits.append(wait_after(backoff, 1000.0))
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_the_refusal_says_why_and_when_to_come_again():
    backoff = Backoff()
    for _ in range(6):
        backoff.died("a", DEATH, now=1000.0)
    with pytest.raises(Busy, match=r"died 6 times in a row, at last because .* status 7; .* again in 5 s"):
        backoff.check("a", 1003.0)


def test_a_runner_that_was_of_use_ends_the_row():
    backoff = Backoff()
    for _ in range(8):
        backoff.died("a", DEATH, now=1000.0)
    backoff.lived("a")
    backoff.lived("never seen")
    assert wait_after(backoff, 1000.0) == 0
    backoff.died("a", DEATH, now=1000.0)
    assert wait_after(backoff, 1000.0) == 0


def test_models_are_counted_apart():
    backoff = Backoff()
    for _ in range(8):
        backoff.died("b", DEATH, now=1000.0)
    assert wait_after(backoff, 1000.0) == 0
