"""Llama 3.2 Vision: the text decoder, some layers of which look at images beside the text, and the plugin's hook.

Sources: The Llama 3 Herd of Models, arXiv:2407.21783, sections 3.2 and 7.2; the reference code of Llama 3.2 Vision, as
published by Meta. What a token that sees no image gets from layers that look is nothing, as in that code.
"""

from __future__ import annotations

from ..core.plugin import (
    Architecture,
    Array,
    CacheLayer,
    Causal,
    LayerCache,
    Matrix,
    Media,
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
    linear,
    project,
    rms_norm,
    rope,
    rope_divisors,
    rope_table,
    rotations,
    soft_cap,
)
from .mllama_sizes import Config
from .mllama_vision import Vision
from .mllama_vision_sizes import VisionConfig


class Layer(Module):
    """What both kinds of layers have: a norm before attention, and a gated MLP behind a norm."""

    config: Config
    attention_norm: Array = tensor("hidden", gguf="attn_norm.weight", hf="input_layernorm.weight")
    mlp_norm: Array = tensor("hidden", gguf="ffn_norm.weight", hf="post_attention_layernorm.weight")
    gate: Matrix = tensor("inner", "hidden", gguf="ffn_gate.weight", hf="mlp.gate_proj.weight")
    up: Matrix = tensor("inner", "hidden", gguf="ffn_up.weight", hf="mlp.up_proj.weight")
    down: Matrix = tensor("hidden", "inner", gguf="ffn_down.weight", hf="mlp.down_proj.weight")

    def fed(self, x: Array) -> Array:  # [T, D] -> [T, D]
        """Return what the MLP adds."""
        return gated_mlp(rms_norm(x, self.mlp_norm, self.config.eps), self.gate, self.up, self.down)


class Reading(Layer):
    """A layer of Llama: tokens attend to those before them."""

    q: Matrix = tensor("queries", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight", paired="heads")
    k: Matrix = tensor("keys", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight", paired="kv_heads")
    v: Matrix = tensor("keys", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    out: Matrix = tensor("hidden", "queries", gguf="attn_output.weight", hf="self_attn.o_proj.weight")

    def forward(self, x: Array, turn: Rotation, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return x after this layer."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.config.eps), turn, cache)
        return x + self.fed(x)

    def attention(self, x: Array, turn: Rotation, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return what attention adds."""
        size = self.config.head_size
        q, k, v = project(x, (self.q, None), (self.k, None), (self.v, None))
        q = rope(q.reshape(-1, self.config.heads, size), turn)  # [T, H, E]
        k = rope(k.reshape(-1, self.config.kv_heads, size), turn)  # [T, K, E]
        seen = cache.extend(k, v.reshape(-1, self.config.kv_heads, size))
        return linear(attend(q, seen, scale=size**-0.5), self.out)


class Looking(Layer):
    """A layer whose keys and values are those of images. Gates say how much of it counts."""

    q: Matrix = tensor("queries", "hidden", gguf="cross_attn_q_proj.weight", hf="cross_attn.q_proj.weight")
    k: Matrix = tensor("keys", "hidden", gguf="cross_attn_k_proj.weight", hf="cross_attn.k_proj.weight")
    v: Matrix = tensor("keys", "hidden", gguf="cross_attn_v_proj.weight", hf="cross_attn.v_proj.weight")
    q_norm: Array = tensor("head_size", gguf="cross_attn_q_norm.weight", hf="cross_attn.q_norm.weight")
    k_norm: Array = tensor("head_size", gguf="cross_attn_k_norm.weight", hf="cross_attn.k_norm.weight")
    out: Matrix = tensor("hidden", "queries", gguf="cross_attn_o_proj.weight", hf="cross_attn.o_proj.weight")
    attention_gate: Array = tensor(1, gguf="cross_attn_attn_gate", hf="cross_attn_attn_gate")
    mlp_gate: Array = tensor(1, gguf="cross_attn_mlp_gate", hf="cross_attn_mlp_gate")

    def ready(self) -> None:
        """Compute how far the gates are open: the hyperbolic tangent of what files hold."""
        self.attention_open, self.mlp_open = soft_cap(self.attention_gate, 1.0), soft_cap(self.mlp_gate, 1.0)

    def forward(self, x: Array, sees: Array, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return x after this layer, which leaves what sees no image as it is. sees: [T, 1], 1 or 0."""
        normed = rms_norm(x, self.attention_norm, self.config.eps)
        x = x + self.attention(normed, cache) * self.attention_open
        return x + self.fed(x) * (sees * self.mlp_open)

    def attention(self, x: Array, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return what attention adds: nothing to what sees no image."""
        c = self.config
        q = rms_norm(linear(x, self.q).reshape(-1, c.heads, c.head_size), self.q_norm, c.eps)  # [T, H, E]
        return linear(attend(q, cache.look(self.keep), scale=c.head_size**-0.5), self.out)

    def keep(self, rows: Array) -> tuple[Array, Array]:  # [R, D] -> [R, K, E] each
        """Return the keys and values of an image."""
        shape = -1, self.config.kv_heads, self.config.head_size
        k, v = project(rows, (self.k, None), (self.v, None))
        return rms_norm(k.reshape(*shape), self.k_norm, self.config.eps), v.reshape(*shape)


class Mllama(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight", hf="model.embed_tokens.weight")
    reading: list[Reading] = layers(Reading, count="reading_layers", gguf="blk.{}.", hf="model.layers.{}.")
    looking: list[Looking] = layers(Looking, count="looking_layers", gguf="blk.{}.", hf="model.layers.{}.")
    norm: Array = tensor("hidden", gguf="output_norm.weight", hf="model.norm.weight")
    output: Matrix = tensor("words", "hidden", gguf="output.weight", hf="lm_head.weight")
    rope_divisors: Array | None = tensor("rope_pairs", gguf="rope_freqs.weight", optional=True)

    def ready(self) -> None:
        """Put layers in order, and compute the frequencies, whose llama3 scaling a file may bring as divisors."""
        c = self.config
        found: dict[int, Reading | Looking] = {}
        found |= dict(zip(c.reading_layers, self.reading, strict=True))
        found |= dict(zip(c.looking_layers, self.looking, strict=True))
        self.blocks = [found[number] for number in range(c.layers)]
        self.table = rope_table(
            c.head_size, base=c.rope_base, pairing=c.pairing, scaling=c.scaling, divisors=self.rope_divisors
        )
        if isinstance(c.scaling, Llama3) and self.rope_divisors is None:
            self.rope_divisors = rope_divisors(c.head_size, base=c.rope_base, scaling=c.scaling)

    def embed(self, tokens: Array) -> Array:  # [T] -> [T, D]
        """Return the embeddings of tokens."""
        return embed(tokens, self.embedding)

    def forward(self, x: Array, step: Step) -> Array:  # [T, D] -> [T, D]
        """Return what leaves the last block. Layers that look are left out where no token sees an image."""
        turn = rotations(step.positions, self.table)
        for block, cache in zip(self.blocks, step.cache, strict=True):
            if isinstance(block, Reading):
                x = block.forward(x, turn, cache)
            elif step.sees is not None:
                x = block.forward(x, step.sees, cache)
        return x

    def logits(self, x: Array) -> Array:  # [N, D] -> [N, words]
        """Return the logits of chosen rows."""
        return linear(rms_norm(x, self.norm, self.config.eps), self.output)


def cache_layout(config: Config) -> list[CacheLayer]:
    """Return what each layer keeps: keys and values of tokens, or of images."""
    kinds = [Media() if layer in config.looking_layers else Causal() for layer in range(config.layers)]
    return [CacheLayer(config.kv_heads, config.head_size, config.head_size, kind) for kind in kinds]


@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this file."""
    return [
        Architecture(
            gguf=("mllama",),
            hf=("MllamaForConditionalGeneration",),
            config=Config,
            model=Mllama,
            cache=cache_layout,
            vision=Vision,
            vision_config=VisionConfig,
            prefixes={  # older checkpoints, and newer ones
                "language_model.model.": "model.",
                "language_model.lm_head.": "lm_head.",
                "model.language_model.": "model.",
                "model.vision_model.": "vision_model.",
                "model.multi_modal_projector.": "multi_modal_projector.",
            },
        )
    ]
