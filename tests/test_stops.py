"""Stop strings end a reply at the right character, however the text arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import BadRequest
from puna.text.stops import StopStrings

# Three letters make overlapping and nested stop strings likely.
stop_lists = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)
chunk_lists = st.lists(st.text("abc", max_size=4), max_size=12)


def run(stops: list[str], chunks: list[str]) -> tuple[list[str], bool]:
    """Return what was sent after each chunk and at the end, and whether a stop string was met."""
    rule, sent = StopStrings(stops), []
    for chunk in chunks:
        text, met = rule.push(chunk)
        sent.append(text)
        if met:
            return sent, True
    return [*sent, rule.flush()], False


def expected(stops: list[str], text: str) -> tuple[str, bool]:
    """The whole text, one character after the other, with no memory of what was sent."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: end - max(map(len, matches))], True
    return text, False


@given(stop_lists, chunk_lists)
def test_replies_equal_those_of_a_search_of_the_whole_text(stops, chunks):
    sent, met = run(stops, chunks)
    assert ("".join(sent), met) == expected(stops, "".join(chunks))


@given(stop_lists, chunk_lists)
def test_only_what_could_become_a_stop_string_is_held_back(stops, chunks):
    rule, sent, text = StopStrings(stops), "", ""
    for chunk in chunks:
        new, met = rule.push(chunk)
        if met:
            return
        sent, text = sent + new, text + chunk
        held = text[len(sent) :]
        tails = [text[i:] for i in range(len(text) + 1)]
        assert held == max((tail for tail in tails if any(stop.startswith(tail) for stop in [*stops, ""])), key=len)


@pytest.mark.parametrize(
    ("stops", "chunks", "sent"),
    [
        (["\nUser:"], ["Hi", "\n", "Us", "er", ": there"], ["Hi", "", "", "", ""]),
        (["\nUser:"], ["Hi\nUs", "ual"], ["Hi", "\nUsual", ""]),
        (["###", "end"], ["the en", "d ###"], ["the ", ""]),
        (["ab", "aab"], ["a", "a", "b"], ["", "", ""]),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""]),
    ],
)
def test_a_stop_string_may_span_tokens(stops, chunks, sent):
    assert run(stops, chunks)[0] == sent


def test_nothing_comes_out_after_a_match():
    rule = StopStrings(["x"])
    assert rule.push("axb") == ("a", True)
    assert rule.push("more") == ("", True)
    assert rule.flush() == ""


def test_without_stop_strings_text_passes_through():
    assert run([], ["any", "", "thing"]) == (["any", "", "thing", ""], False)


@pytest.mark.parametrize("stops", [["x" * 4097], [f"stop {number}" for number in range(1000)]])
def test_stop_strings_that_would_slow_every_reply_down_are_refused(stops):
    with pytest.raises(BadRequest, match="at most 4096 are allowed"):
        StopStrings(stops)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(BadRequest, match="stop string is empty"):
        StopStrings(["ok", ""])
