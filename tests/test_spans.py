"""Spans of media among tokens: where they may be cut, who sees whom, positions, names, and what goes with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.memory.images import Image
from puna.core.plugin import Prepared, Rows
from puna.core.scheduler.spans import Span, Spans, name_of, rows_of, spans_of

NOTHING = np.zeros((0, 3), np.float32)


def image(*rows, key=b"k", encoded=True):
    count = sum(part.count for part in rows)
    return Image(key, Prepared(NOTHING, rows), np.zeros((count, 4), np.float32) if encoded else None)


def placed(*parts, streams=1):
    """Return spans from numbers of tokens and Rows, one after the other."""
    at, spans = 0, []
    for part in parts:
        if isinstance(part, int):
            at += part
        else:
            spans.append(Span(at, part, 0, image(part, key=bytes([at]))))
            at += part.tokens
    return Spans(spans, streams)


WHOLE = Rows(8, both_ways=True)


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [(0, 4, 4), (0, 5, 5), (0, 6, 5), (0, 12, 5), (0, 13, 13), (5, 1, 8), (5, 8, 8), (5, 9, 9), (7, 2, 6), (13, 3, 3)],
)
def test_an_atomic_span_is_never_cut(start, count, expected):
    assert placed(5, WHOLE, 9).cut(start, count) == expected


def test_a_span_that_is_not_atomic_is_cut_anywhere():
    spans = placed(5, Rows(8), 9)
    assert [spans.cut(0, count) for count in range(1, 20)] == [*range(1, 20)]
    assert spans.least(7) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.booleans()), max_size=5), st.integers(1, 30))
def test_pieces_cover_a_prompt_and_cut_no_atomic_span(parts, budget):
    layout = [item for gap, count, atomic in parts for item in (gap, Rows(count, atomic=atomic))]
    spans, total = placed(*layout, 3), sum(gap + count for gap, count, _ in parts) + 3
    at, cuts = 0, set()
    while at < total:
        piece = spans.cut(at, min(budget, total - at))
        assert 0 < piece <= max(budget, spans.least(at))
        at += piece
        cuts.add(at)
    assert at == total
    assert not any(span.start < cut < span.stop for span in spans if span.atomic for cut in cuts)


def test_rows_see_each_other_where_they_say_so():
    assert placed(2, WHOLE, 3).until(0, 12).tolist() == [0, 1, *[9] * 8, 10, 11]
    assert placed(2, WHOLE, 3).until(4, 11).tolist() == [*[9] * 6, 10]
    assert placed(2, Rows(8), 3).until(0, 12) is None


def test_positions_go_on_behind_what_a_span_takes_up():
    grid = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]], np.int32)
    spans = placed(2, Rows(4, positions=grid, length=2), 2, Rows(3, length=1), 1, streams=3)
    assert spans.positions(0, 12).tolist() == [
        [0, 1, 2, 2, 2, 2, 4, 5, 6, 7, 8, 7],
        [0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 7],
        [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 7],
    ]
    whole = spans.positions(0, 12)
    for start in range(12):
        for stop in range(start + 1, 13):
            assert spans.positions(start, stop).tolist() == whole[:, start:stop].tolist()
    assert Spans().positions(0, 5) is None


def test_tokens_can_be_read_up_to_the_first_picture_that_is_not_encoded():
    spans = Spans([Span(3, Rows(2), 0, image(Rows(2))), Span(8, Rows(2), 0, image(Rows(2), encoded=False))])
    assert [spans.readable(start, 12) for start in (0, 3, 7, 8, 9)] == [8, 5, 1, 0, 0]
    assert spans.readable(0, 6) == 6


def test_names_tell_pictures_and_their_rows_apart():
    one, other = (Spans([Span(2, Rows(40), 0, image(Rows(40), key=key))]) for key in (b"one", b"other"))
    moved = Spans([Span(3, Rows(40), 0, image(Rows(40), key=b"one"))])
    assert len({spans.marks(0, 32) for spans in (one, other, moved, Spans())}) == 4
    assert one.marks(32, 64) != one.marks(0, 32)
    assert one.marks(64, 96) == Spans().marks(0, 32) == b""


def test_what_is_dropped_takes_whole_pictures_along():
    spans = placed(4, Rows(6), 5, Rows(3), 2)
    assert spans.without(2, 5) == (2, 10)
    assert spans.without(6, 16) == (4, 18)
    spans.drop(2, 10)
    assert [(span.start, span.stop) for span in spans] == [(7, 10)]


def test_an_image_may_have_several_stretches_of_rows():
    tiles = image(Rows(4), Rows(6))
    assert [(span.start, span.stop, span.first) for span in spans_of(tiles, [3, 9])] == [(3, 7, 0), (9, 15, 4)]


# ---- beside the text -----------------------------------------------------------------------------------------------

A, B, C = (Rows(count, beside=True) for count in (5, 7, 4))


def seen(spans, token):
    return [span.rows for span in spans.view(token)]


def test_a_token_sees_the_image_shown_last_and_those_directly_before_it():
    spans = placed(2, A, 3, B, C, 2)  # tokens 2, 6 and 7
    assert [seen(spans, token) for token in range(10)] == [[], [], *[[A]] * 4, [B], *[[B, C]] * 3]
    assert spans.seen_beside(0, 6).tolist() == [-1, -1, 4, 4, 4, 4]
    assert spans.seen_beside(3, 6).tolist() == [4, 4, 4]
    assert spans.seen_beside(6, 10).tolist() == [6, 10, 10, 10]
    assert spans.widest == 11
    assert (seen(placed(9), 5), placed(9).widest) == ([], 0)


def test_a_token_stands_for_all_rows_beside_it():
    spans = placed(2, A, 3, B, 1)
    assert [(span.start, span.stop) for span in spans] == [(2, 3), (6, 7)]
    assert spans.positions(0, 8).tolist() == [[*range(8)]]
    assert [span.first for span in spans_of(image(A, B), [3, 9])] == [0, 5]
    assert rows_of(spans_of(image(A, B), [3, 9])[1]).shape == (7, 4)


def test_a_step_sees_no_more_than_one_view():
    spans = placed(2, A, 3, B, C, 2)
    assert [spans.cut(start, 20) for start in (0, 1, 2, 3, 5)] == [6, 5, 4, 3, 1]
    assert [spans.cut(start, 4) for start in (6, 7, 9)] == [4, 4, 4]
    assert spans.cut(0, 3) == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([A, B, Rows(3, atomic=True)])), max_size=8))
def test_pieces_of_a_prompt_see_what_the_whole_does(parts):
    spans = placed(*(item for part in parts for item in part), 4)
    total = sum(gap + rows.tokens for gap, rows in parts) + 4
    for budget in (1, 3, 50):
        at = 0
        while at < total:
            count = spans.cut(at, min(budget, total - at))
            view, last = spans.view(at + count - 1), spans.seen_beside(at, at + count)
            for token in range(at, at + count):
                mine = spans.view(token)
                assert mine == view[: len(mine)]
                assert last[token - at] == sum(span.rows.count for span in mine) - 1
            at += count


def test_what_is_seen_beside_the_text_has_to_be_encoded_first():
    shown = [Span(3, A, 0, image(A)), Span(4, B, 0, image(B, encoded=False)), Span(9, C, 0, image(C))]
    spans = Spans(shown)
    assert [spans.readable(start, 12) for start in (0, 3, 4, 5, 9)] == [4, 1, 0, 0, 3]
    assert [span.rows for span in spans.needed(6, 12)] == [A, B, C]
    assert [span.rows for span in spans.needed(10, 12)] == [C]


def test_names_tell_views_apart():
    spans = placed(2, A, B, 1, A, 3)
    names = {name_of(spans.view(token)) for token in (2, 3, 5)}
    assert len(names) == 3  # another image, though of equal size
    again = Spans([Span(7, A, 0, spans.view(2)[0].image)])
    assert name_of(again.view(8)) == name_of(spans.view(2))


def test_views_move_with_what_is_dropped_before_them():
    spans = placed(2, A, 3, B, C, 2)
    spans.drop(1, 6)
    assert [seen(spans, token) for token in range(4)] == [[], [B], [B, C], [B, C]]
    spans.drop(1, 2)
    assert [seen(spans, token) for token in range(3)] == [[], [C], [C]]
