"""Sizes, times and counts as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from puna.cli.words import ago_words, count_words, duration_words, processor_words, size_words, span_words, until_words

NOW = datetime(2025, 5, 14, 9, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (1500, "1.5 KB"), (4_683_087_332, "4.7 GB"), (42_949_672_960, "42 GB"),
     (2_000_000, "2 MB"), (9_960_000, "10.0 MB"), (3 * 10**15, "3000 TB")],
)  # fmt: skip
def test_sizes_are_whole_from_ten_up_and_have_one_decimal_below(count: int, words: str):
    assert size_words(count) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(8_000_000_000, "8B"), (8_030_261_248, "8.0B"), (137_000_000, "137M"), (22_566_000, "22.57M"), (12_345, "12K"),
     (999, "999")],
)  # fmt: skip
def test_parameters_are_counted_in_thousands_millions_and_billions(count: int, words: str):
    assert count_words(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (240, "4 minutes"),
     (3600, "About an hour"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"), (13 * 86400, "13 days"),
     (14 * 86400, "2 weeks"), (59 * 86400, "8 weeks"), (60 * 86400, "2 months"), (729 * 86400, "24 months"),
     (730 * 86400, "2 years")],
)  # fmt: skip
def test_a_span_is_told_in_its_largest_sensible_unit(seconds: float, words: str):
    assert span_words(timedelta(seconds=seconds)) == words


def test_a_moment_lies_before_or_after_now():
    assert ago_words(NOW - timedelta(weeks=3), NOW) == "3 weeks ago"
    assert ago_words(NOW + timedelta(minutes=4), NOW) == "4 minutes from now"


def test_a_loaded_model_expires_is_expiring_or_stays():
    assert until_words(NOW + timedelta(minutes=4, seconds=30), NOW) == "4 minutes from now"
    assert until_words(NOW - timedelta(seconds=1), NOW) == "Stopping..."
    assert until_words(NOW + timedelta(days=292 * 365), NOW) == "Forever"


@pytest.mark.parametrize(
    ("size", "vram", "words"),
    [(100, 0, "100% CPU"), (100, 100, "100% GPU"), (100, 70, "30%/70% CPU/GPU"), (0, 0, "Unknown"), (1, 2, "Unknown")],
)
def test_the_processor_says_where_the_bytes_lie(size: int, vram: int, words: str):
    assert processor_words(size, vram) == words


@pytest.mark.parametrize(
    ("nanoseconds", "words"),
    [(0, "0s"), (7, "7ns"), (12_500, "12.5µs"), (350_000_000, "350ms"), (1_500_000_000, "1.5s"), (10**9, "1s"),
     (62_500_000_000, "1m2.5s"), (3_600_000_000_001, "1h0m0.000000001s")],
)  # fmt: skip
def test_durations_are_written_as_go_writes_them(nanoseconds: int, words: str):
    assert duration_words(nanoseconds) == words
