"""The key/value cache: what is stored comes back, it grows within its limit, and chunks make no difference."""

import itertools

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import BadModel, BadSetting
from puna.core.memory.blocks import BLOCK, blocks_of
from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.plugin import CacheLayer, Causal, Chunk, Window
from puna.core.tensor import attend
from puna.core.tensor.tiles import new_tiles, store

LAYOUT = [CacheLayer(2, 4, 3, Causal()), CacheLayer(1, 5, 5, Window(7))]
PER_POSITION = 2 * (4 + 16) + 1 * (5 + 16)  # numbers of both layers: values are padded to vectors of 16
CODED = [CacheLayer(2, 64, 32, Causal()), CacheLayer(1, 32, 96, Chunk(20))]


def made(capacity=1000, element="f32", layout=LAYOUT, sequences=4):
    return Cache(layout, element, Capacity(capacity, sequences, 100))


def stored(seen, positions, sequence=0):
    """Return keys [positions, K, E] and values [positions, K, F] of what attention is given for one sequence."""
    (spans,) = seen.spans
    at = spans.rows[sequence, 3]
    table = spans.table[at : at + -(-positions // 16)]
    keys, values = (a.view(np.float16) if a.dtype == np.uint16 else a for a in (spans.tiles.keys, spans.tiles.values))
    in_order = keys[table].transpose(0, 3, 1, 2), values[table].transpose(0, 2, 1, 3)
    found_keys, found_values = (a.reshape(-1, *a.shape[2:])[:positions] for a in in_order)
    return found_keys, found_values[:, :, : seen.value_size]


def numbers(rng, tokens, layer):
    shapes = (tokens, layer.heads, layer.key_size), (tokens, layer.heads, layer.value_size)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def step(cache, tables, rng, counts):
    """Run a step that gives each sequence so many tokens; return what went in and what layer 0 handed back."""
    rows, start = [], 0
    for table, count in zip(tables, counts, strict=True):
        assert table.reserve(table.length + count)
        rows.append(Rows(table, start, start + count))
        start += count
    view = StepView(cache, rows)
    k, v = numbers(rng, start, LAYOUT[0])
    seen = view.cache[0].extend(k, v)
    view.cache[1].extend(*numbers(rng, start, LAYOUT[1]))
    for table, count in zip(tables, counts, strict=True):
        table.advance(rng.integers(0, 1000, table.length + count), count)
    return view, k, v, seen


@pytest.mark.parametrize(("element", "size"), [("f32", 4), ("f16", 2)])
def test_bytes_are_reserved_for_the_capacity_and_counted_as_they_are_used(element, size):
    cache = made(element=element)
    whole, windowed = (blocks_of(layer.kind, cache.blocks.capacity) for layer in LAYOUT)
    assert cache.nbytes == BLOCK * size * (whole * 40 + windowed * 21)
    assert cache.held_bytes == cache.resident_bytes == 0
    table, rng = cache.blocks.table(), np.random.default_rng(0)
    step(cache, [table], rng, [2 * BLOCK + 1])
    assert cache.held_bytes == BLOCK * size * (3 * 40 + 2 * 21)  # the window has moved past its first block
    table.clear()
    assert cache.held_bytes == 0
    assert cache.resident_bytes == 3 * BLOCK * size * PER_POSITION


def test_a_cache_grows_and_keeps_what_it_holds():
    cache, rng = made(capacity=64, sequences=1), np.random.default_rng(0)
    table = cache.blocks.table()
    _, k, _, _ = step(cache, [table], rng, [60])
    assert not table.reserve(100)
    cache.grow(200)
    _, more, _, seen = step(cache, [table], rng, [50])
    np.testing.assert_array_equal(stored(seen, 110)[0], np.concatenate([k, more]))
    reserved = cache.nbytes
    cache.grow(100)
    assert cache.nbytes == reserved


@settings(deadline=None)  # the first call of a kernel may compile it
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.sampled_from(["f16", "f32"]))
def test_what_was_stored_comes_back_in_order(counts, element):
    cache, rng = made(element=element), np.random.default_rng(0)
    table = cache.blocks.table()
    keys, values = [], []
    for count in counts:
        _, k, v, seen = step(cache, [table], rng, [count])
        keys.append(k)
        values.append(v)
    dtype = np.float32 if element == "f32" else np.float16
    found_keys, found_values = stored(seen, sum(counts))
    np.testing.assert_array_equal(found_keys, np.concatenate(keys).astype(dtype))
    np.testing.assert_array_equal(found_values, np.concatenate(values).astype(dtype))
    assert found_keys.dtype == found_values.dtype == dtype
    assert seen.value_size == LAYOUT[0].value_size
    assert table.length == sum(counts)


def test_a_step_knows_each_sequences_positions_and_rows():
    cache, rng = made(), np.random.default_rng(0)
    first, second = cache.blocks.table(), cache.blocks.table()
    step(cache, [first], rng, [4])
    view, k, _, seen = step(cache, [first, second], rng, [1, 3])
    assert view.positions.dtype == np.int32
    assert view.positions.tolist() == [4, 0, 1, 2]
    assert seen.spans[0].rows.tolist() == [[0, 1, 4, 0], [1, 4, 0, 2]]
    np.testing.assert_array_equal(stored(seen, 5)[0][4:], k[:1])
    np.testing.assert_array_equal(stored(seen, 3, sequence=1)[0], k[1:])


def test_each_layer_tells_its_window_and_its_chunks():
    layout = [*LAYOUT, CacheLayer(1, 4, 4, Chunk(9))]
    cache, rng = made(layout=layout), np.random.default_rng(0)
    table = cache.blocks.table()
    table.reserve(1)
    view = StepView(cache, [Rows(table, 0, 1)])
    seen = [layer.extend(*numbers(rng, 1, declared)) for layer, declared in zip(view.cache, layout, strict=True)]
    assert [(each.window, each.chunk) for each in seen] == [(0, 0), (7, 0), (0, 9)]


@pytest.mark.parametrize(("k", "v"), [((2, 2, 4), (2, 2, 3)), ((1, 2, 5), (1, 2, 3)), ((1, 2, 4), (1, 2, 4))])
def test_keys_and_values_of_another_shape_are_refused(k, v):
    cache = made()
    table = cache.blocks.table()
    table.reserve(1)
    layer = StepView(cache, [Rows(table, 0, 1)]).cache[0]
    with pytest.raises(BadModel, match=r"cache\.extend: [kv] is float32"):
        layer.extend(np.zeros(k, np.float32), np.zeros(v, np.float32))


# ---- q8_0 ----------------------------------------------------------------------------------------------------------


def test_heads_that_do_not_come_in_blocks_are_refused_for_q8_0():
    message = "PUNA_KV_CACHE_TYPE='q8_0' is not allowed: expected f16 or f32 for this model: 80 dimensions of a head"
    with pytest.raises(BadSetting, match=message):
        made(element="q8_0", layout=[CacheLayer(2, 64, 80, Causal())])


def test_34_bytes_hold_32_numbers():
    cache = made(element="q8_0", layout=CODED)
    table = cache.blocks.table()
    table.reserve(100)
    assert cache.held_bytes == 128 * (2 * 96 + 128) * 34 // 32


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


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e4])
def test_q4_0_keeps_what_the_reference_does(size):
    tiles, rng = new_tiles(2, 1, 64, 32, "q4_0"), np.random.default_rng(0)
    k, v = (rng.standard_normal((32, 1, n), np.float32) * np.float32(size) for n in (64, 32))
    store(k, v, np.arange(32, dtype=np.int32), tiles)
    in_order = (
        (k, tiles.keys.transpose(0, 3, 1, 2), tiles.key_scales.transpose(0, 3, 1, 2)),
        (v, tiles.values.transpose(0, 2, 1, 3), tiles.value_scales.transpose(0, 2, 1, 3)),
    )
    for numbers, codes, scales in in_order:
        blocks = gguf.quants.quantize(numbers.reshape(-1), gguf.GGMLQuantizationType.Q4_0).reshape(-1, 18)
        np.testing.assert_array_equal(scales.reshape(-1).view(np.float16), blocks[:, :2].reshape(-1).view(np.float16))
        np.testing.assert_array_equal(codes.reshape(-1), blocks[:, 2:].reshape(-1))


def test_18_bytes_of_q4_0_hold_32_numbers():
    cache = made(element="q4_0", layout=CODED)
    table = cache.blocks.table()
    table.reserve(100)
    assert cache.held_bytes == 128 * (2 * 96 + 128) * 18 // 32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("element", ["q8_0", "q4_0"])
def test_what_codes_cannot_keep_shows(element, bad):
    rng, layer = np.random.default_rng(0), CODED[0]
    cache = made(element=element, layout=[layer])
    table = cache.blocks.table()
    table.reserve(2)
    k, v = numbers(rng, 2, layer)
    v[0, 0, 3] = bad
    seen = StepView(cache, [Rows(table, 0, 2)]).cache[0].extend(k, v)
    found = attend(rng.standard_normal((2, 2, 64), np.float32), seen, scale=0.1).reshape(2, 2, 32)
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()


# ---- chunks of a prompt --------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call of a kernel may compile it
@given(
    cuts=st.lists(st.integers(1, 39), max_size=5, unique=True).map(sorted),
    layer=st.sampled_from(CODED),
    element=st.sampled_from(["f16", "f32", "q8_0", "q4_0"]),
)
def test_a_prompt_in_chunks_is_the_prompt_at_once(cuts, layer, element):
    rng = np.random.default_rng(1)
    k, v = numbers(rng, 40, layer)
    q = rng.standard_normal((40, 2 * layer.heads, layer.key_size), np.float32)

    def run(bounds):
        cache, found = Cache([layer], element, Capacity(40, 1, 40)), []
        table = cache.blocks.table()
        for start, stop in itertools.pairwise(bounds):
            table.reserve(stop)
            seen = StepView(cache, [Rows(table, 0, stop - start)]).cache[0].extend(k[start:stop], v[start:stop])
            found.append(attend(q[start:stop], seen, scale=0.5))
            table.advance(range(40), stop - start)
        return np.concatenate(found)

    np.testing.assert_array_equal(run([0, *cuts, 40]), run([0, 40]))
