"""The sizes of Gemma 3's text decoders, read from GGUF files and checkpoints, and what each layer sees.

Source: Gemma 3 Technical Report, arXiv:2503.19786, section 2 and table 1; transformers' Gemma3TextConfig for what
published configs leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..core.plugin import Keys
from ..core.tensor import (
    Linear,
    Scaling,
    rope_base_from_hf,
    scaling_from_gguf,
    scaling_from_hf,
    scaling_to_gguf,
)

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
