"""Packed weights: the records say what the file's blocks say, to the bit, and take no more room."""

import numpy as np
import pytest

from puna.core.tensor.blocks import by_name
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.layouts import LAYOUTS
from puna.core.tensor.packing import pack

from .packed import random_blocks, unpacked

FORMATS = sorted(LAYOUTS)


def same_bits(found, expected):
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def packed_and_wide(name, rows, columns, *, tiny=False):
    """Return a random weight's blocks, its records, and its values as the decoders give them."""
    form = by_name(name)
    raw = random_blocks(np.random.default_rng(form.id), form, rows, columns, tiny=tiny)
    return raw, pack(raw, form), decode_tensor(raw, form, (rows, columns))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tiny", [False, True], ids=["everyday", "sub-normal"])
def test_records_hold_the_weights_of_the_file_to_the_bit(name, tiny):
    _, data, wide = packed_and_wide(name, 64, 768, tiny=tiny)
    assert (wide < 0).any() and (wide > 0).any()
    same_bits(unpacked(data, name).weights, wide)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 33, 50])
def test_a_pair_of_groups_that_rows_do_not_fill_is_filled_with_zeros(name, rows):
    _, data, wide = packed_and_wide(name, rows, 256)
    assert len(data) == -(-rows // 32)
    found = unpacked(data, name).weights
    same_bits(found[:rows], wide)
    assert not found[rows:].any()


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_of_a_format_occurs_and_is_kept(name):
    _, data, _ = packed_and_wide(name, 64, 768)
    layout = LAYOUTS[name]
    expected = layout.table or range(-layout.offset, (1 << sum(layout.planes)) - layout.offset)
    np.testing.assert_array_equal(np.unique(unpacked(data, name).codes), sorted(set(expected)))


@pytest.mark.parametrize("name", FORMATS)
def test_codes_fit_what_the_dot_product_takes(name):
    """Offset codes are unsigned bytes, so that minus the offset they are what the format means."""
    layout = LAYOUTS[name]
    codes = [value + layout.offset for value in layout.table] if layout.table else [(1 << sum(layout.planes)) - 1]
    assert min(codes) >= 0 and max(codes) <= 255


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_take_at_most_a_twentieth_more_than_their_file(name):
    raw, data, _ = packed_and_wide(name, 32, 256)
    assert raw.nbytes <= data.nbytes <= 1.05 * raw.nbytes


@pytest.mark.parametrize("name", FORMATS)
def test_kernels_tell_formats_apart_by_the_dtype_of_their_records(name):
    _, data, _ = packed_and_wide(name, 1, 256)
    assert data.dtype.names == (name,)
    assert data.shape == (1, 256 // LAYOUTS[name].unit, 2)
    assert LAYOUTS[name].unit == by_name(name).elements
    assert LAYOUTS[name].kind == by_name(name).id
