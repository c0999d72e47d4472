"""Checked access to metadata: what is returned, and that errors name the key, what was found and what was expected."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import BadModel
from puna.core.keys import LARGEST, Keys


def gguf(**values):
    return Keys(
        {name.replace("__", "."): value for name, value in values.items()}, prefix="toy.", origin="GGUF metadata"
    )


def refusal(read, *args, **kwargs):
    with pytest.raises(BadModel) as caught:
        read(*args, **kwargs)
    return str(caught.value)


def test_a_name_is_found_with_and_without_the_prefix():
    keys = gguf(toy__block_count=3, general__alignment=32)
    assert keys.integer("block_count") == 3
    assert keys.integer("general.alignment") == 32
    assert "block_count" in keys
    assert "context_length" not in keys


def test_a_null_counts_as_missing():
    keys = Keys({"head_dim": None})
    assert "head_dim" not in keys
    assert keys.integer("head_dim", 64) == 64
    assert keys.section("head_dim") is None


def test_a_null_can_be_told_from_a_key_that_is_missing():
    keys = gguf(toy__window=None, toy__heads=8)
    assert keys.is_null("window")
    assert not keys.is_null("heads")
    assert not keys.is_null("layers")


@pytest.mark.parametrize("read", ["integer", "number", "flag", "text"])
def test_a_missing_key_is_named_with_its_prefix(read):
    assert refusal(getattr(gguf(), read), "block_count") == "GGUF metadata: key toy.block_count is missing"


@pytest.mark.parametrize("value", [7, np.uint32(7), np.int64(7)])
def test_whole_numbers_of_python_and_numpy_are_integers(value):
    found = Keys({"n": value}).integer("n")
    assert found == 7
    assert type(found) is int


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(1), "1", [1], {}])
def test_other_values_are_no_integers(value):
    assert refusal(Keys({"n": value}).integer, "n") == f"metadata: key n is {value!r}, expected a whole number"


@pytest.mark.parametrize("value", [0, -1, 9, 1 << 80])
def test_an_integer_out_of_range_is_refused(value):
    message = refusal(Keys({"n": value}).integer, "n", low=1, high=8)
    assert message == f"metadata: key n is {value}, expected a whole number from 1 to 8"


def test_no_size_is_zero_or_absurd_unless_a_plugin_says_so():
    assert Keys({"n": LARGEST}).integer("n") == LARGEST
    refusal(Keys({"n": LARGEST + 1}).integer, "n")
    refusal(Keys({"n": 0}).integer, "n")
    assert Keys({"n": 0}).integer("n", low=0) == 0


def test_a_default_is_checked_like_a_value():
    assert (
        refusal(Keys({}).integer, "head_dim", 0)
        == f"metadata: key head_dim is 0, expected a whole number from 1 to {LARGEST}"
    )


def test_a_divisor_divides_and_is_the_whole_by_default():
    assert Keys({"kv": 2}).divisor("kv", of=8) == 2
    assert Keys({}).divisor("kv", of=8) == 8
    assert Keys({}).divisor("kv", of=8, default=4) == 4
    assert refusal(Keys({}).divisor, "kv", of=8, default=3) == "metadata: key kv is 3, expected a divisor of 8"
    assert refusal(Keys({"kv": 3}).divisor, "kv", of=8) == "metadata: key kv is 3, expected a divisor of 8"


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int16(2)])
def test_numbers_become_floats(value):
    found = Keys({"x": value}).number("x")
    assert found == 2.0
    assert type(found) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), 10**400, -(10**400)])
def test_a_number_is_finite(value):
    assert "expected a finite number from -inf to inf" in refusal(Keys({"x": value}).number, "x")


@pytest.mark.parametrize("value", [True, "1e-5", [1.0]])
def test_other_values_are_no_numbers(value):
    assert refusal(Keys({"x": value}).number, "x").endswith("expected a number")


def test_a_number_out_of_range_is_refused():
    assert refusal(Keys({"eps": 1.5}).number, "eps", low=0.0, high=1.0).endswith(
        "key eps is 1.5, expected a finite number from 0.0 to 1.0"
    )


def test_only_truth_values_are_flags():
    assert Keys({"f": np.True_}).flag("f") is True
    assert Keys({}).flag("f", False) is False
    for value in (1, 0, "true"):
        assert refusal(Keys({"f": value}).flag, "f").endswith("expected true or false")


def test_a_text_is_one_of_those_allowed():
    assert Keys({"act": "silu"}).text("act", allowed=("silu", "gelu")) == "silu"
    assert Keys({}).text("act", "silu") == "silu"
    assert refusal(Keys({"act": "tanh"}).text, "act", allowed=("silu", "gelu")).endswith(
        "is 'tanh', expected one of silu, gelu"
    )
    assert refusal(Keys({"act": 5}).text, "act").endswith("is 5, expected a text")


def test_lists_of_any_kind_are_read_and_a_missing_one_is_empty():
    assert list(Keys({"l": ["a"]}).list("l")) == ["a"]
    assert list(Keys({"l": np.array([1, 2])}).list("l")) == [1, 2]
    assert Keys({}).list("l") == ()
    assert refusal(Keys({"l": "abc"}).list, "l").endswith("expected a list")


def test_an_error_inside_a_section_names_the_section():
    rule = Keys({"rope_scaling": {"factor": "8"}}, origin="config.json").section("rope_scaling")
    assert rule is not None
    assert refusal(rule.number, "factor") == "config.json: rope_scaling: key factor is '8', expected a number"
    assert refusal(Keys({"rope_scaling": 8}).section, "rope_scaling").endswith("is 8, expected an object")


def test_a_plugin_can_refuse_a_value_beside_others():
    error = gguf(toy__kinds=["a"]).wrong("kinds", "a list of 2 entries")
    assert str(error) == "GGUF metadata: key toy.kinds is ['a'], expected a list of 2 entries"


def test_a_huge_value_is_shown_shortened():
    message = refusal(Keys({"n": "x" * 10_000}).integer, "n")
    assert len(message) < 150
    assert "..." in message


@pytest.mark.parametrize(
    ("value", "holds"), [([1], True), (np.array([1]), True), (1, False), ("a", False), (None, False)]
)
def test_a_key_that_may_hold_one_value_or_many_is_asked_which(value, holds):
    assert Keys({"n": value}).holds_list("n") is holds
    assert not Keys({}).holds_list("n")


@pytest.mark.parametrize("value", [[0.5, 1], (0.5, 1.0), np.array([0.5, 1.0], np.float32)])
def test_numbers_are_as_many_as_their_defaults(value):
    assert Keys({"std": value}).numbers("std", (0.1, 0.2), low=0.5, high=1.0) == (0.5, 1.0)
    assert Keys({}).numbers("std", [0.1, 0.2]) == Keys({"std": []}).numbers("std", [0.1, 0.2]) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([0.5], "is [0.5], expected 2 numbers"),
        ([0.5, 0.0], "is 0.0, expected a finite number from 0.1 to 1.0"),
        ([0.5, math.nan], "is nan, expected a finite number from 0.1 to 1.0"),
        ([0.5, 10**400], "expected a finite number from 0.1 to 1.0"),
        ([0.5, True], "is True, expected a number"),
        ([0.5, "1"], "is '1', expected a number"),
        (0.5, "is 0.5, expected a list"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(value, complaint):
    assert complaint in refusal(Keys({"std": value}).numbers, "std", (0.1, 0.2), low=0.1, high=1.0)


@pytest.mark.parametrize(
    ("value", "holds"), [(4, True), (0.5, True), (np.int32(1), True), (True, False), (np.True_, False), ("1", False)]
)
def test_a_key_that_may_hold_a_number_or_a_truth_value_is_asked_which(value, holds):
    assert Keys({"n": value}).holds_number("n") is holds
    assert not Keys({}).holds_number("n")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(anything)
def test_whatever_a_file_holds_the_answer_is_a_checked_value_or_bad_model(value):
    keys = Keys({"k": value})
    for read in (keys.integer, keys.number, keys.flag, keys.text, keys.list, keys.section):
        try:
            found = read("k")
        except BadModel as error:
            assert "key k is " in str(error)
        else:
            if read == keys.integer:
                assert 1 <= found <= LARGEST
            elif read == keys.number:
                assert math.isfinite(found)
