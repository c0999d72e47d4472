"""Activations, MLPs, norms with a mean and patches of images, against literal twins in float64."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit, types
from numba.extending import intrinsic

from puna.core.errors import BadModel
from puna.core.tensor import (
    activate,
    concat,
    conv_patches,
    gated_mlp,
    interpolate,
    layer_norm,
    mlp,
    pool_patches,
    soft_cap,
)
from puna.core.tensor.activations import LITTLE, PIECE
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import CpuMatrix
from puna.core.tensor.pointwise import FORMS
from puna.core.tensor.simd import FLOATS, Emitter, erf

erf_twin = np.vectorize(math.erf, otypes=[np.float64])
kernels = settings(deadline=None, max_examples=40)  # the first call of a kernel may compile it

SIZES = [1, 15, 16, 17, PIECE, LITTLE - 1, LITTLE, LITTLE + PIECE + 5]  # one vector, one thread, several, and tails
TWINS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + erf_twin(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu_quick": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def floats(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def plain(rng, rows, columns):
    """A float32 weight and its values in float64."""
    values = floats(rng, rows, columns)
    data = values.view(np.uint8)
    data.flags.writeable = False
    return CpuMatrix(by_name("F32"), data, (rows, columns)), values.astype(np.float64)


# ---- single numbers ------------------------------------------------------------------------------------------------


@intrinsic
def sixteen_erfs(typing, x, at):
    def emit(context, builder, signature, args):
        e = Emitter(builder)
        place = e.address(context, signature.args[0], args[0], args[1], 4)
        e.store(erf(e, e.load(FLOATS, place)), place)
        return context.get_dummy_value()

    return types.void(x, types.intp), emit


@njit
def erfs(x):
    for at in range(0, x.size, 16):
        sixteen_erfs(x, at)


def test_erf_is_accurate_to_float32():
    x = np.concatenate([np.linspace(-5, 5, 200_000), np.geomspace(1e-30, 1, 20_000)]).astype(np.float32)
    found = x.copy()
    erfs(found)
    exact = erf_twin(x.astype(np.float64))
    assert np.abs(found - exact).max() < 1e-7
    small = np.abs(x) < 1
    assert (np.abs(found - exact)[small] <= 2 * np.spacing(np.abs(exact[small]).astype(np.float32))).all()


def test_erf_of_what_is_not_an_everyday_number():
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e38, -1e38, 4] * 2, np.float32)
    erfs(x)
    np.testing.assert_array_equal(x[:8], np.array([0, -0.0, 1, -1, np.nan, 1, -1, 1], np.float32))
    assert np.signbit(x[1])


@pytest.mark.parametrize("activation", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_an_activation_of_any_number_of_numbers(activation, size):
    x = 4 * floats(np.random.default_rng(size), size)
    found = activate(x, activation)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TWINS[activation](x.astype(np.float64)), rtol=2e-6, atol=4e-7)


@pytest.mark.parametrize("activation", FORMS)
def test_an_activation_at_the_ends_of_the_range(activation):
    x = np.array([-3e38, -1e6, -100, 0, 100, 1e6, 3e38], np.float32)
    np.testing.assert_allclose(activate(x, activation), [0, 0, 0, 0, 100, 1e6, 3e38], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("activation", FORMS)
def test_an_activation_of_nan_is_nan_and_of_its_neighbours_a_number(activation):
    x = np.zeros(37, np.float32)
    x[[3, 36]] = np.nan  # in a vector, and in what is left over
    found = activate(x, activation)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))


def test_an_activation_keeps_the_shape_and_leaves_its_argument_alone():
    x = floats(np.random.default_rng(0), 3, 4, 10)[:, :, ::2]
    before = x.copy()
    found = activate(x, "gelu")
    assert found.shape == (3, 4, 5)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(found, TWINS["gelu"](x.astype(np.float64)), rtol=2e-6, atol=4e-7)


# ---- MLPs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", FORMS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [1, 9])
def test_mlp_is_down_of_the_activation_of_up(activation, biased, tokens):
    rng = np.random.default_rng(0)
    (up, wide_up), (down, wide_down) = plain(rng, 40, 24), plain(rng, 24, 40)
    biases = (floats(rng, 40), floats(rng, 24)) if biased else (None, None)
    x = floats(rng, tokens, 24)
    inner = TWINS[activation](x.astype(np.float64) @ wide_up.T + (biases[0] if biased else 0))
    expected = inner @ wide_down.T + (biases[1] if biased else 0)
    found = mlp(x, up, down, activation=activation, biases=biases)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * (np.abs(inner) @ np.abs(wide_down).T).max())


@pytest.mark.parametrize("activation", FORMS)
@pytest.mark.parametrize("biased", [*itertools.product([False, True], repeat=3)])
def test_gated_mlp_takes_another_activation_and_biases(activation, biased):
    rng = np.random.default_rng(0)
    (gate, wide_gate), (up, wide_up), (down, wide_down) = plain(rng, 40, 24), plain(rng, 40, 24), plain(rng, 24, 40)
    biases = tuple(floats(rng, size) if given else None for size, given in zip((40, 40, 24), biased, strict=True))
    added = [0 if bias is None else bias for bias in biases]
    x = floats(rng, 3, 24)
    wide = x.astype(np.float64)
    inner = TWINS[activation](wide @ wide_gate.T + added[0]) * (wide @ wide_up.T + added[1])
    found = gated_mlp(x, gate, up, down, activation=activation, biases=biases)
    room = 2e-5 * (np.abs(inner) @ np.abs(wide_down).T).max()
    np.testing.assert_allclose(found, inner @ wide_down.T + added[2], atol=room)


# ---- norms ---------------------------------------------------------------------------------------------------------


def layer_norm_twin(x, weight, bias, eps):
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + (0 if bias is None else bias)


@kernels
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3).map(tuple), seed=st.integers(0, 1 << 32),
    eps=st.sampled_from([1e-6, 1e-5, 0.1]), size=st.sampled_from([1e-3, 1.0, 1e4]), biased=st.booleans(),
)  # fmt: skip
def test_layer_norm_centres_and_scales_the_last_dimension(shape, seed, eps, size, biased):
    rng = np.random.default_rng(seed)
    x, weight = floats(rng, *shape) * np.float32(size), floats(rng, shape[-1])
    bias = floats(rng, shape[-1]) if biased else None
    found = layer_norm(x, weight, bias, eps)
    assert found.dtype == np.float32
    expected = layer_norm_twin(x, weight, bias, eps)
    # The mean is rounded to float32, which counts for the more the closer together a row's numbers are.
    rounding = np.finfo(np.float32).eps * np.abs(x).max(-1, keepdims=True) / np.sqrt(x.var(-1, keepdims=True) + eps)
    assert (np.abs(found - expected) <= 1e-5 + 1e-5 * np.abs(expected) + rounding * np.abs(weight)).all()


def test_layer_norm_of_many_rows_far_from_zero():
    rng = np.random.default_rng(0)
    x, weight, bias = floats(rng, LITTLE // 100, 130) + 100, floats(rng, 130), floats(rng, 130)
    expected = layer_norm_twin(x, weight, bias, 1e-6)
    np.testing.assert_allclose(layer_norm(x, weight, bias, 1e-6), expected, rtol=1e-4, atol=1e-4)


def test_a_row_with_a_nan_is_nan_and_the_others_are_not():
    x = floats(np.random.default_rng(0), 3, 20)
    x[1, 7] = np.nan
    found = np.isnan(layer_norm(x, np.ones(20, np.float32), None, 1e-6))
    np.testing.assert_array_equal(found.all(1), [False, True, False])
    np.testing.assert_array_equal(found.any(1), [False, True, False])


# ---- patches -------------------------------------------------------------------------------------------------------


def conv_twin(pixels, weight):
    """The definition: for each place of the kernel, the sum over all that lies under it."""
    patch = weight.shape[2:]
    grid = [size // part for size, part in zip(pixels.shape[2:], patch, strict=True)]
    rows = []
    for place in itertools.product(*map(range, grid)):
        window = tuple(slice(at * part, at * part + part) for at, part in zip(place, patch, strict=True))
        under = pixels[(slice(None), slice(None), *window)].astype(np.float64)
        rows.append(np.tensordot(under, weight, axes=(range(1, under.ndim), range(1, under.ndim))))
    return np.stack(rows, 1)


@pytest.mark.parametrize(
    ("images", "kernel"),
    [
        ((2, 3, 8, 12), (5, 3, 4, 4)),
        ((1, 1, 6, 6), (3, 1, 2, 3)),
        ((1, 3, 14, 14), (4, 3, 14, 14)),
        ((2, 3, 4, 6, 4), (5, 3, 2, 3, 2)),  # frames in pairs
    ],
)
def test_each_patch_is_multiplied_with_the_kernel(images, kernel):
    rng = np.random.default_rng(0)
    pixels, weight, bias = floats(rng, *images), floats(rng, *kernel), floats(rng, kernel[0])
    found = conv_patches(pixels, weight, bias)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, conv_twin(pixels, weight) + bias, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(conv_patches(pixels, weight), conv_twin(pixels, weight), rtol=1e-4, atol=1e-4)


def test_a_patch_is_the_same_in_any_company():
    rng = np.random.default_rng(0)
    pixels, weight = rng.standard_normal((7, 3, 28, 42), np.float32), rng.standard_normal((48, 3, 14, 14), np.float32)
    together = conv_patches(pixels, weight)
    for image in range(7):
        np.testing.assert_array_equal(conv_patches(pixels[image : image + 1], weight)[0], together[image])


@pytest.mark.parametrize("images", [(1, 3, 8, 9), (1, 2, 8, 8), (1, 3, 2, 8, 8)])
def test_images_that_patches_do_not_fill_are_refused(images):
    with pytest.raises(BadModel, match=r"images \[1, .*\] are not made of patches that weights \[5, 3, 4, 4\] take"):
        conv_patches(np.zeros(images, np.float32), np.zeros((5, 3, 4, 4), np.float32))


@pytest.mark.parametrize(("shape", "size"), [((4, 6, 5), 2), ((3, 3, 1), 3), ((12, 4, 7), 4), ((2, 3, 4), 1)])
def test_each_square_of_patches_becomes_its_average(shape, size):
    x = floats(np.random.default_rng(0), *shape)
    found = pool_patches(x, size)
    assert (found.dtype, found.shape) == (np.float32, (shape[0] // size, shape[1] // size, shape[2]))
    for row, column in np.ndindex(*found.shape[:2]):
        square = x[row * size : (row + 1) * size, column * size : (column + 1) * size].astype(np.float64)
        np.testing.assert_allclose(found[row, column], square.mean(axis=(0, 1)), rtol=1e-5, atol=1e-6)


# ---- tables that are stretched ---------------------------------------------------------------------------------------


def between(table, row, column):
    """Return what a table has at a place, by four weights written out."""
    top, left = math.floor(row), math.floor(column)
    found = np.zeros(table.shape[2])
    for r, c in itertools.product((top, top + 1), (left, left + 1)):
        weight = max(0, 1 - abs(row - r)) * max(0, 1 - abs(column - c))
        if weight:
            found += weight * table[r, c].astype(np.float64)
    return found


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 4), (4, 6, 5), (7, 2, 16)])
def test_between_the_rows_of_a_table_lies_their_weighted_mean(shape):
    rng = np.random.default_rng(0)
    table = floats(rng, *shape)
    places = (rng.random((2, 50)) * [[shape[0] - 1], [shape[1] - 1]]).astype(np.float32)
    found = interpolate(table, places)
    assert (found.dtype, found.shape) == (np.float32, (50, shape[2]))
    for row, place in zip(found, places.T, strict=True):
        np.testing.assert_allclose(row, between(table, *place.tolist()), rtol=1e-4, atol=1e-5)


def test_at_the_rows_of_a_table_lie_these_themselves():
    table = floats(np.random.default_rng(1), 3, 4, 6)
    places = np.indices((3, 4)).reshape(2, -1).astype(np.float32)
    np.testing.assert_array_equal(interpolate(table, places), table.reshape(12, 6))


def test_parts_lie_side_by_side_in_memory_of_their_own():
    parts = [floats(np.random.default_rng(2), 3, width) for width in (1, 4, 2)]
    found = concat(*parts, columns=True)
    np.testing.assert_array_equal(found, np.hstack(parts))
    assert not any(np.shares_memory(found, part) for part in parts)


# ---- soft caps -----------------------------------------------------------------------------------------------------


def test_a_soft_cap_bends_numbers_towards_it_and_leaves_its_argument_alone():
    x = np.float32([[0.0, 1e-3, -1.0, 30.0], [-30.0, 1e4, -np.inf, np.nan]])
    before = x.copy()
    found = soft_cap(x, 30.0)
    assert found.dtype == np.float32
    expected = [[30.0 * math.tanh(value / 30.0) for value in row] for row in before.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(x, before)
