"""Who runs when: pure tests of the scheduler, with sequences that nothing computes."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import BadRequest
from puna.core.memory.blocks import BLOCK, Blocks, BlockTable, Capacity
from puna.core.memory.images import Image
from puna.core.plugin import Causal, Prepared, Rows, Window
from puna.core.scheduler.messages import Generate
from puna.core.scheduler.plan import Limits, Scheduler
from puna.core.scheduler.sequence import Sequence
from puna.core.scheduler.spans import Span, Spans

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


# ---- when blocks run out -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One request of a simulated day."""

    prompt: int  # tokens
    reply: int
    arrives: int = 0  # step
    client: str = ""
    text: int = 0  # those of equal texts begin alike
    guesses: int = 0  # tokens that are guessed in each step, of which the first half comes true


@dataclass
class Day:
    """A scheduler and the cache it works with, run without arithmetic."""

    asks: list[Ask]
    positions: int
    places: int = 4
    step_tokens: int = 64
    kinds: tuple = (Causal(),)
    plans: list = field(default_factory=list)  # of each step: (number of the request, tokens, last, guessed)
    ended: dict = field(default_factory=dict)  # number of the request -> step
    begun: list = field(default_factory=list)  # numbers, in the order in which they were first computed

    def __post_init__(self):
        self.blocks = Blocks(self.kinds, Capacity(self.positions, self.places, self.step_tokens))
        self.scheduler = Scheduler(Limits(self.step_tokens, self.places))
        self.sequences = {self.sequence(ask): number for number, ask in enumerate(self.asks)}

    def sequence(self, ask):
        prompt = [ask.text * 1000 + i for i in range(ask.prompt)]
        request = Generate(prompt=prompt, num_ctx=10_000, max_tokens=ask.reply, client=ask.client)
        return Sequence(request, reply=None, table=self.blocks.table(), emit=lambda event: None)

    def run(self, most=5000):
        """Go on until every request has ended; what is checked holds in each step of any day."""
        coming = sorted(self.sequences, key=lambda sequence: self.asks[self.sequences[sequence]].arrives)
        while coming or not self.scheduler.idle:
            assert len(self.plans) < most, "somebody waits for ever"
            while coming and self.asks[self.sequences[coming[0]]].arrives <= len(self.plans):
                self.arrive(coming.pop(0))
            self.step()
        return self

    def arrive(self, sequence):
        self.blocks.grow(sequence.longest)
        self.scheduler.add(sequence)

    def step(self):
        for sequence in self.scheduler.running:
            ask = self.asks[self.sequences[sequence]]
            sequence.guess = list(range(5000, 5000 + ask.guesses)) if sequence.unread == 1 else []
        shares = self.scheduler.plan()
        assert shares or self.scheduler.idle
        assert len(self.scheduler.running) <= self.places
        alive = sum(share.sequence.unread == 1 for share in shares)
        assert sum(len(share.tokens) for share in shares) <= max(self.step_tokens, alive)
        self.plans.append([(self.sequences[s.sequence], s.tokens, s.last, s.guessed) for s in shares])
        for share in shares:
            self.compute(share)

    def compute(self, share):
        sequence, number = share.sequence, self.sequences[share.sequence]
        if number not in self.begun:
            self.begun.append(number)
        assert sequence.table.length + len(share.tokens) <= sequence.table.room()
        sequence.table.advance(sequence.tokens, len(share.tokens) - share.guessed)
        if not share.last:
            return
        for hit in range(share.guessed // 2 + 1):
            sequence.append(5000 + hit if hit < share.guessed // 2 else WORD)
            if len(sequence.tokens) - sequence.prompt_tokens >= self.asks[number].reply:
                self.ended[number] = len(self.plans)
                self.scheduler.remove(sequence)
                return
            if hit < share.guessed // 2:
                sequence.table.advance(sequence.tokens, 1)


asks = st.builds(
    Ask,
    prompt=st.integers(1, 150),
    reply=st.integers(1, 50),
    arrives=st.integers(0, 40),
    client=st.sampled_from(["a", "b", "c"]),
    text=st.integers(0, 3),
    guesses=st.sampled_from([0, 0, 1, 7]),
)
days = st.builds(
    dict,
    asks=st.lists(asks, min_size=1, max_size=8),
    positions=st.sampled_from([1, 64, 200, 500, 5000]),
    places=st.integers(1, 6),
    step_tokens=st.sampled_from([7, 8, 16, 64, 512]),
    kinds=st.sampled_from([(Causal(),), (Window(20),), (Causal(), Window(20)), (Window(70), Causal(), Window(1))]),
)


@settings(deadline=None)
@given(days)
def test_every_sequence_ends_whoever_else_comes_and_however_small_the_cache_is(options):
    day = Day(**options).run()
    assert sorted(day.ended) == list(range(len(day.asks)))
    assert [pool.held for pool in day.blocks.pools] == [0] * len(day.blocks.pools)


@settings(deadline=None)
@given(days)
def test_equal_days_have_equal_plans(options):
    first, second = Day(**options).run(), Day(**options).run()
    assert first.plans == second.plans
    assert first.scheduler.preemptions == second.scheduler.preemptions


@settings(deadline=None)
@given(days)
def test_every_token_is_computed_behind_those_before_it(options):
    """What a plan computes is the text without gaps, from wherever the cache or a preemption left it."""
    day = Day(**options)
    sequences = {number: sequence for sequence, number in day.sequences.items()}
    compute = day.compute

    def watched(share):
        sequence = share.sequence
        start = sequence.table.length
        known = sequence.tokens[start:]
        assert (share.tokens[: len(known)] + known[len(share.tokens) :]) == known
        assert share.last == (len(share.tokens) >= len(known))
        assert len(share.tokens) - share.guessed == (len(known) if share.last else len(share.tokens))
        compute(share)

    day.compute = watched
    day.run()
    for number, ask in enumerate(day.asks):
        assert len(sequences[number].tokens) == ask.prompt + ask.reply


def test_the_youngest_makes_room_for_those_before_it_and_is_the_next_to_begin():
    old, young, other = Ask(40, 100), Ask(40, 100), Ask(4, 4, arrives=5, client="c")
    day = Day([old, young, other], positions=5 * BLOCK, places=2).run()
    (first, second, third) = (sequence for sequence in day.sequences)
    assert first.preempted == 0
    assert second.preempted > 0
    assert third.preempted == 0
    assert day.ended[0] < day.ended[2]  # though a place was free, and c had nobody running


def test_nobody_begins_in_the_step_in_which_blocks_ran_out():
    day = Day([Ask(40, 100), Ask(40, 100), Ask(3, 3)], positions=4 * BLOCK, places=2)
    for sequence in day.sequences:
        day.arrive(sequence)
    running = []
    while day.scheduler.preemptions == 0:
        running = day.scheduler.running
        day.step()
    assert day.scheduler.running == running[:1]


def test_a_sequence_that_fits_alone_ends_though_all_others_want_its_blocks():
    big = Ask(600, 40, client="big")
    small = [Ask(50, 60, arrives=i, client="small") for i in range(30)]
    day = Day([big, *small], positions=1, places=4).run()
    assert len(day.ended) == 31
    assert next(iter(day.sequences)).preempted == 0


def test_windows_do_not_keep_long_prompts_from_running_side_by_side():
    """Each holds no more than its window, so that both fit, however long they are."""
    long = [Ask(4000, 5), Ask(4000, 5)]
    day = Day(long, positions=10_000, kinds=(Window(64), Causal()), step_tokens=64)
    for sequence in day.sequences:
        day.arrive(sequence)
    day.step()
    assert len(day.scheduler.running) == 2


def test_windows_alone_let_as_many_run_as_there_are_places():
    day = Day([Ask(3000, 5)] * 4, positions=3005, kinds=(Window(64),), step_tokens=64)
    for sequence in day.sequences:
        day.arrive(sequence)
    day.step()
    assert len(day.scheduler.running) == 4


# ---- clients -------------------------------------------------------------------------------------------------------


def test_a_client_with_one_request_does_not_wait_behind_another_s_many():
    many = [Ask(4, 10, client="many") for _ in range(20)]
    day = Day([*many, Ask(4, 10, arrives=3, client="one")], positions=5000, places=2).run()
    assert day.begun[:2] == [0, 1]
    assert 20 in day.begun[2:4]  # with the first two places that came free, at once


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(1, 6))
def test_places_are_dealt_out_evenly_among_clients_that_wait(clients, places):
    day = Day([Ask(4, 3, client=client) for client in clients], positions=5000, places=places)
    for sequence in day.sequences:
        day.arrive(sequence)
    while not day.scheduler.idle:
        day.scheduler.plan()
        running = [sequence.client for sequence in day.scheduler.running]
        waiting = {sequence.client for sequence in day.scheduler.sequences[len(running) :]}
        for client in waiting:
            assert all(running.count(client) >= running.count(other) - 1 for other in running)
        for sequence in day.scheduler.running:  # all leave at once, so that nothing depends on who came before
            day.scheduler.remove(sequence)


crowds = st.builds(
    dict,
    own=st.lists(
        st.builds(Ask, prompt=st.integers(1, 40), reply=st.integers(1, 10), client=st.just("own")), max_size=5
    ),
    strangers=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 10)), min_size=1, max_size=5),
    positions=st.sampled_from([1, 64, 5000]),
    places=st.integers(1, 3),
)


@settings(deadline=None, max_examples=30)
@given(crowds)
def test_a_client_s_many_requests_all_have_their_turn_though_a_new_client_comes_with_every_step(crowd):
    """The strangers have nothing in progress, ever, and come faster than they can be served."""
    sizes, last = crowd["strangers"], 400
    strangers = [Ask(*sizes[i % len(sizes)], arrives=i, client=f"stranger {i}") for i in range(last)]
    day = Day([*crowd["own"], *strangers], positions=crowd["positions"], places=crowd["places"]).run()
    assert all(day.ended[number] < last for number in range(len(crowd["own"])))


def test_requests_of_one_client_begin_in_the_order_in_which_they_came():
    day = Day([Ask(4, 2 + i % 3) for i in range(12)], positions=5000, places=3).run()
    assert day.begun == list(range(12))


# ---- guesses -------------------------------------------------------------------------------------------------------


def test_guesses_follow_the_token_they_are_checked_with():
    day = Day([Ask(5, 20, guesses=3)], positions=5000).run()
    assert day.plans[0] == [(0, [0, 1, 2, 3, 4], True, 0)]
    assert day.plans[1] == [(0, [WORD, 5000, 5001, 5002], True, 3)]
    assert day.plans[2] == [(0, [WORD, 5000, 5001, 5002], True, 3)]


def test_guesses_leave_room_for_prompts_in_a_small_step():
    day = Day([Ask(1, 200, guesses=7), Ask(100, 1, arrives=1)], positions=5000, step_tokens=8).run()
    assert day.ended[1] < 60


def test_guesses_are_cut_where_blocks_end():
    day = Day([Ask(BLOCK - 2, 30, guesses=7)], positions=BLOCK, places=1)
    (sequence,) = day.sequences
    day.scheduler.add(sequence)
    day.step()
    day.step()
    assert day.plans[1] == [(0, [WORD, 5000], True, 1)]


def test_a_prompt_that_finds_no_room_is_looked_at_again_when_a_block_has_come_free(monkeypatch):
    blocks = Blocks([Causal()], Capacity(6 * BLOCK, 1, 8))
    tries = []
    adopt = BlockTable.adopt
    monkeypatch.setattr(BlockTable, "adopt", lambda table, tokens: tries.append(table) or adopt(table, tokens))

    def of(tokens, first):
        request = Generate(prompt=list(range(first, first + tokens)), num_ctx=1000)
        return Sequence(request, reply=None, table=blocks.table(), emit=lambda event: None)

    talking, waiting = of(2 * BLOCK, 0), of(3 * BLOCK, 5000)
    scheduler = made(talking, step_tokens=4 * BLOCK)
    compute(scheduler.plan())
    scheduler.add(waiting)
    for _ in range(5):
        assert counts(scheduler.plan()) == [(talking, 1)]
    assert tries.count(waiting.table) == 1
    scheduler.remove(talking)
    assert counts(scheduler.plan()) == [(waiting, 3 * BLOCK)]


def image_at(start, rows, encoded=True):
    """Where rows of an image stand that must be read together."""
    part = Rows(rows, both_ways=True)
    made = Image(bytes([start % 256]), Prepared(np.zeros((0, 3), np.float32), (part,)))
    made.rows = np.zeros((rows, 4), np.float32) if encoded else None
    return Span(start, part, 0, made)


def test_who_finds_no_room_is_looked_at_again_when_one_has_gone_who_held_no_block_yet():
    blocks = Blocks([Causal()], Capacity(6 * BLOCK, 1, 8))

    def of(tokens, first, spans=()):
        request = Generate(prompt=list(range(first, first + tokens)), num_ctx=1000)
        return Sequence(request, reply=None, table=blocks.table(), emit=lambda event: None, spans=Spans(spans, 1))

    patient, waiting = of(4 * BLOCK, 0, [image_at(0, BLOCK, encoded=False)]), of(3 * BLOCK, 5000)
    scheduler = made(patient, waiting, step_tokens=4 * BLOCK)
    for _ in range(3):
        assert scheduler.plan() == []
    scheduler.remove(patient)
    assert counts(scheduler.plan()) == [(waiting, 3 * BLOCK)]


def test_only_one_prompt_a_step_may_take_more_than_is_left_of_it():
    def of(first):
        request = Generate(prompt=list(range(first, first + 60)), num_ctx=1000)
        table = Blocks([], Capacity(1000, 1, 64)).table()
        return Sequence(request, reply=None, table=table, emit=lambda event: None, spans=Spans([image_at(0, 50)], 1))

    prompts = [of(start) for start in (0, 1000, 2000)]
    scheduler = made(*prompts, step_tokens=8)
    assert counts(scheduler.plan()) == [(prompts[0], 50)]
