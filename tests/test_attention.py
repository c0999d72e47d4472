"""Attention over the cache's layout against a literal twin in float64, and the exponential that it rests on."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import types
from numba.extending import intrinsic

from puna.core.errors import BadModel
from puna.core.tensor import attend
from puna.core.tensor.cpu_attention import CpuSeen, CpuSpan
from puna.core.tensor.jit import kernel
from puna.core.tensor.simd import FLOATS, Emitter, exp

LANES = 16

kernels = settings(deadline=None, max_examples=60)  # the first call of a kernel may compile it
seeds = st.integers(0, 1 << 32)


def floats(rng, *shape):
    return rng.standard_normal(shape, np.float32)


# ---- the cache's layout, written out -------------------------------------------------------------------------------


def in_tiles(keys):
    """Return keys [S, K, E] as [tiles, K, E, 16]. What lies behind them is nobody's business, and NaN."""
    S, K, E = keys.shape
    out = np.full((-(-S // LANES), K, E, LANES), np.nan, np.float32)
    for position in range(S):
        out[position // LANES, :, :, position % LANES] = keys[position]
    return out


def in_rows(values):
    """Return values [S, K, F] as [16 tiles, K, F padded]. What lies behind them is finite, but far from zero."""
    S, K, F = values.shape
    out = np.full((-(-S // LANES) * LANES, K, -(-F // LANES) * LANES), 1e4, np.float32)
    out[:S, :, :F] = values
    return out


def span(start, stop, first, keys, values, *, half=False):
    """Return what a cache gives attention for rows start..stop, the first of them at position `first`."""
    tiles, rows = in_tiles(keys), in_rows(values)
    if half:
        tiles, rows = tiles.astype(np.float16).view(np.uint16), rows.astype(np.float16).view(np.uint16)
    return CpuSpan(start, stop, first, tiles, rows, values.shape[2])


def read(stored, F):
    """Return keys [S, K, E] and values [S, K, F] of a span in float64."""
    keys, values = (
        (a.view(np.float16) if a.dtype == np.uint16 else a).astype(np.float64) for a in (stored.keys, stored.values)
    )
    return keys.transpose(0, 3, 1, 2).reshape(-1, *keys.shape[1:3]), values[..., :F]


def attend_twin(q, seen, scale):
    T, H, _ = q.shape
    F = seen.spans[0].value_size
    out = np.zeros((T, H, F))
    for part in seen.spans:
        keys, values = read(part, F)
        group = H // keys.shape[1]
        for t in range(part.start, part.stop):
            position = part.first + t - part.start
            low = max(0, position + 1 - seen.window) if seen.window else 0
            for h in range(H):
                scores = keys[low : position + 1, h // group] @ q[t, h].astype(np.float64) * scale
                weights = np.exp(scores - scores.max())
                out[t, h] = weights @ values[low : position + 1, h // group] / weights.sum()
    return out.reshape(T, -1)


# ---- against the twin ----------------------------------------------------------------------------------------------


@st.composite
def attention(draw, sizes, most_heads, behind, lengths):
    """Queries of several sequences in one batch, and what each has behind it."""
    rng = np.random.default_rng(draw(seeds))
    K, group, E, F = draw(st.integers(1, 3)), draw(st.integers(1, most_heads)), draw(sizes), draw(sizes)
    half = draw(st.booleans())
    spans, start = [], 0
    for first, length in draw(st.lists(st.tuples(behind, lengths), min_size=1, max_size=4)):
        keys, values = floats(rng, first + length, K, E), floats(rng, first + length, K, F)
        spans.append(span(start, start + length, first, keys, values, half=half))
        start += length
    window = draw(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 1000]))
    return floats(rng, start, K * group, E), CpuSeen(tuple(spans), window)


SMALL = attention(st.integers(1, 20), 4, st.integers(0, 70), st.integers(1, 6))
WIDE = attention(st.sampled_from([16, 24, 40, 64, 72, 80, 128]), 8, st.integers(0, 400), st.integers(1, 40))


@kernels
@given(SMALL, st.sampled_from([0.125, 1.0, 30.0]))
def test_attend_mixes_the_values_that_each_row_may_see(given, scale):
    q, seen = given
    found = attend(q, seen, scale=scale)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, attend_twin(q, seen, scale), rtol=1e-4, atol=3e-5 * max(1.0, scale))


@kernels
@given(WIDE)
def test_heads_and_contexts_as_models_have_them(given):
    q, seen = given
    scale = q.shape[2] ** -0.5
    np.testing.assert_allclose(attend(q, seen, scale=scale), attend_twin(q, seen, scale), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("window", [0, 700])
def test_a_long_context_is_as_exact_as_a_short_one(half, window):
    rng = np.random.default_rng(0)
    seen = CpuSeen((span(0, 20, 3000, floats(rng, 3020, 1, 64), floats(rng, 3020, 1, 64), half=half),), window)
    q = floats(rng, 20, 4, 64)
    np.testing.assert_allclose(attend(q, seen, scale=0.125), attend_twin(q, seen, 0.125), rtol=1e-5, atol=3e-6)


@kernels
@given(
    cuts=st.lists(st.integers(1, 59), max_size=5, unique=True).map(sorted), group=st.integers(1, 8),
    window=st.sampled_from([0, 5, 20]), seed=seeds,
)  # fmt: skip
def test_a_row_is_the_same_to_the_bit_in_any_company(cuts, group, window, seed):
    """Rows share blocks of work with others; what they get must not depend on which."""
    rng = np.random.default_rng(seed)
    keys, values, q = floats(rng, 60, 2, 24), floats(rng, 60, 2, 24), floats(rng, 60, 2 * group, 24)
    at_once = attend(q, CpuSeen((span(0, 60, 0, keys, values),), window), scale=0.2)
    bounds = [0, *cuts, 60]
    for start, stop in itertools.pairwise(bounds):
        seen = CpuSeen((span(0, stop - start, start, keys[:stop], values[:stop]),), window)
        np.testing.assert_array_equal(attend(q[start:stop], seen, scale=0.2), at_once[start:stop])


# ---- one by one ----------------------------------------------------------------------------------------------------


def one_sequence(keys, values, window=0, first=None):
    first = len(keys) - 1 if first is None else first
    return CpuSeen((span(0, len(keys) - first, first, keys, values),), window)


@pytest.mark.parametrize(("heads", "size"), [(3, 4), (2, 5), (1, 4)])
def test_queries_that_do_not_fit_the_keys_are_refused_before_memory_is_read(heads, size):
    rng = np.random.default_rng(0)
    seen = one_sequence(floats(rng, 1, 2, 4), floats(rng, 1, 2, 4))
    with pytest.raises(BadModel, match=f"{heads} query heads of {size} over 2 key heads of 4"):
        attend(floats(rng, 1, heads, size), seen, scale=1.0)


def test_a_row_does_not_see_what_follows_it():
    rng = np.random.default_rng(0)
    keys, values, q = floats(rng, 5, 1, 4), floats(rng, 5, 1, 4), floats(rng, 5, 2, 4)
    before = attend(q, one_sequence(keys, values, first=0), scale=1.0)
    keys[4], values[4] = 100.0, 100.0
    after = attend(q, one_sequence(keys, values, first=0), scale=1.0)
    np.testing.assert_array_equal(before[:4], after[:4])
    assert not np.array_equal(before[4], after[4])


def test_a_window_of_one_returns_the_rows_own_value():
    rng = np.random.default_rng(0)
    values = floats(rng, 40, 1, 4)
    found = attend(floats(rng, 40, 1, 4), one_sequence(floats(rng, 40, 1, 4), values, window=1, first=0), scale=1.0)
    np.testing.assert_array_equal(found, values.reshape(40, 4))


def test_scores_of_any_size_give_finite_mixtures():
    rng = np.random.default_rng(0)
    keys, values, q = floats(rng, 100, 1, 4), floats(rng, 100, 1, 4), floats(rng, 1, 1, 4)
    found = attend(q, one_sequence(keys, values), scale=1e6)
    likeliest = np.argmax(keys[:, 0].astype(np.float64) @ q[0, 0].astype(np.float64))
    np.testing.assert_allclose(found[0], values[likeliest, 0], rtol=1e-6)


@pytest.mark.parametrize("position", [0, 3, 16, 49])
def test_a_nan_in_a_key_shows_in_the_result(position):
    rng = np.random.default_rng(0)
    keys = floats(rng, 50, 1, 4)
    keys[position] = np.nan
    assert np.isnan(attend(floats(rng, 1, 1, 4), one_sequence(keys, floats(rng, 50, 1, 4)), scale=1.0)).all()


def test_a_nan_in_a_query_shows_in_its_own_row():
    rng = np.random.default_rng(0)
    q = floats(rng, 3, 2, 4)
    q[1, 0, 2] = np.nan
    found = attend(q, one_sequence(floats(rng, 20, 1, 4), floats(rng, 20, 1, 4), first=17), scale=1.0).reshape(3, 2, 4)
    assert np.isnan(found).all(2).tolist() == [[False, False], [True, False], [False, False]]
    assert np.isfinite(found[[0, 0, 1, 2, 2], [0, 1, 1, 0, 1]]).all()


# ---- exp -----------------------------------------------------------------------------------------------------------


@intrinsic
def exp_in_place(typing, values, at):
    def emit(context, builder, signature, args):
        e = Emitter(builder)
        place = e.address(context, signature.args[0], args[0], args[1], 4)
        e.store(exp(e, e.load(FLOATS, place)), place)
        return context.get_dummy_value()

    return types.void(values, types.intp), emit


@kernel
def exp_of(values):
    """Replace values, float32 of a multiple of 16, by their exponentials."""
    for at in range(0, values.size, LANES):
        exp_in_place(values, at)


def exponentials(values):
    out = np.array(values, np.float32)
    exp_of(out)
    return out


def test_exp_is_within_a_unit_in_the_last_place():
    x = np.linspace(-87, 88, LANES * 20000).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(exponentials(x) - exact) <= np.spacing(exact.astype(np.float32))).all()


def test_exp_at_its_ends():
    x = [0, -0.0, 1e-40, -1e-40, -87.001, -88, -1e30, -np.inf, 88, 88.5, 1e30, np.inf, np.nan, -np.nan, 0, 0]
    found = exponentials(x)
    assert found[:4].tolist() == [1, 1, 1, 1]
    assert found[4:8].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(found[8:12], np.exp(np.float64(88)), rtol=1e-6)
    assert np.isnan(found[12:14]).all()
