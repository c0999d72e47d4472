"""Mistral Small 3.1: the text decoder, and the plugin's hook; `mistral_small_vision` sees.

Source: Mistral 7B, arXiv:2310.06825, section 2: grouped queries. Heads together are narrower than the model, and what
Mistral 7B had as a window is left out by the published models.
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
    Window,
    hookimpl,
    layers,
    tensor,
)
from ..core.tensor import (
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
    rope_table,
    rotations,
    scaling_from_gguf,
    scaling_from_hf,
    scaling_to_gguf,
)
from .mistral_small_vision import Vision, VisionConfig


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of one model."""

    layers: int
    hidden: int  # D
    inner: int  # width of the gated MLP
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E; H * E is not D
    vocabulary: int  # V
    context_length: int
    eps: float
    rope_base: float
    scaling: Scaling
    pairing: Pairing  # conversion to GGUF reorders the rows of q and k so that pairs become neighbours
    window: int | None  # tokens a token sees; None: all

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
        """Read `mistral3.*`, or `llama.*` as older files have it. These files have no key for a window.

        Nor is `rope.dimension_count` read: all of a head turns, and one converter writes another number.
        """
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", hidden // heads)
        keys.integer("attention.value_length", head_size, low=head_size, high=head_size)
        if keys.number("attention.temperature_scale", 0.0):
            raise keys.wrong("attention.temperature_scale", "0: models that sharpen far queries are not read")
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
            rope_base=keys.number("rope.freq_base", 10000.0, low=1.0001),
            scaling=scaling_from_gguf(keys),
            pairing="interleaved",
            window=None,
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `mistral3.*`, which do not say that layers have a window."""
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
            **scaling_to_gguf(self.scaling),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read the section `text_config` of config.json, with what it leaves out as in the reference's class.

        A null for the window means none, as published models have it.
        """
        keys = keys.section("text_config") or keys
        keys.text("model_type", "mistral", allowed=("mistral",))  # later models have other decoders below this encoder
        keys.text("hidden_act", "silu", allowed=("silu",))
        heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
        return cls(
            layers=keys.integer("num_hidden_layers"),
            hidden=hidden,
            inner=keys.integer("intermediate_size"),
            heads=heads,
            kv_heads=keys.divisor("num_key_value_heads", of=heads, default=8),
            head_size=keys.integer("head_dim", hidden // heads),
            vocabulary=keys.integer("vocab_size"),
            context_length=keys.integer("max_position_embeddings", 131072),
            eps=keys.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
            rope_base=rope_base_from_hf(keys),
            scaling=scaling_from_hf(keys),
            pairing="split",
            window=None if keys.is_null("sliding_window") else keys.integer("sliding_window", 4096),
        )


class Block(Module):
    """One layer: attention and a gated MLP, each behind a norm and beside a residual."""

    config: Config
    attention_norm: Array = tensor("hidden", gguf="attn_norm.weight", hf="input_layernorm.weight")
    q: Matrix = tensor("queries", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight", paired="heads")
    k: Matrix = tensor("keys", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight", paired="kv_heads")
    v: Matrix = tensor("keys", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
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
        size = self.config.head_size
        q, k, v = project(x, (self.q, None), (self.k, None), (self.v, None))
        q = rope(q.reshape(-1, self.config.heads, size), turn)  # [T, H, E]
        k = rope(k.reshape(-1, self.config.kv_heads, size), turn)  # [T, K, E]
        seen = cache.extend(k, v.reshape(-1, self.config.kv_heads, size))
        return linear(attend(q, seen, scale=size**-0.5), self.out)


class MistralSmall(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight", hf="model.embed_tokens.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", hf="model.layers.{}.")
    norm: Array = tensor("hidden", gguf="output_norm.weight", hf="model.norm.weight")
    output: Matrix = tensor("vocabulary", "hidden", gguf="output.weight", hf="lm_head.weight", tied="embedding")

    def ready(self) -> None:
        """Compute the frequencies of the pairs."""
        c = self.config
        self.table = rope_table(c.head_size, base=c.rope_base, pairing=c.pairing, scaling=c.scaling)

    def embed(self, tokens: Array) -> Array:  # [T] -> [T, D]
        """Return the embeddings of tokens, those that end the rows of a picture among them."""
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
    """Return what each layer keeps: keys and values, seen by all that follow or by those within the window."""
    kind = Causal() if config.window is None else Window(config.window)
    return [CacheLayer(config.kv_heads, config.head_size, config.head_size, kind)] * config.layers


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [
        Architecture(
            # In older pairs of files the text's calls itself llama, as files of many models do.
            gguf=("mistral3", "llama+pixtral"),
            hf=("Mistral3ForConditionalGeneration",),
            config=Config,
            model=MistralSmall,
            cache=cache_layout,
            vision=Vision,
            vision_config=VisionConfig,
            # Checkpoints keep the decoder below other names, which have changed once.
            prefixes={
                "language_model.model.": "model.",
                "language_model.lm_head.": "lm_head.",
                "model.language_model.": "model.",
                "model.vision_tower.": "vision_tower.",
                "model.multi_modal_projector.": "multi_modal_projector.",
            },
        )
    ]
