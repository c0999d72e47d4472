"""Llama 4's sizes: of published models, of files that leave things out, and those that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from puna.core.errors import BadModel
from puna.core.keys import Keys
from puna.core.plugin import Causal, Chunk
from puna.core.tensor import Llama3, NoScaling
from puna.plugins.llama4 import cache_layout
from puna.plugins.llama4_sizes import Config
from puna.plugins.llama4_vision_sizes import VisionConfig

SCOUTS_SCALING = {
    "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip


PUBLISHED = {  # what config.json says of the decoder; layers with experts, norms, scaling
    "scout": (
        {"num_local_experts": 16, "interleave_moe_layer_step": 1, "use_qk_norm": True, "rope_scaling": SCOUTS_SCALING},
        (tuple(range(48)), True, Llama3(16.0, 1.0, 1.0, 8192)),
    ),
    "maverick": (
        {"num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False, "rope_scaling": None},
        (tuple(range(1, 48, 2)), False, NoScaling()),
    ),
}


SHAPE = {
    "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 8192, "intermediate_size_mlp": 16384, "vocab_size": 202048, "attention_chunk_size": 8192,
    "no_rope_layers": [], "max_position_embeddings": 1 << 20,
}  # fmt: skip


@pytest.mark.parametrize(("given", "sizes"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_configs_are_read(given: dict[str, Any], sizes: tuple[Any, ...]) -> None:
    for values in (SHAPE | given, {"text_config": SHAPE | given}):
        found = Config.from_hf(Keys(values))
        assert (found.moe_layers, found.qk_norm, found.scaling) == sizes
        assert (found.queries, found.keys, found.inner, found.expert_inner, found.used) == (5120, 1024, 16384, 8192, 1)
        assert (found.rope_base, found.sharpening, found.floor) == (5e5, 0.1, 8192)
        assert [layer for layer, turns in enumerate(found.rope_layers) if not turns] == list(range(3, 48, 4))
        assert [layer.kind for layer in cache_layout(found)][:5] == [Chunk(8192)] * 3 + [Causal(), Chunk(8192)]


def from_hf(**changes: Any) -> Config:
    values = {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": 8, "vocab_size": 9, "attention_chunk_size": 16,
    } | changes  # fmt: skip
    return Config.from_hf(Keys(values, origin="config.json"))


def from_gguf(**changes: Any) -> Config:
    """Sizes of a file with as little in it as there ever is; __ for a dot."""
    values = {
        "block_count": 4, "embedding_length": 64, "feed_forward_length": 8, "expert_feed_forward_length": 8,
        "attention.head_count": 4, "attention.head_count_kv": 2, "context_length": 100, "vocab_size": 9,
        "expert_count": 8, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return Config.from_gguf(Keys({f"llama4.{k}": v for k, v in values.items()}, prefix="llama4.", origin="GGUF"))


def test_layers_are_listed_or_follow_a_pattern() -> None:
    assert from_hf().moe_layers == from_gguf().moe_layers == (0, 1, 2, 3)
    assert from_hf(interleave_moe_layer_step=3).moe_layers == from_gguf(interleave_moe_layer_step=3).moe_layers == (2,)
    assert from_hf(moe_layers=[3, 0], interleave_moe_layer_step=3).dense_layers == (1, 2)
    assert from_hf(moe_layers=[]).dense_layers == (0, 1, 2, 3)  # not the same as no list
    assert from_hf(no_rope_layers=[0, 1, 1, 0]).rope_layers == (False, True, True, False)
    assert from_hf(no_rope_layer_interval=2).rope_layers == (True, False, True, False)
    assert from_gguf(no_rope_interval=2).rope_layers == (True, False, True, False)


def test_layers_without_chunks_see_everything() -> None:
    assert [layer.kind for layer in cache_layout(from_hf(attention_chunk_size=None))] == [Causal()] * 4


def test_layers_with_positions_see_their_chunk_unless_kinds_are_listed() -> None:
    assert from_hf().chunks == from_hf(layer_types=None).chunks == (16, 16, 16, None)
    found = from_hf(layer_types=["full_attention", "chunked_attention"] * 2)
    assert (found.chunks, found.rope_layers) == ((None, 16, None, 16), (True, True, True, False))


def test_a_config_may_leave_out_what_is_as_in_the_references_class() -> None:
    given = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 16, "vocab_size": 9}
    found = Config.from_hf(Keys(given))
    assert (found.kv_heads, found.chunks, found.experts, found.used) == (8, (8192, 8192, 8192, None), 16, 1)
    assert (found.moe_layers, found.inner, found.expert_inner, found.qk_norm) == ((0, 1, 2, 3), 16384, 8192, True)


def test_layers_without_a_pattern_are_listed_where_nobody_reads_them() -> None:
    assert from_hf().to_gguf()["interleave_moe_layer_step"] == 1
    assert from_hf(interleave_moe_layer_step=3).to_gguf()["interleave_moe_layer_step"] == 3
    assert from_hf(moe_layers=[]).to_gguf()["interleave_moe_layer_step"] == 5
    assert from_hf(moe_layers=[3, 0]).to_gguf()["moe_layers"] == [0, 3]
    assert from_hf(no_rope_layers=[1] * 4).to_gguf()["no_rope_interval"] == 5
    assert from_hf(no_rope_layers=[0, 1, 1, 0]).to_gguf()["no_rope_layers"] == [False, True, True, False]


@pytest.mark.parametrize(("value", "sharpening"), [(True, 0.1), (False, 0.0), (4, 0.1), (0, 0.0), (None, 0.1)])
def test_early_configs_have_a_number_for_whether_queries_get_sharper(value: Any, sharpening: float) -> None:
    assert from_hf(attn_temperature_tuning=value).sharpening == sharpening


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"moe_layers": [0, 4]}, r"moe_layers is \[0, 4\], expected different numbers of layers, from 0 to 3"),
        ({"moe_layers": [1, 1]}, "moe_layers is"),
        ({"moe_layers": ["1"]}, "moe_layers is"),
        ({"no_rope_layers": [1, 1]}, r"no_rope_layers is \[1, 1\], expected 4 entries, each 0 or 1"),
        ({"no_rope_layers": [1, 1, 1, 2]}, "no_rope_layers is"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types is .*, expected 4 entries, each chunked_attention or"),
        ({"layer_types": ["full_attention", 1] * 2}, "layer_types is"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, expected a whole number from 1 to 8"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of 4"),
        ({"attention_bias": True}, "attention_bias is True, expected false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu"),
        ({"attention_chunk_size": 0}, "attention_chunk_size is 0"),
        ({"floor_scale": 0}, "floor_scale is 0"),
        ({"attn_temperature_tuning": "yes"}, "attn_temperature_tuning is 'yes', expected true or false"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        from_hf(**changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rope__dimension_count": 8}, "rope.dimension_count is 8, expected a whole number from 16 to 16"),
        ({"expert_count": 0}, "expert_count is 0"),
        ({"attention__sliding_window": 0}, "attention.sliding_window is 0"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step is 0"),
    ],
)
def test_metadata_that_make_no_sense_are_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    assert from_gguf() is not None
    with pytest.raises(BadModel, match=complaint):
        from_gguf(**changes)


def eye_of(processor: dict[str, Any] | None = None, **changes: Any) -> VisionConfig | None:
    eye = {
        "hidden_size": 32, "num_attention_heads": 2, "image_size": 36, "patch_size": 6, "intermediate_size": 128,
        "projector_input_dim": 40, "projector_output_dim": 40, "vision_output_dim": 40,
    } | changes  # fmt: skip
    values = {"vision_config": eye, "text_config": {"hidden_size": 48}, "preprocessor": processor}
    return VisionConfig.from_hf(Keys(values, origin="config.json"))


@pytest.mark.parametrize(
    ("changes", "processor", "complaint"),
    [
        ({"image_size": 37}, {}, "image_size is 37, expected a multiple of 6"),
        ({"image_size": 1 << 20}, {}, "image_size is 1048576"),
        ({"image_size": 1020}, {"max_patches": 32}, "max_patches is 32, expected a whole number from 1 to 31"),
        ({"num_attention_heads": 3}, {}, "num_attention_heads is 3, expected a divisor of 32 / 4"),
        ({"num_attention_heads": 16}, {}, "num_attention_heads is 16, expected a divisor of 32 / 4"),
        ({"pixel_shuffle_ratio": 0.25}, {}, "pixel_shuffle_ratio is 0.25, expected one over a divisor of 6"),
        ({"pixel_shuffle_ratio": 0.0}, {}, "pixel_shuffle_ratio is 0.0"),
        ({"vision_output_dim": 48}, {}, "vision_output_dim is 48, expected a whole number from 40 to 40"),
        ({"hidden_act": "silu"}, {}, "hidden_act is 'silu', expected one of gelu"),
        ({}, {"max_patches": 1 << 20}, "max_patches is 1048576"),
        ({}, {"size": {"height": 36, "width": 72}}, "width is 72, expected a whole number from 36 to 36"),
        ({}, {"resize_to_max_canvas": True}, "resize_to_max_canvas is True, expected false"),
        ({}, {"image_std": [0.5, 0.0, 0.5]}, "image_std is 0.0, expected a finite number from"),
        ({}, {"image_mean": [0.5]}, "image_mean is .*, expected 3 numbers"),
    ],
)
def test_an_encoder_that_makes_no_sense_is_refused_by_key(
    changes: dict[str, Any], processor: dict[str, Any], complaint: str
) -> None:
    assert eye_of() is not None
    with pytest.raises(BadModel, match=complaint):
        eye_of(processor, **changes)


def test_checkpoints_may_nest_the_base_of_frequencies() -> None:
    for said in ({"rope_theta": 5e4}, {"rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}}):
        found = eye_of(**said)
        assert found is not None
        assert found.rope_base == 5e4
