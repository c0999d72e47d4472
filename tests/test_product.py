"""Products in 8 bits against exact arithmetic on the same codes, and the activations' codes against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.tensor import embed, linear, project
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import CpuMatrix, PackedMatrix
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.layouts import FLOAT_FORMATS, LAYOUTS, PEAK, ROUNDED_FORMATS, SUB
from puna.core.tensor.micro import ORIGIN
from puna.core.tensor.operands import WIDTH, quantise
from puna.core.tensor.pointwise import FORMS, activate_in_place
from puna.core.tensor.product import RESIDENT, multiply_gated

from .packed import columns_of, extreme_blocks, packed, quantised_twin, random_blocks, unpacked

FORMATS = sorted(LAYOUTS)
ROUNDING = 2.0**-24  # of one float32 operation, relative
UNDERFLOW = 2.0**-149

kernels = settings(deadline=None, max_examples=30)  # the first call of a kernel may compile it
tokens = st.integers(1, 20)
seeds = st.integers(0, 1 << 32)


def floats(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def columns_that_fit(form, size):
    """Return a number of columns: up to three blocks of 256, or up to twenty of 32, which are several chunks."""
    return form.elements * (1 + size % (3 if form.elements == 256 else 20))


def layout_of(weight):
    return LAYOUTS[weight.rows.format.name]


def random_weight(rng, name, rows, columns, *, tiny=False):
    """Return a packed weight and its values as the decoders give them, in float64."""
    form = by_name(name)
    raw = random_blocks(rng, form, rows, columns, tiny=tiny)
    return packed(form, raw), decode_tensor(raw, form, (rows, columns)).astype(np.float64)


def room(x, weight):
    """Return how far float32 arithmetic may take a product from the exact one, [T, rows].

    Integers are exact. Each scale adds scale · step · sum(codes · codes), and low · step · sum(codes) if the format has
    lows, to what came before. A term is rounded once as it is made, once as its scale's step is multiplied in, and with
    every term and unit that is added after it. The decoders round each weight, twice, to which we
    compare.
    """
    layout = layout_of(weight)
    found = unpacked(weight.data, layout.name)
    rows, columns = weight.shape
    scales, lows = (np.abs(field[:rows].astype(np.float64)) for field in (found.scales, found.lows))
    codes, each, T = found.codes[:rows].astype(np.float64), layout_of(weight).sub, len(x.codes)
    x_codes = x.codes.reshape(T, -1, each).astype(np.float64)
    steps = x.steps.astype(np.float64).repeat(layout_of(weight).unit // each, 1)
    dots = np.abs(np.einsum("tge,rge->trg", x_codes, codes.reshape(rows, -1, each)))
    terms = np.einsum("trg,rg,tg->tr", dots, scales, steps)
    terms += (np.abs(x_codes.sum(2)) * steps) @ lows.T
    weights = np.abs(codes) * scales.repeat(each, 1) + lows.repeat(each, 1)
    count = scales.shape[1] * (2 if layout_of(weight).minimums else 1) + x.steps.shape[1] + 2
    return ROUNDING * (count * terms + 2 * np.abs(x.values) @ weights.T) + count * columns * UNDERFLOW


def assert_exact(found, x, weight, wide):
    """Assert what a product with float32 activations x is: exact, but for rounding, on the codes that x becomes."""
    columns = columns_of(quantise(x, layout_of(weight).unit), x.shape[1])
    expected = columns.values @ wide.T
    assert found.dtype == np.float32
    assert (np.abs(found - expected[: len(x)]) <= room(columns, weight)[: len(x)]).all()


# ---- activations in 8 bits -----------------------------------------------------------------------------------------


@kernels
@given(
    T=tokens, blocks=st.integers(1, 5), unit=st.sampled_from([32, 256]), seed=seeds,
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
)  # fmt: skip
def test_codes_steps_and_sums_are_numpys(T, blocks, unit, seed, size):
    rng, D = np.random.default_rng(seed), blocks * unit
    x = floats(rng, T, D) * np.float32(size)
    found = columns_of(quantise(x, unit), D)
    codes, steps = quantised_twin(x, unit)
    np.testing.assert_array_equal(found.codes[:T], codes)
    np.testing.assert_array_equal(found.steps[:T], steps)
    halves = codes.reshape(T, -1, 2, 16).astype(np.int32).sum(3)
    sums = np.concatenate([halves, halves.sum(2, keepdims=True)], 2)
    origin = np.float32(ORIGIN).view(np.int32) if unit == 32 else 0
    np.testing.assert_array_equal(found.starts[:T], origin - 128 * sums)
    if unit == 256:
        shorts = np.ascontiguousarray(found.pairs[:T]).view(np.int16).reshape(T, -1, 24)
        np.testing.assert_array_equal(shorts[:, :, :16], halves.reshape(T, -1, 16))
        np.testing.assert_array_equal(shorts[:, :, 16:], sums[..., 2].reshape(T, -1, 8))
    else:
        np.testing.assert_array_equal(found.others[:T, :, 0], ORIGIN * steps.astype(np.float64) * -1)
        np.testing.assert_array_equal(found.others[:T, :, 1], steps * sums[..., 2].astype(np.float32))


@kernels
@given(T=tokens, unit=st.sampled_from([32, 256]), seed=seeds)
def test_no_activation_is_further_than_half_a_step_from_its_code(T, unit, seed):
    x = floats(np.random.default_rng(seed), T, 512)
    found = columns_of(quantise(x, unit), 512)
    steps = found.steps[:T].astype(np.float64).repeat(unit, 1)
    assert (np.abs(found.values[:T] - x) <= steps * (0.5 + 127 * 4 * ROUNDING)).all()


@pytest.mark.parametrize("T", range(1, 18))
def test_what_fills_the_last_tile_is_zero(T):
    found = columns_of(quantise(np.ones((T, 64), np.float32), 32), 64)
    assert T <= len(found.codes) < T + WIDTH
    for field in (found.codes, found.starts, found.steps, found.others):
        assert field[:T].all()
        assert not field[T:].any()


def test_a_single_token_is_a_tile_of_its_own():
    assert quantise(np.ones((1, 64), np.float32), 32).codes.shape == (64,)


def test_codes_are_rounded_half_to_even():
    x = np.zeros((1, 32), np.float32)
    x[0, :9] = 127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127, 0.49
    found = columns_of(quantise(x, 32), 32)
    assert found.codes[0, :9].tolist() == [127, 0, 2, 2, 0, -2, 126, -127, 0]
    assert found.steps[0, 0] == 1


def test_zeros_stay_zeros_beside_what_is_not():
    x = np.zeros((2, 64), np.float32)
    x[1, 40] = -3
    found = columns_of(quantise(x, 32), 64)
    assert np.argwhere(found.codes).tolist() == [[1, 40]]
    assert found.codes[1, 40] == -127
    assert found.steps.tolist() == [[0, 0], [0, quantised_twin(np.float32([[3]]), 1)[1][0, 0]]]


# ---- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@kernels
@given(
    T=tokens, rows=st.integers(1, 70), size=st.integers(0, 59), seed=seeds, tiny=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_a_packed_product_is_exact_on_its_codes(name, T, rows, size, seed, tiny, scale):
    rng = np.random.default_rng(seed)
    weight, wide = random_weight(rng, name, rows, columns_that_fit(by_name(name), size), tiny=tiny)
    x = floats(rng, T, weight.shape[1]) * np.float32(scale)
    assert_exact(linear(x, weight), x, weight, wide)


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_product_is_within_half_a_step_of_the_float_one(name):
    rng = np.random.default_rng(1)
    weight, wide = random_weight(rng, name, 48, 1024)
    x = floats(rng, 5, 1024)
    columns = columns_of(quantise(x, layout_of(weight).unit), 1024)
    halves = columns.steps[:5].astype(np.float64).repeat(layout_of(weight).unit, 1) * (0.5 + 127 * 4 * ROUNDING)
    error = np.abs(linear(x, weight) - x.astype(np.float64) @ wide.T)
    assert (error <= halves @ np.abs(wide).T + room(columns, weight)[:5]).all()
    assert error.max() > 0


@pytest.mark.parametrize("high", [True, False], ids=["highest", "lowest"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_codes_do_not_overflow(name, high):
    """Every code and sub-scale at one end against activations at one end: sums are the largest that there are."""
    form, layout = by_name(name), LAYOUTS[name]
    raw = extreme_blocks(np.random.default_rng(2), form, 32, 512, high=high)
    weight, wide = packed(form, raw), decode_tensor(raw, form, (32, 512)).astype(np.float64)
    ends = layout.table or (-layout.offset, (1 << sum(layout.planes)) - 1 - layout.offset)
    assert (unpacked(weight.data, name).codes == (max(ends) if high else min(ends))).all()
    for sign in (1, -1):
        for T in (3, WIDTH + 2):  # weights unpacked in registers, and in memory
            x = np.full((T, 512), sign, np.float32)
            assert_exact(linear(x, weight), x, weight, wide)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_zeros_give_zeros(name):
    rng, form = np.random.default_rng(3), by_name(name)
    raw = random_blocks(rng, form, 40, 512).copy()
    empty = [0, 15, 16, 39]
    raw[empty] = 0
    raw.flags.writeable = False
    x = floats(rng, 3, 512)
    found = linear(x, packed(form, raw))
    assert not found[:, empty].any()
    assert found[:, [1, 14, 17, 38]].all()


@pytest.mark.parametrize("name", FORMATS)
def test_activations_of_zero_give_zeros(name):
    weight, _ = random_weight(np.random.default_rng(4), name, 40, 256)
    assert not linear(np.zeros((3, 256), np.float32), weight).any()


@pytest.mark.parametrize("name", FORMATS)
def test_a_token_has_the_same_product_in_any_company(name):
    """A reply must not depend on what else is computed in its step."""
    rng = np.random.default_rng(5)
    weight, _ = random_weight(rng, name, 40, 512)
    x = floats(rng, 20, 512)
    together = linear(x, weight)
    for start, stop in ((0, 1), (1, 3), (3, 6), (6, 11), (11, 20)):
        np.testing.assert_array_equal(linear(x[start:stop], weight), together[start:stop])


def test_project_mixes_packed_formats_and_plain_ones():
    rng = np.random.default_rng(7)
    weights = [random_weight(rng, name, rows, 256) for name, rows in (("Q4_K", 40), ("Q8_0", 33), ("Q6_K", 16))]
    values = floats(rng, 9, 256)
    values.flags.writeable = False
    x, bias = floats(rng, 3, 256), floats(rng, 33)
    plain = CpuMatrix(by_name("F32"), values.view(np.uint8), (9, 256))
    (fours, _), (eights, wide), (sixes, _) = weights
    found = project(x, (fours, None), (eights, bias), (plain, None), (sixes, None))
    for part, (weight, values_) in zip((found[0], found[3]), (weights[0], weights[2]), strict=True):
        assert_exact(part, x, weight, values_)
    np.testing.assert_array_equal(found[1], linear(x, eights) + bias)
    np.testing.assert_allclose(found[2], x.astype(np.float64) @ values.T.astype(np.float64), atol=1e-4)
    assert wide.shape == (33, 256)


def test_linear_reads_activations_that_do_not_lie_side_by_side():
    rng = np.random.default_rng(8)
    weight, _ = random_weight(rng, "Q4_0", 5, 64)
    x = floats(rng, 6, 128)[::2, ::2]
    np.testing.assert_array_equal(linear(x, weight), linear(np.ascontiguousarray(x), weight))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_shows_in_the_products_of_its_token_alone(name, bad):
    """A broken model must not pass for a working one."""
    rng = np.random.default_rng(9)
    weight, _ = random_weight(rng, name, 40, 512)
    x = floats(rng, 3, 512)
    x[1, 300] = bad
    found = linear(x, weight)
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("size", [1e-35, 1e-37, 1e-40])
def test_activations_next_to_nothing_have_products_next_to_nothing(size):
    rng = np.random.default_rng(11)
    for name in ("Q8_0", "Q4_1", "Q4_K"):
        weight, _ = random_weight(rng, name, 40, 512)
        found = linear(floats(rng, 2, 512) * np.float32(size), weight)
        assert (np.abs(found) < 512 * 200 * size).all()


@pytest.mark.parametrize("name", FORMATS)
def test_embed_returns_the_rows_of_a_packed_table_exactly(name):
    weight, wide = random_weight(np.random.default_rng(10), name, 40, 256)
    assert isinstance(weight, PackedMatrix)
    found = embed(np.array([39, 0, 16, 16], np.int32), weight)
    np.testing.assert_array_equal(found, wide[[39, 0, 16, 16]].astype(np.float32))


# ---- weights that are floats ---------------------------------------------------------------------------------------


def float_weight(rng, name, rows, columns):
    """Return a packed weight of floats, and its values in float64."""
    wide = floats(rng, rows, columns)
    if name == "BF16":
        wide = (wide.view(np.uint32) & 0xFFFF0000).view(np.float32)
        raw = (wide.view(np.uint32) >> 16).astype(np.uint16)
    else:
        raw = wide.astype({"F16": np.float16, "F32": np.float32}[name])
    data = raw.view(np.uint8).reshape(rows, -1)
    data.flags.writeable = False
    return packed(by_name(name), data), raw.astype(np.float64) if name != "BF16" else wide.astype(np.float64)


def assert_close(found, x, wide):
    """Assert a float32 product: each of the D sums may round the sum of magnitudes so far."""
    x = x.astype(np.float64)
    room = x.shape[1] * ROUNDING * np.abs(x) @ np.abs(wide).T
    assert (np.abs(found - x @ wide.T) <= room).all()


@kernels
@given(T=tokens, rows=st.integers(1, 70), columns=st.integers(1, 300), seed=seeds)
def test_a_product_with_float32_is_float32_s(T, rows, columns, seed):
    rng = np.random.default_rng(seed)
    weight, wide = float_weight(rng, "F32", rows, columns)
    x = floats(rng, T, columns)
    assert_close(linear(x, weight), x, wide)


def largest_of_blocks(x):
    """Return the largest magnitude of the 32 columns that each number of x stands among."""
    blocks = np.pad(np.abs(x), ((0, 0), (0, -x.shape[1] % SUB))).reshape(len(x), -1, SUB)
    return np.repeat(blocks.max(axis=2), SUB, axis=1)[:, : x.shape[1]]


@pytest.mark.parametrize("name", ROUNDED_FORMATS)
@kernels
@given(T=tokens, rows=st.integers(1, 70), columns=st.integers(1, 300), seed=seeds)
def test_a_product_with_floats_of_16_bits_is_off_by_no_more_than_its_codes_are(name, T, rows, columns, seed):
    """Half a step for an activation and for a weight, whose step is up to 2^-7 larger than it needs to be."""
    rng = np.random.default_rng(seed)
    weight, wide = float_weight(rng, name, rows, columns)
    x = (floats(rng, T, columns) * 10.0 ** rng.integers(-3, 4, (T, columns))).astype(np.float32)
    exact = x.astype(np.float64)
    half = 0.501 / PEAK  # and what rounding in float32 adds
    off_w, off_x = half * (1 + 2**-7) * largest_of_blocks(wide), half * largest_of_blocks(exact)
    room = np.abs(exact) @ off_w.T + off_x @ (np.abs(wide) + off_w).T
    room += (columns / SUB + 4) * ROUNDING * np.abs(exact) @ np.abs(wide).T
    assert (np.abs(linear(x, weight) - exact @ wide.T) <= room).all()


@pytest.mark.parametrize("name", ROUNDED_FORMATS)
def test_the_largest_codes_of_a_block_add_up_without_overflow(name):
    weight, _ = float_weight(Steady(), name, 32, 64)
    x = np.array([[1.0] * 64, [-1.0] * 64], np.float32)
    np.testing.assert_allclose(linear(x, weight), np.repeat([[64.0], [-64.0]], 32, axis=1), rtol=2**-12)


class Steady:
    """Draws ones."""

    def standard_normal(self, shape, dtype):
        return np.ones(shape, dtype)


@pytest.mark.parametrize("name", ROUNDED_FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_shows_in_products_with_floats_of_16_bits(name, bad):
    weight, _ = float_weight(np.random.default_rng(15), name, 32, 64)
    x = floats(np.random.default_rng(16), 3, 64)
    x[1, 40] = bad
    found = linear(x, weight)
    assert not np.isfinite(found[1]).any() and np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_a_token_has_the_same_product_with_floats_in_any_company(name):
    rng = np.random.default_rng(12)
    weight, _ = float_weight(rng, name, 40, 200)
    x = floats(rng, 20, 200)
    together = linear(x, weight)
    for start, stop in ((0, 1), (1, 3), (3, 6), (6, 11), (11, 20)):
        np.testing.assert_array_equal(linear(x[start:stop], weight), together[start:stop])


# ---- many at once --------------------------------------------------------------------------------------------------


def test_products_do_not_depend_on_what_is_dealt_out_with_them():
    """Shares of the work begin and end anywhere in the heap, also between two weights."""
    rng = np.random.default_rng(6)
    weights = [random_weight(rng, name, rows, 256)[0] for name, rows in (("Q4_K", 200), ("Q8_0", 8), ("Q4_K", 333))]
    weights.append(float_weight(rng, "F16", 100, 256)[0])
    x = floats(rng, 9, 256)
    together = project(x, *[(weight, None) for weight in weights])
    for weight, found in zip(weights, together, strict=True):
        np.testing.assert_array_equal(found, linear(x, weight))


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16"])
def test_more_tokens_than_stay_in_cache_together_have_their_own_products(name):
    """Tokens are multiplied in blocks then."""
    rng, columns = np.random.default_rng(13), 8192
    weight = (float_weight if name == "F16" else random_weight)(rng, name, 33, columns)[0]
    x = floats(rng, 2 * (RESIDENT // columns) + 5, columns)
    found = linear(x, weight)
    for first in range(0, len(x), 50):
        np.testing.assert_array_equal(found[first : first + 3], linear(x[first : first + 3], weight))


@pytest.mark.parametrize("T", [1, 7, 40])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "BF16"])
def test_a_gate_and_its_other_half_in_one_pass_are_what_they_are_in_two(name, activation, T):
    rng = np.random.default_rng(14)
    make = float_weight if name == "BF16" else random_weight
    gate, up = (make(rng, name, 70, 512)[0] for _ in range(2))
    x = floats(rng, T, 512)
    expected = linear(x, gate)
    activate_in_place(expected, activation, times=linear(x, up))
    np.testing.assert_array_equal(multiply_gated(x, gate.job, up.job, FORMS[activation]), expected)
