"""Rotary frequencies against formulas written down a second time, and the rules that files describe them with."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import BadModel
from puna.core.keys import Keys
from puna.core.tensor.rope import (
    Linear,
    Llama3,
    NoScaling,
    Yarn,
    grid_rope_table,
    rope_base_from_hf,
    rope_table,
    scaling_from_gguf,
    scaling_from_hf,
)


def table(size=128, base=10000.0, scaling=None, divisors=None):
    return rope_table(size, base=base, pairing="split", scaling=scaling, divisors=divisors)


def plain(size, base):
    return [base ** (-2 * k / size) for k in range(size // 2)]


def assert_frequencies(found, expected):
    assert found.frequencies.dtype == np.float32
    np.testing.assert_allclose(found.frequencies, expected, rtol=2e-7)


# ---- the twins: one pair at a time, by wavelengths and by dimensions rather than by turns --------------------------


def llama3_twin(theta, factor, low, high, original):
    wavelength = 2 * math.pi / theta
    if wavelength < original / high:
        return theta
    if wavelength <= original / low and low != high:
        smooth = (original / wavelength - low) / (high - low)
        return (1 - smooth) * theta / factor + smooth * theta
    return theta / factor


def yarn_twin(size, base, factor, original, fast, slow):
    def dimension(rotations):
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), size - 1)
    if low == high:
        high += 0.001
    result = []
    for k, theta in enumerate(plain(size, base)):
        interpolated = min(max((k - low) / (high - low), 0), 1)
        result.append(theta / factor * interpolated + theta * (1 - interpolated))
    return result


def yarn_magnitude_twin(factor, attention_factor=None, mscale=None, mscale_all_dim=None):
    def get_mscale(scale, mscale=1.0):
        return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

    if attention_factor is not None:
        return attention_factor
    if mscale and mscale_all_dim:
        return get_mscale(factor, mscale) / get_mscale(factor, mscale_all_dim)
    return get_mscale(factor)


# ---- frequencies ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 128), st.floats(1.001, 1e9))
def test_unscaled_frequencies_are_a_geometric_series(half, base):
    found = table(2 * half, base)
    assert_frequencies(found, plain(2 * half, base))
    assert found.magnitude == 1.0


def test_patches_turn_by_their_row_and_then_by_their_column():
    table = grid_rope_table(16, base=100.0)
    assert table.streams.tolist() == [0] * 4 + [1] * 4
    one = 100.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(table.frequencies, np.concatenate([one, one]), rtol=1e-6)


@pytest.mark.parametrize("pairing", ["split", "interleaved"])
def test_rows_and_columns_may_take_turns_at_the_frequencies_of_text(pairing):
    table = grid_rope_table(16, base=100.0, pairing=pairing, by_turns=True)
    assert (table.streams.tolist(), table.pairing) == ([0] * 4 + [1] * 4, pairing)
    text = rope_table(16, base=100.0, pairing=pairing).frequencies
    np.testing.assert_array_equal(table.frequencies, np.concatenate([text[::2], text[1::2]]))


def test_heads_that_two_axes_cannot_share_are_refused():
    with pytest.raises(BadModel, match="of 2 axes need heads of a multiple of 4, and 18 is none"):
        grid_rope_table(18, base=100.0)


def test_an_odd_size_is_refused():
    with pytest.raises(BadModel, match="31 is odd"):
        table(31)


@given(st.floats(0.5, 64))
def test_linear_scaling_divides_every_frequency(factor):
    assert_frequencies(table(scaling=Linear(factor)), np.array(plain(128, 10000.0)) / factor)


@given(
    st.floats(1, 64), st.floats(0.01, 8), st.just(0) | st.floats(0.5, 8), st.integers(64, 1 << 20),
    st.sampled_from([1e4, 5e5, 1e6]),
)  # fmt: skip
def test_llama3_scaling_goes_by_wavelength(factor, low, width, original, base):
    found = table(base=base, scaling=Llama3(factor, low, low + width, original))
    expected = [llama3_twin(theta, factor, low, low + width, original) for theta in plain(128, base)]
    assert_frequencies(found, expected)


def test_llama3_scaling_of_the_published_model():
    found = table(128, 500000.0, Llama3(8.0, 1.0, 4.0, 8192)).frequencies
    unscaled = table(128, 500000.0).frequencies
    np.testing.assert_array_equal(found[:29], unscaled[:29])  # the first that is touched turns 3.95 times in 8192
    assert unscaled[29] / 8 < found[29] < unscaled[29]
    np.testing.assert_allclose(found[36:], unscaled[36:] / 8, rtol=2e-7)


def test_llama3_scaling_with_equal_factors_has_no_band_between():
    found = table(128, 500000.0, Llama3(16.0, 1.0, 1.0, 8192)).frequencies
    unscaled = np.array(plain(128, 500000.0))
    wavelengths = 2 * np.pi / unscaled
    assert_frequencies(
        table(128, 500000.0, Llama3(16.0, 1.0, 1.0, 8192)), np.where(wavelengths < 8192, unscaled, unscaled / 16)
    )
    assert np.isfinite(found).all()


@given(
    st.integers(4, 128), st.sampled_from([1e4, 5e5, 1e6, 1e9]), st.floats(1, 64), st.integers(512, 1 << 20),
    st.floats(8, 64), st.floats(0.5, 4),
)  # fmt: skip
def test_yarn_blends_along_a_ramp_of_dimensions(half, base, factor, original, fast, slow):
    found = table(2 * half, base, Yarn(factor, original, 1.0, fast, slow))
    assert_frequencies(found, yarn_twin(2 * half, base, factor, original, fast, slow))


def test_yarn_of_a_published_model_keeps_fast_pairs_and_divides_slow_ones():
    found = table(128, 1e6, Yarn(4.0, 32768, 1.1386)).frequencies
    unscaled = table(128, 1e6).frequencies
    np.testing.assert_array_equal(found[:24], unscaled[:24])
    np.testing.assert_allclose(found[40:], unscaled[40:] / 4, rtol=2e-7)
    assert ((unscaled[24:40] / 4 < found[24:40]) | (found[24:40] == unscaled[24:40])).all()


def test_ready_made_divisors_replace_the_rule():
    divisors = np.linspace(1, 32, 64, dtype=np.float32)
    assert_frequencies(table(scaling=Linear(2.0), divisors=divisors), np.array(plain(128, 10000.0)) / divisors)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_divisor_that_is_no_positive_number_is_refused(bad):
    divisors = np.ones(64, np.float32)
    divisors[5] = bad
    with pytest.raises(BadModel, match=r"rope_freqs\.weight"):
        table(divisors=divisors)


# ---- what files say ------------------------------------------------------------------------------------------------


def gguf(**values):
    values = {"llama.rope.scaling." + name: value for name, value in values.items()}
    return scaling_from_gguf(Keys({"llama.context_length": 131072} | values, prefix="llama.", origin="GGUF metadata"))


def hf(rule, **config):
    return scaling_from_hf(
        Keys({"max_position_embeddings": 131072, "rope_scaling": rule} | config, origin="config.json")
    )


def test_a_gguf_without_a_rule_or_with_none_is_not_scaled():
    assert gguf() == gguf(type="none") == NoScaling()


def test_a_gguf_tells_a_factor():
    assert gguf(type="linear", factor=8.0) == Linear(8.0)


def test_a_gguf_tells_yarn_by_its_keys_or_by_what_is_usual():
    usual = 0.1 * math.log(4) + 1
    assert gguf(type="yarn", factor=4.0, original_context_length=32768) == Yarn(
        4.0, 32768, pytest.approx(usual), 32.0, 1.0
    )
    assert gguf(type="yarn", factor=4.0).original == 131072
    own = gguf(type="yarn", factor=4.0, attn_factor=0.5, yarn_beta_fast=16.0, yarn_beta_slow=2.0)
    assert own == Yarn(4.0, 131072, pytest.approx(usual / 2), 16.0, 2.0)
    assert gguf(type="yarn", factor=0.5).magnitude == 1.0


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"type": "longrope"}, "rope.scaling.type is 'longrope', expected one of none, linear, yarn"),
        ({"type": "linear"}, "rope.scaling.factor is missing"),
        ({"type": "linear", "factor": 0.0}, r"rope.scaling.factor is 0.0"),
        ({"type": "yarn", "factor": math.nan}, r"rope.scaling.factor is nan"),
        ({"type": "yarn", "factor": 4.0, "yarn_beta_fast": 0.0}, r"yarn_beta_fast is 0.0"),
        ({"type": "yarn", "factor": 4.0, "original_context_length": 0}, r"original_context_length is 0"),
    ],
)
def test_a_gguf_rule_without_a_meaning_is_refused_by_key(values, complaint):
    with pytest.raises(BadModel, match=f"^GGUF metadata: key llama.*{complaint}"):
        gguf(**values)


def test_a_config_without_a_rule_is_not_scaled():
    plain = {"rope_type": "default"}, {"type": "default", "mrope_section": [1]}, {"type": "mrope", "mrope_section": [1]}
    assert [hf(rule) for rule in (None, *plain)] == [NoScaling()] * 4


def test_a_config_tells_its_rule_in_either_spelling():
    assert hf({"type": "linear", "factor": 2}) == hf({"rope_type": "linear", "factor": 2.0}) == Linear(2.0)
    assert hf({"rope_type": "linear", "type": "nonsense", "factor": 2}) == Linear(2.0)
    newer = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    assert hf(None, rope_parameters=newer) == Linear(2.0)


def test_a_config_tells_llama3():
    rule = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert hf(rule | {"original_max_position_embeddings": 8192}) == Llama3(8.0, 1.0, 4.0, 8192)
    assert hf(rule) == Llama3(8.0, 1.0, 4.0, 131072)


mscales = st.none() | st.sampled_from([0, 0.0, 0.707, 1, 2.5])


@given(st.floats(0.25, 64), st.none() | st.floats(0, 2), mscales, mscales)
def test_yarn_sharpens_by_what_the_config_gives(factor, attention_factor, mscale, mscale_all_dim):
    given = {"attention_factor": attention_factor, "mscale": mscale, "mscale_all_dim": mscale_all_dim}
    rule = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 4096} | given
    expected = yarn_magnitude_twin(factor, **given)
    found = hf(rule)
    assert found == Yarn(factor, 4096, pytest.approx(expected), 32.0, 1.0)
    assert table(scaling=found).magnitude == pytest.approx(expected)


def test_a_config_tells_yarns_ramp():
    assert hf({"type": "yarn", "factor": 4, "beta_fast": 16, "beta_slow": 2}) == Yarn(
        4.0, 131072, pytest.approx(0.1 * math.log(4) + 1), 16.0, 2.0
    )


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("linear", "key rope_scaling is 'linear', expected an object"),
        ({"type": "dynamic", "factor": 2.0}, "rope_scaling: key type is 'dynamic', expected one of default, linear"),
        ({"type": "linear"}, "rope_scaling: key factor is missing"),
        ({"type": "linear", "factor": -1}, "rope_scaling: key factor is -1"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
            "high_freq_factor is 1",
        ),
        ({"rope_type": "llama3", "factor": 8.0}, "key low_freq_factor is missing"),
        ({"rope_type": "yarn", "factor": 4, "mscale": -15, "mscale_all_dim": 1}, "key mscale is -15"),
        ({"rope_type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": "1"}, "key mscale_all_dim is '1'"),
        ({"rope_type": "yarn", "factor": 4, "attention_factor": math.inf}, "key attention_factor is inf"),
    ],
)
def test_a_config_rule_without_a_meaning_is_refused_by_key(rule, complaint):
    with pytest.raises(BadModel, match=f"^config.json: .*{complaint}"):
        hf(rule)


def test_the_base_of_a_config_is_at_its_top_or_in_its_rule():
    assert rope_base_from_hf(Keys({"rope_theta": 5e5})) == 5e5
    assert rope_base_from_hf(Keys({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}})) == 1e6
    assert rope_base_from_hf(Keys({"rope_parameters": {"rope_type": "default"}})) == 10000.0
    assert rope_base_from_hf(Keys({}), default=1e6) == 1e6
    for bad in (1.0, 0, -5, math.nan):
        with pytest.raises(BadModel, match="rope_theta"):
            rope_base_from_hf(Keys({"rope_theta": bad}))


def test_a_gguf_factor_without_a_type_means_linear():
    assert scaling_from_gguf(Keys({"rope.scaling.factor": 4.0})) == Linear(4.0)


@pytest.mark.parametrize("pairing", ["split", "interleaved"])
def test_the_pairs_of_a_patch_turn_by_its_row_or_column_each_with_all_frequencies(pairing):
    found = grid_rope_table(24, base=100.0, pairing=pairing)
    assert found.frequencies.tolist() == pytest.approx([100.0 ** (-k / 6) for k in range(6)] * 2)
    assert found.streams.tolist() == [0] * 6 + [1] * 6
    assert found.pairing == pairing
    with pytest.raises(BadModel, match="need heads of a multiple of 4, and 22 is none"):
        grid_rope_table(22, base=100.0)


@pytest.mark.parametrize(
    ("sections", "streams"),
    [
        ([4, 2, 2], [0, 1, 2, 0, 1, 2, 0, 0]),
        ([6, 2, 2], [0, 1, 2, 0, 1, 2, 0, 0, 0, 0]),
        ([3, 3, 3], [0, 1, 2] * 3),
        ([6, 1, 3], [0, 1, 2, 0, 0, 2, 0, 0, 2, 0]),
        ([3, 3, 2], [0, 1, 2, 0, 1, 2, 0, 1]),
        ([5, 0, 0], [0] * 5),
        ([2, 2], [0, 1, 0, 1]),
    ],
)
def test_pairs_of_several_streams_alternate_while_there_are_any_of_each(sections, streams):
    size = 2 * len(streams)
    found = rope_table(size, base=100.0, pairing="split", sections=sections, interleaved=True)
    assert found.streams.tolist() == streams
    plain = rope_table(size, base=100.0, pairing="split")
    np.testing.assert_array_equal(found.frequencies, plain.frequencies)


def test_the_published_sections_give_the_slowest_pairs_to_time():
    found = rope_table(128, base=5e6, pairing="split", sections=[24, 20, 20], interleaved=True).streams
    assert found[:60].tolist() == [0, 1, 2] * 20
    assert found[60:].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("sections", "interleaved", "complaint"),
    [
        ([3, 3, 3], True, r"sections \[3, 3, 3\] cover 9 pairs, expected 8"),
        ([3, 3, 3], False, r"sections \[3, 3, 3\] cover 9 pairs, expected 8"),
        ([1, 1, 6], True, r"sections \[1, 1, 6\] cannot alternate over 8 pairs"),
        ([2, 3, 3], True, r"sections \[2, 3, 3\] cannot alternate over 8 pairs"),
    ],
)
def test_sections_that_do_not_cover_the_pairs_are_refused(sections, interleaved, complaint):
    with pytest.raises(BadModel, match=complaint):
        rope_table(16, base=100.0, pairing="split", sections=sections, interleaved=interleaved)
