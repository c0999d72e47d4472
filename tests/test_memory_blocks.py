"""Who holds which block: rules that must hold whatever sequences do, checked beside a model of the memory itself."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from puna.core.memory.blocks import BLOCK, Blocks, Capacity, Pool, blocks_of, first_seen, kinds_of
from puna.core.plugin import CacheLayer, Causal, Chunk, Window

KINDS = [Causal(), Window(40), Chunk(48), Window(1)]


# ---- a pool --------------------------------------------------------------------------------------------------------


def named(pool, *names):
    """Take a block for each name, and let it be found."""
    blocks = [pool.take() for _ in names]
    for block, name in zip(blocks, names, strict=True):
        pool.name(block, name)
    return blocks


def test_a_pool_gives_each_of_its_blocks_once():
    pool = Pool(3)
    assert sorted(pool.take() for _ in range(3)) == [0, 1, 2]
    assert (pool.available, pool.held, pool.kept, pool.touched) == (0, 3, 0, 3)


def test_a_block_without_a_name_is_empty_once_it_is_given_back():
    pool = Pool(2)
    pool.give_back(pool.take())
    assert (pool.available, pool.held, pool.kept) == (2, 0, 0)


def test_a_block_with_a_name_is_kept_and_can_be_held_again():
    pool = Pool(2)
    (block,) = named(pool, b"a")
    pool.give_back(block)
    assert (pool.available, pool.held, pool.kept) == (2, 0, 1)
    assert pool.find(b"a") == block
    pool.hold(block)
    assert (pool.available, pool.held, pool.kept) == (1, 1, 0)


def test_a_block_is_kept_only_when_its_last_holder_is_gone():
    pool = Pool(1)
    (block,) = named(pool, b"a")
    pool.hold(block)
    pool.give_back(block)
    assert (pool.held, pool.kept) == (1, 0)
    pool.give_back(block)
    assert (pool.held, pool.kept) == (0, 1)


def test_empty_blocks_go_first_then_the_one_that_was_unused_for_longest():
    pool = Pool(4)
    a, b, c = named(pool, b"a", b"b", b"c")
    for block in (b, a, c):
        pool.give_back(block)
    pool.hold(b)
    pool.give_back(b)  # used again, so now the last to go
    assert pool.take() == 3
    assert [pool.take() for _ in range(3)] == [a, c, b]
    assert [pool.find(name) for name in (b"a", b"b", b"c")] == [None] * 3


def test_the_first_block_of_a_name_is_the_one_that_is_found():
    pool = Pool(2)
    first, second = pool.take(), pool.take()
    pool.name(first, b"a")
    pool.name(second, b"a")
    assert pool.find(b"a") == first
    pool.give_back(second)  # nobody could find it: it is as good as empty
    assert (pool.kept, pool.available) == (0, 1)


def test_a_pool_that_grows_keeps_what_it_has_and_uses_up_touched_blocks_first():
    pool = Pool(2)
    a, b = named(pool, b"a", b"b")
    pool.give_back(a)
    pool.grow(4)
    assert (pool.count, pool.held, pool.kept, pool.available) == (4, 1, 1, 3)
    assert pool.find(b"a") == a
    assert [pool.take() for _ in range(3)] == [2, 3, a]
    pool.give_back(b)
    pool.grow(3)
    assert pool.count == 4


def test_growing_prefers_blocks_that_memory_was_found_for():
    pool = Pool(1)
    used = pool.take()
    pool.give_back(used)
    pool.grow(3)
    assert pool.take() == used


# ---- what a table sees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "firsts"),
    [
        (Causal(), [0, 0, 0, 0, 0, 0]),
        (Window(1), [0, 1, 2, 3, 4, 5]),
        (Window(3), [0, 0, 0, 1, 2, 3]),
        (Chunk(3), [0, 0, 0, 3, 3, 3]),
    ],
)
def test_the_first_position_that_a_token_sees(kind, firsts):
    assert [first_seen(kind, position) for position in range(6)] == firsts


def test_layers_that_see_alike_form_one_group():
    layers = [CacheLayer(1, 4, 4, kind) for kind in (Window(3), Causal(), Window(3), Chunk(3))]
    assert kinds_of(layers) == [Window(3), Causal(), Chunk(3)]


def talked(blocks, tokens, *, step=16, salt=b""):
    """Return a table that has read these tokens, in steps."""
    table = blocks.table(salt)
    table.adopt(tokens)
    for start in range(table.length, len(tokens), step):
        count = min(step, len(tokens) - start)
        assert table.reserve(start + count)
        table.advance(tokens, count)
    return table


def made(*kinds, positions=1000, sequences=4, step_tokens=16):
    return Blocks(kinds, Capacity(positions, sequences, step_tokens))


def test_the_last_token_is_always_left_to_compute():
    blocks = made(Causal())
    talked(blocks, range(2 * BLOCK))
    assert blocks.table().adopt(range(2 * BLOCK)) == BLOCK
    assert blocks.table().adopt(range(2 * BLOCK + 1)) == 2 * BLOCK
    assert blocks.table().adopt([0]) == 0


def test_a_beginning_is_found_while_its_sequence_runs_and_after_it_has_ended():
    blocks, tokens = made(Causal()), list(range(100))
    first = talked(blocks, tokens)
    second = talked(blocks, tokens)
    assert second.places(0)[:3] == first.places(0)[:3]
    assert second.places(0)[3] != first.places(0)[3]  # not full yet
    assert blocks.pools[0].held == 5
    first.clear()
    second.clear()
    assert (blocks.pools[0].held, blocks.pools[0].kept) == (0, 3)
    assert blocks.table().adopt(tokens) == 96


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK - 1])
def test_one_other_token_ends_what_is_shared_at_its_block(place):
    blocks, tokens = made(Causal()), list(range(100))
    talked(blocks, tokens)
    tokens[place] = 1000
    assert blocks.table().adopt(tokens) == place // BLOCK * BLOCK


def test_another_salt_shares_nothing():
    blocks, tokens = made(Causal()), list(range(100))
    talked(blocks, tokens, salt=b"one")
    assert blocks.table(b"other").adopt(tokens) == 0
    assert blocks.table().adopt(tokens) == 0
    assert blocks.table(b"one").adopt(tokens) == 96


def test_token_ids_beyond_32_bits_are_told_apart():
    blocks = made(Causal())
    talked(blocks, [1 << 40] * 64)
    assert blocks.table().adopt([1 << 41] * 64) == 0


def test_what_a_window_has_passed_goes_to_others_first_come_first_gone():
    blocks, tokens = made(Window(40)), list(range(200))
    table = talked(blocks, tokens)
    pool = blocks.pools[0]
    assert pool.held == 7 - first_seen(Window(40), 200) // BLOCK
    assert pool.kept == first_seen(Window(40), 200) // BLOCK
    assert table.room() == (7 + pool.available) * BLOCK


def evict(pool):
    """Have a pool give every block it can, so that nothing is kept, and take them all back."""
    for block in [pool.take() for _ in range(pool.available)]:
        pool.give_back(block)


def test_a_beginning_counts_only_where_each_group_still_has_what_is_seen():
    blocks, tokens = made(Causal(), Window(40)), list(range(192))
    talked(blocks, tokens)
    short, whole = blocks.table(), blocks.table()
    assert short.adopt(tokens[:150]) == 128
    short.clear()
    evict(blocks.pools[1])  # the window's blocks before position 152 are gone, the causal ones are not
    assert blocks.table().adopt(tokens[:150]) == 0
    assert whole.adopt([*tokens, 7]) == 192
    assert blocks.pools[1].held == 2  # those of positions 128 to 191, held by both


def test_a_chunk_needs_nothing_of_the_chunks_before():
    blocks, tokens = made(Chunk(64)), list(range(200))
    talked(blocks, tokens)
    evict(blocks.pools[0])
    assert blocks.table().adopt(tokens[:129]) == 128  # its chunk begins at 128: nothing is needed
    assert blocks.table().adopt(tokens[:100]) == 64
    assert blocks.table().adopt(tokens[:30]) == 0


def test_clear_gives_everything_back_and_the_beginning_is_kept_for_longest():
    blocks, tokens = made(*KINDS, positions=200, sequences=1), list(range(200))
    table = talked(blocks, tokens)
    table.clear()
    assert table.length == 0
    assert [pool.held for pool in blocks.pools] == [0] * len(KINDS)
    causal = blocks.pools[0]
    assert blocks.table().adopt([*tokens, 0]) > 0
    pressed = made(Causal(), positions=200, sequences=1)
    talked(pressed, tokens).clear()
    for _ in range(3):  # one was empty; two that are kept go
        pressed.pools[0].take()
    assert pressed.table().adopt([*tokens, 0]) == 4 * BLOCK
    assert causal.count == 7


def test_room_is_reserved_in_every_group_or_in_none():
    blocks = Blocks([Causal(), Causal()], Capacity(100, 1, 16))
    blocks.pools[1].take()
    table = blocks.table()
    assert table.room() == 3 * BLOCK
    assert not table.reserve(3 * BLOCK + 1)
    assert [pool.held for pool in blocks.pools] == [0, 1]
    assert table.places(0) == table.places(1) == []
    assert table.reserve(3 * BLOCK)
    assert [pool.held for pool in blocks.pools] == [3, 4]
    assert table.reserve(5)  # less than there is already


def test_a_table_without_groups_has_room_for_anything():
    table = Blocks([], Capacity(1, 1, 1)).table()
    assert table.reserve(1 << 30)
    assert table.room() > 1 << 30
    assert table.adopt(range(100)) == 0


@pytest.mark.parametrize("kind", [Window(1), Window(40), Window(64), Window(500), Chunk(48), Chunk(300)])
@pytest.mark.parametrize("sequences", [1, 3])
def test_windows_never_want_for_blocks(kind, sequences):
    """A group's count is enough for every place, however the step is dealt out and wherever windows begin."""
    blocks = Blocks([kind], Capacity(1 << 20, sequences, 50))
    tables, tokens = [blocks.table() for _ in range(sequences)], list(range(2000))
    for turn in range(600):
        shares = [50] if sequences == 1 else [1, 50 - 2 - turn % 40, 1 + turn % 40]
        for table, count in zip(tables, shares, strict=True):
            start = table.length
            assert table.reserve(start + count)
        for i, (table, count) in enumerate(zip(tables, shares, strict=True)):
            table.advance([token * 3 + i for token in tokens], count)
            if table.length + 50 > len(tokens):
                table.clear()
    assert blocks_of(kind, blocks.capacity) == blocks.pools[0].count


# ---- any history ---------------------------------------------------------------------------------------------------

TEXTS = [[t] * BLOCK for t in (1, 2)] + [[1] * (BLOCK - 1) + [2]]  # beginnings that differ in little


class Talk:
    """A sequence as the engine would have it: text, table, and the salt it shares blocks under."""

    def __init__(self, blocks, tokens, salt):
        self.tokens, self.salt, self.table = tokens, salt, blocks.table(salt)

    def written(self, position):
        """What the cache holds of a position: everything that it depends on."""
        return self.salt, tuple(self.tokens[: position + 1])


class Memory(RuleBasedStateMachine):
    """Sequences come, read, guess, go, and are set aside; every slot of every block remembers what was written."""

    @initialize(
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True), positions=st.integers(1, 400)
    )
    def start(self, kinds, positions):
        self.blocks = Blocks(kinds, Capacity(positions, 4, 64))
        self.slots = [{} for _ in kinds]  # by group: (block, place in it) -> what was written
        self.talks = []

    @precondition(lambda self: len(self.talks) < 4)
    @rule(
        parts=st.lists(st.sampled_from(TEXTS), max_size=6),
        tail=st.lists(st.integers(1, 2), min_size=1, max_size=20),
        salt=st.sampled_from([b"", b"other"]),
    )
    def arrive(self, parts, tail, salt):
        talk = Talk(self.blocks, [token for part in parts for token in part] + tail, salt)
        found = talk.table.adopt(talk.tokens)
        assert found == talk.table.length
        assert found % BLOCK == 0
        assert found < len(talk.tokens)
        self.talks.append(talk)
        self.sees_what_it_wrote(talk, found)

    @precondition(lambda self: self.talks)
    @rule(data=st.data(), count=st.integers(1, 64), guessed=st.integers(0, 7))
    def read(self, data, count, guessed):
        """Compute some tokens; those guessed lie behind what counts and are overwritten later."""
        talk = data.draw(st.sampled_from(self.talks))
        table, wanted = talk.table, min(count, len(talk.tokens) - talk.table.length)
        if wanted == 0 or not self.reserves(table, table.length + wanted + guessed):
            return
        for position in range(table.length, table.length + wanted + guessed):
            self.write(talk, position, guess=position >= table.length + wanted)
            if position < table.length + wanted:
                self.sees_what_it_wrote(talk, position)
        table.advance(talk.tokens, wanted)

    @precondition(lambda self: self.talks)
    @rule(data=st.data(), token=st.integers(1, 2), count=st.integers(1, 40))
    def say(self, data, token, count):
        data.draw(st.sampled_from(self.talks)).tokens += [token] * count

    @precondition(lambda self: self.talks)
    @rule(data=st.data())
    def leave(self, data):
        talk = data.draw(st.sampled_from(self.talks))
        self.talks.remove(talk)
        talk.table.clear()

    @precondition(lambda self: self.talks)
    @rule(data=st.data())
    def begin_again(self, data):
        talk = data.draw(st.sampled_from(self.talks))
        talk.table.clear()
        assert talk.table.length == 0
        self.sees_what_it_wrote(talk, talk.table.adopt(talk.tokens))

    @rule(more=st.integers(1, 100))
    def grow(self, more):
        self.blocks.grow(self.blocks.capacity.positions + more)

    def reserves(self, table, positions):
        """Reserve, and see that it is all or nothing, and as `room` says."""
        before = [list(table.places(group)) for group in self.groups]
        fits = positions <= table.room()
        assert table.reserve(positions) == fits
        for group in self.groups:
            assert table.places(group)[: len(before[group])] == before[group]
            if not fits:
                assert table.places(group) == before[group]
        return fits

    def write(self, talk, position, *, guess):
        for group in self.groups:
            block = talk.table.places(group)[position // BLOCK]
            others = [other for other in self.talks if other is not talk]
            assert all(block not in self.seen(other, group) for other in others), "another's block is written to"
            self.slots[group][block, position % BLOCK] = "a guess" if guess else talk.written(position)

    def sees_what_it_wrote(self, talk, position):
        """All that a token at this position looks at, before itself, is its own text's."""
        for group in self.groups:
            for seen in range(first_seen(self.blocks.kinds[group], position), position):
                block = talk.table.places(group)[seen // BLOCK]
                assert self.slots[group][block, seen % BLOCK] == talk.written(seen)

    def seen(self, talk, group):
        """Return the blocks that a table has to hold."""
        first = first_seen(self.blocks.kinds[group], talk.table.length) // BLOCK
        return talk.table.places(group)[first:]

    @property
    def groups(self):
        return range(len(self.blocks.kinds))

    @invariant()
    def every_block_is_held_kept_or_empty(self):
        for group, pool in enumerate(self.blocks.pools):
            held = {block for talk in self.talks for block in self.seen(talk, group)}
            assert pool.held == len(held)
            assert 0 <= pool.kept <= pool.available == pool.count - pool.held
            assert held <= set(range(pool.touched)) <= set(range(pool.count))

    @invariant()
    def only_full_blocks_of_equal_contents_are_shared(self):
        for group in self.groups:
            holders = {}
            for talk in self.talks:
                for index, block in enumerate(talk.table.places(group)):
                    if block in self.seen(talk, group) and index * BLOCK >= self.first(talk, group):
                        holders.setdefault(block, []).append((index, talk))
            for shared in holders.values():
                assert len({index for index, _ in shared}) == 1
                if len(shared) > 1:
                    end = (shared[0][0] + 1) * BLOCK
                    assert all(talk.table.length >= end for _, talk in shared)
                    assert len({talk.written(end - 1) for _, talk in shared}) == 1

    def first(self, talk, group):
        return first_seen(self.blocks.kinds[group], talk.table.length) // BLOCK * BLOCK

    def teardown(self):
        for talk in getattr(self, "talks", []):
            talk.table.clear()
        for pool in self.blocks.pools if hasattr(self, "blocks") else ():
            assert pool.held == 0


Memory.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestMemory = Memory.TestCase
