"""Qwen 2.5 VL's sizes and names: of every kind of file, and those that make no sense."""

import json

import numpy as np
import pytest

from puna.core.errors import BadModel
from puna.core.model import load_model, read_config, read_vision_config
from puna.core.plugin import Keys
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.weights import open_weights
from puna.plugins import qwen25vl, qwen25vl_vision

from .test_plugin_contract import MemorySource
from .test_qwen25vl import ATOL, HF, IMAGES, PAIR, QWEN, TEXT_FILE, WANTED, encoded, stored


def written(**changes):
    """Return the fixture's config.json with changes, and no processor beside it."""
    return json.loads((HF / "config.json").read_text()) | changes


def eye(**changes):
    return {"vision_config": written()["vision_config"] | changes}


def source(config, **processor):
    files = {"preprocessor_config.json": json.dumps(processor).encode()} if processor else {}
    return MemorySource("safetensors", config, files=files)


def vision_of(config, **processor):
    return read_vision_config(qwen25vl_vision.VisionConfig, source(config, **processor))


def nested(config):
    """Return a config as newer checkpoints have it."""
    names = ("architectures", "vision_config", "model_type", "torch_dtype")
    text = {name: value for name, value in config.items() if name not in names}
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default", "mrope_section": [2, 3, 3]}
    del text["rope_scaling"]
    return {name: config[name] for name in names} | {"text_config": text}


def test_a_nested_config_says_the_same():
    flat, newer = (read_config(qwen25vl.Config, source(config)) for config in (written(), nested(written())))
    assert flat == newer
    assert vision_of(written()) == vision_of(nested(written()))


@pytest.mark.parametrize(
    ("text", "eyes"),
    [("model.", "model.visual."), ("model.language_model.", "visual."), ("model.language_model.", "model.visual.")],
)
def test_newer_names_of_tensors_are_known(text, eyes):
    old = open_weights(HF)
    names = {
        name: name.replace("visual.", eyes) if "visual." in name else name.replace("model.", text)
        for name in old.tensors
    }
    arrays = {
        new: decode_tensor(old.raw(name), old.tensors[name].format, old.tensors[name].shape)
        for name, new in names.items()
    }
    renamed = MemorySource("safetensors", nested(written()), arrays)
    (rows,) = encoded(load_model(QWEN, renamed, CpuLoader(precise=True)), stored("wide"))
    np.testing.assert_allclose(rows, WANTED[IMAGES["wide"]["projected"]], rtol=0, atol=ATOL)


def test_a_text_file_alone_sees_nothing():
    assert load_model(QWEN, open_weights(TEXT_FILE), CpuLoader(precise=True)).vision is None
    assert vision_of({name: value for name, value in written().items() if name != "vision_config"}) is None


def test_limits_come_from_the_processor_s_file():
    assert vision_of(written()).limits == (3136, 1003520)
    assert vision_of(written(), min_pixels=784, max_pixels=1000).limits == (784, 1000)
    assert vision_of(written(), size={"shortest_edge": 784, "longest_edge": 1000}).limits == (784, 1000)
    assert vision_of(written(), max_pixels=1000).limits == (1000, 1000)
    assert vision_of(written(), min_pixels=1, size={"shortest_edge": 9, "longest_edge": 1000}).limits == (1, 1000)
    assert vision_of(written(), max_pixels=1 << 31).limits == (3136, 1 << 24)  # no more than memory is set aside for


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}},
            r"mrope_section is \[2, 3, 4\], expected three",
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [9, -3, 2]}}, "mrope_section is"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 6]}}, "mrope_section is"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, "x"]}}, "mrope_section is"),
        (
            {"rope_scaling": {"type": "mrope"}},
            "mrope_section is None, expected three numbers of pairs that add up to 8",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu"),
    ],
)
def test_a_text_config_that_makes_no_sense_is_refused_by_key(changes, complaint):
    with pytest.raises(BadModel, match=complaint):
        qwen25vl.Config.from_hf(Keys(written(**changes), origin="config.json"))


@pytest.mark.parametrize(
    ("changes", "processor", "complaint"),
    [
        ({"num_heads": 3}, {}, "num_heads is 3, expected a divisor of 32"),
        ({"window_size": 27}, {}, "window_size is 27, expected a whole number from 28"),
        ({"fullatt_block_indexes": ["a"]}, {}, "fullatt_block_indexes is .'a'., expected numbers of layers"),
        ({"temporal_patch_size": 1}, {}, "temporal_patch_size is 1"),
        ({"in_chans": 4}, {}, "in_chans is 4"),
        ({"out_hidden_size": 64}, {}, "out_hidden_size is 64, expected a whole number from 48 to 48"),
        (
            {},
            {"min_pixels": 10, "max_pixels": 9},
            "preprocessor: key min_pixels is 10, expected a whole number from 1 to 9",
        ),
        ({}, {"image_mean": [0.5, 0.5]}, "image_mean is .*, expected 3 numbers"),
        ({}, {"image_std": [0.5, 0.5, 0]}, "image_std is"),
        ({}, {"image_std": [0.5, 0.5, "a"]}, "image_std is"),
    ],
)
def test_a_vision_config_that_makes_no_sense_is_refused_by_key(changes, processor, complaint):
    with pytest.raises(BadModel, match=complaint):
        vision_of(written(**eye(**changes)), **processor)


def test_the_encoder_of_another_model_is_refused():
    metadata = dict(open_weights(PAIR).metadata) | {"clip.projector_type": "qwen2vl_merger"}
    with pytest.raises(BadModel, match=r"clip\.projector_type is 'qwen2vl_merger', expected one of qwen2\.5vl_merger"):
        read_vision_config(qwen25vl_vision.VisionConfig, MemorySource("gguf", metadata))


def test_older_files_have_every_eighth_layer_see_whole_frames():
    metadata = {
        "general.architecture": "qwen25vl", "qwen25vl.embedding_length": 64, "qwen25vl.vision.block_count": 32,
        "qwen25vl.vision.embedding_length": 1280, "qwen25vl.vision.attention.head_count": 16,
    }  # fmt: skip
    found = read_vision_config(qwen25vl_vision.VisionConfig, MemorySource("gguf", metadata))
    assert found.whole == (7, 15, 23, 31)
    assert (found.patch, found.merge, found.window, found.head_size, found.inner) == (14, 2, 4, 80, None)
