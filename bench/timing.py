"""Measuring the same thing several times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds that a piece of work took: in the middle of several tries, and in the best."""

    median: float
    least: float


def timed(work: Callable[[], object]) -> float:
    """Return how long work takes, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def repeat(measure_once: Callable[[], float], seconds: float) -> list[float]:
    """Return what was measured within about that time: at least one value."""
    end = time.perf_counter() + seconds
    values = [measure_once()]
    while time.perf_counter() < end:
        values.append(measure_once())
    return values


def times(work: Callable[[], object], seconds: float) -> Times:
    """Return how long work takes once a first call has compiled it and woken the threads."""
    work()
    values = repeat(lambda: timed(work), seconds)
    return Times(statistics.median(values), min(values))
