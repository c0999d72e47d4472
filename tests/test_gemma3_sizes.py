"""Gemma 3's sizes: of published models, of files that leave things out, and those that make no sense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from puna.core.errors import BadModel
from puna.core.keys import Keys
from puna.core.tensor import Linear
from puna.core.tensor.rope import NoScaling, Yarn
from puna.plugins.gemma3 import Config
from puna.plugins.gemma3_vision import VisionConfig

STRETCH = {"factor": 8.0, "rope_type": "linear"}


PUBLISHED = {  # what config.json says of the decoder; D, layers, H, K, E, queries' scale, window, scaling
    "1b": (
        {
            "hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 256, "query_pre_attn_scalar": 256, "intermediate_size": 6912, "sliding_window": 512,
            "vocab_size": 262144, "rope_scaling": None, "attn_logit_softcapping": None,
        },
        (1152, 26, 4, 1, 256, 256**-0.5, 512, NoScaling()),
    ),
    "4b": (
        {
            "hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240, "sliding_window": 1024,
            "rope_scaling": STRETCH,
        },
        (2560, 34, 8, 4, 256, 256**-0.5, 1024, Linear(8.0)),
    ),
    "27b": (
        {
            "hidden_size": 5376, "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
            "head_dim": 128, "query_pre_attn_scalar": 168, "intermediate_size": 21504, "sliding_window": 1024,
            "rope_scaling": STRETCH,
        },
        (5376, 62, 32, 16, 128, 168**-0.5, 1024, Linear(8.0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "sizes"), PUBLISHED.values(), ids=PUBLISHED)
def test_what_published_configs_leave_out_is_known(given: dict[str, Any], sizes: tuple[Any, ...]) -> None:
    for values in (given, {"text_config": given, "mm_tokens_per_image": 256}):
        found = Config.from_hf(Keys(values))
        shape = (found.hidden, found.layers, found.heads, found.kv_heads, found.head_size)
        assert (*shape, found.query_scale, found.windows[0], found.scaling) == sizes
        assert (found.rope_base, found.local_rope_base, found.eps, found.context_length) == (1e6, 1e4, 1e-6, 131072)
        assert [layer for layer, window in enumerate(found.windows) if window is None][:4] == [5, 11, 17, 23]
        assert (found.score_cap, found.logit_cap) == (None, None)


def from_hf(**changes: Any) -> Config:
    return Config.from_hf(Keys({"num_hidden_layers": 4, "sliding_window": 8} | changes, origin="config.json"))


def from_gguf(count: int = 4, **changes: Any) -> Config:
    """Sizes of a file with as little in it as there ever is; __ for a dot."""
    values = {
        "block_count": count, "embedding_length": 64, "feed_forward_length": 8, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.key_length": 8, "context_length": 100, "vocab_size": 9,
        "attention.sliding_window": 8,
    }  # fmt: skip
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return Config.from_gguf(Keys({f"gemma3.{k}": v for k, v in values.items()}, prefix="gemma3.", origin="GGUF"))


ALTERNATING = (8, None, 8, None)


def test_windows_are_every_layers_but_the_last_of_a_pattern() -> None:
    assert from_hf().windows == from_gguf().windows == (8, 8, 8, 8)
    assert from_hf(sliding_window_pattern=2).windows == ALTERNATING
    assert from_gguf(attention__sliding_window_pattern=2).windows == ALTERNATING
    assert from_hf(sliding_window_pattern=1).windows == (None,) * 4


def test_windows_are_listed() -> None:
    assert from_hf(layer_types=["sliding_attention", "full_attention"] * 2).windows == ALTERNATING
    flags = np.array([True, False] * 2)
    assert from_gguf(attention__sliding_window_pattern=flags).windows == ALTERNATING


def test_a_file_without_a_window_has_none_in_any_layer() -> None:
    assert from_gguf(attention__sliding_window=None).windows == (None,) * 4
    flags = np.array([True, False] * 2)
    assert from_gguf(attention__sliding_window=0, attention__sliding_window_pattern=flags).windows == (None,) * 4


def test_both_converters_names_of_bases_are_read() -> None:
    unsaid, theirs = from_gguf(), from_gguf(rope__freq_base=5e5, rope__freq_base_swa=2e4)
    ours = from_gguf(rope__global__freq_base=5e5, rope__local__freq_base=2e4)
    assert (unsaid.rope_base, unsaid.local_rope_base) == (1e6, 1e4)
    assert (ours.rope_base, ours.local_rope_base) == (theirs.rope_base, theirs.local_rope_base) == (5e5, 2e4)


def test_newer_checkpoints_have_a_rule_of_rotation_for_each_kind_of_layer() -> None:
    rules = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    found = from_hf(rope_parameters=rules)
    assert (found.rope_base, found.local_rope_base, found.scaling) == (5e5, 2e4, Linear(4.0))
    older = from_hf(rope_theta=5e5, rope_local_base_freq=2e4, rope_scaling={"type": "linear", "factor": 4.0})
    assert (older.rope_base, older.local_rope_base, older.scaling) == (5e5, 2e4, Linear(4.0))


def test_large_models_stretch_positions_though_some_files_do_not_say_so() -> None:
    assert [from_gguf(count).scaling for count in (18, 26)] == [NoScaling()] * 2
    assert [from_gguf(count).scaling for count in (34, 48, 62)] == [Linear(8.0)] * 3
    assert from_gguf(34, rope__scaling__type="linear", rope__scaling__factor=2.0).scaling == Linear(2.0)
    assert from_gguf(34, rope__scaling__type="none").scaling == NoScaling()
    assert isinstance(from_gguf(34, rope__scaling__type="yarn", rope__scaling__factor=2.0).scaling, Yarn)


def test_only_the_largest_model_scales_queries_by_another_size_than_the_heads() -> None:
    assert from_gguf(34).query_scale == 8**-0.5
    assert from_gguf(62).query_scale == (64 / 4) ** -0.5


def test_the_cap_that_a_converter_made_up_is_not_believed() -> None:
    assert from_gguf(final_logit_softcapping=30.0).logit_cap is None
    assert from_gguf(final_logit_softcapping=0.0).logit_cap is None
    assert from_gguf(final_logit_softcapping=20.0).logit_cap == 20.0
    assert from_gguf(final_logit_softcapping=30.0, attention__sliding_window=None).logit_cap == 30.0
    assert from_gguf(final_logit_softcapping=30.0, attention__sliding_window=100).logit_cap == 30.0
    assert from_hf(final_logit_softcapping=30.0).logit_cap == 30.0
    assert from_hf(attn_logit_softcapping=50.0).score_cap == 50.0
    assert from_gguf(attn_logit_softcapping=50.0).score_cap == 50.0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_attention_heads": 6}, "num_key_value_heads is None, expected a divisor of 6"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu', expected one of gelu_pytorch_tanh"),
        ({"attention_bias": True}, "attention_bias is True, expected false"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True, expected false"),
        ({"layer_types": ["full_attention"]}, "layer_types is .*, expected 4 entries"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types is .*, each sliding_attention or full_attention"),
        ({"num_hidden_layers": 1 << 31}, "num_hidden_layers is 2147483648"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        from_hf(**changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"attention__sliding_window_pattern": np.array([True])}, "pattern is .*, expected 4 truth values"),
        ({"attention__sliding_window_pattern": ["yes"] * 4}, "pattern is .*, expected 4 truth values"),
        ({"attention__value_length": 4}, "gemma3.attention.value_length is 4"),
        ({"block_count": 1 << 31}, "block_count is 2147483648"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0"),
    ],
)
def test_a_gguf_file_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        from_gguf(**changes)


def eye_of(**changes: Any) -> VisionConfig | None:
    values = {
        "clip.vision.block_count": 3, "clip.vision.embedding_length": 32, "clip.vision.feed_forward_length": 56,
        "clip.vision.attention.head_count": 2, "clip.vision.image_size": 64, "clip.vision.patch_size": 4,
        "clip.projector_type": "gemma3", "clip.use_gelu": True, "gemma3.embedding_length": 48,
    }  # fmt: skip
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return VisionConfig.from_gguf(Keys(values, prefix="gemma3.", origin="GGUF"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"clip__projector_type": "mlp"}, "clip.projector_type is 'mlp', expected one of gemma3"),
        ({"clip__use_gelu": None}, "clip.use_gelu is None, expected true"),
        ({"clip__vision__image_size": 66}, "image_size is 66, expected a multiple of 4"),
        ({"clip__vision__image_size": 1 << 20}, "image_size is 1048576"),
        ({"clip__vision__attention__head_count": 3}, "head_count is 3, expected a divisor of 32"),
        ({"clip__vision__projector__scale_factor": 5}, "scale_factor is 5, expected a divisor of 16"),
        ({"clip__vision__image_mean": [0.5, 0.5]}, "image_mean is .*, expected 3 numbers"),
        (
            {"clip__vision__image_mean": [0.5, math.nan, 0.5]},
            "image_mean is nan, expected a finite number from 0.0 to 1.0",
        ),
        ({"clip__vision__image_std": [0.5, 0.0, 0.5]}, "image_std is 0.0, expected a finite number from"),
    ],
)
def test_an_encoder_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    assert eye_of() is not None
    with pytest.raises(BadModel, match=complaint):
        eye_of(**changes)


def test_the_number_of_rows_is_a_square_that_patches_fill() -> None:
    def rows(count: int) -> int:
        eye = {"image_size": 64, "patch_size": 4, "hidden_size": 32, "num_attention_heads": 2}
        found = VisionConfig.from_hf(Keys({"vision_config": eye, "mm_tokens_per_image": count}))
        assert found is not None
        return found.rows

    assert [rows(count) for count in (1, 4, 16, 64, 256)] == [1, 4, 16, 64, 256]
    for count in (15, 9, 1024):
        with pytest.raises(BadModel, match=f"mm_tokens_per_image is {count}, expected the square of a divisor of 16"):
            rows(count)
