"""What sequences look at beside the text: which blocks they hold, who shares them, and that there are always enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.memory.looks import Look
from puna.core.memory.pool import BLOCK, Pool


def looks(count, *, blocks):
    pool = Pool(blocks)
    return pool, *(Look(pool) for _ in range(count))


def done(*looks):
    """The step that filled their blocks went well."""
    for look in looks:
        look.fresh = False


def test_a_view_is_filled_by_the_first_step_that_sees_it_and_found_by_all_later_ones():
    pool, one, other = looks(2, blocks=9)
    one.turn(b"a", 3 * BLOCK - 1)
    assert (one.fresh, len(one.blocks), pool.held) == (True, 3, 3)
    done(one)
    one.turn(b"a", 3 * BLOCK - 1)
    other.turn(b"a", 3 * BLOCK - 1)
    assert (one.fresh, other.fresh, pool.held) == (False, False, 3)
    assert other.blocks == one.blocks


def test_two_that_see_the_same_for_the_first_time_in_one_step_fill_it_once():
    _, one, other = looks(2, blocks=9)
    one.turn(b"a", BLOCK)
    other.turn(b"a", BLOCK)
    assert (one.fresh, other.fresh) == (True, False)
    assert other.blocks == one.blocks


def test_what_a_step_that_failed_should_have_filled_is_not_found():
    for backwards in (False, True):
        pool, one, other, third = looks(3, blocks=9)
        for look in (one, other):
            look.turn(b"a", BLOCK)
        for look in (other, one) if backwards else (one, other):
            look.clear()
        assert (pool.held, pool.kept) == (0, 0)
        third.turn(b"a", BLOCK)
        assert third.fresh


def test_a_view_that_nobody_looks_at_is_kept_until_its_place_is_wanted():
    pool, one, other = looks(2, blocks=4)
    one.turn(b"a", 2 * BLOCK)
    done(one)
    one.turn(b"b", 2 * BLOCK)
    done(one)
    assert (pool.held, pool.kept) == (2, 2)
    other.turn(b"a", 2 * BLOCK)
    assert not other.fresh
    other.turn(b"c", 2 * BLOCK)  # in the place of a
    one.clear()
    one.turn(b"b", 2 * BLOCK)
    assert not one.fresh
    one.turn(b"a", 2 * BLOCK)
    assert one.fresh


def test_a_view_that_has_no_room_gives_back_what_it_has_taken():
    pool, one, other = looks(2, blocks=4)
    one.turn(b"a", 2 * BLOCK)
    done(one)
    with pytest.raises(KeyError):
        other.turn(b"b", 3 * BLOCK)
    other.clear()
    assert pool.held == 2
    other.turn(b"b", 2 * BLOCK)
    assert other.fresh and len(set(one.blocks) | set(other.blocks)) == 4


def test_a_view_of_which_a_part_has_gone_is_filled_anew_and_whole_from_then_on():
    pool, one, other = looks(2, blocks=4)
    one.turn(b"a", 3 * BLOCK)
    done(one)
    one.clear()
    other.turn(b"b", 2 * BLOCK)  # one block was empty
    done(other)
    other.clear()
    one.turn(b"a", 3 * BLOCK)
    assert one.fresh
    assert len({*one.blocks}) == 3
    done(one)
    one.clear()
    one.turn(b"a", 3 * BLOCK)
    assert not one.fresh
    assert pool.held == 3


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.booleans()), max_size=60))
def test_there_are_blocks_for_whatever_as_many_sequences_look_at(turns):
    """Each of three looks at views of up to three blocks; contents are written and read back beside them."""
    pool, *all_of_them = looks(3, blocks=9)
    written: dict[int, tuple[int, int]] = {}
    seeing: dict[Look, int] = {}
    for who, view, goes in turns:
        look, size = all_of_them[who], view % 3 + 1
        if goes:
            look.clear()
            seeing.pop(look, None)
            continue
        look.turn(bytes([view]), size * BLOCK)
        seeing[look] = view
        if look.fresh:
            written |= {block: (view, at) for at, block in enumerate(look.blocks)}
        done(look)
        for other, expected in seeing.items():
            assert [written[block] for block in other.blocks] == [(expected, at) for at in range(expected % 3 + 1)]
    assert pool.held == len({block for look in seeing for block in look.blocks})
