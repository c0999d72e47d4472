"""GGUF files that Puna writes, and the formats of their numbers."""

from dataclasses import dataclass

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core import converting
from puna.core.tensor.blocks import by_name
from puna.core.tensor.floats import BF16, F16, F32, narrow, widen
from puna.core.tensor.gguf import read_gguf
from puna.core.tensor.gguf_writer import gguf_bytes


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_numbers_are_rounded_to_the_nearest_of_a_format(values):
    given = np.array([values], np.float32)
    for form, like in ((F32, np.float32), (F16, np.float16), (BF16, None)):
        try:
            found = widen(narrow(given, form), form)
        except OverflowError:
            assert np.abs(given[np.isfinite(given)]).max() > (65519 if form == F16 else 3.38e38)
            continue
        if like is None:  # no number of this format is nearer
            bits = found.view(np.uint32)
            assert (bits & 0xFFFF == 0).all()
            fine = np.isfinite(given)
            for step in (-0x10000, 0x10000):
                near = (bits[fine].astype(np.int64) + step).clip(0, 0xFFFFFFFF).astype(np.uint32).view(np.float32)
                apart = np.nan_to_num(np.abs(near.astype(float) - given[fine]), nan=np.inf)
                assert (np.abs(found[fine].astype(float) - given[fine]) <= apart).all()
        else:
            np.testing.assert_array_equal(found, given.astype(like))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(given))


@dataclass(frozen=True)
class Plain:
    """A tensor in memory."""

    numbers: np.ndarray
    name: str = "a.weight"

    @property
    def info(self):
        return converting._described(self.name, by_name("F32"), self.numbers.shape)

    def pieces(self):
        yield self.numbers.view(np.uint8)


def test_files_are_read_alike_by_the_library_of_the_format(tmp_path):
    metadata = {
        "general.architecture": "mine", "a.whole": 7, "a.negative": -7, "a.large": 1 << 40, "a.number": 0.5,
        "a.flag": True, "a.text": "Füße 🦶", "a.texts": ["a", "", "ß"], "a.list": [1, -2], "a.numbers": [0.5, 1.0],
        "a.flags": [True, False], "a.array": np.arange(3, dtype=np.uint16),
    }  # fmt: skip
    tensors = [Plain(np.arange(6, dtype=np.float32).reshape(2, 3)), Plain(np.ones(5, np.float32), "b")]
    path = tmp_path / "m.gguf"
    path.write_bytes(b"".join(gguf_bytes(metadata, tensors)))
    theirs, ours = gguf.GGUFReader(path), read_gguf(path)
    for key, value in metadata.items():
        np.testing.assert_array_equal(theirs.fields[key].contents(), value, key)
        np.testing.assert_array_equal(ours.metadata[key], value, key)
    for wanted, read in zip(tensors, theirs.tensors, strict=True):
        assert read.name == wanted.name
        np.testing.assert_array_equal(read.data, wanted.numbers)
        np.testing.assert_array_equal(ours.tensors[wanted.name].raw.view(np.float32).ravel(), wanted.numbers.ravel())


@pytest.mark.parametrize("value", [None, {}, ["a", 1], [[1.0], [2.0]], np.zeros(2, complex), ["a", None]])
def test_values_that_the_format_has_no_type_for_are_an_error_by_key(value):
    with pytest.raises(TypeError, match=r"a\.b is"):
        next(gguf_bytes({"a.b": value}, []))
