"""Where media stand among a sequence's tokens, and what follows from it: what must be read together, who sees whom,
positions, and the names of blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..memory.images import Image
from ..plugin import Rows

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
        return self.start + self.rows.count

    @property
    def length(self) -> int:
        """Positions that it takes up."""
        return self.rows.count if self.rows.length is None else self.rows.length

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
        self._shifts = np.cumsum([0, *(span.length - span.rows.count for span in spans)])

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def within(self, start: int, stop: int) -> Iterator[Span]:
        """Yield the spans that tokens start..stop have a part in."""
        for span in self._spans[bisect_right(self._stops, start) :]:
            if span.start >= stop:
                return
            yield span

    def least(self, start: int) -> int:
        """Return how many tokens from `start` on must be read together."""
        return max((span.stop - start for span in self.within(start, start + 1) if span.atomic), default=1)

    def cut(self, start: int, count: int) -> int:
        """Return how many tokens can be read from `start` on: at most `count`, or else the least."""
        stop = start + count
        for span in self.within(stop - 1, stop):
            if span.atomic and stop < span.stop:
                stop = span.start
        return max(stop - start, self.least(start))

    def readable(self, start: int, stop: int) -> int:
        """Return how many tokens of start..stop stand before the first image that is not encoded yet."""
        for span in self.within(start, stop):
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
