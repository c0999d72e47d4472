"""What a model's weights say about themselves: its family, its size, how it is quantised, how long a text it takes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from ..core.decoding import MALFORMED
from ..core.errors import BadModel
from ..core.tensor.source import TensorInfo, WeightSource

Role = Literal["model", "projector", "adapter"]

# Labels of the GGUF key general.file_type. Source: the enumeration llama_ftype of llama.cpp.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
}  # fmt: skip

# Where a checkpoint's config.json says what a GGUF key says; in a multimodal config the text model has its own part.
_CHECKPOINT_KEYS = {
    "context_length": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "embedding_length": ("hidden_size", "n_embd", "dim"),
    "block_count": ("num_hidden_layers", "n_layer", "n_layers"),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "rope.freq_base": ("rope_theta",),
    "vocab_size": ("vocab_size",),
    "expert_count": ("num_local_experts", "num_experts"),
}
_VISION_KEYS = {
    "vision.block_count": ("num_hidden_layers", "depth"),
    "vision.embedding_length": ("hidden_size",),
    "vision.image_size": ("image_size",),
    "vision.patch_size": ("patch_size",),
}


@dataclass(frozen=True)
class Facts:
    """The facts that a model's config and the listing show. A length is None if the files do not give it."""

    format: str  # gguf, safetensors
    family: str
    parameters: int
    quantization: str
    context_length: int | None  # tokens
    embedding_length: int | None


def facts_of(source: WeightSource) -> Facts:
    """Return what source says. Raises BadModel if it does not name its architecture."""
    family = architecture(source)
    info = information(source)
    return Facts(
        format=source.kind,
        family=family,
        parameters=parameter_count(source.tensors.values()),
        quantization=quantization(source),
        context_length=_whole(info.get(f"{family}.context_length")),
        embedding_length=_whole(info.get(f"{family}.embedding_length")),
    )


def architecture(source: WeightSource) -> str:
    """Return the name of the architecture: `general.architecture`, or a checkpoint's `model_type`."""
    key = "general.architecture" if source.kind == "gguf" else "model_type"
    name = source.metadata.get(key)
    if not isinstance(name, str) or not name or not name.isprintable():
        raise BadModel(f"the model's {key} is {name!r}, expected a name")
    return name


def role(source: WeightSource) -> Role:
    """Return what a file of weights is for.

    A file that holds a vision tower beside the language model is a model; one with the tower alone is a projector.
    """
    kind = source.metadata.get("general.type")
    if kind == "adapter":
        return "adapter"
    name = architecture(source)
    sees = f"{name}.vision.block_count" in source.metadata or name == "clip"
    alone = source.kind == "gguf" and "token_embd.weight" not in source.tensors
    return "projector" if kind in ("projector", "mmproj") or (sees and alone) else "model"


def sees(source: WeightSource) -> bool:
    """Return whether a file of weights holds an encoder of images, besides the language model or alone."""
    if source.kind == "safetensors":
        return bool(_part(source.metadata, "vision_config"))
    name = architecture(source)
    if name == "clip":  # what projectors call themselves; there are some of sound
        return bool(source.metadata.get("clip.has_vision_encoder", True))
    return f"{name}.vision.block_count" in source.metadata


def information(source: WeightSource) -> dict[str, Any]:
    """Return the settings under GGUF's names; those of a checkpoint are translated."""
    if source.kind == "gguf":
        return dict(source.metadata)
    family, config = architecture(source), source.metadata
    text = _part(config, "text_config", "llm_config") or config
    vision = _part(config, "vision_config")
    info: dict[str, Any] = {"general.architecture": family}
    for keys, part in ((_CHECKPOINT_KEYS, text), (_VISION_KEYS, vision)):
        for name, spellings in keys.items():
            value = next((part[key] for key in spellings if part.get(key) is not None), None)
            if value is not None:
                info[f"{family}.{name}"] = value
    return info


def chat_template(source: WeightSource) -> str | None:
    """Return the Jinja template that came with the weights; None if there is none. Raises BadModel if it is no text."""
    if source.kind == "gguf":
        return _template_text(source.metadata.get("tokenizer.chat_template"))
    if (text := source.side_file("chat_template.jinja")) is not None:
        return _utf8(text)
    # Older checkpoints of models that see may have it with the processor of images, and there alone.
    found = (_template_beside(source, name) for name in ("tokenizer_config.json", "chat_template.json"))
    return next((text for text in found if text is not None), None)


def parameter_count(tensors: Iterable[TensorInfo]) -> int:
    """Return the number of elements of all tensors."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def human_count(count: int) -> str:
    """Return a number of parameters the way people say it: 8B, 7.6B, 22.57M, 12K, 640."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else digits}f}{letter}"
    return str(count)


def quantization(source: WeightSource) -> str:
    """Return how the weights are stored: Q4_K_M, BF16, ...

    The tensors decide, for the file's own label is only a label; it is believed where it names a mixture (Q4_K_M) of
    the width that most elements of the blocks' matrices have.
    """
    found = _commonest_format(source.tensors.values())
    label = FILE_TYPES.get(_whole(source.metadata.get("general.file_type")) or 0, found)
    return label if _bits(label) == _bits(found) else found


def _commonest_format(tensors: Iterable[TensorInfo]) -> str:
    """Return the format of most elements, the embeddings aside: a small model's outweigh its blocks."""
    inside, outside = Counter[str](), Counter[str]()
    for tensor in tensors:
        matrix_in_block = len(tensor.shape) > 1 and re.search(r"\.\d+\.", tensor.name)
        (inside if matrix_in_block else outside)[tensor.format.name] += math.prod(tensor.shape)
    commonest = (inside or outside).most_common(1)
    return commonest[0][0] if commonest else "unknown"


def _bits(label: str) -> str:
    """Return what two labels of one width have in common: Q4 for Q4_K_M and Q4_K, BF16 for itself."""
    match = re.match(r"[A-Z]+\d+", label)
    return match[0] if match else label


def _part(config: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((config[name] for name in names if isinstance(config.get(name), Mapping)), {})


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _template_beside(source: WeightSource, name: str) -> str | None:
    """Return the template in a JSON file of a checkpoint; None if there is no such file, or none in it."""
    try:
        config = msgspec.json.decode(source.side_file(name) or b"{}", type=dict[str, Any])
    except MALFORMED as error:
        raise BadModel(f"{name}: {error}") from None
    return _template_text(config.get("chat_template"))


def _template_text(value: Any) -> str | None:
    """Return a chat template, the one called default if there are several."""
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = named[0].get("template") if named else None
    if value is not None and not isinstance(value, str):
        raise BadModel(f"the model's chat template is a {type(value).__name__}, expected a text")
    return value


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadModel("chat_template.jinja is not UTF-8 text") from None
