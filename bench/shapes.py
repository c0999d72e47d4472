"""The sizes of well-known decoders, and which tensors, of which type, a file of each quantisation holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

Type = GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    """What tells one model of a family from another."""

    architecture: Literal["llama", "qwen2", "llama4"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tied: bool  # the output layer is the embedding table
    context: int = 131072
    rope_base: float = 500000.0
    rope_factor: float | None = None  # Llama 3's stretch of the slow frequencies
    experts: int = 0  # of each layer, beside one that all tokens share; all are ffn wide
    used: int = 0  # experts that a token asks

    @property
    def head_size(self) -> int:
        """Elements of one head."""
        return self.hidden // self.heads


LLAMA_VOCABULARY = 128256
SHAPES = {
    "tiny": Shape("llama", 256, 8, 4, 2, 512, 768, tied=True, context=2048),
    "thin": Shape("llama", 256, 16, 4, 1, 256, 768, tied=True, context=2048),  # layers of next to no work
    "medium": Shape("llama", 1024, 16, 16, 4, 4096, 16384, tied=True, context=2048),
    "tiny-moe": Shape("llama4", 256, 4, 4, 2, 256, 768, tied=True, context=2048, experts=8, used=2),
    # No model of this name is published: experts as small as those of Qwen3 30B A3B, in a file that fits anywhere.
    "moe-2b": Shape("llama4", 2048, 8, 16, 4, 1024, LLAMA_VOCABULARY, tied=True, experts=32, used=4),
    "llama-3.2-1b": Shape("llama", 2048, 16, 32, 8, 8192, LLAMA_VOCABULARY, tied=True, rope_factor=32),
    "llama-3.2-3b": Shape("llama", 3072, 28, 24, 8, 8192, LLAMA_VOCABULARY, tied=True, rope_factor=32),
    "llama-3.1-8b": Shape("llama", 4096, 32, 32, 8, 14336, LLAMA_VOCABULARY, tied=False, rope_factor=8),
    "qwen2.5-0.5b": Shape("qwen2", 896, 24, 14, 2, 4864, 151936, tied=True, context=32768, rope_base=1e6),
    "qwen2.5-1.5b": Shape("qwen2", 1536, 28, 12, 2, 8960, 151936, tied=True, context=32768, rope_base=1e6),
}


@dataclass(frozen=True)
class Recipe:
    """Which type each tensor of a quantised file gets, by llama.cpp's rules."""

    base: Type
    label: LlamaFileType  # general.file_type
    output: Type  # the output layer, or the embedding table that stands in for it
    more: Type | None = None  # attn_v and ffn_down of the layers that get more bits


RECIPES = {
    "F16": Recipe(Type.F16, LlamaFileType.MOSTLY_F16, Type.F16),
    "BF16": Recipe(Type.BF16, LlamaFileType.MOSTLY_BF16, Type.BF16),
    "Q8_0": Recipe(Type.Q8_0, LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
    "Q4_0": Recipe(Type.Q4_0, LlamaFileType.MOSTLY_Q4_0, Type.Q6_K),
    "Q4_K_M": Recipe(Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_M, Type.Q6_K, more=Type.Q6_K),
    "Q5_K_M": Recipe(Type.Q5_K, LlamaFileType.MOSTLY_Q5_K_M, Type.Q6_K, more=Type.Q6_K),
    "Q6_K": Recipe(Type.Q6_K, LlamaFileType.MOSTLY_Q6_K, Type.Q6_K),
}
SHARED = "_shexp"  # what the names of the expert have that all tokens share
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}  # rows that are no multiple of 256


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written."""

    name: str
    type: Type
    shape: tuple[int, ...]  # slowest dimension first: a linear layer is [out, in]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        elements, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // elements * size

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return math.prod(self.shape[:-1]) * self.row_bytes


def tensors(shape: Shape, recipe: Recipe) -> list[Tensor]:
    """Return the tensors of a model in the order of its file."""
    D, V = shape.hidden, shape.vocabulary
    embedding = recipe.output if shape.tied else recipe.base
    found = [_matrix("token_embd.weight", embedding, V, D)]
    for layer in range(shape.layers):
        found += _block(shape, recipe, layer)
    found.append(Tensor("output_norm.weight", Type.F32, (D,)))
    if not shape.tied:
        found.append(_matrix("output.weight", recipe.output, V, D))
    if shape.rope_factor is not None:
        found.append(Tensor("rope_freqs.weight", Type.F32, (shape.head_size // 2,)))
    return found


def gets_more_bits(layer: int, layers: int) -> bool:
    """Say whether `_M` recipes raise attn_v and ffn_down of a layer: the first and last eighth, else every third."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _block(shape: Shape, recipe: Recipe, layer: int) -> list[Tensor]:
    D, F, KE = shape.hidden, shape.ffn, shape.kv_heads * shape.head_size
    raised = recipe.more if recipe.more is not None and gets_more_bits(layer, shape.layers) else recipe.base
    name = f"blk.{layer}."
    biases = {"attn_q": D, "attn_k": KE, "attn_v": KE} if shape.architecture == "qwen2" else {}
    return [
        Tensor(name + "attn_norm.weight", Type.F32, (D,)),
        _matrix(name + "attn_q.weight", recipe.base, D, D),
        _matrix(name + "attn_k.weight", recipe.base, KE, D),
        _matrix(name + "attn_v.weight", raised, KE, D),
        *(Tensor(f"{name}{part}.bias", Type.F32, (size,)) for part, size in biases.items()),
        _matrix(name + "attn_output.weight", recipe.base, D, D),
        Tensor(name + "ffn_norm.weight", Type.F32, (D,)),
        *(_experts(shape, recipe.base, raised, name) if shape.experts else ()),
        *_mlp(name + "ffn_{}" + (SHARED if shape.experts else "") + ".weight", recipe.base, raised, (F, D)),
    ]


def _experts(shape: Shape, base: Type, raised: Type, name: str) -> list[Tensor]:
    """Return the router and the experts of a layer."""
    router = Tensor(name + "ffn_gate_inp.weight", Type.F32, (shape.experts, shape.hidden))
    return [router, *_mlp(name + "ffn_{}_exps.weight", base, raised, (shape.experts, shape.ffn, shape.hidden))]


def _mlp(name: str, base: Type, raised: Type, shape: tuple[int, ...]) -> list[Tensor]:
    """Return gate, up and down. shape: of gate."""
    *experts, F, D = shape
    sizes = {"gate": (base, F, D), "up": (base, F, D), "down": (raised, D, F)}
    return [_matrix(name.format(part), wanted, *experts, *size) for part, (wanted, *size) in sizes.items()]


def _matrix(name: str, wanted: Type, *shape: int) -> Tensor:
    elements, _ = GGML_QUANT_SIZES[wanted]
    return Tensor(name, wanted if shape[-1] % elements == 0 else FALLBACK[wanted], shape)
