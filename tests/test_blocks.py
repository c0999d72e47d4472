"""Block formats and their decoders, against gguf's constants and numpy code and against reference values."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from puna.core.errors import BadModel
from puna.core.tensor.blocks import FORMATS, by_id, by_name
from puna.core.tensor.decode import KINDS, decode_block, decode_rows, decode_tensor
from puna.core.tensor.weights import open_weights

BLOCKS = Path(__file__).parent / "fixtures" / "ggml-blocks"
HALF_SCALES = (0x0001, 0x8001, 0x03FF, 0x83FF, 0x8000, 0xB266, 0x7BFF, 0xFBFF)  # sub-normal, negative, zero, largest
SCALES_AT = {  # bytes where a block's half-precision scale and minimum lie
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def reference(raw, name):
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[name])


def assert_same_bits(found, expected):
    """Equal to the bit, sign of zero included; any NaN equals any other."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_the_table_agrees_with_the_gguf_package():
    known = {type_.value: (type_.name, *gguf.GGML_QUANT_SIZES[type_]) for type_ in gguf.GGMLQuantizationType}
    assert known[9] == ("Q8_1", 32, 40)  # an older layout with float32 scales; ggml's has two halves and 32 codes
    known[9] = ("Q8_1", 32, 36)
    ours = {form.id: (form.name, form.elements, form.nbytes) for form in FORMATS.values()}
    assert {id: ours.get(id) for id in known} == known


def test_a_format_is_found_by_id_and_by_name():
    assert by_id(12) == by_name("Q4_K") == FORMATS[12]
    assert by_name("BF16").id == 30
    assert by_name("BOOL").nbytes == 1


@pytest.mark.parametrize("id", [4, 5, 31, 36, 43, 2**32 - 1, -1])
def test_an_unknown_or_retired_id_is_refused_by_number(id):
    with pytest.raises(BadModel, match=str(id)):
        by_id(id)


def test_an_unknown_name_is_refused():
    with pytest.raises(BadModel, match="F8_E4M3"):
        by_name("F8_E4M3")


def test_a_row_is_whole_blocks():
    assert by_name("Q4_K").row_bytes(512) == 288
    with pytest.raises(BadModel, match="500 elements"):
        by_name("Q4_K").row_bytes(500)


@pytest.mark.parametrize("name", json.loads((BLOCKS / "blocks.json").read_text())["types"])
def test_every_type_decodes_to_the_reference_values(name):
    source = open_weights(BLOCKS / "blocks.gguf")
    info = next(info for info in source.tensors.values() if info.format.name == name)
    expected = load_file(BLOCKS / "expected.safetensors")[info.name]
    assert_same_bits(decode_tensor(source.raw(info.name), info.format, info.shape), expected)


@pytest.mark.parametrize("name", sorted(FORMATS[kind].name for kind in KINDS))
def test_random_bytes_decode_as_in_gguf(name):
    form = by_name(name)
    raw = np.random.default_rng(form.id).integers(0, 256, (64, form.row_bytes(768)), np.uint8)
    assert_same_bits(decode_tensor(raw, form, (64, 768)), reference(raw, name))


@pytest.mark.parametrize("name", sorted(SCALES_AT))
def test_tiny_and_negative_scales_decode_as_in_gguf(name):
    form = by_name(name)
    raw = np.random.default_rng(1).integers(0, 256, (len(HALF_SCALES) ** 2, form.nbytes), np.uint8)
    for row, (scale, minimum) in enumerate((s, m) for s in HALF_SCALES for m in HALF_SCALES):
        for at, value in zip(SCALES_AT[name], (scale, minimum), strict=False):
            raw[row, at : at + 2] = value & 255, value >> 8
    found = decode_tensor(raw, form, (len(raw), form.elements))
    assert np.isfinite(found).all() and (found < 0).any()
    assert_same_bits(found, reference(raw, name))


def test_every_exponent_of_mxfp4_decodes_as_in_gguf():
    raw = np.random.default_rng(2).integers(0, 256, (256, 17), np.uint8)
    raw[:, 0] = np.arange(256)
    found = decode_tensor(raw, by_name("MXFP4"), (256, 32))
    assert 0 < np.abs(found[0][found[0] != 0]).min() < np.finfo(np.float32).tiny
    assert_same_bits(found, reference(raw, "MXFP4"))


@pytest.mark.parametrize(("name", "dtype"), [("F32", "<f4"), ("F16", "<f2")])
@pytest.mark.parametrize("n", [1, 15, 16, 37])
def test_rows_of_any_length_widen_exactly(name, dtype, n):
    values = np.random.default_rng(n).standard_normal((3, n)).astype(dtype)
    assert_same_bits(decode_tensor(values.view(np.uint8), by_name(name), (3, n)), values.astype(np.float32))


def test_bf16_is_the_upper_half_of_a_float32():
    values = np.random.default_rng(3).standard_normal((2, 37)).astype(np.float32)
    values.view(np.uint32)[:] &= 0xFFFF0000
    upper = np.ascontiguousarray(values.view(np.uint16)[:, 1::2])
    assert_same_bits(decode_tensor(upper.view(np.uint8), by_name("BF16"), (2, 37)), values)


@pytest.mark.parametrize("name", ["I8", "I16", "I32", "I64", "F64", "U8", "U16", "U32", "U64"])
def test_plain_numbers_become_float32(name):
    dtype = name.lower().replace("i", "int").replace("f", "float").replace("u", "uint")
    values = np.array([[0, 1, 2], [100, 101, 127]], dtype)
    np.testing.assert_array_equal(decode_tensor(values.view(np.uint8), by_name(name), (2, 3)), values)


def test_scalars_and_deep_shapes_keep_their_shape():
    one = np.array([1.5], np.float32)
    assert decode_tensor(one.view(np.uint8)[None], by_name("F32"), ()).shape == ()
    many = np.zeros((6, 16), np.uint8)
    assert decode_tensor(many, by_name("F32"), (2, 3, 4)).shape == (2, 3, 4)


def test_bytes_that_do_not_fit_the_shape_are_refused():
    with pytest.raises(ValueError, match="takes"):
        decode_tensor(np.zeros((2, 18), np.uint8), by_name("Q4_0"), (3, 32))


def test_a_format_without_a_decoder_is_refused_by_name():
    with pytest.raises(BadModel, match="Q1_0"):
        decode_tensor(np.zeros((1, 18), np.uint8), by_name("Q1_0"), (1, 128))


def test_rows_decode_from_the_middle_of_a_read_only_array():
    raw = np.random.default_rng(4).integers(0, 256, (9, 288), np.uint8)
    raw.flags.writeable = False
    out = np.empty((3, 512), np.float32)
    decode_rows(12, raw, 5, out)
    assert_same_bits(out, reference(raw, "Q4_K")[5:8])


def test_a_single_block_decodes_into_the_middle_of_an_array():
    raw = np.random.default_rng(5).integers(0, 256, 3 * 18, np.uint8)
    raw.flags.writeable = False
    out = np.full(40, 7, np.float32)
    decode_block(2, raw, 18, out, 4)
    assert_same_bits(out[4:36], reference(raw[18:36], "Q4_0"))
    assert (out[:4] == 7).all() and (out[36:] == 7).all()


@pytest.mark.parametrize(
    ("kind", "first_row", "shape"),
    [(12, 7, (3, 512)), (12, -1, (1, 512)), (12, 0, (1, 256)), (12, 0, (1, 500)), (16, 0, (1, 512)), (99, 0, (1, 512))],
)
def test_rows_outside_the_data_and_unknown_kinds_are_refused(kind, first_row, shape):
    raw = np.zeros((9, 288), np.uint8)
    raw.flags.writeable = False
    with pytest.raises(ValueError, match=r"format|rows"):
        decode_rows(kind, raw, first_row, np.empty(shape, np.float32))
