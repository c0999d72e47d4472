"""What is held of a reply for its reader: in order, joined, bounded, and from any thread."""

import asyncio
import threading

import pytest

from puna.core.errors import BadModel, BadRequest, RunnerDied
from puna.core.scheduler.messages import Failed, Finished, Piece, SampledLogprob, TokenLogprob
from puna.core.scheduler.outbox import Outbox

pytestmark = pytest.mark.asyncio

END = Finished(reason="stop", prompt_tokens=1, prompt_ns=0, tokens=1, decode_ns=0)


async def test_what_was_not_taken_is_joined_in_order():
    outbox = Outbox()
    logprobs = [SampledLogprob(TokenLogprob(n, "x", b"x", -1.0)) for n in range(3)]
    for number, text in enumerate(["Hel", "", "lö"]):
        assert outbox.put(Piece(text, [number], [logprobs[number]]))
    outbox.put(END)
    assert [event async for event in outbox] == [Piece("Hellö", [0, 1, 2], logprobs), END]


async def test_what_is_taken_at_once_stays_apart():
    outbox = Outbox()
    seen = []
    for text in "abc":
        outbox.put(Piece(text, [1]))
        seen.append((await anext(outbox)).text)
    assert seen == ["a", "b", "c"]


async def test_nothing_comes_behind_the_end():
    outbox = Outbox()
    outbox.put(END)
    assert outbox.ended
    outbox.put(Piece("late", [1]))
    outbox.fail(RunnerDied("late"))
    assert [event async for event in outbox] == [END]


@pytest.mark.parametrize(
    ("kind", "error"), [("bad_request", BadRequest), ("bad_model", BadModel), ("internal", RunnerDied)]
)
async def test_a_failure_is_raised_behind_the_text_before_it(kind, error):
    outbox = Outbox()
    outbox.put(Piece("so far", [1]))
    outbox.put(Failed(kind, "why"))
    assert await anext(outbox) == Piece("so far", [1])
    with pytest.raises(error, match="why"):
        await anext(outbox)


@pytest.mark.parametrize(
    "piece",
    [
        Piece("x" * 500, [1]),
        Piece("", [1] * 100),
        Piece("", [1], [SampledLogprob(TokenLogprob(1, "x", b"x", -1.0), [TokenLogprob(1, "x", b"x", -1.0)] * 3)]),
    ],
)
async def test_a_reader_that_is_too_far_behind_ends_its_reply(piece, monkeypatch):
    monkeypatch.setattr("puna.core.scheduler.outbox.MAX_UNREAD", 4000)
    outbox = Outbox()
    wanted = [outbox.put(piece) for _ in range(20)]
    held = wanted.index(False) + 1
    assert held < 10 and not any(wanted[held:])
    assert len((await anext(outbox)).tokens) == held * len(piece.tokens)  # what fitted is not lost
    with pytest.raises(BadRequest, match="its client left 0 MB of it unread"):
        await anext(outbox)


async def test_a_reader_that_comes_back_in_time_goes_on(monkeypatch):
    monkeypatch.setattr("puna.core.scheduler.outbox.MAX_UNREAD", 4000)
    outbox = Outbox()
    for _ in range(5):
        assert all(outbox.put(Piece("x" * 500, [1])) for _ in range(7))
        assert len((await anext(outbox)).text) == 3500


async def test_a_thread_that_writes_without_a_pause_loses_nothing():
    outbox, count = Outbox(), 20_000

    def write():
        for number in range(count):
            outbox.put(Piece(f"{number} ", [number]))
        outbox.put(END)

    writer = threading.Thread(target=write)
    writer.start()
    *pieces, end = [event async for event in outbox]
    writer.join()
    assert [token for piece in pieces for token in piece.tokens] == list(range(count))
    assert "".join(piece.text for piece in pieces).split() == list(map(str, range(count)))
    assert end == END


async def test_a_reader_whose_loop_has_ended_holds_up_nobody():
    def abandon():
        async def start():
            outbox = Outbox()
            reading = asyncio.create_task(anext(outbox))
            await asyncio.sleep(0)
            assert not reading.done()
            return outbox

        return asyncio.run(start())

    outbox = await asyncio.to_thread(abandon)
    assert outbox.put(Piece("x", [1]))
