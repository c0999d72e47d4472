"""Spans of media among tokens: where they may be cut, who sees whom, positions, names, and what goes with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.memory.images import Image
from puna.core.plugin import Prepared, Rows
from puna.core.scheduler.spans import Span, Spans, spans_of

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
            spans.append(Span(at, part, 0, image(part)))
            at += part.count
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
