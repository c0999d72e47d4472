"""Where media stand among a sequence's tokens, and what follows from it: what must be read together, who sees whom,
positions, and the names of blocks."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..memory.images import Image
from ..plugin import Rows

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Span:
    """A stretch of rows of one image: tokens start..stop of a sequence."""

    start: int
    rows: Rows
    first: int  # which of the image's rows is its first
    image: Image

    @property
    def stop(self) -> int:
        """The token behind its last."""
        return self.start + self.rows.tokens

    @property
    def length(self) -> int:
        """Positions that it takes up."""
        return self.rows.tokens if self.rows.length is None else self.rows.length

    @property
    def atomic(self) -> bool:
        """Whether all of it has to be read in one step."""
        return self.rows.atomic or self.rows.both_ways


def spans_of(image: Image, at: Iterable[int]) -> list[Span]:
    """Return the spans of an image whose stretches of rows begin at these tokens."""
    spans, first = [], 0
    for rows, start in zip((part for part in image.prepared.parts if isinstance(part, Rows)), at, strict=True):
        spans.append(Span(start, rows, first, image))
        first += rows.count
    return spans


def rows_of(span: Span) -> Floats:
    """Return a span's rows, [count, D]. Its image is encoded."""
    assert span.image.rows is not None, "the scheduler waits for images"
    return span.image.rows[span.first : span.first + span.rows.count]


def name_of(view: Sequence[Span]) -> bytes:
    """Return what tells the rows of a view from those of any other."""
    marks = (span.image.key + np.array([span.first, span.rows.count], np.int64).tobytes() for span in view)
    return hashlib.sha256(b"".join(marks)).digest()


class Spans:
    """All spans of one sequence, in order; none of them overlap."""

    def __init__(self, spans: Iterable[Span] = (), streams: int = 1) -> None:
        """streams: of positions."""
        self._streams = streams
        self._set(sorted(spans, key=lambda span: span.start))

    def _set(self, spans: list[Span]) -> None:
        self._spans = spans
        self._stops = [span.stop for span in spans]
        # How far positions are ahead of tokens, before the first span and behind each.
        self._shifts = np.cumsum([0, *(span.length - span.rows.tokens for span in spans)])
        # What is seen together: spans beside the text, one directly behind the other.
        self._views: list[list[Span]] = []
        for span in spans:
            if span.rows.beside:
                if not (self._views and self._views[-1][-1].stop == span.start):
                    self._views.append([])
                self._views[-1].append(span)
        self._turns = [view[0].start for view in self._views]  # tokens at which another view begins

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def within(self, start: int, stop: int) -> Iterator[Span]:
        """Yield the spans that tokens start..stop have a part in."""
        for span in self._spans[bisect_right(self._stops, start) :]:
            if span.start >= stop:
                return
            yield span

    def view(self, token: int) -> list[Span]:
        """Return the spans beside the text that a token sees."""
        number = bisect_right(self._turns, token)
        return [span for span in self._views[number - 1] if span.start <= token] if number else []

    def seen_beside(self, start: int, stop: int) -> Integers:
        """Return the last row that each of tokens start..stop sees of the view of the last of them, [n]; -1: none."""
        view = self.view(stop - 1)
        counts = np.cumsum([0, *(span.rows.count for span in view)], dtype=np.int32)
        return counts[np.searchsorted([span.start for span in view], np.arange(start, stop), side="right")] - 1

    @property
    def widest(self) -> int:
        """Rows of the largest view."""
        return max((sum(span.rows.count for span in view) for view in self._views), default=0)

    def _second_turn(self, start: int) -> int | None:
        """Return the token behind `start` from which on a second view is seen, if there is one."""
        number = max(1, bisect_right(self._turns, start))
        return self._turns[number] if number < len(self._turns) else None

    def needed(self, start: int, stop: int) -> Iterator[Span]:
        """Yield the spans whose rows tokens start..stop are, or see beside the text."""
        return chain(self.view(start), self.within(start, stop))

    def least(self, start: int) -> int:
        """Return how many tokens from `start` on must be read together."""
        return max((span.stop - start for span in self.within(start, start + 1) if span.atomic), default=1)

    def cut(self, start: int, count: int) -> int:
        """Return how many tokens can be read from `start` on: at most `count`, or else the least.

        They see no more than one view: that is what a sequence has room for.
        """
        stop, turn = start + count, self._second_turn(start)
        if turn is not None:
            stop = min(stop, turn)
        for span in self.within(stop - 1, stop):
            if span.atomic and stop < span.stop:
                stop = span.start
        return max(stop - start, self.least(start))

    def readable(self, start: int, stop: int) -> int:
        """Return how many tokens of start..stop stand before the first image that is not encoded yet."""
        for span in self.needed(start, stop):
            if span.image.rows is None:
                return max(0, span.start - start)
        return stop - start

    def positions(self, start: int, stop: int) -> Integers | None:
        """Return the positions of tokens start..stop, [streams, n]; None if they are the tokens' own numbers."""
        if not self._spans:
            return None
        numbers = np.arange(start, stop, dtype=np.int32)
        numbers += self._shifts[np.searchsorted(self._stops, numbers, side="right")].astype(np.int32)
        found = np.tile(numbers, (self._streams, 1))
        for span in self.within(start, stop):
            if span.rows.positions is not None:
                low, high = max(start, span.start), min(stop, span.stop)
                origin = span.start + self._shifts[self._spans.index(span)]
                found[:, low - start : high - start] = (
                    origin + span.rows.positions[:, low - span.start : high - span.start]
                )
        return found

    def until(self, start: int, stop: int) -> Integers | None:
        """Return the last token that each of start..stop sees, [n]; None if that is itself."""
        seen = None
        for span in self.within(start, stop):
            if span.rows.both_ways:
                seen = np.arange(start, stop, dtype=np.int32) if seen is None else seen
                seen[max(start, span.start) - start : min(stop, span.stop) - start] = span.stop - 1
        return seen

    def marks(self, start: int, stop: int) -> bytes:
        """Return what tells tokens start..stop from others of the same ids: which rows of which images they are."""
        return b"".join(
            span.image.key + np.array([span.start - start, span.first], np.int64).tobytes()
            for span in self.within(start, stop)
        )

    def without(self, start: int, stop: int) -> tuple[int, int]:
        """Return start..stop, tokens to be dropped, made so long that no span is cut."""
        for span in self.within(start, stop):
            start, stop = min(start, span.start), max(stop, span.stop)
        return start, stop

    def drop(self, start: int, stop: int) -> None:
        """Forget spans in tokens start..stop, and move those behind to where these were."""
        kept = [span for span in self._spans if not start <= span.start < stop]
        self._set([replace(span, start=span.start - stop + start) if span.start >= stop else span for span in kept])
