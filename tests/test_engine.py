"""The step loop with a real model and tokenizer; `test_engine_failures.py` has a model of one line that misbehaves."""

import asyncio
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from puna.core.errors import BadModel, BadRequest, Busy, ContextTooLong
from puna.core.kernel import Kernel
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner, TextParts
from puna.core.scheduler.messages import Finished, Generate, Piece
from puna.core.scheduler.models import ModelFiles
from puna.core.scheduler.plan import Limits
from puna.core.settings import Settings
from puna.core.tensor.sampling import SamplingParams
from puna.core.tensor.weights import open_weights
from puna.plugins import llama
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer

from .endless_runner import WithoutEnd

FIXTURE = Path(__file__).parent / "fixtures" / "llama-bpe"
GGUF = FIXTURE / "gguf" / "model-f32.gguf"
CASES = {case["name"]: case for case in json.loads((FIXTURE / "cases.json").read_text())["text"]}
SHORT = CASES["short"]
TEXT = TextParts(open_tokenizer, StopStrings, Grammars)
GREEDY = SamplingParams(temperature=0)


def small_options(*, step_tokens=64, sequences=32, positions=8192):
    return EngineOptions(Limits(step_tokens, sequences), threads=2, cache_type="f32", positions=positions)


def open_runner(*, architecture=None, text=TEXT, **options):
    return InlineRunner(GGUF, [architecture or llama.architectures()[0]], text, small_options(**options))


@pytest.fixture(scope="module")
def runner():
    runner = open_runner()
    yield runner
    asyncio.run(runner.close())


@dataclass
class Outcome:
    """Everything that came out of one reply."""

    pieces: list[Piece]
    finished: Finished

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self):
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def logprobs(self):
        return [logprob for piece in self.pieces for logprob in piece.logprobs]


async def outcome(runner, prompt, **options):
    *pieces, finished = [event async for event in runner.generate(ask(prompt, **options))]
    return Outcome(pieces, finished)


def ask(prompt, **options):
    return Generate(**{"prompt": list(prompt), "sampling": GREEDY, "num_ctx": 1024, "max_tokens": 16} | options)


def run(*coroutines):
    """Run them together and return what each returned."""

    async def together():
        return await asyncio.gather(*coroutines)

    return asyncio.run(together())


def reply(runner, prompt, **options):
    return run(outcome(runner, prompt, **options))[0]


# ---- what is generated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_greedy_reply_is_the_references(runner, name):
    found = reply(runner, CASES[name]["ids"])
    assert found.tokens == CASES[name]["greedy"]
    assert found.text == open_tokenizer(open_weights(GGUF)).decode(CASES[name]["greedy"])
    assert (found.finished.reason, found.finished.tokens) == ("length", 16)
    assert found.finished.prompt_tokens == len(CASES[name]["ids"])
    assert (found.finished.truncated, found.finished.shifted) == (0, 0)


@pytest.mark.parametrize("num_batch", [1, 3, None])
def test_the_size_of_prompt_chunks_changes_nothing(runner, num_batch):
    assert reply(runner, SHORT["ids"], num_batch=num_batch).tokens == SHORT["greedy"]


def test_replies_together_are_what_each_is_alone(runner):
    prompts = [(CASES["long"]["ids"] + SHORT["ids"])[i : 3 * i + 5] for i in range(32)]
    requests = [
        {"sampling": GREEDY if i % 2 else SamplingParams(temperature=1.0, seed=i), "max_tokens": 5 + i % 20}
        for i in range(32)
    ]
    alone = [reply(runner, prompt, **request) for prompt, request in zip(prompts, requests, strict=True)]
    together = run(*[outcome(runner, prompt, **request) for prompt, request in zip(prompts, requests, strict=True)])
    assert [found.tokens for found in together] == [found.tokens for found in alone]
    assert [found.text for found in together] == [found.text for found in alone]
    assert [found.finished.reason for found in together] == [found.finished.reason for found in alone]


def test_more_replies_than_places_take_turns():
    runner = open_runner(step_tokens=8, sequences=2)
    for found in run(*[outcome(runner, SHORT["ids"]) for _ in range(5)]):
        assert found.tokens == SHORT["greedy"]
    run(runner.close())


def test_a_seed_gives_the_same_reply_again(runner):
    seeded = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=7)
    first, again, other, unseeded, unseeded_again = run(
        *[
            outcome(runner, SHORT["ids"], sampling=sampling, max_tokens=40)
            for sampling in (
                seeded,
                seeded,
                SamplingParams(temperature=1.5, seed=8),
                *[SamplingParams(temperature=1.5)] * 2,
            )
        ]
    )
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens
    assert unseeded.tokens != unseeded_again.tokens


def test_text_is_turned_into_tokens_and_back(runner):
    assert run(runner.tokenize(SHORT["prompt"])) == [SHORT["ids"]]
    assert run(runner.tokenize(SHORT["prompt"], start=False)) == [SHORT["ids"][1:]]
    assert run(runner.detokenize(SHORT["ids"][1:])) == [SHORT["prompt"]]


# ---- ends ----------------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_the_reply_before_it(runner):
    found = reply(runner, SHORT["ids"], stop=["se p"])  # across the tokens "se" and " p"
    whole = reply(runner, SHORT["ids"]).text
    assert found.text == whole[: whole.index("se p")]
    assert (found.finished.reason, found.finished.tokens) == ("stop", 11)


def test_a_stop_token_of_the_architecture_ends_the_reply():
    runner = open_runner(architecture=replace(llama.architectures()[0], stop_tokens=("8", "not one token")))
    assert run(runner.tokenize("8", start=False)) == [[SHORT["greedy"][2]]]
    found = reply(runner, SHORT["ids"])
    assert found.tokens == SHORT["greedy"][:2]
    assert (found.finished.reason, found.finished.tokens) == ("stop", 3)
    run(runner.close())


def test_log_probabilities_are_the_references_softmax(runner):
    found = reply(runner, SHORT["ids"], max_tokens=1, logprobs=5)
    logits = load_file(FIXTURE / "expected.safetensors")[SHORT["logits"]][-1].astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    (entry,) = found.logprobs
    assert [top.token for top in entry.top] == np.argsort(-logits)[:5].tolist()
    assert entry.chosen == entry.top[0]
    assert [top.logprob for top in entry.top] == pytest.approx(np.sort(expected)[:-6:-1], abs=1e-3)
    assert (entry.chosen.data, entry.chosen.text) == (b"\x12", "\x12")


def test_each_token_has_its_log_probability_and_bytes_that_are_no_text_are_told(runner):
    found = reply(runner, SHORT["ids"], logprobs=0)
    assert [entry.chosen.token for entry in found.logprobs] == SHORT["greedy"]
    assert all(entry.top == [] for entry in found.logprobs)
    assert found.logprobs[3].chosen.data == b"\xe3\x81"
    assert found.logprobs[3].chosen.text == "\ufffd"
    assert reply(runner, SHORT["ids"]).logprobs == []


def test_the_log_probabilities_of_what_a_stop_string_cuts_off_are_dropped(runner):
    found = reply(runner, SHORT["ids"], stop=["se p"], logprobs=0)
    assert [entry.chosen.token for entry in found.logprobs] == SHORT["greedy"][:9]


# ---- the context ---------------------------------------------------------------------------------------------------


def test_a_reply_that_fills_its_context_goes_on_from_what_is_kept(runner):
    found = reply(runner, SHORT["ids"], num_ctx=32, num_keep=6, max_tokens=40)
    tokens, expected, shifted = list(SHORT["ids"]), [], 0
    for _ in range(40):
        expected += reply(runner, tokens, max_tokens=1).tokens
        tokens.append(expected[-1])
        if len(tokens) > 32:
            del tokens[6 : 6 + 13]
            shifted += 13
    assert found.tokens == expected
    assert (found.finished.reason, found.finished.shifted) == ("length", shifted)
    assert shifted == 3 * 13


def test_a_reply_that_must_not_shift_ends_where_its_context_does(runner):
    found = reply(runner, SHORT["ids"], num_ctx=32, shift=False, max_tokens=40)
    assert found.tokens == SHORT["greedy"][:8]  # 7 that fit behind 25 of the prompt, and one that does not
    assert (found.finished.reason, found.finished.shifted) == ("length", 0)


def test_a_prompt_that_is_too_long_loses_its_middle(runner):
    found = reply(runner, CASES["long"]["ids"], num_ctx=20, num_keep=4, max_tokens=1)
    ids = CASES["long"]["ids"]
    assert found.tokens == reply(runner, ids[:4] + ids[-16:], max_tokens=1).tokens
    assert (found.finished.prompt_tokens, found.finished.truncated) == (20, len(ids) - 20)


def test_a_prompt_that_must_not_be_cut_is_refused(runner):
    with pytest.raises(ContextTooLong, match="25 tokens, the limit is 20"):
        reply(runner, SHORT["ids"], num_ctx=20, truncate=False)


@pytest.mark.parametrize("bad", [-1, 419, 1 << 40])
def test_tokens_outside_the_vocabulary_are_refused(runner, bad):
    with pytest.raises(BadRequest, match=f"token {bad} is outside the model's vocabulary of 419"):
        reply(runner, [1, bad, 2])
    with pytest.raises(BadRequest, match=f"token {bad} is outside"):
        run(runner.detokenize([bad]))


def test_a_prompt_without_tokens_is_refused(runner):
    with pytest.raises(BadRequest, match="no tokens"):
        reply(runner, [])


# ---- schemas that take long -----------------------------------------------------------------------------------------


class Slow:
    """Grammars that are compiled when they are released."""

    def __init__(self, tokenizer, stop_ids):
        self.opened, self.entered, self.release = [], threading.Event(), threading.Event()
        self._grammars = Grammars(tokenizer, stop_ids)

    def open(self, schema):
        self.opened.append(schema)
        self.entered.set()
        assert self.release.wait(60)
        return self._grammars.open(schema)

    def recall(self, schema):
        return self._grammars.recall(schema)


@contextmanager
def slow_grammars():
    """A runner, and its grammars, which are released in the end."""
    made = []
    runner = open_runner(
        text=TextParts(open_tokenizer, StopStrings, lambda *given: made.append(Slow(*given)) or made[0])
    )
    try:
        yield runner, made[0]
    finally:
        made[0].release.set()
        run(runner.close())


def asking_for(runner, constants):
    """Return tasks that ask for replies with schemas, one for each constant."""
    schemas = [json.dumps({"const": constant}) for constant in constants]
    return [asyncio.create_task(outcome(runner, SHORT["ids"], schema=schema)) for schema in schemas]


def test_schemas_that_take_long_delay_nobody_else():
    async def others_meanwhile(runner, slow):
        waiting = asking_for(runner, range(17))
        assert await asyncio.to_thread(slow.entered.wait, 60)
        async with asyncio.timeout(20):
            assert await asyncio.gather(*[runner.tokenize("the lighthouse") for _ in range(50)])
            assert (await outcome(runner, SHORT["ids"])).tokens == SHORT["greedy"]
        assert not any(task.done() for task in waiting)
        slow.release.set()
        return [found.text for found in await asyncio.gather(*waiting)]

    with slow_grammars() as (runner, slow):
        assert run(others_meanwhile(runner, slow))[0] == [str(i) for i in range(17)]


def test_more_schemas_than_may_wait_are_turned_away_and_equal_ones_wait_as_one():
    async def crowd(runner, slow):
        waiting = asking_for(runner, [*range(17), *range(17)])
        assert await asyncio.to_thread(slow.entered.wait, 60)
        (late,) = asking_for(runner, [17])
        with pytest.raises(Busy, match="16 other JSON schemas wait"):
            await asyncio.wait_for(late, 20)
        waiting[0].cancel()
        slow.release.set()
        found = await asyncio.gather(*waiting[1:])
        texts = [reply.text for reply in [*found, *await asyncio.gather(*asking_for(runner, [17]))]]
        assert texts == [*map(str, range(1, 17)), *map(str, range(18))]
        assert len(slow.opened) == 18

    with slow_grammars() as (runner, slow):
        run(crowd(runner, slow))


def test_a_schema_that_nobody_waits_for_any_more_is_not_compiled_and_makes_room_for_another():
    async def leave(runner, slow):
        compiled, leaving, shared, again = asking_for(runner, ["first", "left", "shared", "shared"])
        others = asking_for(runner, range(14))
        assert await asyncio.to_thread(slow.entered.wait, 60)
        (refused,) = asking_for(runner, ["late"])
        with pytest.raises(Busy):
            await asyncio.wait_for(refused, 20)
        for task in (leaving, shared):
            task.cancel()
        await asyncio.wait([leaving, shared])
        (late,) = asking_for(runner, ["late"])
        await asyncio.sleep(0)
        slow.release.set()
        found = await asyncio.gather(compiled, again, late, *others)
        assert [reply.text for reply in found[:3]] == ['"first"', '"shared"', '"late"']
        assert [json.loads(schema)["const"] for schema in slow.opened] == ["first", "shared", *range(14), "late"]
        assert (await asyncio.gather(*asking_for(runner, ["left"])))[0].text == '"left"'

    with slow_grammars() as (runner, slow):
        run(leave(runner, slow))


def test_requests_whose_schemas_wait_are_told_when_the_model_is_unloaded():
    async def unload(runner, slow):
        compiled, waiting = asking_for(runner, range(2))
        assert await asyncio.to_thread(slow.entered.wait, 60)
        closing = asyncio.create_task(runner.close())
        with pytest.raises(Busy, match="was unloaded"):
            await asyncio.wait_for(waiting, 20)
        slow.release.set()
        await closing
        assert (await compiled).finished.reason == "cancelled"

    with slow_grammars() as (runner, slow):
        run(unload(runner, slow))


# ---- requests that go away -----------------------------------------------------------------------------------------


def open_endless(**options):
    return open_runner(text=TextParts(WithoutEnd, StopStrings, Grammars), **options)


def endless(runner):
    """A reply that goes on until it is cancelled."""
    return runner.generate(ask(SHORT["ids"], max_tokens=None, num_ctx=64))


async def soon(runner):
    """A reply that can only come once the endless one before it has gone."""
    return await asyncio.wait_for(outcome(runner, SHORT["ids"]), 60)


def test_a_reply_whose_generator_is_closed_frees_its_place():
    runner = open_endless(sequences=1)

    async def leave_and_come_again():
        leaving = endless(runner)
        async for _ in leaving:
            break
        assert runner.memory_bytes > runner.facts.weight_bytes
        await leaving.aclose()
        return await soon(runner)

    assert run(leave_and_come_again())[0].tokens == SHORT["greedy"]
    assert runner.stats.held_blocks == 0
    run(runner.close())


def test_a_request_that_is_cancelled_while_it_waits_for_a_token_frees_its_place():
    runner = open_endless(sequences=1)

    async def consume(started):
        async for _ in endless(runner):
            started.set()

    async def leave_and_come_again():
        started = asyncio.Event()
        leaving = asyncio.create_task(consume(started))
        await started.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await soon(runner)

    assert run(leave_and_come_again())[0].tokens == SHORT["greedy"]
    run(runner.close())


def test_a_reader_that_never_reads_is_given_up(monkeypatch):
    monkeypatch.setattr("puna.core.scheduler.outbox.MAX_UNREAD", 2000)
    runner = open_endless(sequences=1)

    async def sleep_meanwhile():
        sleeper = endless(runner)
        await anext(sleeper)
        found = await soon(runner)
        assert len((await anext(sleeper)).tokens) <= 2000 // 8
        with pytest.raises(BadRequest, match="its client left 0 MB of it unread"):
            await anext(sleeper)
        return found

    assert run(sleep_meanwhile())[0].tokens == SHORT["greedy"]
    run(runner.close())


def test_an_event_loop_that_ends_takes_no_runner_with_it():
    runner = open_endless(sequences=1)

    async def abandon():
        leaving = endless(runner)
        await anext(leaving)
        return leaving  # kept, so that the loop's end and not the collector's finds it

    kept = run(abandon())
    assert run(soon(runner))[0].tokens == SHORT["greedy"]
    assert kept
    run(runner.close())


# ---- the end of a runner -------------------------------------------------------------------------------------------


def engine_threads():
    return sum(thread.name == "puna-engine" for thread in threading.enumerate())


def test_closing_ends_the_replies_in_progress_and_those_that_come_too_late():
    runner = open_endless()
    before = engine_threads()

    async def close_meanwhile():
        talking = endless(runner)
        await anext(talking)
        await runner.close()
        return [event async for event in talking][-1]

    assert run(close_meanwhile())[0].reason == "cancelled"
    assert engine_threads() == before - 1
    assert reply(runner, SHORT["ids"]).finished.reason == "cancelled"
    run(runner.close())  # a second time changes nothing


def test_a_model_whose_tokenizer_cannot_be_read_starts_no_engine():
    def refuse(source):
        raise BadModel("tokenizer.ggml.model is missing")

    before = engine_threads()
    with pytest.raises(BadModel, match=r"tokenizer\.ggml\.model is missing"):
        open_runner(text=TextParts(refuse, StopStrings, Grammars))
    assert engine_threads() == before


def test_a_load_that_is_cancelled_gives_back_what_its_thread_made():
    before = engine_threads()
    entered, release = threading.Event(), threading.Event()

    def slowly(source):
        entered.set()
        assert release.wait(60)
        return open_tokenizer(source)

    async def cancel_while_loading():
        kernel = Kernel(Settings(runner="inline"), TextParts(slowly, StopStrings, Grammars))
        lease = kernel.models.lease(ModelFiles("a", {GGUF.name: GGUF}), name="a", keep_alive=0)
        leaving = asyncio.create_task(lease.__aenter__())
        await asyncio.to_thread(entered.wait)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        release.set()
        await kernel.close()

    run(cancel_while_loading())
    assert engine_threads() == before


def test_the_kernel_loads_what_a_plugin_provides_and_computes_as_the_settings_say():
    async def generate():
        kernel = Kernel(Settings(runner="inline", precise=True, num_batch=16, num_parallel=2), TEXT)
        async with kernel.models.lease(ModelFiles("a", {GGUF.name: GGUF}), name="a") as runner:
            found = await asyncio.gather(*[outcome(runner, SHORT["ids"]) for _ in range(3)])
            assert (runner.facts.architecture, runner.facts.vocabulary) == ("llama", 419)
        await kernel.close()
        return found

    assert [found.tokens for found in run(generate())[0]] == [SHORT["greedy"]] * 3
