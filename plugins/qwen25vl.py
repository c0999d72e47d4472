"""Qwen 2.5 VL: the text decoder, which is Qwen 2 with positions in time, rows and columns, and the plugin's hook.

Sources: Qwen2.5-VL Technical Report, arXiv:2502.13923, section 2.1; Qwen2-VL, arXiv:2409.12191, section 2.1 (M-RoPE).
"""

from __future__ import annotations

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
)
from .qwen25vl_sizes import Config
from .qwen25vl_vision import Vision, VisionConfig


class Block(Module):
    """One layer: attention and a gated MLP, each behind a norm and beside a residual."""

    config: Config
    attention_norm: Array = tensor("hidden", gguf="attn_norm.weight", hf="input_layernorm.weight")
    q: Matrix = tensor("queries", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    k: Matrix = tensor("keys", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    v: Matrix = tensor("keys", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    q_bias: Array = tensor("queries", gguf="attn_q.bias", hf="self_attn.q_proj.bias")
    k_bias: Array = tensor("keys", gguf="attn_k.bias", hf="self_attn.k_proj.bias")
    v_bias: Array = tensor("keys", gguf="attn_v.bias", hf="self_attn.v_proj.bias")
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
        q, k, v = project(x, (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        q = rope(q.reshape(-1, self.config.heads, size), turn)  # [T, H, E]
        k = rope(k.reshape(-1, self.config.kv_heads, size), turn)  # [T, K, E]
        seen = cache.extend(k, v.reshape(-1, self.config.kv_heads, size))
        return linear(attend(q, seen, scale=size**-0.5), self.out)


class Qwen25VL(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight", hf="model.embed_tokens.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", hf="model.layers.{}.")
    norm: Array = tensor("hidden", gguf="output_norm.weight", hf="model.norm.weight")
    output: Matrix = tensor("vocabulary", "hidden", gguf="output.weight", hf="lm_head.weight", tied="embedding")

    def ready(self) -> None:
        """Compute the frequencies of the pairs, which run on from one section to the next."""
        c = self.config
        self.table = rope_table(c.head_size, base=c.rope_base, pairing="split", scaling=c.scaling, sections=c.sections)

    def embed(self, tokens: Array) -> Array:  # [T] -> [T, D]
        """Return the embeddings of tokens."""
        return embed(tokens, self.embedding)

    def forward(self, x: Array, step: Step) -> Array:  # [T, D] -> [T, D]
        """Return what leaves the last block. The step's positions are [3, T]: time, row and column of each token."""
        turn = rotations(step.positions, self.table)
        for block, cache in zip(self.blocks, step.cache, strict=True):
            x = block.forward(x, turn, cache)
        return x

    def logits(self, x: Array) -> Array:  # [N, D] -> [N, V]
        """Return the logits of chosen rows."""
        return linear(rms_norm(x, self.norm, self.config.eps), self.output)


def cache_layout(config: Config) -> list[CacheLayer]:
    """Return what each layer keeps: keys and values, seen by all that follow or by those within its window."""
    return [
        CacheLayer(config.kv_heads, config.head_size, config.head_size, Window(size) if size else Causal())
        for size in config.windows
    ]


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [
        Architecture(
            gguf=("qwen25vl", "qwen2vl"),  # one file with everything; a text file, beside which an encoder's may lie
            hf=("Qwen2_5_VLForConditionalGeneration",),
            config=Config,
            model=Qwen25VL,
            cache=cache_layout,
            vision=Vision,
            vision_config=VisionConfig,
            streams=3,
            prefixes={"model.language_model.": "model.", "model.visual.": "visual."},
        )
    ]
