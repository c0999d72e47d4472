"""The sizes of LLaVA's text decoders, which are Llama's or Mistral's, read from GGUF files and checkpoints.

Source: Improved Baselines with Visual Instruction Tuning, arXiv:2310.03744, section 3.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..core.plugin import Keys
from ..core.tensor import (
    Llama3,
    NoScaling,
    Pairing,
    Scaling,
    rope_base_from_hf,
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

    @property
    def rope_pairs(self) -> int:
        """Pairs of a head that turn."""
        return self.head_size // 2

    @classmethod
    def from_gguf(cls, keys: Keys) -> Config:
        """Read `llava.*`, or the `llama.*` of a file that has its encoder beside it; those never say a window."""
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", hidden // heads)
        for same in ("attention.value_length", "rope.dimension_count"):  # all of a head turns
            keys.integer(same, head_size, low=head_size, high=head_size)
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
            window=keys.integer("attention.sliding_window") if "attention.sliding_window" in keys else None,
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `llava.*`. The scaling of Llama 3 is no key but a tensor, `rope_divisors`."""
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
            **({} if self.window is None else {"attention.sliding_window": self.window}),
            **scaling_to_gguf(NoScaling() if isinstance(self.scaling, Llama3) else self.scaling),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read the section `text_config` of config.json, which leaves out what is as in the class of its model."""
        keys = keys.section("text_config") or Keys({}, origin="config.json: text_config")
        mistral = keys.text("model_type", "llama", allowed=("llama", "mistral")) == "mistral"
        keys.text("hidden_act", "silu", allowed=("silu",))
        for name in ("attention_bias", "mlp_bias"):
            if keys.flag(name, False):
                raise keys.wrong(name, "false: no published model has biases there")
        heads, hidden = keys.integer("num_attention_heads", 32), keys.integer("hidden_size", 4096)
        groups = keys.integer("num_key_value_heads", 8 if mistral else heads)
        if heads % groups:
            raise keys.wrong("num_key_value_heads", f"a divisor of {heads}")
        head_size = keys.integer("head_dim", hidden // heads)
        return cls(
            layers=keys.integer("num_hidden_layers", 32),
            hidden=hidden,
            inner=keys.integer("intermediate_size", 14336 if mistral else 11008),
            heads=heads,
            kv_heads=groups,
            head_size=head_size,
            vocabulary=keys.integer("vocab_size", 32000),
            context_length=keys.integer("max_position_embeddings", 131072 if mistral else 2048),
            eps=keys.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
            rope_base=rope_base_from_hf(keys),
            scaling=scaling_from_hf(keys),
            pairing="split",
            window=keys.integer("sliding_window", 4096) if mistral and not keys.is_null("sliding_window") else None,
        )
