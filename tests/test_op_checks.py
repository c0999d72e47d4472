"""Operations refuse, by name, what their kernels would misread, and do nothing for steps without tokens."""

import numpy as np
import pytest

from puna.core.errors import BadModel
from puna.core.tensor import (
    activate,
    attend,
    attend_all,
    concat,
    conv_patches,
    embed,
    gated_mlp,
    interpolate,
    largest,
    layer_norm,
    linear,
    mlp,
    moe,
    pool_patches,
    project,
    rms_norm,
    rope,
    rope_table,
    rotations,
    sharpness,
    sigmoid,
    soft_cap,
)
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import CpuMatrix, Experts
from puna.core.tensor.cpu_attention import CpuSeen, CpuSpans
from puna.core.tensor.ops import add_rows
from puna.core.tensor.tiles import new_tiles, store

from .packed import packed, random_blocks

D, INNER, H, K, E, F = 64, 96, 4, 2, 32, 20  # F: no whole vectors
EXPERTS, CHOSEN = 3, 2
VOCABULARY = 40


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def counted(count):
    return np.arange(count, dtype=np.int32)


def matrix(rows, columns):
    form = by_name("Q8_0")
    return packed(form, random_blocks(np.random.default_rng(0), form, rows, columns))


def plain(rows, columns):
    data = floats(rows, columns).view(np.uint8)
    data.flags.writeable = False
    return CpuMatrix(by_name("F32"), data, (rows, columns))


def experts(rows, columns):
    return Experts((matrix(rows, columns),) * EXPERTS)


def tiles_of(T, element="f16"):
    return new_tiles(-(-T // 16), K, E, F if element != "q8_0" else 32, element)


def seen_of(T):
    tiles = tiles_of(T)
    store(floats(T, K, E), floats(T, K, F), counted(T), tiles)
    return CpuSeen((CpuSpans(tiles, np.array([[0, T, 0, 0]], np.int32), counted(len(tiles.keys))),), F)


def turn(T, size=E):
    return rotations(counted(T), rope_table(size, base=10000.0, pairing="split"))


CASES = {  # a name, how the operation is called for T tokens, and the sizes of a row of its result
    "linear": (linear, lambda T: [floats(T, D), matrix(INNER, D), floats(INNER)], (INNER,)),
    "linear, not packed": (linear, lambda T: [floats(T, D), plain(INNER, D), floats(INNER)], (INNER,)),
    "mlp": (
        lambda x, up, down: mlp(x, up, down, activation="gelu"),
        lambda T: [floats(T, D), matrix(INNER, D), matrix(D, INNER)],
        (D,),
    ),
    "gated_mlp": (gated_mlp, lambda T: [floats(T, D), matrix(INNER, D), matrix(INNER, D), matrix(D, INNER)], (D,)),
    "gated_mlp, not packed": (
        gated_mlp,
        lambda T: [floats(T, D), plain(INNER, D), plain(INNER, D), plain(D, INNER)],
        (D,),
    ),
    "moe": (
        moe,
        lambda T: [
            *(floats(T, D), np.tile(counted(CHOSEN), (T, 1)), floats(T, CHOSEN)),
            *(experts(INNER, D), experts(INNER, D), experts(D, INNER)),
        ],
        (D,),
    ),
    "sigmoid": (sigmoid, lambda T: [floats(T, D)], (D,)),
    "sharpness": (lambda positions: sharpness(positions, scale=0.1, floor=2.0), lambda T: [counted(T)], (1, 1)),
    "rms_norm": (lambda x, weight: rms_norm(x, weight, 1e-6), lambda T: [floats(T, H, E), floats(E)], (H, E)),
    "layer_norm": (
        lambda x, weight, bias: layer_norm(x, weight, bias, 1e-6),
        lambda T: [floats(T, D), floats(D), floats(D)],
        (D,),
    ),
    "activate": (lambda x: activate(x, "silu"), lambda T: [floats(T, D)], (D,)),
    "soft_cap": (lambda x: soft_cap(x, 3.0), lambda T: [floats(T, D)], (D,)),
    "rope": (rope, lambda T: [floats(T, H, E), turn(T)], (H, E)),
    "embed": (embed, lambda T: [counted(T), matrix(VOCABULARY, D)], (D,)),
    "attend": (lambda q, seen: attend(q, seen, scale=1.0), lambda T: [floats(T, H, E), seen_of(T)], (H * F,)),
    "attend_all": (
        lambda q, k, v: attend_all(q, k, v, scale=1.0),
        lambda T: [floats(T, H, E), floats(T, K, E), floats(T, K, F)],
        (H * F,),
    ),
    "concat": (concat, lambda T: [floats(T, H, E), floats(0, H, E)], (H, E)),
    "concat, columns": (
        lambda *parts: concat(*parts, columns=True),
        lambda T: [floats(T, D), floats(T, E)],
        (D + E,),
    ),
    "add_rows": (lambda x, rows: add_rows(x, rows, 0), lambda T: [floats(T, D), floats(T, D)], (D,)),
    "interpolate": (interpolate, lambda T: [floats(4, 6, D), floats(2, T) % 3], (D,)),
    "conv_patches": (
        conv_patches,
        lambda T: [floats(T, 3, 4, 6), floats(D, 3, 2, 2), floats(D)],  # T images
        (6, D),
    ),
    "pool_patches": (lambda x: pool_patches(x, 2), lambda T: [floats(2 * T, 4, D)], (2, D)),
    "store": (store, lambda T: [floats(T, K, E), floats(T, K, F), counted(T), tiles_of(T)], None),
}
RESULTS = [name for name, (_, _, row) in CASES.items() if row is not None]
NAMED = {"mlp": "linear"}  # operations that others compute with speak for themselves


def name_in_messages(name):
    return NAMED.get(name, name.split(",")[0])


def arrays_of(name, dtype):
    """Return the places of the arguments that are arrays of this dtype."""
    return [i for i, given in enumerate(CASES[name][1](3)) if isinstance(given, np.ndarray) and given.dtype == dtype]


def with_another(name, place, given):
    """Return the arguments for three tokens, one of them replaced."""
    arguments = CASES[name][1](3)
    arguments[place] = given
    return arguments


# ---- no tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [0, 3])
@pytest.mark.parametrize("name", RESULTS)
def test_there_is_a_row_for_each_token_even_if_there_is_none(name, T):
    operation, arguments, row = CASES[name]
    found = operation(*arguments(T))
    assert (found.shape, found.dtype) == ((T, *row), np.float32)
    assert np.isfinite(found).all()


def test_several_products_of_no_tokens_have_their_own_columns():
    found = project(floats(0, D), (matrix(INNER, D), floats(INNER)), (plain(7, D), None), (matrix(9, D), None))
    assert [part.shape for part in found] == [(0, INNER), (0, 7), (0, 9)]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_stretches_without_rows_have_no_mixtures(lengths):
    found = attend_all(floats(0, H, E), floats(0, K, E), floats(0, K, F), scale=1.0, lengths=lengths)
    assert found.shape == (0, H * F)


def test_storing_nothing_leaves_tiles_as_they_are():
    tiles = tiles_of(16)
    store(floats(0, K, E), floats(0, K, F), counted(0), tiles)
    assert not tiles.keys.any()
    assert not tiles.values.any()


# ---- dtypes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize(("name", "place"), [(name, i) for name in CASES for i in arrays_of(name, np.float32)])
def test_numbers_that_are_not_float32_are_refused(name, place, dtype):
    arguments = with_another(name, place, CASES[name][1](3)[place].astype(dtype))
    found, expected = np.dtype(dtype), name_in_messages(name)
    with pytest.raises(BadModel, match=rf"^{expected}: .* is {found} \[.*\], expected float32"):
        CASES[name][0](*arguments)


@pytest.mark.parametrize(("name", "place"), [(name, i) for name in CASES for i in arrays_of(name, np.int32)])
def test_indices_that_are_not_int32_are_refused(name, place):
    arguments = with_another(name, place, CASES[name][1](3)[place].astype(np.int64))
    with pytest.raises(BadModel, match=rf"^{name}: .* is int64 \[.*\], expected int32"):
        CASES[name][0](*arguments)


def test_what_is_no_array_is_refused():
    with pytest.raises(BadModel, match=r"^rms_norm: weight is list, expected float32 \[64\]$"):
        rms_norm(floats(3, D), [1.0] * D, 1e-6)


# ---- shapes --------------------------------------------------------------------------------------------------------

X, CHOICE, SHARE = range(3)  # places of arguments
MISFITS = [
    ("linear", X, floats(3, D - 1), r"^linear: x is float32 \[3, 63\], expected float32 \[any, 64\]$"),
    ("linear", X, floats(D), r"^linear: x is float32 \[64\], expected"),
    ("linear", X, floats(1, 3, D), r"^linear: x is float32 \[1, 3, 64\], expected"),
    ("linear", 2, floats(1), r"^linear: a bias is float32 \[1\], expected float32 \[96\]$"),
    ("linear", 2, floats(3, INNER), r"^linear: a bias is float32 \[3, 96\], expected"),
    ("linear", 1, floats(INNER, D), r"^linear: a weight is ndarray, expected CpuMatrix or PackedMatrix$"),
    ("linear", 1, experts(INNER, D), r"^linear: a weight is Experts, expected"),
    ("gated_mlp", X, floats(3, D + 32), r"^gated_mlp: x is float32 \[3, 96\], expected float32 \[any, 64\]$"),
    ("gated_mlp", 1, matrix(INNER, D + 32), r"^gated_mlp: gate \[96, 96\], up \[96, 64\] and down \[64, 96\] do not"),
    ("gated_mlp", 2, matrix(INNER + 1, D), r"^gated_mlp: gate \[96, 64\], up \[97, 64\]"),
    ("gated_mlp", 3, matrix(D, D), r"^gated_mlp: .* down \[64, 64\] do not fit each other$"),
    ("gated_mlp, not packed", X, floats(3, 5), r"^gated_mlp: x is float32 \[3, 5\]"),
    ("gated_mlp, not packed", 2, plain(1, D), r"^gated_mlp: gate \[96, 64\], up \[1, 64\]"),
    ("moe", X, floats(3, D + 32), r"^moe: x is float32 \[3, 96\], expected float32 \[any, 64\]$"),
    ("moe", CHOICE, np.zeros((2, 2), np.int32), r"^moe: chosen is int32 \[2, 2\], expected int32 \[3, any\]$"),
    ("moe", CHOICE, np.zeros(3, np.int32), r"^moe: chosen is int32 \[3\]"),
    ("moe", SHARE, floats(3, 1), r"^moe: share is float32 \[3, 1\], expected float32 \[3, 2\]$"),
    ("moe", 4, experts(INNER + 1, D), r"^moe: gate \[3, 96, 64\], up \[3, 97, 64\]"),
    ("moe", 5, experts(D, D), r"^moe: .* down \[3, 64, 64\] do not"),
    ("moe", 3, matrix(INNER, D), r"^moe: a weight is PackedMatrix, expected Experts$"),
    ("sharpness", X, counted(6).reshape(2, 3), r"^sharpness: positions is int32 \[2, 3\], expected int32 \[any\]$"),
    ("rms_norm", 1, floats(E - 1), r"^rms_norm: weight is float32 \[31\], expected float32 \[32\]$"),
    ("rms_norm", 1, floats(H, E), r"^rms_norm: weight is float32 \[4, 32\]"),
    ("layer_norm", 1, floats(D + 1), r"^layer_norm: weight is float32 \[65\], expected float32 \[64\]$"),
    ("layer_norm", 2, floats(1), r"^layer_norm: bias is float32 \[1\], expected float32 \[64\]$"),
    ("rope", 1, turn(2), r"^rope: x is float32 \[3, 4, 32\], expected float32 \[2, any, any\]$"),
    ("rope", 1, turn(4), r"^rope: x is float32 \[3, 4, 32\], expected float32 \[4, any, any\]$"),
    ("rope", 1, turn(3, E + 2), r"^rope: heads of 32, expected at least the 34 dimensions that turn$"),
    ("rope", X, floats(3, H * E), r"^rope: x is float32 \[3, 128\]"),
    ("embed", 0, np.zeros((1, 3), np.int32), r"^embed: tokens is int32 \[1, 3\], expected int32 \[3\]$"),
    ("embed", 1, floats(VOCABULARY, D), r"^embed: a weight is ndarray, expected"),
    ("attend", X, floats(3, H * E), r"^attend: q is float32 \[3, 128\], expected float32 \[any, any, any\]$"),
    ("attend", X, floats(2, H, E), r"^attention of 2 rows, expected 3"),
    ("attend", X, floats(4, H, E), r"^attention of 4 rows, expected 3"),
    ("attend_all", 1, floats(2, K, E), r"^attend_all: v is float32 \[3, 2, 20\], expected float32 \[2, 2, any\]$"),
    ("attend_all", 1, floats(3, K, E - 1), r"^attend_all: k is"),
    ("attend_all", 2, floats(3, K + 1, F), r"^attend_all: v is float32 \[3, 3, 20\], expected float32 \[3, 2, any\]$"),
    ("attend_all", 0, floats(3, 3, E), r"^attention of 3 query heads of 32 over 2 key heads of 32"),
    ("concat", 1, floats(3, H, E + 1), r"^concat: a part is float32 \[3, 4, 33\], expected float32 \[any, 4, 32\]$"),
    ("concat", 1, floats(3, E), r"^concat: a part is float32 \[3, 32\]"),
    ("concat, columns", 1, floats(2, D), r"^concat: a part is float32 \[2, 64\], expected float32 \[3, any\]$"),
    ("concat, columns", 1, floats(3, H, E), r"^concat: a part is float32 \[3, 4, 32\], expected"),
    ("add_rows", 1, floats(3, D - 1), r"^add_rows: rows is float32 \[3, 63\], expected float32 \[any, 64\]$"),
    ("interpolate", X, floats(16, D), r"^interpolate: table is float32 \[16, 64\], expected .* \[any, any, any\]$"),
    ("interpolate", 1, floats(3, 3), r"^interpolate: places is float32 \[3, 3\], expected float32 \[2, any\]$"),
    ("interpolate", 1, np.float32([[3.1], [0]]), r"^interpolate: a place lies outside of a table of 4 x 6 rows$"),
    ("interpolate", 1, np.float32([[0], [5.01]]), r"^interpolate: a place lies outside"),
    ("interpolate", 1, np.float32([[-0.1], [0]]), r"^interpolate: a place lies outside"),
    ("interpolate", 1, np.float32([[np.nan], [0]]), r"^interpolate: a place lies outside"),
    ("conv_patches", 2, floats(D - 1), r"^conv_patches: bias is float32 \[63\], expected float32 \[64\]$"),
    ("pool_patches", X, floats(16, D), r"^pool_patches: x is float32 \[16, 64\], expected float32 \[any, any, any\]$"),
    ("pool_patches", X, floats(4, 5, D), r"^an image of 4 x 5 patches is not made of squares of 2 x 2$"),
    ("pool_patches", X, floats(3, 4, D), r"^an image of 3 x 4 patches"),
    ("store", 0, floats(3, K + 1, E), r"^store: k is float32 \[3, 3, 32\], expected float32 \[3, 2, 32\]$"),
    ("store", 0, floats(2, K, E), r"^store: k is float32 \[2, 2, 32\]"),
    ("store", 1, floats(3, K, 33), r"^store: values of 33 in tiles that have room for 32$"),
    ("store", 1, floats(3, F), r"^store: v is float32 \[3, 20\], expected float32 \[3, 2, any\]$"),
    ("store", 2, np.zeros((3, 1), np.int32), r"^store: slots is int32 \[3, 1\], expected int32 \[3\]$"),
    ("store", 3, tiles_of(3, "q8_0"), r"^store: values of 20 in tiles that have room for 32$"),
]


@pytest.mark.parametrize(("name", "place", "given", "message"), MISFITS)
def test_what_does_not_fit_is_refused_before_memory_is_read(name, place, given, message):
    with pytest.raises(BadModel, match=message):
        CASES[name][0](*with_another(name, place, given))


def test_a_bias_of_another_size_in_a_projection_is_refused():
    with pytest.raises(BadModel, match=r"^project: a bias is float32 \[7\], expected float32 \[9\]$"):
        project(floats(3, D), (matrix(7, D), floats(7)), (matrix(9, D), floats(7)))


@pytest.mark.parametrize("count", [0, 5])
def test_more_numbers_than_there_are_cannot_be_the_largest(count):
    with pytest.raises(BadModel, match=f"^largest: {count} of 4 numbers$"):
        largest(floats(3, 4), count)
    with pytest.raises(BadModel, match=r"^largest: x is float32 \[4\], expected float32 \[any, any\]$"):
        largest(floats(4), 1)


# ---- what indices point to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place", "given", "message"),
    [
        ("embed", 0, np.int32([0, 40]), r"^embed: tokens from 0 to 40, the table has 40 rows$"),
        ("embed", 0, np.int32([-1, 3]), r"^embed: tokens from -1 to 3"),
        ("moe", 1, np.int32([[0, 1], [2, 3], [0, 1]]), r"^moe: chosen 0 to 3, there are 3 experts$"),
        ("moe", 1, np.int32([[0, 1], [-1, 0], [0, 1]]), r"^moe: chosen -1 to 1"),
        ("store", 2, np.int32([0, 16, 1]), r"^store: slots from 0 to 16, the tiles have 16$"),
        ("store", 2, np.int32([0, -1, 1]), r"^store: slots from -1 to 1"),
    ],
)
def test_indices_of_what_is_not_there_are_refused(name, place, given, message):
    with pytest.raises(BadModel, match=message):
        CASES[name][0](*with_another(name, place, given))
