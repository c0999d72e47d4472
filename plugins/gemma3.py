"""Gemma 3: the text decoder of all sizes, and with `gemma3_vision` those that see pictures.

Source: Gemma 3 Technical Report, arXiv:2503.19786, section 2: five layers with a sliding window for each that sees
everything, norms on queries and keys in place of soft caps, norms before and after each part of a layer.
"""

from __future__ import annotations

import math
from typing import Any

from ..core.plugin import (
    Architecture,
    Array,
    CacheLayer,
    Causal,
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
    Rotation,
    attend,
    embed,
    gated_mlp,
    linear,
    project,
    rms_norm,
    rope,
    rope_table,
    rotations,
    soft_cap,
)
from .gemma3_sizes import Config
from .gemma3_vision import Vision, VisionConfig


class Block(Module):
    """One layer: attention and a gated MLP, each between two norms and beside a residual."""

    config: Config
    attention_norm: Array = tensor("hidden", gguf="attn_norm.weight", hf="input_layernorm.weight")
    q: Matrix = tensor("queries", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    k: Matrix = tensor("keys", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    v: Matrix = tensor("keys", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    q_norm: Array = tensor("head_size", gguf="attn_q_norm.weight", hf="self_attn.q_norm.weight")
    k_norm: Array = tensor("head_size", gguf="attn_k_norm.weight", hf="self_attn.k_norm.weight")
    out: Matrix = tensor("hidden", "queries", gguf="attn_output.weight", hf="self_attn.o_proj.weight")
    after_attention: Array = tensor("hidden", gguf="post_attention_norm.weight", hf="post_attention_layernorm.weight")
    mlp_norm: Array = tensor("hidden", gguf="ffn_norm.weight", hf="pre_feedforward_layernorm.weight")
    gate: Matrix = tensor("inner", "hidden", gguf="ffn_gate.weight", hf="mlp.gate_proj.weight")
    up: Matrix = tensor("inner", "hidden", gguf="ffn_up.weight", hf="mlp.up_proj.weight")
    down: Matrix = tensor("hidden", "inner", gguf="ffn_down.weight", hf="mlp.down_proj.weight")
    after_mlp: Array = tensor("hidden", gguf="post_ffw_norm.weight", hf="post_feedforward_layernorm.weight")

    def ready(self) -> None:
        """Make norms what x is multiplied with."""
        one = self.config.missing_one
        self.attention_norm, self.after_attention = self.attention_norm + one, self.after_attention + one
        self.mlp_norm, self.after_mlp = self.mlp_norm + one, self.after_mlp + one
        self.q_norm, self.k_norm = self.q_norm + one, self.k_norm + one

    def forward(self, x: Array, turn: Rotation, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return x after this layer."""
        eps = self.config.eps
        x = x + rms_norm(self.attention(rms_norm(x, self.attention_norm, eps), turn, cache), self.after_attention, eps)
        return x + rms_norm(self.mlp(rms_norm(x, self.mlp_norm, eps)), self.after_mlp, eps)

    def attention(self, x: Array, turn: Rotation, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return the mixtures of what each token sees."""
        c = self.config
        q, k, v = project(x, (self.q, None), (self.k, None), (self.v, None))
        q = rope(rms_norm(q.reshape(-1, c.heads, c.head_size), self.q_norm, c.eps), turn)  # [T, H, E]
        k = rope(rms_norm(k.reshape(-1, c.kv_heads, c.head_size), self.k_norm, c.eps), turn)  # [T, K, E]
        seen = cache.extend(k, v.reshape(-1, c.kv_heads, c.head_size))
        return linear(attend(q, seen, scale=c.query_scale, soft_cap=c.score_cap), self.out)

    def mlp(self, x: Array) -> Array:  # [T, D] -> [T, D]
        """Return what each token makes of itself."""
        return gated_mlp(x, self.gate, self.up, self.down, activation="gelu_tanh")


class Gemma3(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight", hf="model.embed_tokens.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", hf="model.layers.{}.")
    norm: Array = tensor("hidden", gguf="output_norm.weight", hf="model.norm.weight")
    output: Matrix = tensor("vocabulary", "hidden", gguf="output.weight", hf="lm_head.weight", tied="embedding")

    def ready(self) -> None:
        """Make the norm what x is multiplied with, and compute the frequencies of both kinds of layer."""
        c = self.config
        self.norm = self.norm + c.missing_one
        self.table = rope_table(c.head_size, base=c.rope_base, pairing="split", scaling=c.scaling)
        self.local_table = rope_table(c.head_size, base=c.local_rope_base, pairing="split")

    def embed(self, tokens: Array) -> Array:  # [T] -> [T, D]
        """Return the embeddings of tokens, scaled. The rows of pictures take their places unscaled."""
        # Not rounded: the reference rounds √D to the type it computes in, as everything else, and here that is float32.
        return embed(tokens, self.embedding) * math.sqrt(self.config.hidden)

    def forward(self, x: Array, step: Step) -> Array:  # [T, D] -> [T, D]
        """Return what leaves the last block."""
        far, near = rotations(step.positions, self.table), rotations(step.positions, self.local_table)
        for block, window, cache in zip(self.blocks, self.config.windows, step.cache, strict=True):
            x = block.forward(x, far if window is None else near, cache)
        return x

    def logits(self, x: Array) -> Array:  # [N, D] -> [N, V]
        """Return the logits of chosen rows."""
        cap = self.config.logit_cap
        logits = linear(rms_norm(x, self.norm, self.config.eps), self.output)
        return logits if cap is None else soft_cap(logits, cap)


def cache_layout(config: Config) -> list[CacheLayer]:
    """Return what each layer keeps: keys and values, seen by all that follow or by those within its window."""
    kinds: list[Any] = [Causal() if size is None else Window(size) for size in config.windows]
    return [CacheLayer(config.kv_heads, config.head_size, config.head_size, kind) for kind in kinds]


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [
        Architecture(
            gguf=("gemma3",),
            hf=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
            config=Config,
            model=Gemma3,
            cache=cache_layout,
            vision=Vision,
            vision_config=VisionConfig,
            # Models with pictures keep the decoder below other names, which have changed once.
            prefixes={
                "language_model.model.": "model.",
                "language_model.lm_head.": "lm_head.",
                "model.language_model.": "model.",
                "model.vision_tower.": "vision_tower.",
                "model.multi_modal_projector.": "multi_modal_projector.",
            },
        )
    ]
