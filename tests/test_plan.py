"""Who runs when: pure tests of the scheduler, with sequences that nothing computes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import BadRequest
from puna.core.memory.blocks import Blocks, Capacity
from puna.core.scheduler.messages import Generate
from puna.core.scheduler.plan import Limits, Scheduler
from puna.core.scheduler.sequence import Sequence

WORD = 1000  # the token that every test reply consists of


def sequence(tokens, num_batch=None, num_ctx=10_000, first=0):
    """A prompt of so many different tokens."""
    request = Generate(prompt=list(range(first, first + tokens)), num_ctx=num_ctx, num_batch=num_batch)
    return Sequence(request, reply=None, table=Blocks([], Capacity(num_ctx, 1, 1)).table(), emit=lambda event: None)


def compute(shares):
    """Do what the engine does with a step, save the arithmetic: every share is read, last ones grow by a token."""
    for share in shares:
        share.sequence.table.advance(share.sequence.tokens, len(share.tokens))
        if share.last:
            share.sequence.append(WORD)


def made(*sequences, step_tokens=8, places=4):
    scheduler = Scheduler(Limits(step_tokens, places))
    for each in sequences:
        scheduler.add(each)
    return scheduler


def counts(shares):
    return [(share.sequence, len(share.tokens)) for share in shares]


def test_a_scheduler_without_sequences_is_idle_and_plans_nothing():
    scheduler = made()
    assert scheduler.idle
    assert scheduler.plan() == []


def test_a_short_prompt_is_read_in_one_step_and_grows_by_one_from_then_on():
    talking = sequence(5)
    scheduler = made(talking)
    (share,) = scheduler.plan()
    assert (share.sequence, share.tokens, share.last) == (talking, [0, 1, 2, 3, 4], True)
    compute([share])
    (share,) = scheduler.plan()
    assert (share.tokens, share.last) == ([WORD], True)


def test_a_long_prompt_is_read_in_chunks_of_the_step():
    scheduler = made(sequence(20), step_tokens=8)
    seen = []
    for _ in range(3):
        (share,) = scheduler.plan()
        seen.append((len(share.tokens), share.tokens[0], share.last))
        compute([share])
    assert seen == [(8, 0, False), (8, 8, False), (4, 16, True)]


def test_replies_in_progress_advance_before_new_prompts():
    talking, arriving = sequence(2), sequence(20)
    scheduler = made(talking, step_tokens=3)
    compute(scheduler.plan())
    scheduler.add(arriving)
    assert counts(scheduler.plan()) == [(talking, 1), (arriving, 2)]


def test_a_reply_comes_first_though_its_prompt_came_later():
    long, short = sequence(20, num_batch=4), sequence(2)
    scheduler = made(long, short, step_tokens=8)
    shares = scheduler.plan()
    assert counts(shares) == [(long, 4), (short, 2)]
    compute(shares)
    assert counts(scheduler.plan()) == [(short, 1), (long, 4)]


def test_no_prompt_takes_more_than_half_of_what_is_left_while_others_wait():
    first, second, third = sequence(6), sequence(6), sequence(6)
    scheduler = made(first, second, third, step_tokens=8)
    assert counts(scheduler.plan()) == [(first, 4), (second, 2), (third, 2)]


def test_what_short_prompts_leave_over_goes_to_the_oldest():
    first, second, third = sequence(9), sequence(2), sequence(2)
    scheduler = made(first, second, third, step_tokens=12)
    assert counts(scheduler.plan()) == [(first, 8), (second, 2), (third, 2)]


def test_a_request_may_ask_for_smaller_chunks_which_leaves_room_for_others():
    slow, other = sequence(20, num_batch=3), sequence(20)
    scheduler = made(slow, other, step_tokens=8)
    assert counts(scheduler.plan()) == [(slow, 3), (other, 5)]


def test_replies_that_fill_the_step_all_advance_and_prompts_wait():
    talking = [sequence(1) for _ in range(3)]
    arriving = sequence(5)
    scheduler = made(*talking, arriving, step_tokens=2)
    assert counts(scheduler.plan()) == [(each, 1) for each in talking]


def test_no_more_sequences_run_than_there_are_places():
    first, second, third = sequence(1), sequence(1), sequence(1)
    scheduler = made(first, second, third, places=2)
    compute(scheduler.plan())
    assert counts(scheduler.plan()) == [(first, 1), (second, 1)]
    scheduler.remove(first)
    assert counts(scheduler.plan()) == [(second, 1), (third, 1)]


def test_a_sequence_is_forgotten_whether_it_runs_or_waits():
    running, waiting = sequence(1), sequence(1)
    scheduler = made(running, waiting, places=1)
    scheduler.plan()
    assert scheduler.sequences == [running, waiting]
    scheduler.remove(waiting)
    assert scheduler.sequences == [running]
    scheduler.remove(running)
    assert scheduler.idle


def test_equal_queues_give_equal_plans():
    def plans():
        scheduler = made(*[sequence(n) for n in (3, 9, 1, 30)], places=3)
        found = []
        for _ in range(10):
            shares = scheduler.plan()
            found.append([(share.tokens, share.last) for share in shares])
            compute(shares)
        return found

    assert plans() == plans()


def test_a_shifted_reply_reads_what_is_left_of_it_as_a_prompt():
    scheduler = made(sequence(8, num_ctx=8), step_tokens=4)
    for _ in range(2):
        compute(scheduler.plan())
    (share,) = scheduler.plan()
    assert (share.tokens, share.last) == ([0, 1, 2, 3], False)  # the kept beginning
    compute([share])
    (share,) = scheduler.plan()
    assert (share.tokens, share.last) == ([6, 7, WORD], True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_ctx", 0), ("num_batch", 0), ("num_batch", -5), ("max_tokens", 0), ("logprobs", -1), ("guess", -1)],
)
def test_a_request_that_could_not_be_planned_is_refused(name, value):
    with pytest.raises(BadRequest, match=f"^{name} is {value}: expected a whole number from [01]$"):
        Generate(**{"prompt": [1], "num_ctx": 8, name: value})


requests = st.tuples(st.integers(1, 40), st.none() | st.integers(1, 10), st.integers(1, 6), st.integers(0, 12))


@given(requests=st.lists(requests, min_size=1, max_size=8), step_tokens=st.integers(1, 16), places=st.integers(1, 5))
def test_every_token_is_computed_once_and_in_order_within_the_limits(requests, step_tokens, places):
    """requests: length of prompt and reply, chunk asked for, and the step at which each arrives."""
    scheduler = made(step_tokens=step_tokens, places=places)
    arrivals = sorted(
        (
            (step, sequence(prompt, num_batch=chunk, first=100 * i), reply)
            for i, (prompt, chunk, reply, step) in enumerate(requests)
        ),
        key=lambda arrival: arrival[0],
    )
    wanted = {each: len(each.tokens) + reply for _, each, reply in arrivals}
    computed = {each: [] for each in wanted}
    present, step = [], 0  # present: all that have not ended, in the order of arrival
    while arrivals or not scheduler.idle:
        while arrivals and arrivals[0][0] <= step:
            present.append(arrivals.pop(0)[1])
            scheduler.add(present[-1])
        shares = scheduler.plan()
        assert shares or scheduler.idle
        growing = [each for each in present[:places] if each.unread == 1]
        reading = [each for each in present[:places] if each.unread > 1]
        assert [share.sequence for share in shares] == (growing + reading)[: len(shares)]
        assert len(shares) >= len(growing)
        assert sum(len(share.tokens) for share in shares) <= max(step_tokens, len(growing))
        for share in shares:
            chunk = share.sequence.request.num_batch
            assert 1 <= len(share.tokens) <= (chunk or step_tokens)
            assert share.last == (len(share.tokens) == share.sequence.unread)
            computed[share.sequence] += share.tokens
        compute(shares)
        for share in shares:
            if len(share.sequence.tokens) > wanted[share.sequence]:
                scheduler.remove(share.sequence)
                present.remove(share.sequence)
        step += 1
        assert step < 1000, "nothing moves"
    for each, tokens in computed.items():
        prompt = each.request.prompt
        assert tokens == prompt + [WORD] * (wanted[each] - len(prompt))
