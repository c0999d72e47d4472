"""LLaVA 1.5 and 1.6: the text decoder, and the plugin's hook; `llava_vision` sees.

Source: Improved Baselines with Visual Instruction Tuning, arXiv:2310.03744. The decoder is Vicuna's, which is Llama's
(arXiv:2302.13971, section 2.2), or Mistral's (arXiv:2310.06825, section 2), with a sliding window; converted to GGUF
both call themselves llama.
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
    Llama3,
    Rotation,
    attend,
    embed,
    gated_mlp,
    linear,
    project,
    rms_norm,
    rope,
    rope_divisors,
    rope_table,
    rotations,
)
from .llava_sizes import Config
from .llava_vision import Vision, VisionConfig


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


class Llava(Module):
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
            c.head_size, base=c.rope_base, pairing=c.pairing, scaling=c.scaling, divisors=self.rope_divisors
        )
        if isinstance(c.scaling, Llama3) and self.rope_divisors is None:
            self.rope_divisors = rope_divisors(c.head_size, base=c.rope_base, scaling=c.scaling)

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
    """Return what each layer keeps: keys and values, seen by all that follow or by those within the window."""
    kind = Causal() if config.window is None else Window(config.window)
    return [CacheLayer(config.kv_heads, config.head_size, config.head_size, kind)] * config.layers


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [
        Architecture(
            # In pairs of files the text's calls itself llama; in the oldest the encoder's does not say what it is.
            gguf=("llava", "llama+mlp", "llama+"),
            hf=("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"),
            config=Config,
            model=Llava,
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
            # Checkpoints have all of CLIP's layers, and its last norm.
            spare=("vision_tower.vision_model.",),
        )
    ]
