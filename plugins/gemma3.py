"""Gemma 3: the text decoder of all sizes, and with `gemma3_vision` those that see pictures.

Source: Gemma 3 Technical Report, arXiv:2503.19786, section 2: five layers with a sliding window for each that sees
everything, norms on queries and keys in place of soft caps, norms before and after each part of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    Linear,
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
    soft_cap,
)
from .gemma3_vision import Vision, VisionConfig

MOST_LAYERS = 1 << 12  # far above any model: each layer's window is listed before the file's tensors are counted
GLOBAL_EVERY = 6  # layers: five see a window, the sixth sees everything
ROPE_BASE, LOCAL_ROPE_BASE = 1e6, 1e4
LAYERS_27B = 62
STRETCHED = (34, 48, LAYERS_27B)  # layers of 4B, 12B and 27B, whose global layers divide positions by 8
WRONG_CAP = 30.0  # Gemma 2's, which early converters wrote into files of Gemma 3 too


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
    windows: tuple[int | None, ...]  # of each layer: tokens a token sees; None: all
    rope_base: float  # of layers that see everything
    local_rope_base: float  # of layers with a window
    scaling: Scaling  # of layers that see everything
    query_scale: float  # what scores are multiplied with
    score_cap: float | None
    logit_cap: float | None
    missing_one: float  # what to add to norm weights: GGUF holds w, checkpoints w - 1

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
        """Read `gemma3.*`. Keys differ by converter; what some leave out is as in every published model."""
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", 256)
        keys.integer("attention.value_length", head_size, low=head_size, high=head_size)
        keys.integer("rope.dimension_count", head_size, low=head_size, high=head_size)
        count, context = keys.integer("block_count", high=MOST_LAYERS), keys.integer("context_length")
        windows = _windows_from_gguf(keys, count)
        return cls(
            layers=count,
            hidden=hidden,
            inner=keys.integer("feed_forward_length"),
            heads=heads,
            kv_heads=keys.divisor("attention.head_count_kv", of=heads),
            head_size=head_size,
            vocabulary=keys.integer("vocab_size", len(keys.list("tokenizer.ggml.tokens")) or None),
            context_length=context,
            eps=keys.number("attention.layer_norm_rms_epsilon", 1e-6, low=0.0, high=1.0),
            windows=windows,
            rope_base=_base(keys, "rope.freq_base", _base(keys, "rope.global.freq_base", ROPE_BASE)),
            local_rope_base=_base(keys, "rope.freq_base_swa", _base(keys, "rope.local.freq_base", LOCAL_ROPE_BASE)),
            scaling=_scaling_from_gguf(keys, count),
            query_scale=keys.number("attention.scale", _query_scale(count, hidden, heads, head_size)),
            score_cap=_cap(keys, "attn_logit_softcapping"),
            logit_cap=_logit_cap_from_gguf(keys, windows, context),
            missing_one=0.0,
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `gemma3.*`, with the names that files of encoder and decoder have."""
        usual = _query_scale(self.layers, self.hidden, self.heads, self.head_size)
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
            "rope.local.freq_base": self.local_rope_base,
            "attn_logit_softcapping": self.score_cap or 0.0,
            "final_logit_softcapping": self.logit_cap or 0.0,
            **scaling_to_gguf(self.scaling),
            **self._windows_to_gguf(),
            **({} if self.query_scale == usual else {"attention.scale": self.query_scale}),
        }

    def _windows_to_gguf(self) -> dict[str, Any]:
        sizes = {size for size in self.windows if size is not None}
        if not sizes:
            return {}
        (size,) = sizes
        pattern = [window is not None for window in self.windows]
        return {"attention.sliding_window": size, "attention.sliding_window_pattern": pattern}

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read config.json. Published ones leave out what equals the defaults of the reference's class."""
        text = keys.section("text_config") or keys  # models without pictures have no such section
        text.text("hidden_activation", "gelu_pytorch_tanh", allowed=("gelu_pytorch_tanh",))
        for name in ("attention_bias", "use_bidirectional_attention"):
            if text.flag(name, False):
                raise text.wrong(name, "false: no published model that writes text has it")
        heads = text.integer("num_attention_heads", 8)
        kv_heads = text.integer("num_key_value_heads", 4)
        if heads % kv_heads:
            raise text.wrong("num_key_value_heads", f"a divisor of {heads}")
        count = text.integer("num_hidden_layers", 26, high=MOST_LAYERS)
        ropes = text.section("rope_parameters")  # by kind of layer, in newer files
        far, near = (None if ropes is None else ropes.section(kind) for kind in ("full_attention", "sliding_attention"))
        return cls(
            layers=count,
            hidden=text.integer("hidden_size", 2304),
            inner=text.integer("intermediate_size", 9216),
            heads=heads,
            kv_heads=kv_heads,
            head_size=text.integer("head_dim", 256),
            vocabulary=text.integer("vocab_size", 262208),
            context_length=text.integer("max_position_embeddings", 131072),
            eps=text.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
            windows=_windows_from_hf(text, count),
            rope_base=_base(far, "rope_theta", ROPE_BASE) if far else rope_base_from_hf(text, ROPE_BASE),
            local_rope_base=_base(near or text, "rope_theta" if near else "rope_local_base_freq", LOCAL_ROPE_BASE),
            scaling=scaling_from_hf(text, far),
            query_scale=text.number("query_pre_attn_scalar", 256.0, low=1e-6) ** -0.5,
            score_cap=_cap(text, "attn_logit_softcapping"),
            logit_cap=_cap(text, "final_logit_softcapping"),
            missing_one=1.0,
        )


def _base(keys: Keys, name: str, default: float) -> float:
    """Return a base of frequencies."""
    return keys.number(name, default, low=1.0001)


def _query_scale(count: int, hidden: int, heads: int, head_size: int) -> float:
    """Return the scale where a file has none, as most do: 27B alone was trained with D / H, which is not its E."""
    return float((hidden / heads if count == LAYERS_27B else head_size) ** -0.5)


def _windows_from_gguf(keys: Keys, count: int) -> tuple[int | None, ...]:
    """Return each layer's window; none in files without one. The pattern is a list, or its length, or known."""
    size, name = keys.integer("attention.sliding_window", 0, low=0), "attention.sliding_window_pattern"
    if not keys.holds_list(name):
        return _every(keys.integer(name, GLOBAL_EVERY), size, count)
    local = list(keys.list(name))
    if len(local) != count or any(flag not in (True, False) for flag in local):
        raise keys.wrong(name, f"{count} truth values")
    return tuple(size if flag and size else None for flag in local)


def _windows_from_hf(keys: Keys, count: int) -> tuple[int | None, ...]:
    """Return each layer's window: kinds are listed, or the length of the pattern is given, or known."""
    size, kinds = keys.integer("sliding_window", 4096), keys.list("layer_types")
    if not kinds:
        return _every(keys.integer("sliding_window_pattern", GLOBAL_EVERY), size, count)
    if len(kinds) != count or any(kind not in ("sliding_attention", "full_attention") for kind in kinds):
        raise keys.wrong("layer_types", f"{count} entries, each sliding_attention or full_attention")
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def _every(period: int, size: int, count: int) -> tuple[int | None, ...]:
    """Return a window for each layer but those that end a period."""
    return tuple(size if size and layer % period else None for layer in range(1, count + 1))


def _scaling_from_gguf(keys: Keys, count: int) -> Scaling:
    """Return the rule of layers that see everything. One converter left it out."""
    unsaid = "rope.scaling.type" not in keys and "rope.scaling.factor" not in keys
    return Linear(8.0) if unsaid and count in STRETCHED else scaling_from_gguf(keys)


def _cap(keys: Keys, name: str) -> float | None:
    """Return a soft cap; None if there is none, which files also write as 0."""
    return keys.number(name, 0.0, low=0.0) or None


def _logit_cap_from_gguf(keys: Keys, windows: Sequence[int | None], context: int) -> float | None:
    """Return the cap of logits. That of 30 is wrong in Google's models, which all have windows, and right in others."""
    cap = _cap(keys, "final_logit_softcapping")
    has_windows = any(size is not None and size < context for size in windows)
    return None if cap == WRONG_CAP and has_windows else cap


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
