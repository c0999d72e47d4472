"""What happens to a prompt that is too long and to a reply that fills its context."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import ContextTooLong
from puna.core.memory.blocks import Blocks, Capacity
from puna.core.scheduler.messages import Generate, Media, Placed, cut
from puna.core.scheduler.sequence import Sequence


def made(prompt, **options):
    request = Generate(prompt=list(prompt), **options)
    return Sequence(
        request, reply=None, table=Blocks([], Capacity(request.num_ctx, 1, 1)).table(), emit=lambda event: None
    )


@pytest.mark.parametrize(("limit", "most"), [(None, 5), (9, 5), (2, 2), (0, 0)])
def test_a_guess_is_limited_by_the_context_and_the_request(limit, most):
    assert made([1, 2, 3], num_ctx=8, guess=limit).guessable == most


# ---- on entry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "limit", "keep", "expected"),
    [
        (5, 5, 2, [0, 1, 2, 3, 4]),
        (3, 5, 2, [0, 1, 2]),
        (10, 5, 2, [0, 1, 7, 8, 9]),
        (10, 5, 0, [5, 6, 7, 8, 9]),
        (10, 5, 4, [0, 1, 2, 3, 9]),
        (10, 5, 99, [0, 1, 2, 3, 9]),
        (10, 5, -1, [0, 1, 2, 3, 9]),
        (10, 1, 4, [9]),
        (10, 1, -1, [9]),
    ],
)
def test_the_beginning_that_is_kept_and_the_end_survive(length, limit, keep, expected):
    assert cut(list(range(length)), [], limit=limit, keep=keep) == (expected, [])


@given(st.integers(1, 60), st.integers(1, 30), st.integers(-3, 40))
def test_a_truncated_prompt_fills_the_context_and_ends_as_it_ended(length, limit, keep):
    prompt = list(range(length))
    found, _ = cut(prompt, [], limit=limit, keep=keep)
    assert len(found) == min(length, limit)
    assert found[-1] == prompt[-1]
    assert found == sorted(set(found))
    cuts = sum(b - a > 1 for a, b in zip([-1, *found], found, strict=False))
    assert cuts <= 1


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), max_size=5), st.integers(1, 30), st.integers(-3, 40))
def test_of_a_picture_all_is_kept_or_nothing(gaps, limit, keep):
    prompt, media = [], []
    for number, (gap, rows) in enumerate(gaps):
        prompt += [-1] * gap
        media.append(Placed(Media([bytes([number])]), [(len(prompt), rows)]))
        prompt += [number] * rows
    found, kept = cut([*prompt, -1], media, limit=limit, keep=keep)
    assert len(found) <= max(limit, 1)
    for placed in kept:
        (number,) = placed.media.frames[0]
        assert found[placed.start : placed.stop] == [number] * (placed.stop - placed.start)
    assert sum(placed.stop - placed.start for placed in kept) == sum(token >= 0 for token in found)


def test_a_prompt_that_was_cut_says_by_how_much():
    short = made(range(20), num_ctx=8, num_keep=2)
    assert short.tokens == [0, 1, 14, 15, 16, 17, 18, 19]
    assert (short.prompt_tokens, short.request.truncated, short.unread) == (8, 12, 8)
    whole = made(range(8), num_ctx=8)
    assert (whole.prompt_tokens, whole.request.truncated) == (8, 0)


def test_a_request_holds_no_more_of_its_prompt_than_is_read_and_says_the_same_on_the_other_side_of_a_socket():
    request = Generate(prompt=list(range(20)), num_ctx=8, num_keep=2)
    assert (request.prompt, request.truncated) == ([0, 1, 14, 15, 16, 17, 18, 19], 12)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Generate) == request


def test_a_prompt_that_must_not_be_cut_is_refused_with_both_numbers():
    with pytest.raises(ContextTooLong, match="20 tokens, the limit is 8") as caught:
        made(range(20), num_ctx=8, truncate=False)
    assert (caught.value.tokens, caught.value.limit) == (20, 8)
    assert made(range(8), num_ctx=8, truncate=False).request.truncated == 0


def test_the_requests_own_prompt_is_left_alone():
    growing = made(range(4), num_ctx=8)
    growing.append(9)
    assert growing.request.prompt == [0, 1, 2, 3]


# ---- while generating ----------------------------------------------------------------------------------------------


def grown(prompt, reply, **options):
    """A sequence whose every token but the last was computed before the last was sampled."""
    sequence = made(prompt, **options)
    for token in reply:
        sequence.table.length = len(sequence.tokens)
        assert sequence.append(token)
    return sequence


def test_a_token_that_fits_leaves_one_to_read():
    sequence = grown(range(4), [100], num_ctx=5)
    assert (sequence.tokens, sequence.unread, sequence.shifted) == ([0, 1, 2, 3, 100], 1, 0)


@pytest.mark.parametrize(
    ("num_ctx", "keep", "expected", "dropped"),
    [
        (8, 0, [4, 5, 6, 7, 100], 4),
        (8, 2, [0, 1, 5, 6, 7, 100], 3),
        (8, 5, [0, 1, 2, 3, 4, 6, 7, 100], 1),
        (8, 7, [0, 1, 2, 3, 4, 5, 6, 100], 1),
        (8, 99, [0, 1, 2, 3, 4, 5, 6, 100], 1),
        (8, -1, [0, 1, 2, 3, 4, 5, 6, 100], 1),
    ],
)
def test_a_full_context_drops_half_of_what_follows_the_kept_beginning(num_ctx, keep, expected, dropped):
    sequence = grown(range(8), [100], num_ctx=num_ctx, num_keep=keep)
    assert sequence.tokens == expected
    assert sequence.shifted == dropped
    assert sequence.unread == len(expected)  # computed anew at its new positions


def test_a_negative_num_keep_protects_the_whole_prompt():
    sequence = grown(range(4), range(100, 105), num_ctx=8, num_keep=-1)
    assert sequence.tokens == [0, 1, 2, 3, 102, 103, 104]


def test_a_context_of_one_token_holds_the_latest():
    assert grown([5], [6, 7, 8], num_ctx=1).tokens == [8]


def test_a_reply_that_must_not_shift_ends_at_the_limit():
    sequence = made(range(6), num_ctx=8, shift=False)
    assert [sequence.append(token) for token in (100, 101, 102)] == [True, True, False]
    assert sequence.shifted == 0


def test_what_was_computed_before_is_known_when_it_is_computed_again():
    sequence = made(range(10), num_ctx=100)
    sequence.table.length = 8
    assert sequence.again(2) == 0
    sequence.put_down()
    assert [sequence.again(count) for count in (3, 8, 10)] == [3, 8, 8]
    sequence.table.length = 5
    sequence.put_down()  # once more, before it was as far as the first time
    sequence.table.length = 6
    assert [sequence.again(count) for count in (1, 4)] == [1, 2]


def test_what_a_shift_keeps_is_computed_again_but_for_the_latest_token():
    sequence = grown(range(8), [100], num_ctx=8, num_keep=2)
    assert (sequence.unread, sequence.again(6)) == (6, 5)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(-2, 15), st.integers(1, 60))
def test_a_reply_of_any_length_stays_within_its_context(prompt, num_ctx, keep, reply):
    sequence = made(range(prompt), num_ctx=num_ctx, num_keep=keep)
    kept = sequence.tokens[: min(sequence.prompt_tokens if keep < 0 else keep, num_ctx - 1, sequence.prompt_tokens)]
    for token in range(1000, 1000 + reply):
        sequence.table.length = len(sequence.tokens)
        assert sequence.append(token)
        assert 1 <= len(sequence.tokens) <= num_ctx
        assert sequence.unread >= 1
        assert sequence.tokens[-1] == token
        assert sequence.tokens[: len(kept)] == kept
    assert sequence.prompt_tokens + reply == len(sequence.tokens) + sequence.shifted
