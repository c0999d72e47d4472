"""Mistral Small's sizes, and Mistral's: of files that leave things out, and those that make no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from puna.core.errors import BadModel
from puna.core.model import read_vision_config
from puna.core.plugin import Causal, Keys, Window
from puna.core.tensor.weights import open_weights
from puna.plugins import mistral, mistral_small
from puna.plugins.mistral_small import Config
from puna.plugins.mistral_small_vision import VisionConfig

from .test_mistral_small import EYE_FILE, TEXT_FILE, written
from .test_plugin_contract import MemorySource


def text_of(**changes: Any) -> Config:
    return Config.from_hf(Keys(written(text_config=written()["text_config"] | changes), origin="config.json"))


def eye_of(eye: dict[str, Any] | None = None, *, processor: dict[str, Any] | None = None, **changes: Any) -> Any:
    files = {} if processor is None else {"preprocessor_config.json": json.dumps(processor).encode()}
    config = written(vision_config=written()["vision_config"] | (eye or {}), **changes)
    return read_vision_config(VisionConfig, MemorySource("safetensors", config, files=files))


def text_of_file(**changes: Any) -> Config:
    """Sizes of the GGUF file for the decoder with changes; __ for a dot."""
    values = {f"mistral3.{name.replace('__', '.')}": value for name, value in changes.items()}
    return Config.from_gguf(Keys(dict(open_weights(TEXT_FILE).metadata) | values, prefix="mistral3.", origin="GGUF"))


def eye_of_file(**changes: Any) -> Any:
    values = {f"clip.{name.replace('__', '.')}": value for name, value in changes.items()}
    metadata = open_weights({"model.gguf": TEXT_FILE, "mmproj.gguf": EYE_FILE}).metadata
    return VisionConfig.from_gguf(Keys(dict(metadata) | values, prefix="mistral3.", origin="GGUF"))


@pytest.mark.parametrize("plugin", [mistral, mistral_small])
def test_a_window_is_every_layers_and_null_is_none(plugin: Any) -> None:
    given = written()["text_config"]
    missing = {name: value for name, value in given.items() if name != "sliding_window"}
    for config, kind in ((given, Causal()), (given | {"sliding_window": 9}, Window(9)), (missing, Window(4096))):
        assert {layer.kind for layer in plugin.cache_layout(plugin.Config.from_hf(Keys(config)))} == {kind}


@pytest.mark.parametrize("plugin", [mistral, mistral_small])
def test_a_config_may_leave_out_what_is_as_in_the_references_class(plugin: Any) -> None:
    said = "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"
    given = {name: written()["text_config"][name] for name in said}
    found = plugin.Config.from_hf(Keys(given | {"num_attention_heads": 16}))
    assert (found.kv_heads, found.head_size, found.context_length) == (8, 3, 131072)
    assert (found.eps, found.rope_base) == (1e-6, 1e4)


def test_the_number_of_dimensions_that_turn_is_not_believed() -> None:
    assert text_of_file(rope__dimension_count=12) == text_of_file()


def test_the_longest_edge_is_the_processor_s_or_else_the_encoder_s() -> None:
    assert eye_of(processor={"size": {"longest_edge": 96}}).longest == 96
    nested = {"processor_config.json": b'{"image_processor": {"size": {"longest_edge": 64}}}'}
    assert read_vision_config(VisionConfig, MemorySource("safetensors", written(), files=nested)).longest == 64
    assert eye_of().longest == eye_of(processor={}).longest == 128
    assert eye_of_file().longest == 128


def test_checkpoints_may_nest_the_base_of_frequencies() -> None:
    assert eye_of({"rope_theta": None, "rope_parameters": {"rope_theta": 5e4}}).rope_base == 5e4
    assert text_of(rope_theta=None, rope_parameters={"rope_theta": 5e8, "rope_type": "default"}).rope_base == 5e8


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "ministral3"}, "model_type is 'ministral3', expected one of mistral"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of 4"),
        ({"sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        text_of(**changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"attention__temperature_scale": 0.1}, "temperature_scale is 0.1, expected 0: models that sharpen"),
        ({"attention__value_length": 4}, "value_length is 4"),
    ],
)
def test_a_file_of_another_decoder_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        text_of_file(**changes)


@pytest.mark.parametrize(
    ("eye", "changes", "complaint"),
    [
        ({"hidden_act": "gelu"}, {}, "hidden_act is 'gelu', expected one of silu"),
        ({"num_attention_heads": 3}, {}, "num_attention_heads is 3, expected a divisor of 32"),
        ({"num_channels": 4}, {}, "num_channels is 4"),
        ({"patch_size": 1 << 9}, {}, "patch_size is 512"),
        ({}, {"vision_feature_layer": -2}, "vision_feature_layer is -2"),
        ({}, {"projector_hidden_act": "silu"}, "projector_hidden_act is 'silu', expected one of gelu"),
        ({}, {"spatial_merge_size": 0}, "spatial_merge_size is 0"),
        ({}, {"processor": {"size": {"longest_edge": 1 << 13}}}, "longest_edge is 8192"),
        ({}, {"processor": {"image_std": [0.5, 0.5, 0]}}, "image_std is 0, expected a finite number from 0.001 to 1.0"),
    ],
)
def test_an_encoder_that_makes_no_sense_is_refused_by_key(eye: Any, changes: Any, complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        eye_of(eye, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"projector_type": "mlp"}, "clip.projector_type is 'mlp', expected one of pixtral"),
        ({"use_silu": None}, "clip.use_silu is None, expected true"),
        ({"vision__projection_dim": 64}, "projection_dim is 64, expected a whole number from 48 to 48"),
        ({"vision__attention__head_count": 5}, "head_count is 5, expected a divisor of 32"),
        ({"vision__attention__key_length": 8}, "key_length is 8"),
        ({"vision__spatial_merge_size": None}, "spatial_merge_size is missing"),
        ({"vision__image_mean": [0.5]}, "image_mean is .*, expected 3 numbers"),
    ],
)
def test_an_encoder_s_file_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    assert eye_of_file() is not None
    with pytest.raises(BadModel, match=complaint):
        eye_of_file(**changes)
