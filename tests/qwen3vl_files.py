"""The fixture of Qwen 3 VL in the two kinds of GGUF file that others write, with the names that these have.

A pair is what llama.cpp's converter makes, with names from its own package; a single file is what Ollama makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.weights import open_weights
from puna.store import chat_template
from puna.text.tokenizers import tokenizer_keys

from .reference import FIXTURES

HF = FIXTURES / "qwen3-vl" / "hf"
DEEP = [0, 2]  # layers of the fixture's encoder
TEXT_SIZES = {
    "block_count": 4, "context_length": 1024, "embedding_length": 48, "feed_forward_length": 80,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 20, "attention.value_length": 20,
}  # fmt: skip
EYE_SIZES = {
    "block_count": 4, "embedding_length": 24, "attention.head_count": 2, "patch_size": 4, "spatial_merge_size": 2,
}  # fmt: skip


def arrays() -> Iterator[tuple[str, np.ndarray]]:
    """Yield the checkpoint's tensors in float32."""
    source = open_weights(HF)
    for name, info in source.tensors.items():
        yield name, decode_tensor(source.raw(name), info.format, info.shape)


def write(path: Path, architecture: str, values: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write a GGUF file. values: whole numbers, fractions, texts and lists of them."""
    writer = gguf.GGUFWriter(path, architecture)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        kinds.get(type(value), writer.add_array)(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text_values() -> dict[str, Any]:
    """Return the decoder's sizes, the tokenizer and the template, as all such files have them."""
    values = {f"qwen3vl.{key}": value for key, value in TEXT_SIZES.items()}
    values |= {"qwen3vl.attention.layer_norm_rms_epsilon": 1e-6, "qwen3vl.rope.freq_base": 5e6}
    checkpoint = open_weights(HF)
    values |= {key: as_list(value) for key, value in tokenizer_keys(checkpoint).items()}
    return values | {"tokenizer.chat_template": chat_template(checkpoint)}


def as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# ---- a pair ----------------------------------------------------------------------------------------------------------


def write_pair(folder: Path) -> dict[str, Path]:
    """Write decoder and encoder, and return them by name."""
    text, eye = {}, {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3VL, 4)
    for name, array in arrays():
        if name.startswith("model.visual."):
            eye |= dict(pair_parts(name.removeprefix("model."), array))
        else:
            plain = name.replace("model.language_model.", "model.")
            text[names.get_name(plain, try_suffixes=(".weight",))] = array
    values = text_values() | {"qwen3vl.rope.dimension_sections": [6, 2, 2, 0], "qwen3vl.n_deepstack_layers": 2}
    eyes = {f"clip.vision.{key}": value for key, value in EYE_SIZES.items()} | {
        "clip.has_vision_encoder": True, "clip.projector_type": gguf.VisionProjectorType.QWEN3VL,
        "clip.use_gelu": True, "clip.vision.attention.layer_norm_epsilon": 1e-6, "clip.vision.projection_dim": 48,
        "clip.vision.feed_forward_length": 40, "clip.vision.image_size": 24, "clip.vision.image_mean": [0.5] * 3,
        "clip.vision.image_std": [0.5] * 3,
        gguf.Keys.ClipVision.IMAGE_MIN_PIXELS: 512, gguf.Keys.ClipVision.IMAGE_MAX_PIXELS: 1600,
        gguf.Keys.ClipVision.IS_DEEPSTACK_LAYERS: [layer in DEEP for layer in range(4)],
    }  # fmt: skip
    return {
        "model.gguf": write(folder / "model.gguf", "qwen3vl", values, text),
        "mmproj.gguf": write(folder / "mmproj.gguf", "clip", eyes, eye),
    }


def pair_parts(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what a tensor of the encoder becomes: frames are two tensors, and projectors have names of their own."""
    known, kinds, kind = gguf.TENSOR_NAMES, gguf.MODEL_TENSOR, name.rsplit(".", 1)[1]
    if name == "visual.patch_embed.proj.weight":
        embedding = f"{known[kinds.V_ENC_EMBD_PATCH]}.weight"
        yield embedding, array[:, :, 0]
        yield f"{embedding}.1", array[:, :, 1]
    elif name.startswith("visual.deepstack_merger_list."):
        _, _, number, part, _ = name.split(".")
        parts = {"norm": kinds.V_DS_NORM, "linear_fc1": kinds.V_DS_FC1, "linear_fc2": kinds.V_DS_FC2}
        yield f"{known[parts[part]].format(bid=DEEP[int(number)])}.{kind}", array
    elif name.startswith("visual.merger."):
        part = name.split(".")[2]
        merger = {"linear_fc1": known[kinds.V_MMPROJ].format(bid=0), "linear_fc2": known[kinds.V_MMPROJ].format(bid=2)}
        yield f"{merger.get(part, known[kinds.V_POST_NORM])}.{kind}", array
    elif name == "visual.patch_embed.proj.bias":
        yield f"{known[kinds.V_ENC_EMBD_PATCH]}.bias", array
    else:
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 4)
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), array


# ---- a single file ---------------------------------------------------------------------------------------------------

SPELLED = {
    "model.language_model.": "model.", "model.visual.": "v.", "model.embed_tokens": "token_embd",
    "model.layers": "blk", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output", "self_attn.q_": "attn_q_",
    "self_attn.k_": "attn_k_", "self_attn.v_": "attn_v_", "_proj.": ".", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up",
    "mlp.down": "ffn_down", "patch_embed.proj": "patch_embed", "v.blocks": "v.blk", "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out", "deepstack_merger_list": "deepstack_merger",
}  # fmt: skip


def write_single(path: Path) -> Path:
    """Write one file with everything in it."""
    tensors: dict[str, np.ndarray] = {}
    for name, array in arrays():
        for old, new in SPELLED.items():
            name = name.replace(old, new)
        if "attn_qkv" in name:
            thirds = zip("qkv", np.split(array, 3), strict=True)
            tensors |= {name.replace("qkv", letter): third for letter, third in thirds}
        else:
            tensors[name] = array.reshape(-1, 2, 4, 4) if array.ndim == 5 else array
    values = text_values() | {"qwen3vl.rope.mrope_section": [6, 2, 2]}
    values |= {f"qwen3vl.vision.{key}": value for key, value in EYE_SIZES.items()} | {
        "qwen3vl.vision.num_channels": 3, "qwen3vl.vision.temporal_patch_size": 2,
        "qwen3vl.vision.attention.layer_norm_epsilon": 1e-6, "qwen3vl.vision.rope.freq_base": 10000.0,
        "qwen3vl.vision.deepstack_visual_indexes": DEEP, "qwen3vl.vision.num_positional_embeddings": 36,
        "qwen3vl.vision.shortest_edge": 512, "qwen3vl.vision.longest_edge": 1600,
        "qwen3vl.vision.image_mean": [0.5] * 3, "qwen3vl.vision.image_std": [0.5] * 3,
    }  # fmt: skip
    return write(path, "qwen3vl", values, tensors)
