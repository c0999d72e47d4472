"""Attention over tiles of keys and values against a literal twin in float64, and the functions that it rests on."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import types
from numba.extending import intrinsic

from puna.core.errors import BadModel
from puna.core.tensor import attend, attend_all
from puna.core.tensor.cpu_attention import CpuSeen, CpuSpans
from puna.core.tensor.jit import kernel
from puna.core.tensor.simd import FLOATS, Emitter, exp, exp2, tanh
from puna.core.tensor.tiles import CODED, new_tiles, store

LANES = 16

kernels = settings(deadline=None, max_examples=60)  # the first call of a kernel may compile it
seeds = st.integers(0, 1 << 32)
elements = st.sampled_from(["f32", "f16", "q8_0", "q4_0"])


def floats(rng, *shape):
    return rng.standard_normal(shape, np.float32)


# ---- what a cache hands over ---------------------------------------------------------------------------------------


def seen_of(*sequences, element="f32", **sight):
    """Return what a step sees of sequences (first, keys [S, K, E], values [S, K, F]) whose rows are those from first.

    All share one arena, their tiles lie in no order, and what lies in none of them is NaN.
    """
    counts = [-(-len(keys) // LANES) for _, keys, _ in sequences]
    (_, keys, values), total = sequences[0], sum(counts) + 2
    tiles = new_tiles(total, *keys.shape[1:], values.shape[2], element)
    for array in tiles:
        array.view(np.uint8)[...] = 255  # a NaN as float32 and as float16
    table = np.random.default_rng(0).permutation(total).astype(np.int32)
    rows, start, begin = [], 0, 0
    for (first, keys, values), count in zip(sequences, counts, strict=True):
        positions = np.arange(len(keys), dtype=np.int32)
        store(keys, values, table[begin + positions // LANES] * LANES + positions % LANES, tiles)
        rows.append([start, start + len(keys) - first, first, begin])
        start, begin = rows[-1][1], begin + count
    return CpuSeen((CpuSpans(tiles, np.array(rows, np.int32), table[:-2]),), values.shape[2], **sight)


def read(spans, begin, F):
    """Return keys [S, K, E] and values [S, K, F] of the tiles from table[begin] on, in float64."""
    keys, key_scales, values, value_scales = spans.tiles
    if keys.dtype == np.uint8:
        keys, values = halves_apart(keys, 2), halves_apart(values, 3)
    if keys.dtype == np.int8:
        keys = keys * np.repeat(key_scales.view(np.float16).astype(np.float64), 32, axis=2)
        values = values * np.repeat(value_scales.view(np.float16).astype(np.float64), 32, axis=3)
    elif keys.dtype == np.uint16:
        keys, values = keys.view(np.float16), values.view(np.float16)
    here = spans.table[begin:]
    in_order = (
        keys[here].astype(np.float64).transpose(0, 3, 1, 2),
        values[here].astype(np.float64).transpose(0, 2, 1, 3),
    )
    return [a.reshape(-1, *a.shape[2:])[..., :size] for a, size in zip(in_order, (keys.shape[2], F), strict=True)]


def halves_apart(codes, axis):
    """Return q4_0's codes -8 to 7 one by one: of each 16 bytes the lower halves, then the upper ones."""
    blocks = np.moveaxis(codes, axis, -1).reshape(*np.delete(codes.shape, axis), -1, 1, 16)
    apart = np.concatenate([blocks & 15, blocks >> 4], axis=-2).astype(np.int8) - np.int8(8)
    return np.moveaxis(apart.reshape(*np.delete(codes.shape, axis), -1), -1, axis)


def seen_by(row, position, seen):
    """Return the positions that a row sees."""
    low = 0
    if seen.window:
        low = max(0, position + 1 - seen.window)
    elif seen.chunk:
        low = position // seen.chunk * seen.chunk
    return slice(low, (position if seen.until is None else seen.until[row]) + 1)


def mixture(q, keys, values, scale, soft_cap=None):
    """Return the mixture of values, [F], for a query, [E]."""
    scores = keys @ q.astype(np.float64) * scale
    if soft_cap is not None:
        scores = soft_cap * np.tanh(scores / soft_cap)
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


def attend_twin(q, seen, scale, soft_cap=None):
    T, H, _ = q.shape
    out = np.zeros((T, H, seen.value_size))
    for spans in seen.spans:
        for start, stop, first, begin in spans.rows:
            keys, values = read(spans, begin, seen.value_size)
            group = H // keys.shape[1]
            for t, h in itertools.product(range(start, stop), range(H)):
                where = seen_by(t, first + t - start, seen), h // group
                out[t, h] = mixture(q[t, h], keys[where], values[where], scale, soft_cap)
    return out.reshape(T, -1)


# ---- against the twin ----------------------------------------------------------------------------------------------


@st.composite
def attention(draw, sizes, most_heads, behind, lengths):
    """Queries of several sequences in one batch, and what each has behind it."""
    rng, element = np.random.default_rng(draw(seeds)), draw(elements)
    K, group, E, F = draw(st.integers(1, 3)), draw(st.integers(1, most_heads)), draw(sizes), draw(sizes)
    if element in CODED:
        E, F = -(-E // 32) * 32, -(-F // 32) * 32
    spans = draw(st.lists(st.tuples(behind, lengths), min_size=1, max_size=4))
    sequences = [(first, floats(rng, first + n, K, E), floats(rng, first + n, K, F)) for first, n in spans]
    size = draw(st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 1000]))
    sight = draw(st.sampled_from([{}, {"window": size}, {"chunk": size}]))
    if draw(st.booleans()):  # rows that see beyond themselves, up to the end of their sequence
        ends = [np.arange(f, f + n) for f, n in spans]
        sight["until"] = np.concatenate([rng.integers(own, own[-1] + 1) for own in ends]).astype(np.int32)
    return floats(rng, sum(n for _, n in spans), K * group, E), seen_of(*sequences, element=element, **sight)


SMALL = attention(st.integers(1, 20), 4, st.integers(0, 70), st.integers(1, 6))
WIDE = attention(st.sampled_from([16, 24, 40, 64, 72, 80, 128]), 8, st.integers(0, 400), st.integers(1, 40))
caps = st.sampled_from([None, 0.5, 50.0])


@kernels
@given(SMALL, st.sampled_from([0.125, 1.0, 30.0]), caps)
def test_attend_mixes_the_values_that_each_row_may_see(given, scale, cap):
    q, seen = given
    found = attend(q, seen, scale=scale, soft_cap=cap)
    assert found.dtype == np.float32
    expected = attend_twin(q, seen, scale, cap)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-5 * max(1.0, scale))


@kernels
@given(WIDE, caps)
def test_heads_and_contexts_as_models_have_them(given, cap):
    q, seen = given
    scale = q.shape[2] ** -0.5
    found = attend(q, seen, scale=scale, soft_cap=cap)
    np.testing.assert_allclose(found, attend_twin(q, seen, scale, cap), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("element", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("sight", [{}, {"window": 700}, {"chunk": 1300}], ids=["causal", "window", "chunk"])
@pytest.mark.parametrize("rows", [1, 20])
def test_a_long_context_is_as_exact_as_a_short_one(element, sight, rows):
    rng = np.random.default_rng(0)
    seen = seen_of((3000, floats(rng, 3000 + rows, 1, 64), floats(rng, 3000 + rows, 1, 64)), element=element, **sight)
    q = floats(rng, rows, 4, 64)
    np.testing.assert_allclose(attend(q, seen, scale=0.125), attend_twin(q, seen, 0.125), rtol=1e-5, atol=3e-6)


@kernels
@given(
    cuts=st.lists(st.integers(1, 59), max_size=5, unique=True).map(sorted), group=st.integers(1, 8),
    behind=st.sampled_from([0, 30, 500, 1500]), window=st.sampled_from([0, 5, 20, 600]), seed=seeds,
)  # fmt: skip
def test_a_row_is_the_same_to_the_bit_in_any_company(cuts, group, behind, window, seed):
    """Rows share blocks of work with others, and long rows are cut in parts; what they get must not depend on it."""
    rng = np.random.default_rng(seed)
    keys, values, q = floats(rng, behind + 60, 1, 24), floats(rng, behind + 60, 1, 24), floats(rng, 60, group, 24)
    at_once = attend(q, seen_of((behind, keys, values), window=window), scale=0.2)
    for start, stop in itertools.pairwise([0, *cuts, 60]):
        seen = seen_of((behind + start, keys[: behind + stop], values[: behind + stop]), window=window)
        np.testing.assert_array_equal(attend(q[start:stop], seen, scale=0.2), at_once[start:stop])


def test_sequences_in_arrays_of_their_own_are_as_those_that_share_them():
    rng = np.random.default_rng(0)
    sequences = [(first, floats(rng, first + 3, 2, 8), floats(rng, first + 3, 2, 8)) for first in (0, 40)]
    q = floats(rng, 6, 4, 8)
    together, apart = seen_of(*sequences), [seen_of(sequence) for sequence in sequences]
    second = replace(apart[1].spans[0], rows=np.array([[3, 6, 40, 0]], np.int32))
    found = attend(q, CpuSeen((apart[0].spans[0], second), 8), scale=0.3)
    np.testing.assert_array_equal(found, attend(q, together, scale=0.3))


# ---- everything sees everything ------------------------------------------------------------------------------------


@kernels
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4).filter(any), H=st.integers(1, 3),
    E=st.sampled_from([4, 24, 72, 80]), F=st.sampled_from([4, 24, 80]), seed=seeds,
)  # fmt: skip
def test_rows_of_a_stretch_see_all_of_it_and_nothing_else(lengths, H, E, F, seed):
    rng, P = np.random.default_rng(seed), sum(lengths)
    q, k, v = floats(rng, P, H, E), floats(rng, P, H, E), floats(rng, P, H, F)
    found = attend_all(q, k, v, scale=E**-0.5, lengths=lengths).reshape(P, H, F)
    assert found.dtype == np.float32
    stop = 0
    for start, stop in itertools.pairwise([0, *np.cumsum(lengths)]):
        for t, h in itertools.product(range(start, stop), range(H)):
            expected = mixture(q[t, h], k[start:stop, h].astype(np.float64), v[start:stop, h], E**-0.5)
            np.testing.assert_allclose(found[t, h], expected, rtol=1e-5, atol=3e-6)


def test_without_lengths_all_rows_are_one_stretch():
    rng = np.random.default_rng(0)
    q, k, v = floats(rng, 700, 2, 16), floats(rng, 700, 2, 16), floats(rng, 700, 2, 16)
    found = attend_all(q, k, v, scale=0.25)
    np.testing.assert_array_equal(found, attend_all(q, k, v, scale=0.25, lengths=[700]))
    expected = mixture(q[699, 1], k[:, 1].astype(np.float64), v[:, 1], 0.25)
    np.testing.assert_allclose(found[699, 16:], expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("each", [1, 37, 64, 700])
def test_rows_that_are_asked_for_in_parts_get_what_they_get_at_once(each):
    rng = np.random.default_rng(0)
    q, k, v = floats(rng, 700, 2, 16), floats(rng, 700, 2, 16), floats(rng, 700, 2, 24)
    at_once = attend_all(q, k, v, scale=0.25)
    for start in range(0, 700, each * 5):
        part = attend_all(q[start : start + each], k, v, scale=0.25)
        np.testing.assert_array_equal(part, at_once[start : start + each])


def test_more_rows_than_there_are_keys_see_them_all():
    rng = np.random.default_rng(0)
    q, k, v = floats(rng, 90, 1, 16), floats(rng, 3, 1, 16), floats(rng, 3, 1, 16)
    expected = mixture(q[89, 0], k[:, 0].astype(np.float64), v[:, 0], 0.25)
    np.testing.assert_allclose(attend_all(q, k, v, scale=0.25)[89], expected, rtol=1e-5, atol=3e-6)


def test_rows_that_have_nothing_to_see_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(BadModel, match=r"attention of 5 rows in stretches of \[0\]"):
        attend_all(floats(rng, 5, 1, 4), floats(rng, 0, 1, 4), floats(rng, 0, 1, 4), scale=1.0)


@pytest.mark.parametrize("lengths", [[2, 2], [6], [6, -1]])
def test_lengths_that_do_not_add_up_are_refused(lengths):
    rng = np.random.default_rng(0)
    with pytest.raises(BadModel, match="attention of 5 rows in stretches of"):
        attend_all(*(floats(rng, 5, 1, 4) for _ in range(3)), scale=1.0, lengths=lengths)


# ---- one by one ----------------------------------------------------------------------------------------------------


def one_sequence(keys, values, first=None, **sight):
    return seen_of((len(keys) - 1 if first is None else first, keys, values), **sight)


@pytest.mark.parametrize(("heads", "size"), [(3, 4), (2, 5), (1, 4)])
def test_queries_that_do_not_fit_the_keys_are_refused_before_memory_is_read(heads, size):
    rng = np.random.default_rng(0)
    seen = one_sequence(floats(rng, 1, 2, 4), floats(rng, 1, 2, 4))
    with pytest.raises(BadModel, match=f"{heads} query heads of {size} over 2 key heads of 4"):
        attend(floats(rng, 1, heads, size), seen, scale=1.0)


@pytest.mark.parametrize("bad", [100.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("element", ["f32", "f16", "q8_0", "q4_0"])
def test_a_row_does_not_see_what_follows_it(element, bad):
    rng = np.random.default_rng(0)
    keys, values, q = floats(rng, 90, 1, 32), floats(rng, 90, 1, 32), floats(rng, 90, 2, 32)
    before = attend(q, one_sequence(keys, values, first=0, element=element), scale=1.0)
    keys[70], values[70] = bad, bad
    after = attend(q, one_sequence(keys, values, first=0, element=element), scale=1.0)
    np.testing.assert_array_equal(before[:70], after[:70])
    assert (before[70:] != after[70:]).any(axis=1).all()


@pytest.mark.parametrize("sight", [{"window": 5}, {"chunk": 8}], ids=["window", "chunk"])
def test_a_row_does_not_see_what_has_left_its_sight(sight):
    rng = np.random.default_rng(0)
    keys, values, q = floats(rng, 90, 1, 4), floats(rng, 90, 1, 4), floats(rng, 90, 2, 4)
    before = attend(q, one_sequence(keys, values, first=0, **sight), scale=1.0)
    keys[19], values[19] = np.nan, np.nan
    after = attend(q, one_sequence(keys, values, first=0, **sight), scale=1.0)
    changed = np.isnan(after).all(axis=1)
    assert np.flatnonzero(changed).tolist() == list(range(19, 24))
    np.testing.assert_array_equal(before[~changed], after[~changed])


def test_a_window_of_one_returns_the_rows_own_value():
    rng = np.random.default_rng(0)
    values = floats(rng, 40, 1, 4)
    found = attend(floats(rng, 40, 1, 4), one_sequence(floats(rng, 40, 1, 4), values, first=0, window=1), scale=1.0)
    np.testing.assert_array_equal(found, values.reshape(40, 4))


def test_scores_of_any_size_give_finite_mixtures():
    rng = np.random.default_rng(0)
    keys, values, q = floats(rng, 100, 1, 4), floats(rng, 100, 1, 4), floats(rng, 1, 1, 4)
    found = attend(q, one_sequence(keys, values), scale=1e6)
    likeliest = np.argmax(keys[:, 0].astype(np.float64) @ q[0, 0].astype(np.float64))
    np.testing.assert_allclose(found[0], values[likeliest, 0], rtol=1e-6)


@pytest.mark.parametrize("cap", [None, 50.0])
@pytest.mark.parametrize("position", [0, 3, 16, 49, slice(0, 50)], ids=str)
def test_a_nan_in_a_key_shows_in_the_result(position, cap):
    rng = np.random.default_rng(0)
    keys = floats(rng, 50, 1, 4)
    keys[position] = np.nan
    seen = one_sequence(keys, floats(rng, 50, 1, 4))
    assert np.isnan(attend(floats(rng, 1, 1, 4), seen, scale=1.0, soft_cap=cap)).all()


def test_scores_of_nothing_but_minus_infinity_show():
    rng = np.random.default_rng(0)
    keys = np.full((50, 1, 4), -np.inf, np.float32)
    assert np.isnan(attend(np.ones((1, 2, 4), np.float32), one_sequence(keys, floats(rng, 50, 1, 4)), scale=1.0)).all()


def test_a_nan_in_a_query_shows_in_its_own_row():
    rng = np.random.default_rng(0)
    q = floats(rng, 3, 2, 4)
    q[1, 0, 2] = np.nan
    found = attend(q, one_sequence(floats(rng, 20, 1, 4), floats(rng, 20, 1, 4), first=17), scale=1.0).reshape(3, 2, 4)
    assert np.isnan(found).all(2).tolist() == [[False, False], [True, False], [False, False]]
    assert np.isfinite(found[[0, 0, 1, 2, 2], [0, 1, 1, 0, 1]]).all()


# ---- functions of vectors ------------------------------------------------------------------------------------------


def applied(function):
    """Return a function that replaces float32 values, a multiple of 16 of them, by what `function` emits for them."""

    @intrinsic
    def in_place(typing, values, at):
        def emit(context, builder, signature, args):
            e = Emitter(builder)
            place = e.address(context, signature.args[0], args[0], args[1], 4)
            e.store(function(e, e.load(FLOATS, place)), place)
            return context.get_dummy_value()

        return types.void(values, types.intp), emit

    @kernel
    def of_all(values):
        for at in range(0, values.size, LANES):
            in_place(values, at)

    def of(values):
        out = np.array(values, np.float32)
        of_all(out)
        return out

    return of


exponentials, powers, tangents = applied(exp), applied(exp2), applied(tanh)


@pytest.mark.parametrize(
    ("found", "exact", "low", "high", "units"),
    [(exponentials, np.exp, -87, 88, 1), (powers, np.exp2, -126, 0, 2), (tangents, np.tanh, -12, 12, 3)],
    ids=["exp", "exp2", "tanh"],
)
def test_a_function_is_within_units_in_the_last_place(found, exact, low, high, units):
    x = np.linspace(low, high, LANES * 20000).astype(np.float32)
    expected = exact(x.astype(np.float64))
    assert (np.abs(found(x) - expected) <= units * np.spacing(np.abs(expected.astype(np.float32)))).all()


def test_exp_at_its_ends():
    x = [0, -0.0, 1e-40, -1e-40, -87.001, -88, -1e30, -np.inf, 88, 88.5, 1e30, np.inf, np.nan, -np.nan, 0, 0]
    found = exponentials(x)
    assert found[:4].tolist() == [1, 1, 1, 1]
    assert found[4:8].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(found[8:12], np.exp(np.float64(88)), rtol=1e-6)
    assert np.isnan(found[12:14]).all()


def test_exp2_at_its_ends():
    found = powers([0, -0.0, -1, -2, -126, -127, -1e30, -np.inf, np.nan, -np.nan, 0, 0, 0, 0, 0, 0])
    assert found[:4].tolist() == [1, 1, 0.5, 0.25]
    assert found[4:8].tolist() == [2.0**-126] * 4
    assert np.isnan(found[8:10]).all()


def test_tanh_at_its_ends():
    found = tangents([0, 1e-30, -1e-30, 20, -20, 1e30, np.inf, -np.inf, np.nan, -np.nan, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found[:8], np.array([0, 1e-30, -1e-30, 1, -1, 1, 1, -1], np.float32))
    assert np.isnan(found[8:10]).all()
