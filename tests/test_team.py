"""The threads that compute together."""

import os
import threading
import time

import numpy as np
import pytest

from puna.core.tensor.jit import kernel
from puna.core.tensor.team import ASLEEP, TEAM, add, look, nap, shared, spread, use_threads
from puna.core.tensor.threads import default_threads


@kernel
def count_item(counts, item):
    counts[item] += 1


@kernel
def count_some(counts, each, item):
    for i in range(item * each, min(len(counts), item * each + each)):
        counts[i] += 1


@kernel
def meet(come, item):
    add(come, 0, 1)
    for _ in range(400_000):  # a minute: the first worker of all may have to be compiled
        if look(come, 0) >= 2:
            return
        nap(100)
    come[0] -= 1


share_meeting = shared(meet)


@kernel
def meet_late(table, come):
    nap(50_000)
    share_meeting(table, 2, (come,))


@kernel
def fail_at(bad, done, item):
    if item == bad:
        raise MemoryError("not enough")
    done[item] = 1


share_counting, share_some, share_failing = shared(count_item), shared(count_some), shared(fail_at)


@pytest.fixture(autouse=True, params=[1, 2, 5])
def threads(request):
    use_threads(request.param)
    yield request.param
    use_threads(default_threads())


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_every_item_is_done_once(count):
    counts = np.zeros(max(1, count), np.int64)
    for _ in range(50):
        share_counting(TEAM.ready(), count, (counts,))
    assert (counts[:count] == 50).all()
    assert counts[count:].sum() == 0


def test_things_are_dealt_out_in_pieces():
    counts = np.zeros(103, np.int64)
    spread(share_some, len(counts), 10, counts)
    assert (counts == 1).all()


def test_an_error_in_any_item_reaches_the_caller_and_the_next_round_is_well():
    for bad in (0, 3, 19):
        done = np.zeros(20, np.int64)
        with pytest.raises(MemoryError, match="failed on one of its threads"):
            share_failing(TEAM.ready(), 20, (bad, done))
        assert done.sum() == 19
    done = np.zeros(20, np.int64)
    share_failing(TEAM.ready(), 20, (-1, done))
    assert done.all()


def test_several_callers_do_not_disturb_each_other():
    found = [np.zeros(64, np.int64) for _ in range(3)]

    def call(counts):
        for _ in range(200):
            share_counting(TEAM.ready(), 64, (counts,))

    callers = [threading.Thread(target=call, args=(counts,)) for counts in found]
    for caller in callers:
        caller.start()
    for size in (2, 4, 1, 3):
        use_threads(size)
    for caller in callers:
        caller.join()
    assert all((counts == 200).all() for counts in found)


def test_workers_that_fell_asleep_wake_up(threads):
    counts = np.zeros(64, np.int64)
    for _ in range(2):
        share_counting(TEAM.ready(), 64, (counts,))
        while not TEAM.table[ASLEEP]:
            time.sleep(0.02)
    share_counting(TEAM.ready(), 64, (counts,))
    assert (counts == 3).all()


def test_a_round_that_begins_late_is_not_left_to_one_thread():
    use_threads(2)
    come = np.zeros(1, np.int64)
    meet_late(TEAM.ready(), come)
    assert come[0] == 2  # each item waited for the other


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_a_team_of_its_own():
    counts = np.zeros(64, np.int64)
    share_counting(TEAM.ready(), 64, (counts,))
    child = os.fork()
    if child == 0:
        share_counting(TEAM.ready(), 64, (counts,))
        os._exit(0 if (counts == 2).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
