"""Qwen 3 VL: the text decoder, which is Qwen 3 with positions in time, rows and columns, and the plugin's hook.

Source: Qwen3-VL Technical Report, arXiv:2511.21631, section 2: the streams of positions alternate over a head's pairs,
and the first layers are given what layers within the encoder saw of an image, by adding it to the image's rows.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..core.plugin import (
    Architecture,
    Array,
    CacheLayer,
    Causal,
    Keys,
    LayerCache,
    Matrix,
    Module,
    Step,
    hookimpl,
    layers,
    tensor,
)
from ..core.tensor import (
    Rotation,
    Scaling,
    attend,
    embed,
    gated_mlp,
    linear,
    project,
    rms_norm,
    rope,
    rope_base_from_hf,
    rope_table,
    rotations,
    scaling_from_gguf,
    scaling_from_hf,
    scaling_to_gguf,
)
from .qwen3vl_sizes import VisionConfig
from .qwen3vl_vision import Vision

MOST_LAYERS = 1 << 12  # far above any model: what each layer keeps is listed before the file's tensors are counted
SECTIONS = (24, 20, 20)  # of the published models, whose heads have 128 dimensions; some files do not say


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of one model."""

    layers: int
    hidden: int  # D
    inner: int  # width of the gated MLP
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E
    vocabulary: int  # V
    context_length: int
    eps: float
    rope_base: float
    scaling: Scaling
    sections: tuple[int, int, int]  # pairs of a head that turn by time, by row and by column

    @property
    def queries(self) -> int:
        """H * E."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """K * E."""
        return self.kv_heads * self.head_size

    @classmethod
    def from_gguf(cls, keys: Keys) -> Config:
        """Read `qwen3vl.*`."""
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", hidden // heads)
        keys.integer("attention.value_length", head_size, low=head_size, high=head_size)
        keys.integer("rope.dimension_count", head_size, low=head_size, high=head_size)
        sections = "rope.dimension_sections" if "rope.dimension_sections" in keys else "rope.mrope_section"
        return cls(
            layers=keys.integer("block_count", high=MOST_LAYERS),
            hidden=hidden,
            inner=keys.integer("feed_forward_length"),
            heads=heads,
            kv_heads=keys.divisor("attention.head_count_kv", of=heads),
            head_size=head_size,
            vocabulary=keys.integer("vocab_size", len(keys.list("tokenizer.ggml.tokens")) or None),
            context_length=keys.integer("context_length"),
            eps=keys.number("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
            rope_base=keys.number("rope.freq_base", 10000.0, low=1.0001),
            scaling=scaling_from_gguf(keys),
            sections=_sections(keys, sections, head_size // 2),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `qwen3vl.*`."""
        return {
            "block_count": self.layers,
            "context_length": self.context_length,
            "embedding_length": self.hidden,
            "feed_forward_length": self.inner,
            "vocab_size": self.vocabulary,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_size,
            "attention.value_length": self.head_size,
            "attention.layer_norm_rms_epsilon": self.eps,
            "rope.dimension_count": self.head_size,
            "rope.freq_base": self.rope_base,
            "rope.mrope_section": list(self.sections),
            **scaling_to_gguf(self.scaling),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read config.json, which has the decoder's part in a section of its own."""
        keys = keys.section("text_config") or keys
        keys.text("hidden_act", "silu", allowed=("silu",))
        if keys.flag("attention_bias", False):
            raise keys.wrong("attention_bias", "false: no published model has these biases")
        heads = keys.integer("num_attention_heads")
        head_size = keys.integer("head_dim", 128)  # what the class assumes when the config is silent
        rule = keys.section("rope_scaling") or keys.section("rope_parameters") or keys
        if not rule.flag("mrope_interleaved", True):
            raise rule.wrong("mrope_interleaved", "true: streams of positions alternate in this architecture")
        return cls(
            layers=keys.integer("num_hidden_layers", high=MOST_LAYERS),
            hidden=keys.integer("hidden_size"),
            inner=keys.integer("intermediate_size"),
            heads=heads,
            kv_heads=keys.divisor("num_key_value_heads", of=heads),
            head_size=head_size,
            vocabulary=keys.integer("vocab_size"),
            context_length=keys.integer("max_position_embeddings", 128000),
            eps=keys.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
            rope_base=rope_base_from_hf(keys, 5e6),
            scaling=scaling_from_hf(keys),
            sections=_sections(rule, "mrope_section", head_size // 2),
        )


def _sections(keys: Keys, name: str, pairs: int) -> tuple[int, int, int]:
    """Return how many pairs turn by each of the three streams. Some files list a fourth, which has none."""
    found = list(keys.list(name)) or list(SECTIONS)
    try:
        time, rows, columns, *others = map(int, found)
    except (TypeError, ValueError, OverflowError):
        time, rows, columns, others = 0, 0, 0, []
    if min(time, rows, columns) < 0 or time + rows + columns != pairs or any(others):
        raise keys.wrong(name, f"three numbers of pairs that add up to {pairs}")
    if 3 * rows > pairs + 1 or 3 * columns > pairs:  # the streams alternate
        raise keys.wrong(name, f"no more than every third of {pairs} pairs for rows, and for columns")
    return time, rows, columns


class Block(Module):
    """One layer: attention and a gated MLP, each behind a norm and beside a residual."""

    config: Config
    attention_norm: Array = tensor("hidden", gguf="attn_norm.weight", hf="input_layernorm.weight")
    q: Matrix = tensor("queries", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    k: Matrix = tensor("keys", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    v: Matrix = tensor("keys", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    q_norm: Array = tensor("head_size", gguf="attn_q_norm.weight", hf="self_attn.q_norm.weight")
    k_norm: Array = tensor("head_size", gguf="attn_k_norm.weight", hf="self_attn.k_norm.weight")
    out: Matrix = tensor("hidden", "queries", gguf="attn_output.weight", hf="self_attn.o_proj.weight")
    mlp_norm: Array = tensor("hidden", gguf="ffn_norm.weight", hf="post_attention_layernorm.weight")
    gate: Matrix = tensor("inner", "hidden", gguf="ffn_gate.weight", hf="mlp.gate_proj.weight")
    up: Matrix = tensor("inner", "hidden", gguf="ffn_up.weight", hf="mlp.up_proj.weight")
    down: Matrix = tensor("hidden", "inner", gguf="ffn_down.weight", hf="mlp.down_proj.weight")

    def forward(self, x: Array, turn: Rotation, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return x after this layer."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.config.eps), turn, cache)
        return x + gated_mlp(rms_norm(x, self.mlp_norm, self.config.eps), self.gate, self.up, self.down)

    def attention(self, x: Array, turn: Rotation, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return what attention adds."""
        size, eps = self.config.head_size, self.config.eps
        q, k, v = project(x, (self.q, None), (self.k, None), (self.v, None))
        q = rope(rms_norm(q.reshape(-1, self.config.heads, size), self.q_norm, eps), turn)  # [T, H, E]
        k = rope(rms_norm(k.reshape(-1, self.config.kv_heads, size), self.k_norm, eps), turn)  # [T, K, E]
        seen = cache.extend(k, v.reshape(-1, self.config.kv_heads, size))
        return linear(attend(q, seen, scale=size**-0.5), self.out)


class Qwen3VL(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight", hf="model.embed_tokens.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", hf="model.layers.{}.")
    norm: Array = tensor("hidden", gguf="output_norm.weight", hf="model.norm.weight")
    output: Matrix = tensor("vocabulary", "hidden", gguf="output.weight", hf="lm_head.weight", tied="embedding")

    def ready(self) -> None:
        """Compute the frequencies of the pairs, of which time, row and column have every third each."""
        c = self.config
        self.table = rope_table(
            c.head_size, base=c.rope_base, pairing="split", scaling=c.scaling, sections=c.sections, interleaved=True
        )

    def embed(self, tokens: Array) -> Array:  # [T] -> [T, D]
        """Return the embeddings of tokens."""
        return embed(tokens, self.embedding)

    def forward(self, x: Array, step: Step) -> Array:  # [T, D] -> [T, D]
        """Return what leaves the last block. The step's positions are [3, T]: time, row and column of each token."""
        turn = rotations(step.positions, self.table)
        for number, (block, cache) in enumerate(zip(self.blocks, step.cache, strict=True)):
            x = step.deepen(block.forward(x, turn, cache), number)
        return x

    def logits(self, x: Array) -> Array:  # [N, D] -> [N, V]
        """Return the logits of chosen rows."""
        return linear(rms_norm(x, self.norm, self.config.eps), self.output)


def cache_layout(config: Config) -> list[CacheLayer]:
    """Return what each layer keeps: keys and values, seen by all that follow."""
    return [CacheLayer(config.kv_heads, config.head_size, config.head_size, Causal())] * config.layers


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [
        Architecture(
            gguf=("qwen3vl",),  # one file with everything, or a text file beside which an encoder's may lie
            hf=("Qwen3VLForConditionalGeneration",),
            config=Config,
            model=Qwen3VL,
            cache=cache_layout,
            vision=Vision,
            vision_config=VisionConfig,
            streams=3,
            prefixes={"model.language_model.": "model.", "model.visual.": "visual."},
        )
    ]
