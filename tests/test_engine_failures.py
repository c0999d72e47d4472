"""The step loop with a model of one line that misbehaves."""

import queue
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from puna.core.errors import BadModel, RunnerDied
from puna.core.model import LoadedModel
from puna.core.scheduler.engine import Engine, EngineOptions
from puna.core.scheduler.guess import Lookup
from puna.core.scheduler.messages import Failed, Piece
from puna.core.scheduler.plan import Limits, Scheduler
from puna.core.scheduler.reply import Reply
from puna.core.scheduler.sequence import Sequence
from puna.plugins import llama
from puna.text.stops import StopStrings

from .test_engine import SHORT, ask, open_runner, reply, run


@pytest.fixture(scope="module")
def runner():
    runner = open_runner()
    yield runner
    run(runner.close())


STOP, NAN, BROKEN, FAULTY, LEAVING = 50, 60, 70, 80, 90  # tokens that the toy model stumbles over


class Counting:
    """A model that says the next number, except behind the tokens above. A test may hold a step up at its gate."""

    def __init__(self):
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def embed(self, tokens):
        return tokens.astype(np.float32)[:, None]

    def forward(self, x, step):
        self.entered.set()
        assert self.gate.wait(60)
        if (x == BROKEN).any():
            raise RuntimeError("shapes do not fit")
        if (x == FAULTY).any():
            raise BadModel("a weight is damaged")
        if (x == LEAVING).any():
            raise SystemExit
        return x

    def logits(self, x):
        logits = np.zeros((len(x), 100), np.float32)
        logits[np.arange(len(x)), x[:, 0].astype(int) + 1] = 9.0
        logits[x[:, 0] == NAN] = np.nan
        return logits


class Numbers:
    """A tokenizer whose tokens are numbers."""

    def piece(self, token, *, special=False):
        return b"%d " % token

    def push(self, token):
        return f"{token} "

    def flush(self):
        return ""


class Client:
    """Collects what one sequence emits."""

    def __init__(self, engine, first, max_tokens=3, **options):
        self._events = queue.SimpleQueue()
        request = ask([first], max_tokens=max_tokens, **options)
        replies = Reply(Numbers(), StopStrings([]), frozenset({STOP}), max_tokens)
        self.sequence = Sequence(request, replies, engine.new_table(), self._events.put)
        engine.submit(self.sequence)

    def events(self):
        found = []
        while not found or isinstance(found[-1], Piece):
            found.append(self._events.get(timeout=60))
        return found

    def is_silent(self):
        return self._events.empty()

    def tokens(self):
        return [token for event in self.events()[:-1] for token in event.tokens]


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def engine(counting):
    config = SimpleNamespace(vocabulary=100, context_length=1024)
    model = LoadedModel(llama.architectures()[0], config, counting, [], 0)
    engine = Engine(model, Numbers(), options=EngineOptions(Limits(16, 8), 1, "f32", 4096))
    yield engine
    engine.close()


@contextmanager
def held_up(counting):
    """While this lasts the engine stands in the first step that began; what is submitted meanwhile is in the next."""
    counting.entered.clear()
    counting.gate.clear()
    yield
    assert counting.entered.wait(60)
    counting.gate.set()


def test_the_end_token_ends_a_reply_and_is_not_part_of_it(engine):
    events = Client(engine, STOP - 3, max_tokens=10).events()
    assert [event.text for event in events[:-1]] == ["48 ", "49 "]
    assert (events[-1].reason, events[-1].tokens) == ("stop", 3)


def test_logits_that_are_no_numbers_fail_their_own_request_only(engine, counting):
    with held_up(counting):
        first = Client(engine, 1)
        assert counting.entered.wait(60)
        broken, last = Client(engine, NAN), Client(engine, 5)
    (failed,) = broken.events()
    assert (failed.kind, "NaN" in failed.message) == ("bad_model", True)
    assert (first.tokens(), last.tokens()) == ([2, 3, 4], [6, 7, 8])


def test_logits_that_become_no_numbers_end_a_reply_in_its_middle(engine):
    *pieces, failed = Client(engine, NAN - 2, max_tokens=10).events()
    assert [piece.tokens for piece in pieces] == [[NAN - 1], [NAN]]
    assert isinstance(failed, Failed)


@pytest.mark.parametrize(
    ("token", "kind", "message"),
    [(BROKEN, "internal", "an error was encountered"), (FAULTY, "bad_model", "a weight is damaged")],
)
def test_a_step_that_fails_ends_its_requests_and_not_the_engine(engine, counting, caplog, token, kind, message):
    with held_up(counting):
        first = Client(engine, 1)
        assert counting.entered.wait(60)
        failing = [Client(engine, token), Client(engine, 5)]
    for client in failing:
        (failed,) = client.events()
        assert failed.kind == kind
        assert failed.message.startswith(message)
    assert [type(event) for event in first.events()] == [Piece, Failed]
    assert ("RuntimeError: shapes do not fit" in caplog.text) == (kind == "internal")
    assert Client(engine, 1).tokens() == [2, 3, 4]


def test_a_model_that_exits_ends_its_request_and_not_the_engine(engine):
    (failed,) = Client(engine, LEAVING).events()
    assert failed.kind == "internal"
    assert Client(engine, 1).tokens() == [2, 3, 4]


def test_a_sequence_that_has_ended_can_be_cancelled_without_effect(engine):
    client = Client(engine, 1)
    assert client.tokens() == [2, 3, 4]
    engine.cancel(client.sequence)
    assert Client(engine, 5).tokens() == [6, 7, 8]


def test_a_cancelled_sequence_leaves_before_the_next_step_and_is_told_so_once(engine, counting):
    with held_up(counting):
        client = Client(engine, 1, max_tokens=40)
        assert counting.entered.wait(60)
        engine.cancel(client.sequence)
        engine.cancel(client.sequence)
    piece, finished = client.events()
    assert (piece.tokens, finished.reason, finished.tokens) == ([2], "cancelled", 1)
    Client(engine, 1).events()  # whatever else the first one were to emit would have come by now
    assert client.is_silent()


class Panic(BaseException):
    """What libraries written in Rust raise when they give up."""


@pytest.mark.parametrize("fault", [RuntimeError("a bug"), Panic("a library's")], ids=["bug", "panic"])
def test_a_bug_in_planning_ends_the_replies_and_not_the_engine(runner, monkeypatch, fault):
    plan, faults = Scheduler.plan, [fault]

    def failing_once(scheduler, room):
        if faults:
            raise faults.pop()
        return plan(scheduler, room)

    monkeypatch.setattr(Scheduler, "plan", failing_once)
    with pytest.raises(RunnerDied):
        reply(runner, [1, 2, 3], max_tokens=2)
    assert len(reply(runner, [1, 2, 3], max_tokens=2).tokens) == 2


def test_a_guesser_that_fails_is_left_out_and_the_reply_goes_on(runner, monkeypatch):
    calls = []

    def failing(guesser, tokens, most, cost):
        calls.append(most)
        raise Panic("a draft model's")

    monkeypatch.setattr(Lookup, "guess", failing)
    assert reply(runner, SHORT["ids"]).tokens == SHORT["greedy"]
    assert len(calls) == 1
