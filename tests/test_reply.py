"""From tokens to the text of a reply: whole characters, stop strings that are never shown, and what belongs to them."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.scheduler.messages import SampledLogprob, TokenLogprob
from puna.core.scheduler.reply import Reply
from puna.text.stops import StopStrings

END = 0


class Vocabulary:
    """A detokenizer over a list of byte strings; token i is the i-th."""

    def __init__(self, pieces):
        self.pieces, self._decoder = pieces, codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token):
        return self._decoder.decode(self.pieces[token])

    def flush(self):
        return self._decoder.decode(b"", final=True)


def made(*pieces, stop=(), max_tokens=None):
    """A reply whose token i (from 1) is the i-th piece. 0 ends it."""
    return Reply(Vocabulary([b"", *pieces]), StopStrings(stop), frozenset({END}), max_tokens)


def entry(token):
    return SampledLogprob(TokenLogprob(token, str(token), b"", -1.0))


def run(reply, tokens):
    """Push tokens until the reply is over; return its pieces."""
    pieces = []
    for token in tokens:
        pieces.append(reply.push(token, lambda token=token: entry(token)))
        if reply.reason is not None:
            break
    return [piece for piece in pieces if piece is not None]


def text(pieces):
    return "".join(piece.text for piece in pieces)


def tokens(pieces):
    return [token for piece in pieces for token in piece.tokens]


def logged(pieces):
    return [logprob.chosen.token for piece in pieces for logprob in piece.logprobs]


# ---- text ----------------------------------------------------------------------------------------------------------


def test_each_token_is_a_piece_as_soon_as_it_is_final():
    reply = made(b"Hel", b"lo")
    assert [(piece.text, piece.tokens) for piece in run(reply, [1, 2])] == [("Hel", [1]), ("lo", [2])]
    assert reply.reason is None


def test_a_character_is_shown_when_its_last_byte_has_come():
    smile = "🙂".encode()
    reply = made(smile[:1], smile[1:3], smile[3:] + b"!")
    (piece,) = run(reply, [1, 2, 3])
    assert (piece.text, piece.tokens, logged([piece])) == ("🙂!", [1, 2, 3], [1, 2, 3])


def test_tokens_that_are_whole_bytes_of_two_characters_share_a_piece():
    euro = "€".encode()
    reply = made(b"a" + euro[:1], euro[1:] + b"b")
    assert [(piece.text, piece.tokens) for piece in run(reply, [1, 2])] == [("a", [1]), ("€b", [2])]


def test_an_unfinished_character_at_the_end_is_shown_as_replaced():
    reply = made(b"a", "é".encode()[:1])
    pieces = run(reply, [1, 2, END])
    assert text(pieces) == "a\ufffd"
    assert tokens(pieces) == [1, 2]


# ---- ends ----------------------------------------------------------------------------------------------------------


def test_the_end_token_ends_the_reply_and_adds_nothing():
    reply = made(b"a")
    pieces = run(reply, [1, END])
    assert (text(pieces), tokens(pieces), logged(pieces)) == ("a", [1], [1])
    assert (reply.reason, reply.tokens) == ("stop", 2)


def test_an_end_token_at_once_is_an_empty_reply():
    reply = made(b"a")
    assert reply.push(END, lambda: pytest.fail("the end token has no log probability")) is None
    assert (reply.reason, reply.tokens) == ("stop", 1)


def test_the_limit_ends_the_reply_with_all_that_was_held_back():
    reply = made(b"on", b"e E", b"N", stop=["END"], max_tokens=3)
    pieces = run(reply, [1, 2, 3])
    assert (text(pieces), tokens(pieces), logged(pieces)) == ("one EN", [1, 2, 3], [1, 2, 3])
    assert (reply.reason, reply.tokens) == ("length", 3)


def test_an_end_token_at_the_limit_is_a_stop():
    reply = made(b"a", max_tokens=2)
    run(reply, [1, END])
    assert reply.reason == "stop"


def test_a_stop_string_at_the_limit_is_a_stop():
    reply = made(b"a", b"END", stop=["END"], max_tokens=2)
    assert text(run(reply, [1, 2])) == "a"
    assert reply.reason == "stop"


def test_an_end_from_outside_hands_out_what_was_held_back():
    reply = made(b"a E", stop=["END"])
    pieces = run(reply, [1])
    assert text(pieces) == "a "
    rest = reply.end("length")
    assert (rest.text, reply.reason) == ("E", "length")


def test_an_end_from_outside_with_nothing_held_back_adds_no_piece():
    reply = made(b"a")
    run(reply, [1])
    assert reply.end("cancelled") is None


# ---- stop strings --------------------------------------------------------------------------------------------------


def test_a_stop_string_within_a_token_cuts_it():
    reply = made(b"one STOP two", stop=["STOP"])
    (piece,) = run(reply, [1])
    assert (piece.text, piece.tokens, logged([piece])) == ("one ", [1], [1])
    assert reply.reason == "stop"


def test_a_stop_string_across_tokens_is_never_shown():
    reply = made(b"one S", b"TO", b"P two", stop=["STOP"])
    pieces = run(reply, [1, 2, 3])
    assert (text(pieces), tokens(pieces), logged(pieces)) == ("one ", [1], [1])
    assert (reply.reason, reply.tokens) == ("stop", 3)


def test_what_only_began_like_a_stop_string_is_shown_after_all():
    reply = made(b"S", b"T", b"AR", stop=["STOP"])
    (piece,) = run(reply, [1, 2, 3])
    assert (piece.text, piece.tokens, logged([piece])) == ("STAR", [1, 2, 3], [1, 2, 3])


def test_a_token_that_is_partly_shown_comes_with_its_shown_part_and_once():
    reply = made(b"ab S", b"o", stop=["STOP"])
    first, second = run(reply, [1, 2])
    assert (first.text, first.tokens) == ("ab ", [1])
    assert (second.text, second.tokens) == ("So", [2])


def test_a_reply_that_is_all_stop_string_shows_nothing():
    reply = made(b"ST", b"OP", stop=["STOP"])
    assert run(reply, [1, 2]) == []
    assert reply.reason == "stop"


def test_a_stop_string_of_several_bytes_a_character_is_met_across_tokens():
    smile = "🙂".encode()
    reply = made(b"a" + smile[:2], smile[2:], stop=["🙂"])
    assert text(run(reply, [1, 2])) == "a"
    assert reply.reason == "stop"


def test_a_stop_string_that_ends_with_a_broken_character_is_met_at_the_end():
    reply = made(b"a", b"\xe2", stop=["\ufffd"])
    pieces = run(reply, [1, 2, END])
    assert (text(pieces), tokens(pieces)) == ("a", [1])


# ---- log probabilities ---------------------------------------------------------------------------------------------


def test_no_log_probabilities_are_made_unless_they_are_asked_for():
    assert made(b"a").push(1).logprobs == []


def test_a_token_without_text_comes_with_the_text_that_follows():
    reply = made(b"a", b"", b"b")
    assert [(piece.text, logged([piece])) for piece in run(reply, [1, 2, 3])] == [("a", [1]), ("b", [2, 3])]


def test_a_token_without_text_at_the_end_comes_alone():
    reply = made(b"a", b"")
    pieces = run(reply, [1, 2, END])
    assert [(piece.text, piece.tokens, logged([piece])) for piece in pieces] == [("a", [1], [1]), ("", [2], [2])]


# ---- any reply -----------------------------------------------------------------------------------------------------

alphabet = st.text("abSTé🙂", max_size=3).map(str.encode) | st.binary(max_size=2)
stop_strings = st.lists(st.text("abSTé🙂", min_size=1, max_size=3), max_size=3)


def first_stop(whole, stops):
    """Where the stop string that is complete first begins in whole; None without one."""
    for end in range(len(whole) + 1):
        starts = [end - len(stop) for stop in stops if whole[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


@given(st.lists(alphabet, min_size=1, max_size=12), stop_strings, st.none() | st.integers(1, 12))
def test_the_pieces_are_the_text_of_the_tokens_up_to_the_stop(pieces, stops, max_tokens):
    reply = made(*pieces, stop=stops, max_tokens=max_tokens)
    found = run(reply, [*range(1, len(pieces) + 1), END])
    taken = pieces[: reply.tokens]  # as many as were pushed before the end; the end token adds nothing
    whole = b"".join(taken).decode("utf-8", "replace")
    cut = first_stop(whole, stops)
    assert text(found) == whole[:cut]
    limited = max_tokens is not None and max_tokens <= len(pieces)
    assert reply.reason == ("length" if cut is None and limited else "stop")
    assert tokens(found) == logged(found) == list(range(1, len(tokens(found)) + 1))
    if cut is None:
        assert len(tokens(found)) == len(taken)
    else:
        starts = [
            len(codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(taken[:i]))) for i in range(len(taken))
        ]
        assert len(tokens(found)) == sum(start < cut for start in starts)


@given(st.lists(alphabet, min_size=1, max_size=12), stop_strings)
def test_no_piece_ever_shows_what_a_later_token_takes_back(pieces, stops):
    reply = made(*pieces, stop=stops)
    shown = ""
    for token in range(1, len(pieces) + 1):
        piece = reply.push(token)
        shown += piece.text if piece else ""
        assert first_stop(shown, stops) is None
        if reply.reason is not None:
            break
