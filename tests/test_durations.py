"""Durations as Go writes them: what they mean, and what is refused in Go's own words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.durations import LONGEST_S, parse_duration, parse_go_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("-0", 0), ("+0", 0), ("0s", 0), ("5m", 300), ("+5m", 300), ("1h30m", 5400), ("-1.5s", -1.5),
        (".5s", 0.5), ("1.s", 1), ("90s", 90), ("1h1m1s1ms1us1ns", 3661.001001001), ("3µs", 3e-6), ("3μs", 3e-6),
        ("1s1s", 2), ("30m1h", 5400), ("-1m", -60),
    ],
)  # fmt: skip
def test_a_go_duration_means_seconds(text, seconds):
    assert parse_go_duration(text) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("300", 'time: missing unit in duration "300"'),
        ("1.5", 'time: missing unit in duration "1.5"'),
        ("1h30", 'time: missing unit in duration "1h30"'),
        ("00", 'time: missing unit in duration "00"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("5M", 'time: unknown unit "M" in duration "5M"'),
        ("1h-5m", 'time: unknown unit "h-" in duration "1h-5m"'),
        ("5m ", 'time: unknown unit "m " in duration "5m "'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("+-5m", 'time: invalid duration "+-5m"'),
        (".s", 'time: invalid duration ".s"'),
        ("m", 'time: invalid duration "m"'),
        ("forever", 'time: invalid duration "forever"'),
        ("٣m", 'time: invalid duration "٣m"'),
        ("9999999h", 'time: invalid duration "9999999h"'),
        ("1" + "0" * 400 + "s", f'time: invalid duration "1{"0" * 400}s"'),
    ],
)
def test_what_is_no_go_duration_is_refused_in_gos_words(text, message):
    with pytest.raises(ValueError) as caught:
        parse_go_duration(text)
    assert str(caught.value) == message


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_terms_add_up(hours, minutes, seconds, milliseconds):
    expected = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    assert parse_go_duration(f"{hours}h{minutes}m{seconds}s{milliseconds}ms") == pytest.approx(expected, rel=1e-12)


@given(st.text("0123456789.+-hmsuµn ", max_size=12))
def test_any_text_is_a_finite_duration_or_refused(text):
    try:
        assert abs(parse_go_duration(text)) < LONGEST_S
    except ValueError as error:
        assert text in str(error)


@pytest.mark.parametrize(
    ("text", "seconds"), [("300", 300), ("2.5", 2.5), ("+7", 7), ("0", 0), ("5m", 300), ("-0", 0), ("0.0", 0)]
)
def test_a_number_without_a_unit_is_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["-1", "-0.5", "-1m", "-1ns"])
def test_anything_negative_is_forever(text):
    assert parse_duration(text) is None


@pytest.mark.parametrize("text", ["1e5", "nan", "inf", "1_000", " 5m", "9" * 20, "0x10"])
def test_other_texts_and_endless_durations_are_refused(text):
    with pytest.raises(ValueError, match="time: "):
        parse_duration(text)
