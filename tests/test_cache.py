"""The key/value cache: what is stored comes back, it grows within its limit, and chunks make no difference."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.memory.cache import FIRST, Rows, SequenceCache, StepView
from puna.core.plugin import CacheLayer, Causal, Window
from puna.core.tensor import attend

LAYOUT = [CacheLayer(2, 4, 3, Causal()), CacheLayer(1, 5, 5, Window(7))]
PER_POSITION = 2 * (4 + 16) + 1 * (5 + 16)  # numbers of both layers: values are padded to vectors of 16


def made(capacity=1000, element="f32"):
    return SequenceCache(LAYOUT, capacity, element)


def stored(span, positions):
    """Return keys [positions, K, E] and values [positions, K, F] of what attention is given."""
    keys, values = (a.view(np.float16) if a.dtype == np.uint16 else a for a in (span.keys, span.values))
    in_order = keys.transpose(0, 3, 1, 2).reshape(-1, *keys.shape[1:3])
    return in_order[:positions], values[:positions, :, : span.value_size]


def numbers(rng, tokens, layer):
    shapes = (tokens, layer.heads, layer.key_size), (tokens, layer.heads, layer.value_size)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def step(view_of, rng, counts):
    """Run a step that gives each cache so many tokens; return what went in and what layer 0 handed back."""
    rows, start = [], 0
    for cache, count in zip(view_of, counts, strict=True):
        cache.reserve(cache.length + count)
        rows.append(Rows(cache, start, start + count))
        start += count
    view = StepView(LAYOUT, rows)
    k, v = numbers(rng, start, LAYOUT[0])
    seen = view.cache[0].extend(k, v)
    view.cache[1].extend(*numbers(rng, start, LAYOUT[1]))
    for cache, count in zip(view_of, counts, strict=True):
        cache.length += count
    return view, k, v, seen


def test_a_new_cache_holds_nothing():
    assert made().length == 0
    assert made().nbytes == 0


@pytest.mark.parametrize(("element", "size"), [("f32", 4), ("f16", 2)])
def test_bytes_are_counted_as_allocated(element, size):
    cache = made(element=element)
    cache.reserve(FIRST + 1)
    assert cache.nbytes == (FIRST + 16) * PER_POSITION * size  # positions come in tiles of 16


def test_room_grows_geometrically_and_never_beyond_the_limit():
    cache = made(capacity=300)
    sizes = []
    for positions in range(1, 301):
        cache.reserve(positions)
        if not sizes or cache.nbytes != sizes[-1]:
            sizes.append(cache.nbytes)
    assert [size / (4 * PER_POSITION) for size in sizes] == [64, 128, 256, 304]  # the tile that 300 ends in
    with pytest.raises(AssertionError):
        cache.reserve(301)


def test_a_small_context_reserves_no_more_than_its_tile():
    cache = made(capacity=5)
    cache.reserve(1)
    assert cache.nbytes == 16 * 4 * PER_POSITION


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.sampled_from(["f16", "f32"]))
def test_what_was_stored_comes_back_in_order_through_all_growth(counts, element):
    cache, rng = made(element=element), np.random.default_rng(0)
    keys, values = [], []
    for count in counts:
        _, k, v, seen = step([cache], rng, [count])
        keys.append(k)
        values.append(v)
    span, dtype = seen.spans[0], np.float32 if element == "f32" else np.float16
    found_keys, found_values = stored(span, sum(counts))
    np.testing.assert_array_equal(found_keys, np.concatenate(keys).astype(dtype))
    np.testing.assert_array_equal(found_values, np.concatenate(values).astype(dtype))
    assert span.keys.dtype == span.values.dtype == (np.float32 if element == "f32" else np.uint16)
    assert span.value_size == LAYOUT[0].value_size
    assert cache.length == sum(counts)


def test_what_was_never_written_holds_no_nan():
    """Attention gives such values a weight of 0, which hides all but those."""
    cache = made()
    _, _, _, seen = step([cache], np.random.default_rng(0), [1])
    span = seen.spans[0]
    assert not span.values[1:].any()
    assert not span.values[0, :, span.value_size :].any()
    assert np.isfinite(span.keys).all()


def test_a_cleared_cache_starts_anew_and_keeps_its_room():
    cache, rng = made(), np.random.default_rng(0)
    step([cache], rng, [10])
    held = cache.nbytes
    cache.clear()
    assert (cache.length, cache.nbytes) == (0, held)
    _, k, _, seen = step([cache], rng, [3])
    np.testing.assert_array_equal(stored(seen.spans[0], 3)[0], k)


def test_a_step_knows_each_sequences_positions_and_rows():
    first, second, rng = made(), made(), np.random.default_rng(0)
    step([first], rng, [4])
    view, k, _, seen = step([first, second], rng, [1, 3])
    assert view.positions.dtype == np.int32
    assert view.positions.tolist() == [4, 0, 1, 2]
    assert [(span.start, span.stop, span.first) for span in seen.spans] == [(0, 1, 4), (1, 4, 0)]
    np.testing.assert_array_equal(stored(seen.spans[0], 5)[0][4:], k[:1])
    np.testing.assert_array_equal(stored(seen.spans[1], 3)[0], k[1:])


def test_each_layer_tells_its_window():
    cache = made()
    cache.reserve(1)
    view = StepView(LAYOUT, [Rows(cache, 0, 1)])
    rng = np.random.default_rng(0)
    windows = [
        layer.extend(*numbers(rng, 1, declared)).window for layer, declared in zip(view.cache, LAYOUT, strict=True)
    ]
    assert windows == [0, 7]


@settings(deadline=None)  # the first call of a kernel may compile it
@given(
    cuts=st.lists(st.integers(1, 39), max_size=5, unique=True).map(sorted),
    layer=st.sampled_from(LAYOUT),
    element=st.sampled_from(["f16", "f32"]),
)
def test_a_prompt_in_chunks_is_the_prompt_at_once(cuts, layer, element):
    rng = np.random.default_rng(1)
    k, v = numbers(rng, 40, layer)
    q = rng.standard_normal((40, 2 * layer.heads, layer.key_size), np.float32)

    def run(bounds):
        cache, found = SequenceCache([layer], 40, element), []
        for start, stop in itertools.pairwise(bounds):
            cache.reserve(stop)
            seen = StepView([layer], [Rows(cache, 0, stop - start)]).cache[0].extend(k[start:stop], v[start:stop])
            found.append(attend(q[start:stop], seen, scale=0.5))
            cache.length = stop
        return np.concatenate(found)

    np.testing.assert_array_equal(run([0, *cuts, 40]), run([0, 40]))
