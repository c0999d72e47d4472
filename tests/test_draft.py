"""A second model that guesses ahead: replies are the same, and only as many steps as needed are computed."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import BadModel
from puna.core.memory.cache import Capacity
from puna.core.model import find_architecture, load_model
from puna.core.scheduler import engine
from puna.core.scheduler.draft import SHARE, DraftModel
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.guess import MOST
from puna.core.scheduler.inline import InlineRunner, TextParts
from puna.core.scheduler.messages import Generate, Piece
from puna.core.scheduler.pace import LEAST, SLOWDOWN, Pace
from puna.core.scheduler.plan import Limits
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.sampling import SamplingParams
from puna.core.tensor.weights import open_weights
from puna.plugins import llama
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = FIXTURES / "llama-bpe" / "gguf" / "model-f32.gguf"
CASES = {case["name"]: case for case in json.loads((FIXTURES / "llama-bpe" / "cases.json").read_text())["text"]}
TEXT = TextParts(open_tokenizer, StopStrings, Grammars)


class Steady:
    """A pace at which guesses always pay, so that what is guessed does not depend on the clock (`Pace`)."""

    cost, seconds, spare = 0.0, 0.0, 1e9

    def learn(self, growing, guessed, prompt, seconds):
        pass

    def room(self, growing, spent=0.0):
        return 64


@pytest.fixture
def steady(monkeypatch):
    monkeypatch.setattr(engine, "Pace", Steady)


def opened(draft, **options):
    known = {"limits": Limits(64, 4), "threads": 1, "cache_type": "f32", "positions": 2048}
    return InlineRunner(MODEL, llama.architectures(), TEXT, EngineOptions(**known | options), draft=draft)


async def replies(runner, prompts, **options):
    async def one(prompt):
        request = Generate(**{"prompt": prompt, "num_ctx": 256, "max_tokens": 40} | options)
        events = [event async for event in runner.generate(request)]
        return [token for event in events if isinstance(event, Piece) for token in event.tokens], events[-1]

    try:
        return await asyncio.gather(*map(one, prompts))
    finally:
        await runner.close()


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0), SamplingParams(temperature=1, seed=7)], ids=str)
def test_replies_are_the_same_with_a_draft_model(sampling):
    prompts = [CASES["short"]["ids"], CASES["long"]["ids"][:50], CASES["long"]["ids"][5:40]]
    plain = asyncio.run(replies(opened(None, speculate=False), prompts, sampling=sampling))
    drafted = asyncio.run(replies(opened(MODEL), prompts, sampling=sampling))
    assert [tokens for tokens, _ in drafted] == [tokens for tokens, _ in plain]
    assert all(end.guessed == 0 for _, end in plain)
    assert all(end.accepted > 0 for _, end in drafted)


def test_a_draft_that_is_the_model_itself_guesses_right():
    ((_, end),) = asyncio.run(replies(opened(MODEL), [CASES["short"]["ids"]], sampling=SamplingParams(temperature=0)))
    assert end.guessed > 0
    assert end.accepted >= end.guessed - 7  # the reply's end may come within a guess


@pytest.mark.usefixtures("steady")
def test_a_draft_follows_a_context_that_drops_its_middle():
    greedy = {"sampling": SamplingParams(temperature=0), "num_ctx": 24, "num_keep": 4}
    plain = asyncio.run(replies(opened(None, speculate=False), [CASES["short"]["ids"][:10]], **greedy))
    drafted = asyncio.run(replies(opened(MODEL), [CASES["short"]["ids"][:10]], **greedy))
    assert drafted[0][0] == plain[0][0]
    assert drafted[0][1].shifted == plain[0][1].shifted > 0
    assert drafted[0][1].accepted > 0


# ---- reading what the reply began with ------------------------------------------------------------------------------

EACH_S, STEP_S = 0.001, 0.1  # what the small model takes for a token, and a step of the large one


class Timed:
    """A model whose every token takes EACH_S of a clock of its own."""

    def __init__(self, model):
        self._model, self.now, self.reads = model, 0.0, []
        self.embed, self.logits = model.embed, model.logits

    def forward(self, x, step):
        self.now += EACH_S * len(x)
        self.reads.append(len(x))
        return self._model.forward(x, step)


def timed_draft():
    """A draft model beside a large one whose steps are known, and what tells its time."""
    source = open_weights(MODEL)
    loaded = load_model(find_architecture(llama.architectures(), source), source, CpuLoader())
    model, pace = Timed(loaded.model), Pace()
    pace.learn(1, 0, 0, STEP_S)
    return DraftModel(replace(loaded, model=model), "f32", Capacity(4096, 4, 512), pace, lambda: model.now), model


@given(st.lists(st.integers(MOST + 2, 900), min_size=1, max_size=4))
@settings(deadline=None, max_examples=10)
def test_long_texts_are_read_by_and_by_and_make_no_step_later_than_is_granted(lengths):
    draft, model = timed_draft()
    texts = [[(7 * i + n) % 400 for i in range(length)] for n, length in enumerate(lengths)]
    guessers = [draft.guesser() for _ in texts]
    guessed, steps = set(), 0
    while len(guessed) < len(texts):
        model.reads.clear()
        for text, guesser in zip(texts, guessers, strict=True):
            text.append(5)  # a reply grows, read or not
            if guesser.guess(text, 2, 0.0):
                guessed.add(guesser)
        late, read = draft.begin_step(), [count for count in model.reads if count > MOST + 1]
        assert late <= SHARE * (SLOWDOWN - 1) * STEP_S + LEAST * EACH_S
        assert sum(read) * EACH_S <= late + 1e-9
        steps += 1
        assert steps < 400, "somebody never guesses"


def test_what_was_read_lately_is_no_reason_to_wait():
    draft, model = timed_draft()
    guesser, text = draft.guesser(), [1, 2, 3]
    for _ in range(5):
        assert guesser.guess(text, 3, 0.0)
        text += [9, 9]
    assert draft.begin_step() == 0.0
    assert max(model.reads) <= MOST + 1


def test_a_draft_of_other_tokens_is_refused():
    with pytest.raises(BadModel, match=r"^the draft model: it has \d+ tokens, expected the model's own 419$"):
        opened(FIXTURES / "llama-spm" / "gguf" / "model-f32.gguf")


def test_a_draft_with_one_other_token_is_refused(tmp_path):
    (tmp_path / "other.gguf").write_bytes(MODEL.read_bytes().replace(b"<|begin_of_text|>", b"<|begin_of_tale|>"))
    with pytest.raises(BadModel, match=r"^the draft model: its token \d+ is b'<\|begin_of_tale\|>', expected .*_text"):
        opened(tmp_path / "other.gguf")


def test_a_draft_that_cannot_be_read_is_named_as_one(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(MODEL.read_bytes()[:-100])
    with pytest.raises(BadModel, match=r"^the draft model: .*broken\.gguf"):
        opened(tmp_path / "broken.gguf")


def test_a_request_says_how_far_to_guess_ahead():
    async def ends(limits):
        runner, greedy = opened(MODEL), SamplingParams(temperature=0)
        try:
            for limit in limits:
                request = Generate(
                    prompt=CASES["short"]["ids"], num_ctx=256, max_tokens=40, guess=limit, sampling=greedy
                )
                before = runner.stats
                *_, end = [event async for event in runner.generate(request)]
                yield end, runner.stats.steps - before.steps
        finally:
            await runner.close()

    async def collected():
        return [end async for end in ends([None, None, 0, 1])]

    _, (free, _), (none, every), (one, fewer) = asyncio.run(collected())  # the first shows what a step takes
    assert (none.guessed, every) == (0, 40)
    assert free.guessed > 0
    assert one.guessed > 0
    assert fewer >= 20  # at most one token more in each step


def test_the_memory_of_the_draft_counts():
    async def held(draft):
        runner = opened(draft)
        try:
            [_ async for _ in runner.generate(Generate(prompt=CASES["short"]["ids"], num_ctx=64, max_tokens=9))]
            return runner.facts.weight_bytes, runner.memory_bytes
        finally:
            await runner.close()

    (weights, alone), (both, together) = asyncio.run(held(None)), asyncio.run(held(MODEL))
    assert both == 2 * weights
    assert together > alone + weights  # its own keys and values, too
