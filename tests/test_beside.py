"""Layers that look beside the text: who sees which rows, once kept, in any company; and what that takes in memory."""

import numpy as np
import pytest

from puna.core.errors import BadModel
from puna.core.memory.beside import Beside
from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.plugin import CacheLayer, Causal, Media
from puna.core.tensor import attend

K, E, F, H = 2, 32, 64, 4
LAYOUT = [CacheLayer(1, 32, 32, Causal()), CacheLayer(K, E, F, Media()), CacheLayer(1, 32, 32, Media())]
SCALE = 0.3


def made(element="f32", *, positions=200, sequences=3, beside=100, layout=LAYOUT):
    return Cache(layout, element, Capacity(positions, sequences, 100, beside))


def rows_of(seed, count):
    """Return rows of an image, from which `keep` makes keys and values."""
    return np.random.default_rng(seed).standard_normal((count, K * (E + F)), np.float32)


def keep(rows):
    k, v = np.split(rows, [K * E], axis=1)
    return k.reshape(-1, K, E), v.reshape(-1, K, F)


class Talk:
    """A sequence that looks at images, shown one directly behind the other."""

    def __init__(self, cache, *images):
        self.table, self.images = cache.blocks.table(), images

    def part(self, start, until):
        """Return a share from row `start` on, whose tokens see so many images each."""
        count = len(until)
        assert self.table.reserve(self.table.length + count)
        beside = None
        if self.images:
            self.table.look.turn(b"".join(rows.tobytes()[:64] for rows in self.images), sum(map(len, self.images)))
            ends = np.cumsum([0, *map(len, self.images)])
            fresh = self.images if self.table.look.fresh else ()
            beside = Beside(self.table.look.blocks, np.array([ends[n] - 1 for n in until], np.int32), tuple(fresh))
        return Rows(self.table, start, start + count, beside=beside)

    def expected(self, q, until):
        """Return what its tokens get, by numpy."""
        found = np.zeros((len(q), H, F), np.float32)
        for out, heads, count in zip(found, q, until, strict=True):
            if count:
                k, v = keep(np.concatenate(self.images[:count]))
                for head in range(H):
                    weights = np.exp(SCALE * k[:, head // 2] @ heads[head])
                    out[head] = weights @ v[:, head // 2] / weights.sum()
        return found.reshape(len(q), -1)


def step(cache, asked, seed=0, keep=keep):
    """Run a step and return queries, and what they get. asked: of each sequence, how many images each token sees."""
    parts, at = [], 0
    for talk, until in asked:
        parts.append(talk.part(at, until))
        at += len(until)
    view = StepView(cache, parts)
    q = np.random.default_rng(seed).standard_normal((at, H, E), np.float32)
    found = attend(q, view.cache[1].look(keep), scale=SCALE)
    for talk, until in asked:
        talk.table.advance(range(1000), len(until))
    return view, q, found


def counted(keep):
    """Return a keep that counts in its attribute `calls` how many rows it is given."""

    def counting(rows):
        counting.calls.append(len(rows))
        return keep(rows)

    counting.calls = []
    return counting


def test_tokens_see_the_images_up_to_their_place_and_others_get_zeros():
    cache = made()
    one, other, blind = Talk(cache, rows_of(1, 17)), Talk(cache, rows_of(2, 40), rows_of(3, 33)), Talk(cache)
    asked = [(one, [0, 0, 1, 1]), (blind, [0, 0]), (other, [1, 2, 2])]
    view, q, found = step(cache, asked)
    wanted = [
        talk.expected(q[part], until)
        for (talk, until), part in zip(asked, (slice(4), slice(4, 6), slice(6, 9)), strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-4, atol=1e-5)
    assert (found[:2] == 0).all()
    assert (found[4:6] == 0).all()
    assert view.sees.tolist() == [[0], [0], [1], [1], [0], [0], [1], [1], [1]]


def test_a_step_in_which_nobody_sees_anything_says_so():
    cache = made()
    talk = Talk(cache)
    view = StepView(cache, [talk.part(0, [0, 0])])
    assert view.sees is None
    with pytest.raises(BadModel, match=r"cache\.look in a step that sees no media"):
        view.cache[1].look(keep)


def test_keys_and_values_of_an_image_are_made_once_for_all_who_see_it():
    cache, counting = made(), counted(keep)
    image = rows_of(1, 50)
    one, other, later = (Talk(cache, image) for _ in range(3))
    step(cache, [(one, [0, 1]), (other, [1])], keep=counting)
    step(cache, [(one, [1]), (other, [1]), (later, [0, 1])], keep=counting)
    for talk in (one, other):
        talk.table.clear()
    step(cache, [(later, [1])], keep=counting)
    assert counting.calls == [50]


@pytest.mark.parametrize("element", ["f32", "f16", "q8_0", "q4_0"])
def test_what_tokens_see_does_not_depend_on_company_and_steps(element):
    image, until = rows_of(1, 70), [0, 1, 1, 1, 1]

    def alone(cuts):
        cache, found, at = made(element), [], 0
        talk = Talk(cache, image)
        q = np.random.default_rng(0).standard_normal((5, H, E), np.float32)
        for stop in [*cuts, 5]:
            view = StepView(cache, [talk.part(0, until[at:stop])])
            found.append(attend(q[at:stop], view.cache[1].look(keep), scale=SCALE))
            talk.table.advance(range(5), stop - at)
            at = stop
        return np.concatenate(found)

    whole = alone([])
    for cuts in ([1], [2, 3], [1, 2, 3, 4]):
        np.testing.assert_array_equal(alone(cuts), whole)
    cache = made(element)
    _, _, found = step(cache, [(Talk(cache, image), until), (Talk(cache, rows_of(2, 90)), [1] * 4), (Talk(cache), [0])])
    np.testing.assert_array_equal(found[:5], whole)


def test_what_was_in_a_block_before_is_not_seen():
    cache = made(sequences=1, beside=64)
    first = Talk(cache, np.full((64, K * (E + F)), np.nan, np.float32))
    step(cache, [(first, [1])])
    first.table.clear()
    second = Talk(cache, rows_of(1, 33))
    _, q, found = step(cache, [(second, [1])])
    np.testing.assert_allclose(found, second.expected(q, [1]), rtol=1e-4, atol=1e-5)


def test_bytes_are_reserved_and_counted_as_those_of_tokens_are():
    cache = made()
    numbers = K * (E + F) + 32 + 32
    # Seven blocks of 200 positions, and one more for each of two other sequences; four of 100 rows for each of three.
    assert cache.nbytes == 4 * ((7 + 2) * 32 * 64 + 3 * 4 * 32 * numbers)
    talk = Talk(cache, rows_of(1, 33))
    step(cache, [(talk, [1])])
    assert cache.held_bytes == cache.resident_bytes == 4 * (32 * 64 + 2 * 32 * numbers)
    talk.table.clear()
    assert (cache.held_bytes, cache.resident_bytes) == (0, 4 * (32 * 64 + 2 * 32 * numbers))


def test_room_for_larger_views_is_made_and_what_is_kept_stays():
    cache, counting = made(beside=40), counted(keep)
    small, large = Talk(cache, rows_of(1, 40)), Talk(cache, rows_of(2, 90))
    step(cache, [(small, [1])], keep=counting)
    cache.grow(10, 90)
    _, q, found = step(cache, [(small, [1]), (large, [1])], keep=counting)
    assert counting.calls == [40, 90]
    wanted = np.concatenate([small.expected(q[:1], [1]), large.expected(q[1:], [1])])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_without_an_encoder_takes_nothing_for_images():
    cache = made(beside=0)
    assert cache.nbytes == made(beside=0, layout=LAYOUT[:1]).nbytes
    assert cache.resident_bytes == cache.held_bytes == 0


@pytest.mark.parametrize(
    ("kept", "complaint"),
    [
        (lambda rows: (np.zeros((len(rows), K, E + 1), np.float32), keep(rows)[1]), r"cache\.look: keys is float32"),
        (lambda rows: (keep(rows)[0], np.zeros((1, K, F), np.float32)), r"cache\.look: values is float32"),
        (lambda rows: (keep(rows)[0].astype(np.float64), keep(rows)[1]), r"cache\.look: keys is float64"),
    ],
)
def test_keys_and_values_of_another_shape_are_refused(kept, complaint):
    cache = made()
    with pytest.raises(BadModel, match=complaint):
        step(cache, [(Talk(cache, rows_of(1, 17)), [1])], keep=kept)


def test_a_layer_is_used_for_what_it_was_declared():
    cache = made()
    view = StepView(cache, [Talk(cache, rows_of(1, 17)).part(0, [1])])
    with pytest.raises(BadModel, match=r"cache\.extend in a layer of the kind Media"):
        view.cache[1].extend(np.zeros((1, K, E), np.float32), np.zeros((1, K, F), np.float32))
    with pytest.raises(BadModel, match=r"cache\.look in a layer of the kind Causal"):
        view.cache[0].look(keep)
