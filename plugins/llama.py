"""Llama 2 and 3 text decoders, and every GGUF file that calls itself one.

Source: The Llama 3 Herd of Models, arXiv:2407.21783, section 3.2; the architecture is that of arXiv:2302.13971,
section 2.2, with grouped queries (arXiv:2305.13245).
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
    Llama3,
    NoScaling,
    Pairing,
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
    rope_divisors,
    rope_table,
    rotations,
    scaling_from_gguf,
    scaling_from_hf,
    scaling_to_gguf,
)


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
    rope_size: int  # leading dimensions of a head that turn
    rope_base: float
    scaling: Scaling
    pairing: Pairing  # conversion to GGUF reorders the rows of q and k so that pairs become neighbours

    @property
    def queries(self) -> int:
        """H * E."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """K * E."""
        return self.kv_heads * self.head_size

    @property
    def rope_pairs(self) -> int:
        """Pairs of a head that turn."""
        return self.rope_size // 2

    @classmethod
    def from_gguf(cls, keys: Keys) -> Config:
        """Read `llama.*`."""
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", hidden // heads)
        keys.integer("attention.value_length", head_size, low=head_size, high=head_size)
        return cls(
            layers=keys.integer("block_count"),
            hidden=hidden,
            inner=keys.integer("feed_forward_length"),
            heads=heads,
            kv_heads=keys.divisor("attention.head_count_kv", of=heads),
            head_size=head_size,
            vocabulary=keys.integer("vocab_size", len(keys.list("tokenizer.ggml.tokens")) or None),
            context_length=keys.integer("context_length"),
            eps=keys.number("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
            rope_size=keys.integer("rope.dimension_count", head_size, high=head_size),
            rope_base=keys.number("rope.freq_base", 10000.0, low=1.0001),
            scaling=scaling_from_gguf(keys),
            pairing="interleaved",
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `llama.*`. The scaling of Llama 3 is no key but a tensor, `rope_divisors`."""
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
            "rope.dimension_count": self.rope_size,
            "rope.freq_base": self.rope_base,
            **scaling_to_gguf(NoScaling() if isinstance(self.scaling, Llama3) else self.scaling),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read config.json."""
        keys.text("hidden_act", "silu", allowed=("silu",))
        if keys.flag("mlp_bias", False):
            raise keys.wrong("mlp_bias", "false: biases in the MLP are not part of any published model")
        heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
        head_size = keys.integer("head_dim", hidden // heads)
        return cls(
            layers=keys.integer("num_hidden_layers"),
            hidden=hidden,
            inner=keys.integer("intermediate_size"),
            heads=heads,
            kv_heads=keys.divisor("num_key_value_heads", of=heads),
            head_size=head_size,
            vocabulary=keys.integer("vocab_size"),
            context_length=keys.integer("max_position_embeddings", 2048),
            eps=keys.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
            rope_size=head_size,
            rope_base=rope_base_from_hf(keys),
            scaling=scaling_from_hf(keys),
            pairing="split",
        )


class Block(Module):
    """One layer: attention and a gated MLP, each behind a norm and beside a residual."""

    config: Config
    attention_norm: Array = tensor("hidden", gguf="attn_norm.weight", hf="input_layernorm.weight")
    q: Matrix = tensor("queries", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight", paired="heads")
    k: Matrix = tensor("keys", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight", paired="kv_heads")
    v: Matrix = tensor("keys", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    q_bias: Array | None = tensor(
        "queries", gguf="attn_q.bias", hf="self_attn.q_proj.bias", optional=True, paired="heads"
    )
    k_bias: Array | None = tensor(
        "keys", gguf="attn_k.bias", hf="self_attn.k_proj.bias", optional=True, paired="kv_heads"
    )
    v_bias: Array | None = tensor("keys", gguf="attn_v.bias", hf="self_attn.v_proj.bias", optional=True)
    out: Matrix = tensor("hidden", "queries", gguf="attn_output.weight", hf="self_attn.o_proj.weight")
    out_bias: Array | None = tensor("hidden", gguf="attn_output.bias", hf="self_attn.o_proj.bias", optional=True)
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
        size = self.config.head_size
        q, k, v = project(x, (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        q = rope(q.reshape(-1, self.config.heads, size), turn)  # [T, H, E]
        k = rope(k.reshape(-1, self.config.kv_heads, size), turn)  # [T, K, E]
        seen = cache.extend(k, v.reshape(-1, self.config.kv_heads, size))
        return linear(attend(q, seen, scale=size**-0.5), self.out, self.out_bias)


class Llama(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight", hf="model.embed_tokens.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", hf="model.layers.{}.")
    norm: Array = tensor("hidden", gguf="output_norm.weight", hf="model.norm.weight")
    output: Matrix = tensor("vocabulary", "hidden", gguf="output.weight", hf="lm_head.weight", tied="embedding")
    rope_divisors: Array | None = tensor("rope_pairs", gguf="rope_freqs.weight", optional=True)

    def ready(self) -> None:
        """Compute the frequencies; a file may bring their llama3 scaling ready-made, as divisors."""
        c = self.config
        self.table = rope_table(
            c.rope_size, base=c.rope_base, pairing=c.pairing, scaling=c.scaling, divisors=self.rope_divisors
        )
        if isinstance(c.scaling, Llama3) and self.rope_divisors is None:
            self.rope_divisors = rope_divisors(c.rope_size, base=c.rope_base, scaling=c.scaling)

    def embed(self, tokens: Array) -> Array:  # [T] -> [T, D]
        """Return the embeddings of tokens."""
        return embed(tokens, self.embedding)

    def forward(self, x: Array, step: Step) -> Array:  # [T, D] -> [T, D]
        """Return what leaves the last block."""
        turn = rotations(step.positions, self.table)
        for block, cache in zip(self.blocks, step.cache, strict=True):
            x = block.forward(x, turn, cache)
        return x

    def logits(self, x: Array) -> Array:  # [N, D] -> [N, V]
        """Return the logits of chosen rows."""
        return linear(rms_norm(x, self.norm, self.config.eps), self.output)


def cache_layout(config: Config) -> list[CacheLayer]:
    """Return what each layer keeps: every key and value, seen by all that follow."""
    layer = CacheLayer(config.kv_heads, config.head_size, config.head_size, Causal())
    return [layer] * config.layers


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [Architecture(gguf=("llama",), hf=("LlamaForCausalLM",), config=Config, model=Llama, cache=cache_layout)]
