"""The key/value cache: what is stored comes back, it grows within its limit, and chunks make no difference."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import BadSetting
from puna.core.memory.cache import FIRST, Rows, SequenceCache, StepView
from puna.core.plugin import CacheLayer, Causal, Chunk, Window
from puna.core.tensor import attend
from puna.core.tensor.tiles import new_tiles, store

LAYOUT = [CacheLayer(2, 4, 3, Causal()), CacheLayer(1, 5, 5, Window(7))]
PER_POSITION = 2 * (4 + 16) + 1 * (5 + 16)  # numbers of both layers: values are padded to vectors of 16
CODED = [CacheLayer(2, 64, 32, Causal()), CacheLayer(1, 32, 96, Chunk(20))]


def made(capacity=1000, element="f32", layout=LAYOUT):
    return SequenceCache(layout, capacity, element)


def stored(seen, positions):
    """Return keys [positions, K, E] and values [positions, K, F] of what attention is given for one sequence."""
    (spans,) = seen.spans
    keys, values = (a.view(np.float16) if a.dtype == np.uint16 else a for a in (spans.tiles.keys, spans.tiles.values))
    in_order = keys[spans.table].transpose(0, 3, 1, 2), values[spans.table].transpose(0, 2, 1, 3)
    found_keys, found_values = (a.reshape(-1, *a.shape[2:])[:positions] for a in in_order)
    return found_keys, found_values[:, :, : seen.value_size]


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


@settings(deadline=None)  # the first call of a kernel may compile it
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.sampled_from(["f16", "f32"]))
def test_what_was_stored_comes_back_in_order_through_all_growth(counts, element):
    cache, rng = made(element=element), np.random.default_rng(0)
    keys, values = [], []
    for count in counts:
        _, k, v, seen = step([cache], rng, [count])
        keys.append(k)
        values.append(v)
    dtype = np.float32 if element == "f32" else np.float16
    found_keys, found_values = stored(seen, sum(counts))
    np.testing.assert_array_equal(found_keys, np.concatenate(keys).astype(dtype))
    np.testing.assert_array_equal(found_values, np.concatenate(values).astype(dtype))
    assert found_keys.dtype == found_values.dtype == dtype
    assert seen.value_size == LAYOUT[0].value_size
    assert cache.length == sum(counts)


def test_a_cleared_cache_starts_anew_and_keeps_its_room():
    cache, rng = made(), np.random.default_rng(0)
    step([cache], rng, [10])
    held = cache.nbytes
    cache.clear()
    assert (cache.length, cache.nbytes) == (0, held)
    _, k, _, seen = step([cache], rng, [3])
    np.testing.assert_array_equal(stored(seen, 3)[0], k)


def test_a_step_knows_each_sequences_positions_and_rows():
    first, second, rng = made(), made(), np.random.default_rng(0)
    step([first], rng, [4])
    view, k, _, seen = step([first, second], rng, [1, 3])
    assert view.positions.dtype == np.int32
    assert view.positions.tolist() == [4, 0, 1, 2]
    assert [spans.rows.tolist() for spans in seen.spans] == [[[0, 1, 4, 0]], [[1, 4, 0, 0]]]
    np.testing.assert_array_equal(stored(replace(seen, spans=seen.spans[:1]), 5)[0][4:], k[:1])
    np.testing.assert_array_equal(stored(replace(seen, spans=seen.spans[1:]), 3)[0], k[1:])


def test_each_layer_tells_its_window_and_its_chunks():
    layout = [*LAYOUT, CacheLayer(1, 4, 4, Chunk(9))]
    cache = made(layout=layout)
    cache.reserve(1)
    view, rng = StepView(layout, [Rows(cache, 0, 1)]), np.random.default_rng(0)
    seen = [layer.extend(*numbers(rng, 1, declared)) for layer, declared in zip(view.cache, layout, strict=True)]
    assert [(each.window, each.chunk) for each in seen] == [(0, 0), (7, 0), (0, 9)]


# ---- q8_0 ----------------------------------------------------------------------------------------------------------


def test_heads_that_do_not_come_in_blocks_are_refused_for_q8_0():
    message = "PUNA_KV_CACHE_TYPE='q8_0' is not allowed: expected f16 or f32 for this model: 80 dimensions of a head"
    with pytest.raises(BadSetting, match=message):
        made(element="q8_0", layout=[CacheLayer(2, 64, 80, Causal())])


def test_34_bytes_hold_32_numbers():
    cache = made(element="q8_0", layout=CODED)
    cache.reserve(100)
    assert cache.nbytes == 112 * (2 * 96 + 128) * 34 // 32


def codes_of(numbers):
    """Return the codes and scales that ggml's q8_0 has for the last dimension, written out."""
    blocks = numbers.reshape(*numbers.shape[:-1], -1, 32)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scaled = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)
    codes = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
    return codes.reshape(numbers.shape).astype(np.int8), scales[..., 0].astype(np.float16)


@settings(deadline=None)
@given(st.sampled_from([1, 17, 700]), st.sampled_from([1e-6, 1.0, 1e4]), st.integers(0, 1 << 32))
def test_q8_0_keeps_the_nearest_of_127_steps(tokens, size, seed):
    rng = np.random.default_rng(seed)
    tiles = new_tiles(-(-tokens // 16), 2, 64, 32, "q8_0")
    k, v = (rng.standard_normal((tokens, 2, n), np.float32) * np.float32(size) for n in (64, 32))
    k[0, 0, :32] = 0
    store(k, v, np.arange(tokens, dtype=np.int32), tiles)
    in_order = [
        a.transpose(axes).reshape(-1, *a.transpose(axes).shape[2:])[:tokens]
        for a, axes in zip(tiles, [(0, 3, 1, 2)] * 2 + [(0, 2, 1, 3)] * 2, strict=True)
    ]
    for numbers, codes, scales in ((k, *in_order[:2]), (v, *in_order[2:])):
        expected_codes, expected_scales = codes_of(numbers)
        np.testing.assert_array_equal(scales.view(np.float16), expected_scales)
        assert (np.abs(codes.astype(int) - expected_codes) <= 1).all()  # where a quotient is rounded to the half
        assert (codes == expected_codes).mean() > 0.999


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_q8_0_cannot_keep_shows(bad):
    rng, layer = np.random.default_rng(0), CODED[0]
    cache = made(element="q8_0", layout=[layer])
    cache.reserve(2)
    k, v = numbers(rng, 2, layer)
    v[0, 0, 3] = bad
    seen = StepView([layer], [Rows(cache, 0, 2)]).cache[0].extend(k, v)
    found = attend(rng.standard_normal((2, 2, 64), np.float32), seen, scale=0.1).reshape(2, 2, 32)
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()


# ---- chunks of a prompt --------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call of a kernel may compile it
@given(
    cuts=st.lists(st.integers(1, 39), max_size=5, unique=True).map(sorted),
    layer=st.sampled_from(CODED),
    element=st.sampled_from(["f16", "f32", "q8_0"]),
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
