"""Models that are not converted, each for a reason that is said, and nothing of them is left."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from puna.core.errors import BadModel, BadRequest, Unsupported
from puna.store import CreateRequest, Store
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES
from .serving import converter, upload
from .test_converting import files_of, make
from .test_plugin_contract import MemorySource


def blobs(root: Path) -> int:
    return len(list((root / "blobs").iterdir()))


@pytest.mark.parametrize("name", ["q4_K_M", "Q4_K_S", "q4_k", "q8_0"])
def test_quantizing_is_refused_by_name(tmp_path, name):
    with pytest.raises(Unsupported, match=f"quantizing to {name} is not supported yet: ask for f16, bf16 or f32"):
        make(tmp_path, files_of("qwen2", "checkpoint"), name)


def test_a_format_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(BadRequest, match="unsupported quantization type f17 - supported types are F32, F16, BF16"):
        make(tmp_path, files_of("qwen2", "checkpoint"), "f17")


def changed(root: Path, variant: str, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> dict[str, Path]:
    """Return a checkpoint's files with other settings, and with these tensors instead of its own if there are any."""
    folder = root / "changed"
    shutil.copytree(FIXTURES / variant / "hf", folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    return {file.name: file for file in folder.iterdir()}


def test_what_is_quantized_already_is_refused(tmp_path):
    file = FIXTURES / "llama-quant" / "gguf" / "model-Q8_0.gguf"
    with pytest.raises(Unsupported, match=r"only supported for F16, BF16 and F32 models: .*weight is Q8_0"):
        make(tmp_path, {"m.gguf": file}, "f16")
    assert blobs(tmp_path) == 1


@pytest.mark.parametrize(
    ("variant", "changes", "complaint"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
         "of qwen2 cannot say what layer 2 of this model sees"),
        ("mistral-swa", {}, "of llama cannot say what layer 0 of this model sees"),
        ("llama4-maverick", {"layer_types": ["chunked_attention", "full_attention"] * 2},
         "of llama4 cannot say what layer 1 of this model sees"),
        ("llama4-maverick", {"attention_chunk_size": None}, "of llama4 cannot say what layer 0 of this model sees"),
        ("llama4-maverick", {"no_rope_layers": [1, 0, 0, 1]}, "of llama4 cannot say that no_rope_layers is .True"),
    ],
)  # fmt: skip
def test_layers_that_a_gguf_file_cannot_describe_are_refused(tmp_path, variant, changes, complaint):
    with pytest.raises(Unsupported, match=f"GGUF files {complaint}"):
        make(tmp_path / "store", changed(tmp_path, variant, **changes), "f32")


def test_sizes_that_would_not_be_read_as_written_are_refused(tmp_path):
    files = changed(tmp_path, "gemma3-text", final_logit_softcapping=30.0)  # which is taken for a converter's mistake
    with pytest.raises(Unsupported, match=r"GGUF files of gemma3 cannot say that final_logit_softcapping is 30\.0"):
        make(tmp_path / "store", files, "f32")


def test_rotary_scaling_that_a_gguf_file_cannot_say_is_refused(tmp_path):
    rule = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    with pytest.raises(Unsupported, match="no keys for rotary embeddings that are scaled by Llama3"):
        make(tmp_path / "store", changed(tmp_path, "qwen2", rope_scaling=rule), "f32")


def test_numbers_too_large_for_the_format_are_refused_by_tensor_and_nothing_is_left(tmp_path):
    tensors = load_file(FIXTURES / "qwen3" / "hf" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 70000.0
    files = changed(tmp_path, "qwen3", tensors)
    with pytest.raises(BadRequest, match=r"blk\.1\.ffn_up\.weight: 70000 is too large for F16; bf16 and f32"):
        make(tmp_path / "store", files, "f16")
    assert blobs(tmp_path / "store") == len(files)
    assert make(tmp_path / "store", files, "bf16").statuses[-1] == "success"


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(tmp_path):
    tensors = load_file(FIXTURES / "qwen3" / "hf" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    files = changed(tmp_path, "qwen3", tensors)
    with pytest.raises(BadRequest, match=r"cannot be converted: .*model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        make(tmp_path / "store", files, "f16")
    assert blobs(tmp_path / "store") == len(files)


def test_a_conversion_that_is_broken_off_leaves_nothing(tmp_path):
    store, files = Store(tmp_path, converter()), files_of("llama-bpe", "pair")
    digests = {name: asyncio.run(upload(store, path)) for name, path in files.items()}
    steps = store.create(msgspec.convert({"model": "m", "files": digests, "quantize": "f16"}, CreateRequest))
    assert any(step.status == "verifying conversion" for step in steps)  # which stops there
    assert blobs(tmp_path) == len(files) + 1  # the new one, as yet without a name
    steps.close()
    assert blobs(tmp_path) == len(files)


@pytest.mark.parametrize("whole", ["{", "[]", '{"added_tokens": [{"id": "x"}]}', "\udcff", 5])
def test_a_damaged_tokenizer_in_a_file_is_refused(whole):
    metadata = {"general.architecture": "x", "tokenizer.huggingface.json": whole, "tokenizer.ggml.bos_token_id": 1}
    with pytest.raises(BadModel, match=r"tokenizer\.huggingface\.json"):
        open_tokenizer(MemorySource("gguf", metadata))


def test_a_store_without_plugins_converts_nothing(tmp_path):
    store = Store(tmp_path)
    path = files_of("llama-bpe", "pair")["model-f32.gguf"]
    files = {"m.gguf": asyncio.run(upload(store, path))}
    with pytest.raises(Unsupported, match="no plugins are at hand"):
        list(store.create(msgspec.convert({"model": "m", "files": files, "quantize": "f16"}, CreateRequest)))
