"""Each operation on numpy arrays against a literal twin in float64, and how operations find their implementation."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import BadModel
from puna.core.tensor import (
    activations,
    attend,
    cpu,
    cpu_vision,
    embed,
    gated_mlp,
    largest,
    linear,
    mlp,
    project,
    rms_norm,
    rope,
    rope_table,
    rotations,
    sharpness,
    sigmoid,
)
from puna.core.tensor.activations import LITTLE
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import FEW, TILE_ROWS, CpuLoader, CpuMatrix, Experts, PackedMatrix, packed_matrix
from puna.core.tensor.decode import KINDS, decode_tensor
from puna.core.tensor.floats import narrow
from puna.core.tensor.layouts import PEAK, ROUNDED_FORMATS
from puna.core.tensor.ops import Operation
from puna.core.tensor.source import PartOfTensor, TensorInfo
from puna.core.tensor.weights import open_weights

from .packed import random_blocks

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = sorted((by_name(name) for name in (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "MXFP4",
)), key=lambda form: form.id)  # fmt: skip
FEW_OR_MANY = st.integers(1, 2 * FEW)

kernels = settings(deadline=None, max_examples=60)  # the first call of a kernel may compile it


def floats(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def matrix(rng, form, rows, columns):
    """Random bytes of a format, with scales of an everyday size: a weight and its values in float64."""
    if form.elements == 1:
        values = floats(rng, rows, columns)
        if form.name == "BF16":
            data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            data = values.astype({"F32": np.float32, "F16": np.float16}[form.name]).view(np.uint8)
    else:
        data = random_blocks(rng, form, rows, columns)
    data = np.ascontiguousarray(data)
    data.flags.writeable = False
    wide = decode_tensor(data, form, (rows, columns)).astype(np.float64)
    return CpuMatrix(form, data, (rows, columns)), wide


def plain(rng, rows, columns):
    return matrix(rng, by_name("F32"), rows, columns)


def assert_product(found, x, wide, bias=0.0):
    """A float32 sum may be off by a small share of the sum of its terms' magnitudes."""
    assert found.dtype == np.float32
    x = x.astype(np.float64)
    room = 4e-6 * (np.abs(x) @ np.abs(wide).T + np.abs(bias)) + 1e-30
    assert (np.abs(found - (x @ wide.T + bias)) <= room).all()


# ---- products with weights -----------------------------------------------------------------------------------------


def test_the_formats_here_are_all_that_have_kernels():
    assert {form.id for form in FORMATS} == KINDS


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@kernels
@given(tokens=FEW_OR_MANY, rows=st.integers(1, 70), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 32))
def test_linear_multiplies_with_the_widened_weight(form, tokens, rows, blocks, seed):
    rng = np.random.default_rng(seed)
    columns = blocks * form.elements if form.elements > 1 else 19 * blocks
    weight, wide = matrix(rng, form, rows, columns)
    x = floats(rng, tokens, columns)
    assert_product(linear(x, weight), x, wide)


@pytest.mark.parametrize("tokens", [1, FEW, FEW + 1])
def test_linear_adds_a_bias_to_every_row(tokens):
    rng = np.random.default_rng(0)
    weight, wide = plain(rng, 33, 64)
    x, bias = floats(rng, tokens, 64), floats(rng, 33)
    assert_product(linear(x, weight, bias), x, wide, bias.astype(np.float64))


@pytest.mark.parametrize("tokens", [1, FEW + 1])
@pytest.mark.parametrize("rows", [TILE_ROWS - 1, TILE_ROWS, 2 * TILE_ROWS + 1])
def test_a_weight_of_several_tiles_is_multiplied_whole(tokens, rows):
    rng = np.random.default_rng(rows)
    weight, wide = matrix(rng, by_name("Q8_0"), rows, 32)
    x = floats(rng, tokens, 32)
    assert_product(linear(x, weight), x, wide)


def test_linear_reads_rows_that_do_not_lie_side_by_side():
    rng = np.random.default_rng(0)
    weight, wide = plain(rng, 5, 8)
    x = floats(rng, 6, 16)[::2, ::2]
    assert_product(linear(x, weight), x, wide)


def test_linear_leaves_its_arguments_alone():
    rng = np.random.default_rng(0)
    weight, _ = plain(rng, 5, 8)
    x, bias = floats(rng, 2, 8), floats(rng, 5)
    before = x.copy(), bias.copy()
    linear(x, weight, bias)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(bias, before[1])


@pytest.mark.parametrize("tokens", [3, FEW + 3])
def test_project_gives_each_product_with_its_bias(tokens):
    rng = np.random.default_rng(0)
    parts = [
        (*plain(rng, rows, 24), floats(rng, rows) if biased else None) for rows, biased in ((8, 1), (4, 0), (6, 1))
    ]
    x = floats(rng, tokens, 24)
    found = project(x, *[(weight, bias) for weight, _, bias in parts])
    assert len(found) == 3
    for product, (_, wide, bias) in zip(found, parts, strict=True):
        assert_product(product, x, wide, 0.0 if bias is None else bias.astype(np.float64))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_embed_returns_the_rows_of_its_tokens(form):
    rng = np.random.default_rng(0)
    table, wide = matrix(rng, form, 9, 2 * form.elements)
    tokens = np.array([8, 0, 3, 3], np.int32)
    found = embed(tokens, table)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wide[tokens].astype(np.float32))


@kernels
@given(tokens=FEW_OR_MANY, seed=st.integers(0, 1 << 32), size=st.sampled_from([1.0, 1e3, 1e-3]))
def test_gated_mlp_is_down_of_silu_of_gate_times_up(tokens, seed, size):
    rng = np.random.default_rng(seed)
    (gate, wide_gate), (up, wide_up), (down, wide_down) = plain(rng, 40, 24), plain(rng, 40, 24), plain(rng, 24, 40)
    x = floats(rng, tokens, 24) * np.float32(size)
    found = gated_mlp(x, gate, up, down)
    wide = x.astype(np.float64)
    gated = wide @ wide_gate.T
    with np.errstate(over="ignore"):  # exp of what is far below zero
        inner = gated / (1 + np.exp(-gated)) * (wide @ wide_up.T)
    expected = inner @ wide_down.T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * (np.abs(inner) @ np.abs(wide_down).T).max())


# ---- norms ---------------------------------------------------------------------------------------------------------


@kernels
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3).map(tuple), seed=st.integers(0, 1 << 32),
    eps=st.sampled_from([1e-6, 1e-5, 0.1]), size=st.sampled_from([1e-3, 1.0, 1e4]),
)  # fmt: skip
def test_rms_norm_scales_the_last_dimension(shape, seed, eps, size):
    rng = np.random.default_rng(seed)
    x, weight = floats(rng, *shape) * np.float32(size), floats(rng, shape[-1])
    found = rms_norm(x, weight, eps)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * weight
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-12)


def test_rms_norm_without_a_weight_multiplies_with_nothing():
    x = floats(np.random.default_rng(0), 5, 3, 16)
    np.testing.assert_array_equal(rms_norm(x, None, 1e-5), rms_norm(x, np.ones(16, np.float32), 1e-5))


def test_rms_norm_of_many_rows_is_shared_out():
    rng = np.random.default_rng(0)
    x, weight = floats(rng, LITTLE // 100, 130), floats(rng, 130)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(rms_norm(x, weight, 1e-6), expected, rtol=2e-6, atol=1e-12)


# ---- choices -------------------------------------------------------------------------------------------------------


def test_the_sigmoid_is_right_far_from_zero_too():
    x = np.array([[-200.0, -90.0, -10.0, -1.0], [0.0, 1.0, 20.0, 200.0]], np.float32)
    found = sigmoid(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-wide)), rtol=1e-6, atol=1e-38)
    assert found.dtype == np.float32


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 1 << 32), st.data())
def test_the_largest_of_each_row_come_with_their_places(rows, columns, seed, data):
    count = data.draw(st.integers(1, columns))
    x = np.random.default_rng(seed).integers(-3, 4, (rows, columns)).astype(np.float32)  # many are equal
    places, values = largest(x, count)
    assert (places.dtype, places.shape, values.shape) == (np.int32, (rows, count), (rows, count))
    for row, found, kept in zip(x.tolist(), places.tolist(), values.tolist(), strict=True):
        assert found == sorted(range(columns), key=lambda place: (-row[place], place))[:count]
        assert kept == [row[place] for place in found]


# ---- positions -----------------------------------------------------------------------------------------------------


def rope_twin(x, positions, table):
    out = x.astype(np.float64)
    half = len(table.frequencies)
    for t, position in enumerate(positions):
        for k, theta in enumerate(table.frequencies.astype(np.float64)):
            a, b = (k, k + half) if table.pairing == "split" else (2 * k, 2 * k + 1)
            angle = np.float32(position) * np.float32(theta)  # as the references: in float32
            cos, sin = math.cos(angle) * table.magnitude, math.sin(angle) * table.magnitude
            out[t, :, a] = x[t, :, a] * cos - x[t, :, b] * sin
            out[t, :, b] = x[t, :, a] * sin + x[t, :, b] * cos
    return out


@kernels
@given(
    pairing=st.sampled_from(["split", "interleaved"]), half=st.integers(1, 16), beyond=st.integers(0, 8),
    heads=st.integers(1, 4), positions=st.lists(st.integers(0, 131072), min_size=1, max_size=5),
    magnitude=st.sampled_from([1.0, 1.139]), seed=st.integers(0, 1 << 32),
)  # fmt: skip
def test_rope_turns_each_pair_by_its_position(pairing, half, beyond, heads, positions, magnitude, seed):
    table = rope_table(2 * half, base=10000.0, pairing=pairing)
    table = type(table)(table.frequencies, table.pairing, magnitude)
    x = floats(np.random.default_rng(seed), len(positions), heads, 2 * half + beyond)
    found = rope(x, rotations(np.array(positions, np.int32), table))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rope_twin(x, positions, table), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("pairing", ["split", "interleaved"])
def test_rope_of_many_tokens_is_shared_out(pairing):
    rng = np.random.default_rng(0)
    x, positions = floats(rng, LITTLE // 100, 5, 26), rng.permutation(LITTLE // 100).astype(np.int32)
    table = rope_table(24, base=10000.0, pairing=pairing)
    found = rope(x, rotations(positions, table))
    np.testing.assert_allclose(found, rope_twin(x, positions, table), rtol=1e-5, atol=1e-5)


def test_nothing_turns_at_position_zero():
    x = floats(np.random.default_rng(0), 1, 2, 8)
    table = rope_table(8, base=10000.0, pairing="split")
    np.testing.assert_array_equal(rope(x, rotations(np.zeros(1, np.int32), table)), x)


def test_queries_get_sharper_step_by_step():
    positions = np.array([0, 6, 7, 14, 15, 8190, 8191], np.int32)
    found = sharpness(positions, scale=0.1, floor=8.0)
    steps = [0, 0, 1, 1, 2, 1023, 1024]
    assert (found.dtype, found.shape) == (np.float32, (7, 1, 1))
    np.testing.assert_allclose(found[:, 0, 0], [1 + 0.1 * math.log1p(step) for step in steps], rtol=1e-6)
    assert (sharpness(positions, scale=0.0, floor=8.0) == 1).all()


# ---- weights as they are loaded ------------------------------------------------------------------------------------


class Stored:
    """A source of one tensor, "w", in a format of numbers."""

    kind, metadata = "safetensors", {}

    def __init__(self, name, numbers):
        form, rows = by_name(name), numbers.reshape(-1, numbers.shape[-1])
        if name == "F64":
            self._raw = rows.astype("<f8").view(np.uint8)
        else:
            self._raw = narrow(rows.astype(np.float32), form)
        self._raw.flags.writeable = False
        self.tensors = {"w": TensorInfo("w", form, numbers.shape, self._raw.nbytes)}

    def raw(self, name):
        return self._raw

    def release(self, name):
        self.released = name


def blocks_of(name):
    """Return a source and one of its tensors, which has this format."""
    source = open_weights(FIXTURES / "ggml-blocks" / "blocks.gguf")
    return source, next(info for info in source.tensors.values() if info.format.name == name)


def test_a_format_without_a_kernel_is_widened_once():
    source, info = blocks_of("IQ2_XXS")
    weight = CpuLoader().matrix(source, info)
    assert (weight.format.name, weight.shape, weight.nbytes) == ("F32", info.shape, 4 * math.prod(info.shape))
    x = floats(np.random.default_rng(0), 2, info.shape[1])
    assert_product(
        linear(x, weight), x, decode_tensor(source.raw(info.name), info.format, info.shape).astype(np.float64)
    )


def test_a_precise_weight_lies_where_its_file_is_mapped():
    source, info = blocks_of("Q4_K")
    weight = CpuLoader(precise=True).matrix(source, info)
    assert isinstance(weight, CpuMatrix)
    assert np.shares_memory(weight.data, source.raw(info.name))
    assert weight.nbytes == info.nbytes


def test_experts_are_weights_of_their_own():
    source, info = blocks_of("Q4_K")
    rows, columns = info.shape
    found = CpuLoader().matrix(source, replace(info, shape=(rows, 1, columns)))
    assert isinstance(found, Experts)
    assert found.shape == (rows, 1, columns)
    for expert, wide in zip(found.each, decode_tensor(source.raw(info.name), info.format, info.shape), strict=True):
        np.testing.assert_array_equal(embed(np.zeros(1, np.int32), expert)[0], wide)


@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("part", [None, 0, 1])
def test_weights_that_lie_the_other_way_round_are_turned(name, part, precise):
    """[experts, in, out], and of that the left or the right half of out."""
    experts, columns, rows = 3, 64, 48
    whole = np.random.default_rng(0).integers(-9, 9, (experts, columns, 2 * rows)).astype(np.float64)  # exact in all
    source = Stored(name, whole)
    if part is not None:
        source, whole = PartOfTensor(source, "w", part, 2, columns=True), np.split(whole, 2, axis=2)[part]
    found = CpuLoader(precise=precise).matrix(source, source.tensors["w"], transposed=True)
    assert found.shape == (experts, whole.shape[2], columns)
    x = np.eye(columns, dtype=np.float32)
    off = 0.0 if precise or name not in ROUNDED_FORMATS else 9 / PEAK  # of codes of 16 bits: a step of the largest
    for expert, wide in zip(found.each, whole, strict=True):
        assert isinstance(expert, CpuMatrix if precise else PackedMatrix)
        np.testing.assert_allclose(linear(x, expert), wide, rtol=0, atol=off)
    kept = "F32" if name == "F64" else name
    assert {(each if precise else each.rows).format.name for each in found.each} == {kept}


def test_parts_that_are_not_equal_are_refused():
    source = Stored("F32", np.zeros((2, 3, 5)))
    with pytest.raises(BadModel, match=r"^w is \[2, 3, 5\], expected 2 equal parts of dimension 2$"):
        PartOfTensor(source, "w", 0, 2, columns=True)
    with pytest.raises(BadModel, match=r"^w is \[2, 3, 5\], expected 3 equal parts of dimension 0$"):
        PartOfTensor(source, "w", 0, 3)


def test_a_tensor_is_let_go_of_with_its_last_part():
    source = Stored("F32", np.zeros((4, 3)))
    source.released = None
    for part, released in ((0, None), (1, "w")):
        PartOfTensor(source, "w", part, 2).release("w")
        assert source.released == released


def test_a_weight_is_packed_into_memory_of_its_own_and_its_rows_stay_in_the_file():
    source, info = blocks_of("Q4_K")
    weight = CpuLoader().matrix(source, info)
    assert isinstance(weight, PackedMatrix)
    assert (weight.shape, weight.rows.format.name) == (info.shape, "Q4_K")
    assert np.shares_memory(weight.rows.data, source.raw(info.name))
    assert not np.shares_memory(weight.data, source.raw(info.name))
    assert weight.nbytes == 32 / info.shape[0] * info.nbytes * 148 / 144  # a pair of groups, of wider records
    wide = decode_tensor(source.raw(info.name), info.format, info.shape)
    np.testing.assert_array_equal(embed(np.arange(info.shape[0], dtype=np.int32), weight), wide)
    x = np.eye(info.shape[1], dtype=np.float32)[:20]
    np.testing.assert_allclose(linear(x, weight), x @ wide.T, rtol=1e-6, atol=1e-6 * np.abs(wide).max())


def test_a_weight_has_two_dimensions():
    source = open_weights(FIXTURES / "llama-bpe" / "hf")
    vector = source.tensors["model.norm.weight"]
    with pytest.raises(BadModel, match=r"model\.norm\.weight has 1 dimensions, expected 2"):
        CpuLoader().matrix(source, vector)
    assert CpuLoader().array(source, vector).dtype == np.float32


# ---- how an operation finds its implementation ---------------------------------------------------------------------


class Ghost:
    """An array without data, as a backend of a third party might bring it."""

    def __init__(self, *shape):
        self.shape = shape


def test_an_operation_runs_what_is_registered_for_the_type_of_its_first_argument():
    @rms_norm.register(Ghost)
    def ghostly(x, weight, eps):
        return Ghost(*x.shape)

    assert rms_norm(Ghost(2, 3), np.ones(3, np.float32), 1e-6).shape == (2, 3)
    assert ghostly(Ghost(1), None, 0.0).shape == (1,)  # the decorator hands the function back
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(rms_norm(x, np.ones(3, np.float32), 0.0), x)


def test_an_unknown_type_is_refused_by_name():
    with pytest.raises(TypeError, match=r"^linear has no implementation for Ghost$"):
        linear(Ghost(2, 3), None)
    with pytest.raises(TypeError, match=r"^attend has no implementation for list$"):
        attend([1.0], None, scale=1.0)


def test_an_error_inside_an_implementation_is_not_taken_for_a_missing_one():
    def declaration(x): ...

    operation = Operation(declaration)

    @operation.register(Ghost)
    def broken(x):
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        operation(Ghost())


def test_an_operation_keeps_the_name_and_the_documentation_of_its_declaration():
    assert linear.__name__ == "linear"
    assert "weight" in linear.__doc__


def test_many_rows_are_computed_in_pieces_to_the_same_numbers(monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((70, 64), dtype=np.float32)
    q, up, down = (packed_matrix(matrix_of(rng, *shape)) for shape in ((48, 64), (96, 64), (64, 96)))

    def computed():
        gated = gated_mlp(x, up, up, down)
        return [linear(x, q), *project(x, (q, None), (up, None)), mlp(x, up, down, activation="gelu"), gated]

    whole = computed()
    monkeypatch.setattr(cpu, "PIECE", 32)
    monkeypatch.setattr(cpu_vision, "PIECE", 32)
    monkeypatch.setattr(activations, "PIECE", 32)
    for found, expected in zip(computed(), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def matrix_of(rng, rows, columns):
    """Return random weights in half precision, as they lie in a file."""
    raw = rng.standard_normal((rows, columns)).astype(np.float16).view(np.uint8)
    raw.flags.writeable = False
    return CpuMatrix(by_name("F16"), raw, (rows, columns))
