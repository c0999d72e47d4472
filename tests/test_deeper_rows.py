"""Rows of images with more embeddings than one: layers of the decoder add the others, whoever else is in a step."""

from dataclasses import replace

import numpy as np
import pytest

from puna.core.errors import BadModel
from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.model import load_model
from puna.core.scheduler.steps import Steps
from puna.core.tensor import rotations
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.weights import open_weights
from puna.plugins import llama

from .test_engine import run
from .test_media import TALKS, ask, opened, reply
from .toy_vision import GGUF, SHORT, Eye, png, seeing

DEEPER = 2


class DeepEye(Eye):
    """The toy's eye, with two more embeddings for each row."""

    deeper = DEEPER

    def encode(self, images):
        found = yield from super().encode(images)
        return [np.concatenate([rows, np.roll(rows, 3, 1), -2 * np.roll(rows, 7, 1)], axis=1) for rows in found]


class Deep(llama.Llama):
    """A decoder that asks for them behind every layer, of which only the first get any."""

    def forward(self, x, step):
        turn = rotations(step.positions, self.table)
        for number, (block, cache) in enumerate(zip(self.blocks, step.cache, strict=True)):
            x = step.deepen(block.forward(x, turn, cache), number)
        return x


def deep(eye=DeepEye, **config):
    return replace(seeing(eye, **config), model=Deep)


@pytest.fixture(scope="module")
def loaded():
    return load_model(deep(), open_weights(GGUF), CpuLoader(precise=True))


def view(loaded, count, **options):
    cache = Cache(loaded.cache, "f32", Capacity(64, 1, 64))
    table = cache.blocks.table()
    assert table.reserve(count)
    return StepView(cache, [Rows(table, 0, count)], **options)


# ---- what a step adds ------------------------------------------------------------------------------------------------


def numbers(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_a_step_adds_the_embedding_of_a_number_to_the_rows_of_every_image(loaded):
    first, second, x = numbers(3, 3 * 4), 2 * numbers(2, 3 * 4), numbers(9, 4)
    step = view(loaded, 9, inserts=[(1, first), (6, second)])
    for number in range(DEEPER):
        wanted, columns = x.copy(), slice(4 * number + 4, 4 * number + 8)
        wanted[1:4] += first[:, columns]
        wanted[6:8] += second[:, columns]
        np.testing.assert_array_equal(step.deepen(x.copy(), number), wanted)
    np.testing.assert_array_equal(step.deepen(x.copy(), DEEPER), x)


def test_a_step_without_images_adds_nothing(loaded):
    x = numbers(9, 4)
    np.testing.assert_array_equal(view(loaded, 9).deepen(x.copy(), 0), x)


def test_images_of_fewer_embeddings_are_left_alone(loaded):
    x = numbers(9, 4)
    step = view(loaded, 9, inserts=[(0, numbers(2, 4)), (4, numbers(2, 8))])
    wanted = x.copy()
    wanted[4:6] += numbers(2, 8)[:, 4:]
    np.testing.assert_array_equal(step.deepen(x.copy(), 0), wanted)


def test_layers_get_what_the_encoder_made_for_them(loaded):
    """Against a plain loop over the layers."""
    model, tokens, D = loaded.model, SHORT[:9], loaded.config.hidden
    rows = 0.1 * numbers(4, (1 + DEEPER) * D)
    cache = Cache(loaded.cache, "f32", Capacity(64, 1, 64))
    table = cache.blocks.table()
    assert table.reserve(len(tokens))
    found = Steps(loaded, cache).logits(tokens, [Rows(table, 0, len(tokens))], range(len(tokens)), [(2, rows)])

    step, x = view(loaded, len(tokens)), np.array(model.embed(np.array(tokens, np.int32)))
    x[2:6] = rows[:, :D]
    for number, (block, kept) in enumerate(zip(model.blocks, step.cache, strict=True)):
        x = np.array(block.forward(x, rotations(step.positions, model.table), kept))
        if number < DEEPER:
            x[2:6] += rows[:, (number + 1) * D : (number + 2) * D]
    np.testing.assert_array_equal(found, model.logits(x))


# ---- replies ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    """Return what each conversation is answered with by itself, in whole prompts."""
    found = []
    for talk in TALKS:
        with opened(deep(), step_tokens=1024) as runner:
            found.append(reply(runner, *talk, logprobs=0))
    return found


def test_every_embedding_counts(alone):
    class Shallow(DeepEye):
        def encode(self, images):
            found = yield from super().encode(images)
            return [rows * np.repeat([1, 1, 0], rows.shape[1] // 3).astype(np.float32) for rows in found]

    with opened(deep(Shallow), step_tokens=1024) as runner:
        others = [reply(runner, *talk, logprobs=0) for talk in TALKS]
    differ = [one.logprobs != other.logprobs for one, other in zip(alone, others, strict=True)]
    assert differ == [any(isinstance(part, bytes) for part in talk) for talk in TALKS]


# Steps of few tokens cut pictures in two; few positions have replies set aside, and computed again.
@pytest.mark.parametrize(
    ("step_tokens", "sequences", "positions"), [(64, 32, 8192), (7, 4, 8192), (33, 3, 1100), (512, 32, 1500)]
)
def test_a_reply_is_the_same_in_any_company_and_in_chunks_of_any_size(alone, step_tokens, sequences, positions):
    with opened(deep(), step_tokens=step_tokens, sequences=sequences, positions=positions) as runner:
        for _ in range(2):  # the second time with what the first has left in the caches
            found = run(*[ask(runner, *talk, logprobs=0) for talk in TALKS])
            assert [got.tokens for got in found] == [wanted.tokens for wanted in alone]
            assert [got.logprobs for got in found] == [wanted.logprobs for wanted in alone]
        assert runner.stats.cached_tokens > 0


def test_a_reply_that_was_set_aside_goes_on_as_it_would_have():
    talks = [(SHORT[:number], png(number), SHORT[:9]) for number in range(1, 9)]
    with opened(deep(), positions=8192) as roomy:
        wanted = [reply(roomy, *talk, max_tokens=150, num_ctx=250) for talk in talks]
    with opened(deep(), sequences=6, positions=250) as tight:
        found = run(*[ask(tight, *talk, max_tokens=150, num_ctx=250) for talk in talks])
        assert tight.stats.preemptions > 0
    assert [got.tokens for got in found] == [other.tokens for other in wanted]


def test_prompts_that_begin_with_the_same_picture_share_what_was_computed_of_it():
    shared = (SHORT, png(70, width=640))
    with opened(deep()) as runner:
        first = reply(runner, *shared, SHORT, logprobs=0)
        again = reply(runner, *shared, SHORT[::-1], logprobs=0)
        assert again.finished.cached_tokens >= 64
    with opened(deep()) as fresh:
        wanted = reply(fresh, *shared, SHORT[::-1], logprobs=0)
    assert again.logprobs == wanted.logprobs != first.logprobs


class Narrow(DeepEye):
    """Promises more than it returns."""

    deeper = 3


def test_rows_of_another_width_than_the_encoder_promises_are_refused():
    with opened(deep(Narrow)) as runner, pytest.raises(BadModel, match=r"rows \(20, 192\) for an image, .*\(20, 256\)"):
        reply(runner, *TALKS[0])
