"""Pictures in prompts: encoded between steps, cached by contents, and the same reply in any company."""

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from puna.core.errors import BadModel, BadRequest, Busy, ContextTooLong, RunnerDied, Unsupported
from puna.core.plugin import Rows
from puna.core.scheduler import viewer
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Generate, Media, Piece, Placed
from puna.core.scheduler.plan import Limits
from puna.plugins import llama

from .test_engine import GREEDY, TEXT, Outcome, run
from .toy_vision import GGUF, SHORT, Eye, png, seeing


@contextmanager
def opened(architecture=None, *, step_tokens=64, sequences=32, positions=8192, image_cache=1 << 29):
    limits = Limits(step_tokens, sequences)
    options = EngineOptions(limits, 2, "f32", positions, image_cache=image_cache)
    runner = InlineRunner(GGUF, [architecture or seeing()], TEXT, options)
    try:
        yield runner
    finally:
        asyncio.run(runner.close())


@pytest.fixture(scope="module", params=["causal", "both ways"])
def runner(request):
    with opened(seeing(both_ways=request.param == "both ways")) as runner:
        yield runner


async def ask(runner, *parts, **options):
    """Return what a prompt of ids and pictures is answered with."""
    prompt, media = [], []
    for part in parts:
        if isinstance(part, bytes):
            sight = await runner.look(Media([part]))
            rows = next(count for count in sight.parts if isinstance(count, int))
            media.append(Placed(Media([part]), [(len(prompt), rows)]))
            prompt += [sight.placeholder] * rows
        else:
            prompt += part
    given = {"prompt": prompt, "media": media, "sampling": GREEDY, "num_ctx": 1024, "max_tokens": 12} | options
    *pieces, finished = [event async for event in runner.generate(Generate(**given))]
    return Outcome(pieces, finished)


def reply(runner, *parts, **options):
    return run(ask(runner, *parts, **options))[0]


A, B, C = png(1), png(2), png(3, width=40)
TALKS = [
    (SHORT, A, SHORT[:5]),
    (SHORT, B, SHORT[:5]),
    (A, SHORT[:3], C, SHORT[2:9]),
    (SHORT * 4, A, [7] * 50, B, SHORT),
    (SHORT,),
    (SHORT[:2], png(4, width=700), SHORT),
]


def test_a_picture_counts(runner):
    texts = [reply(runner, *talk, logprobs=0) for talk in TALKS[:2]]
    first, second = ([logprob.chosen.logprob for logprob in found.logprobs] for found in texts)
    assert first != second
    assert texts[0].finished.prompt_tokens == len(SHORT) + 20 + 5


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_reply_is_the_same_in_any_company_and_in_chunks_of_any_size(both_ways):
    architecture = seeing(both_ways=both_ways)
    alone = []
    for talk in TALKS:
        with opened(architecture) as fresh:
            alone.append(reply(fresh, *talk, logprobs=0))
    for step_tokens, sequences, spare in ((64, 32, 8192), (16, 4, 8192), (33, 3, 1100), (512, 32, 1500)):
        with opened(architecture, step_tokens=step_tokens, sequences=sequences, positions=spare) as runner:
            for _ in range(2):
                found = run(*[ask(runner, *talk, logprobs=0) for talk in TALKS])
                for got, expected in zip(found, alone, strict=True):
                    assert got.tokens == expected.tokens
                    assert got.logprobs == expected.logprobs
            stats = runner.stats
            assert stats.held_blocks == 0


def test_a_picture_is_encoded_once_whoever_shows_it(runner):
    new = png(50)
    before, encoded = runner.stats, Eye.encoded
    run(ask(runner, SHORT, new, client="one"), ask(runner, SHORT[:3], new, client="two"))
    reply(runner, SHORT[1:], new, [5], client="three")
    after = runner.stats
    assert Eye.encoded == encoded + 1
    assert after.images.encoded == before.images.encoded + 1
    assert after.images.prepared == before.images.prepared + 1
    assert after.images.misses == before.images.misses + 1
    assert after.images.hits == before.images.hits + 2


def test_a_second_turn_computes_only_what_is_new(runner):
    new, long = png(51, width=640), SHORT * 3
    first = reply(runner, long, new, long)
    before = runner.stats
    second = reply(runner, long, new, [*long, *first.tokens, 5, 6, 7])
    after = runner.stats
    assert (after.images.prepared, after.images.encoded) == (before.images.prepared, before.images.encoded)
    assert second.finished.cached_tokens >= first.finished.prompt_tokens - 32
    assert after.prompt_tokens - before.prompt_tokens < 32 + len(first.tokens) + 3


def test_equal_tokens_of_other_pictures_share_nothing(runner):
    one, two = png(52, width=512), png(53, width=512)
    expected = reply(runner, SHORT, two, SHORT, logprobs=0)
    reply(runner, SHORT, one, SHORT)
    again = reply(runner, SHORT, two, SHORT, logprobs=0)
    other = reply(runner, SHORT, one, SHORT, logprobs=0)
    assert again.logprobs == expected.logprobs != other.logprobs


def test_an_image_that_no_longer_fits_the_cache_still_serves_its_reply():
    with opened(image_cache=0) as runner:
        first = [reply(runner, *talk, logprobs=0) for talk in TALKS]
        assert runner.stats.images.nbytes == runner.stats.images.entries == 0
        with opened() as roomy:
            assert [found.logprobs for found in first] == [reply(roomy, *t, logprobs=0).logprobs for t in TALKS]


@pytest.mark.parametrize("image_cache", [0, 5000, 1 << 29])
def test_pictures_are_decoded_once_for_a_request_whatever_the_cache_keeps(image_cache):
    with opened(image_cache=image_cache) as runner:
        reply(runner, SHORT, A, B, SHORT, C, A)
        first = runner.stats.images
        assert (first.misses, first.hits, first.prepared, first.encoded) == (3, 1, 3, 3)
        run(*[ask(runner, SHORT * 2, png(9), client=str(number)) for number in range(5)])
        second = runner.stats.images
        assert (second.misses, second.hits, second.prepared, second.encoded) == (4, 5, 4, 4)


def test_the_first_show_of_a_picture_is_a_miss_and_the_next_turns_are_hits(runner):
    new, before = png(54), runner.stats.images
    told = []
    for turn in (1, 2, 3):
        reply(runner, SHORT, new, SHORT * turn)
        now = runner.stats.images
        told.append([getattr(now, name) - getattr(before, name) for name in ("misses", "hits", "prepared", "encoded")])
    assert told == [[1, 0, 1, 1], [1, 1, 1, 1], [1, 2, 1, 1]]


def test_what_is_no_picture_is_a_miss_that_prepares_nothing(runner):
    before = runner.stats.images
    with pytest.raises(BadRequest):
        run(runner.look(Media([b"no picture"])))
    after = runner.stats.images
    assert (after.misses, after.prepared) == (before.misses + 1, before.prepared)


def test_looks_without_a_reply_are_forgotten(monkeypatch):
    monkeypatch.setattr(viewer, "LOOKED_S", 0)
    with opened(image_cache=0) as runner:

        async def late():
            await runner.look(Media([A]))
            forgotten = asyncio.Event()  # by a timer of the same moment, set later
            asyncio.get_running_loop().call_later(0, forgotten.set)
            await forgotten.wait()
            await ask(runner, SHORT, A)

        run(late())
        assert runner.stats.images.prepared > 1


def test_pictures_wait_for_replies_within_a_limit_and_the_latest_always(monkeypatch):
    monkeypatch.setattr(viewer, "LOOKED_BYTES", 1)
    with opened(image_cache=0) as runner:

        async def looks():
            for picture in (A, B):
                await runner.look(Media([picture]))
            before = runner.stats.images.prepared
            for picture in (B, A):
                placed = Placed(Media([picture]), [(0, 20)])
                request = Generate(prompt=[0] * 20 + SHORT, media=[placed], sampling=GREEDY, num_ctx=512, max_tokens=1)
                [_ async for _ in runner.generate(request)]
                yield runner.stats.images.prepared - before

        async def found():
            return [prepared async for prepared in looks()]

        assert run(found())[0] == [0, 1]


def test_the_cache_keeps_its_limit_and_what_is_in_the_key_value_cache():
    size = len(SHORT)
    with opened(image_cache=6 * 20 * 64 * 4 + 1, positions=4096) as runner:
        seen = []
        for seed in range(60, 80):
            reply(runner, SHORT[: size - seed % 3], png(seed))
            stats = runner.stats.images
            assert stats.nbytes <= 6 * 20 * 64 * 4 + 1
            seen.append((stats.entries, stats.evicted))
        assert max(entries for entries, _ in seen) >= 3
        assert seen[-1][1] > 0


class Stuck(Eye):
    """An encoder that waits in its second slice until it is let go."""

    go, arrived = threading.Event(), threading.Event()

    def encode(self, images):
        yield
        self.arrived.set()
        assert self.go.wait(20)
        yield
        return (yield from super().encode(images))


def test_a_client_that_leaves_while_its_picture_is_encoded_is_forgotten():
    Stuck.go.clear(), Stuck.arrived.clear()
    with opened(seeing(Stuck)) as runner:

        async def leave():
            task = asyncio.create_task(ask(runner, SHORT, A))
            await asyncio.to_thread(Stuck.arrived.wait, 20)
            task.cancel()
            await asyncio.wait([task])
            Stuck.go.set()
            return await ask(runner, SHORT)

        assert len(run(leave())[0].tokens) == 12
        assert runner.stats.images.encoded == 0
        assert runner.stats.held_blocks == runner.stats.running == runner.stats.images.pinned == 0


class Patient(Eye):
    """An encoder of many slices."""

    slices = 40


def test_replies_go_on_while_a_picture_is_encoded():
    with opened(seeing(Patient)) as runner:

        async def beside():
            events = runner.generate(Generate(prompt=SHORT, sampling=GREEDY, num_ctx=1024, max_tokens=200))
            tokens = [*(await anext(events)).tokens]
            await ask(runner, SHORT, A, max_tokens=1)
            during = runner.stats.sampled_tokens
            async for event in events:
                tokens += event.tokens if isinstance(event, Piece) else []
            return during, tokens

        during, long = run(beside())[0]
        assert during >= Patient.slices
        assert long == reply(runner, SHORT, max_tokens=200).tokens


class Broken(Eye):
    """An encoder that fails on pictures that begin dark."""

    def encode(self, images):
        yield
        if any(image.pixels.shape[0] == 5 for image in images):
            raise RuntimeError("no light")
        sizes = [len(image.pixels) for image in images]
        return [np.zeros((size + (size == 3), self.config.hidden + (size == 2))) for size in sizes]


@pytest.mark.parametrize(
    ("width", "error", "says"),
    [
        (40, RunnerDied, "error"),
        (24, BadModel, r"rows \(4, 64\).*expected \(3, 64\)"),
        (16, BadModel, r"rows \(2, 65\).*expected \(2, 64\)"),
    ],
)
def test_an_encoder_that_fails_ends_only_the_replies_that_wait_for_it(width, error, says):
    with opened(seeing(Broken)) as runner:

        async def both():
            other = asyncio.create_task(ask(runner, SHORT, max_tokens=60))
            with pytest.raises(error, match=says):
                await ask(runner, SHORT, png(1, width=width))
            return await other, await ask(runner, SHORT, A)

        other, after = run(both())[0]
        assert len(other.tokens) == 60
        assert len(after.tokens) == 12


@pytest.mark.parametrize("data", [b"", b"no picture", A[:-200], png(1, width=2000)])
def test_what_cannot_be_read_is_refused(runner, data):
    with pytest.raises(BadRequest):
        run(runner.look(Media([data])))
    with pytest.raises(BadRequest):
        run(runner.look(Media([])))


def test_several_frames_are_refused_by_a_model_of_images(runner):
    with pytest.raises(BadRequest, match="not videos"):
        run(runner.look(Media([A, A], video=True)))
    with pytest.raises(BadRequest, match="of 2 files"):
        run(runner.look(Media([A, A])))


@pytest.mark.parametrize("at", [[], [(3, 19)], [(3, 20), (30, 20)], [(len(SHORT), 20)]])
def test_a_prompt_that_places_an_image_wrongly_is_refused(runner, at):
    request = Generate(prompt=[1] * (len(SHORT) + 5), media=[Placed(Media([A]), at)], sampling=GREEDY, num_ctx=512)
    with pytest.raises(BadRequest):

        async def one():
            return [event async for event in runner.generate(request)]

        run(one())


def test_a_model_without_eyes_refuses_pictures():
    with opened(llama.architectures()[0]) as blind:
        assert blind.facts.media == frozenset()
        with pytest.raises(Unsupported):
            run(blind.look(Media([A])))


def test_a_prompt_that_is_too_long_loses_whole_pictures(runner):
    found = reply(runner, SHORT, A, SHORT, B, [9] * 30, num_ctx=50, max_tokens=3)
    assert found.finished.prompt_tokens == 4 + 30  # of B, 16 rows would have fitted
    assert found.tokens == reply(runner, SHORT[:4], [9] * 30, num_ctx=50, max_tokens=3).tokens
    with pytest.raises(ContextTooLong):
        reply(runner, png(1, width=800), num_ctx=60)


def test_a_reply_that_outgrows_its_context_drops_whole_pictures(runner):
    found = reply(runner, [5] * 6, A, [9] * 10, num_ctx=40, max_tokens=60)
    assert len(found.tokens) == 60
    assert found.finished.shifted >= 20


class Understated(Eye):
    """An encoder whose rows are more, together, than it says."""

    most_atomic = 3


def test_more_rows_together_than_the_encoder_says_are_refused():
    with opened(seeing(Understated, both_ways=True)) as runner, pytest.raises(BadModel, match="most_atomic says 3"):
        run(runner.look(Media([A])))


class Beside(Eye):
    """An encoder whose rows stand beside the text, and are more than it says."""

    most_beside = 19

    def prepare(self, picture):
        prepared = super().prepare(picture)
        return replace(prepared, parts=tuple(replace(p, beside=True) for p in prepared.parts if isinstance(p, Rows)))


def test_more_rows_beside_the_text_than_the_encoder_says_are_refused():
    with opened(seeing(Beside)) as runner, pytest.raises(BadModel, match="20 rows beside the text; its encoder says"):
        run(runner.look(Media([A])))


def test_a_look_at_a_model_that_is_unloaded_is_told_so():
    with opened() as runner:
        asyncio.run(runner.close())
        with pytest.raises(Busy, match="unloaded"):
            run(runner.look(Media([A])))


def test_pictures_that_wait_are_limited(monkeypatch):
    monkeypatch.setattr(viewer, "WAITING_BYTES", 0)
    with opened(image_cache=0) as runner:

        async def looks():
            await runner.look(Media([A]))
            with pytest.raises(Busy, match="too many images"):
                await runner.look(Media([B]))

        run(looks())
