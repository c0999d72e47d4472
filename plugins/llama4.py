"""Llama 4 (Scout, Maverick): the text decoder, and with `llama4_vision` the plugin's hook.

Sources: Llama 4's model card and reference code, as published by Meta; Rope to Nope and Back Again, arXiv:2501.18795,
for layers that see everything between layers with positions; Scalable-Softmax, arXiv:2501.19399, for what keeps those
sharp; GLU Variants, arXiv:2002.05202, and Mixtral of Experts, arXiv:2401.04088, for the parts of its MLPs.
"""

from __future__ import annotations

from typing import Protocol

from ..core.plugin import (
    Architecture,
    Array,
    CacheLayer,
    Causal,
    Chunk,
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
    Rotation,
    attend,
    embed,
    gated_mlp,
    largest,
    linear,
    moe,
    project,
    rms_norm,
    rope,
    rope_divisors,
    rope_table,
    rotations,
    sharpness,
    sigmoid,
)
from .llama4_sizes import Config
from .llama4_vision import Vision
from .llama4_vision_sizes import VisionConfig


class FeedForward(Protocol):
    """What each token makes of itself."""

    def forward(self, x: Array) -> Array:
        """Return what it adds. x: [T, D]; result: [T, D]."""


class Dense(Module):
    """A gated MLP."""

    gate: Matrix = tensor("inner", "hidden", gguf="ffn_gate.weight", hf="gate_proj.weight")
    up: Matrix = tensor("inner", "hidden", gguf="ffn_up.weight", hf="up_proj.weight")
    down: Matrix = tensor("hidden", "inner", gguf="ffn_down.weight", hf="down_proj.weight")

    def forward(self, x: Array) -> Array:  # [T, D] -> [T, D]
        """Return what it adds."""
        return gated_mlp(x, self.gate, self.up, self.down)


class Mixture(Module):
    """Experts, of which each token asks its own, and one that all tokens share."""

    config: Config
    router: Matrix = tensor("experts", "hidden", gguf="ffn_gate_inp.weight", hf="router.weight")
    gate: Matrix = tensor(
        "experts", "expert_inner", "hidden",
        gguf="ffn_gate_exps.weight", hf="experts.gate_up_proj", hf_part=(0, 2), transposed="hf",
    )  # fmt: skip
    up: Matrix = tensor(
        "experts", "expert_inner", "hidden",
        gguf="ffn_up_exps.weight", hf="experts.gate_up_proj", hf_part=(1, 2), transposed="hf",
    )  # fmt: skip
    down: Matrix = tensor(
        "experts", "hidden", "expert_inner",
        gguf="ffn_down_exps.weight", hf="experts.down_proj", transposed="hf",
    )  # fmt: skip
    shared_gate: Matrix = tensor(
        "expert_inner", "hidden", gguf="ffn_gate_shexp.weight", hf="shared_expert.gate_proj.weight"
    )
    shared_up: Matrix = tensor("expert_inner", "hidden", gguf="ffn_up_shexp.weight", hf="shared_expert.up_proj.weight")
    shared_down: Matrix = tensor(
        "hidden", "expert_inner", gguf="ffn_down_shexp.weight", hf="shared_expert.down_proj.weight"
    )

    def forward(self, x: Array) -> Array:  # [T, D] -> [T, D]
        """Return what its own experts and the shared one add. An expert gets less of x the less sure the router is."""
        chosen, scores = largest(linear(x, self.router), self.config.used)  # [T, used] each
        asked = moe(x, chosen, sigmoid(scores), self.gate, self.up, self.down, shares_of="inputs")
        return asked + gated_mlp(x, self.shared_gate, self.shared_up, self.shared_down)


class Block(Module):
    """One layer: attention, behind a norm and beside a residual, and the norm of what comes behind it."""

    config: Config
    attention_norm: Array = tensor("hidden", gguf="attn_norm.weight", hf="input_layernorm.weight")
    q: Matrix = tensor("queries", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    k: Matrix = tensor("keys", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    v: Matrix = tensor("keys", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    out: Matrix = tensor("hidden", "queries", gguf="attn_output.weight", hf="self_attn.o_proj.weight")
    mlp_norm: Array = tensor("hidden", gguf="ffn_norm.weight", hf="post_attention_layernorm.weight")

    def forward(
        self, x: Array, turn: Rotation | None, sharp: Array, cache: LayerCache, feed_forward: FeedForward
    ) -> Array:  # [T, D] -> [T, D]
        """Return x after this layer. turn: None if it has no positions; then queries are multiplied with sharp."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.config.eps), turn, sharp, cache)
        return x + feed_forward.forward(rms_norm(x, self.mlp_norm, self.config.eps))

    def attention(self, x: Array, turn: Rotation | None, sharp: Array, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return what attention adds."""
        c = self.config
        q, k, v = project(x, (self.q, None), (self.k, None), (self.v, None))
        q, k = q.reshape(-1, c.heads, c.head_size), k.reshape(-1, c.kv_heads, c.head_size)  # [T, H, E], [T, K, E]
        if turn is None:
            q = q * sharp
        else:
            q, k = rope(q, turn), rope(k, turn)
            if c.qk_norm:
                q, k = rms_norm(q, None, c.eps), rms_norm(k, None, c.eps)
        seen = cache.extend(k, v.reshape(-1, c.kv_heads, c.head_size))
        return linear(attend(q, seen, scale=c.head_size**-0.5), self.out)


class Llama4(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight", hf="model.embed_tokens.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", hf="model.layers.{}.")
    dense: list[Dense] = layers(Dense, count="dense_layers", gguf="blk.{}.", hf="model.layers.{}.feed_forward.")
    mixtures: list[Mixture] = layers(Mixture, count="moe_layers", gguf="blk.{}.", hf="model.layers.{}.feed_forward.")
    norm: Array = tensor("hidden", gguf="output_norm.weight", hf="model.norm.weight")
    output: Matrix = tensor("vocabulary", "hidden", gguf="output.weight", hf="lm_head.weight", tied="embedding")
    rope_divisors: Array | None = tensor("rope_pairs", gguf="rope_freqs.weight", optional=True)

    def ready(self) -> None:
        """Put the two kinds of MLP in the order of their layers, and compute the frequencies."""
        c = self.config
        found: dict[int, FeedForward] = dict(zip(c.dense_layers, self.dense, strict=True))
        found |= dict(zip(c.moe_layers, self.mixtures, strict=True))
        self.feed_forwards = [found[layer] for layer in range(c.layers)]
        # Neighbours turn together in both kinds of file.
        self.table = rope_table(
            c.head_size, base=c.rope_base, pairing="interleaved", scaling=c.scaling, divisors=self.rope_divisors
        )
        if isinstance(c.scaling, Llama3) and self.rope_divisors is None:
            self.rope_divisors = rope_divisors(c.head_size, base=c.rope_base, scaling=c.scaling)

    def embed(self, tokens: Array) -> Array:  # [T] -> [T, D]
        """Return the embeddings of tokens."""
        return embed(tokens, self.embedding)

    def forward(self, x: Array, step: Step) -> Array:  # [T, D] -> [T, D]
        """Return what leaves the last block."""
        c = self.config
        turn = rotations(step.positions, self.table)
        sharp = sharpness(step.positions, scale=c.sharpening, floor=c.floor)
        parts = zip(self.blocks, c.rope_layers, step.cache, self.feed_forwards, strict=True)
        for block, turns, cache, feed_forward in parts:
            x = block.forward(x, turn if turns else None, sharp, cache, feed_forward)
        return x

    def logits(self, x: Array) -> Array:  # [N, D] -> [N, V]
        """Return the logits of chosen rows."""
        return linear(rms_norm(x, self.norm, self.config.eps), self.output)


def cache_layout(config: Config) -> list[CacheLayer]:
    """Return what each layer keeps: keys and values, seen within their chunk or by all that follow."""
    kinds = [Causal() if size is None else Chunk(size) for size in config.chunks]
    return [CacheLayer(config.kv_heads, config.head_size, config.head_size, kind) for kind in kinds]


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [
        Architecture(
            gguf=("llama4",),
            hf=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
            config=Config,
            model=Llama4,
            cache=cache_layout,
            vision=Vision,
            vision_config=VisionConfig,
            prefixes={"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
        )
    ]
