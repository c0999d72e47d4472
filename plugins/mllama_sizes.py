"""The sizes of Llama 3.2 Vision's text decoders, read from GGUF files and checkpoints, and which layers look at images.

Source: The Llama 3 Herd of Models, arXiv:2407.21783, sections 3.2 and 7.2.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

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

MOST_LAYERS = 1 << 12  # far above any model: layers are listed before the file's tensors are counted
UNSPOKEN = 8  # tokens that can be read but not written, behind the vocabulary; the first of them stands for an image


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of one model."""

    layers: int
    looking_layers: tuple[int, ...]  # those that look at images; the others have positions and attend to tokens
    hidden: int  # D
    inner: int  # width of the gated MLP
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E
    words: int  # tokens that can be written
    context_length: int
    eps: float
    rope_base: float
    scaling: Scaling
    pairing: Pairing  # as in Llama: conversion to GGUF reorders the rows of q and k

    @property
    def vocabulary(self) -> int:
        """V: tokens that can be read."""
        return self.words + UNSPOKEN

    @property
    def reading_layers(self) -> tuple[int, ...]:
        """Those that attend to tokens."""
        return tuple(sorted({*range(self.layers)} - {*self.looking_layers}))

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
        """Pairs of a head."""
        return self.head_size // 2

    @classmethod
    def from_gguf(cls, keys: Keys) -> Config:
        """Read `mllama.*`, as Ollama writes it."""
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", hidden // heads)
        keys.integer("attention.value_length", head_size, low=head_size, high=head_size)
        keys.integer("rope.dimension_count", head_size, low=head_size, high=head_size)
        count = keys.integer("block_count", high=MOST_LAYERS)
        return cls(
            layers=count,
            looking_layers=numbered_layers(keys, "attention.cross_attention_layers", count),
            hidden=hidden,
            inner=keys.integer("feed_forward_length"),
            heads=heads,
            kv_heads=keys.divisor("attention.head_count_kv", of=heads),
            head_size=head_size,
            words=keys.integer("vocab_size"),
            context_length=keys.integer("context_length"),
            eps=keys.number("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
            rope_base=keys.number("rope.freq_base", 500000.0, low=1.0001),
            scaling=scaling_from_gguf(keys),
            pairing="interleaved",
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `mllama.*`. The scaling of Llama 3 is no key but a tensor, `rope_divisors`."""
        return {
            "block_count": self.layers,
            "context_length": self.context_length,
            "embedding_length": self.hidden,
            "feed_forward_length": self.inner,
            "vocab_size": self.words,
            "attention.cross_attention_layers": list(self.looking_layers),
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_size,
            "attention.value_length": self.head_size,
            "attention.layer_norm_rms_epsilon": self.eps,
            "rope.dimension_count": self.head_size,
            "rope.freq_base": self.rope_base,
            **scaling_to_gguf(NoScaling() if isinstance(self.scaling, Llama3) else self.scaling),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read config.json, which has a section for the decoder."""
        text = keys.section("text_config") or keys
        text.text("hidden_act", "silu", allowed=("silu",))
        heads, hidden = text.integer("num_attention_heads"), text.integer("hidden_size")
        count = text.integer("num_hidden_layers", high=MOST_LAYERS)
        return cls(
            layers=count,
            looking_layers=numbered_layers(text, "cross_attention_layers", count),
            hidden=hidden,
            inner=text.integer("intermediate_size"),
            heads=heads,
            kv_heads=text.divisor("num_key_value_heads", of=heads),
            head_size=hidden // heads,
            words=text.integer("vocab_size"),
            context_length=text.integer("max_position_embeddings", 131072),
            eps=text.number("rms_norm_eps", 1e-5, low=0.0, high=1.0),
            rope_base=rope_base_from_hf(text, 500000.0),
            scaling=scaling_from_hf(text),
            pairing="split",
        )


def numbered_layers(keys: Keys, name: str, count: int) -> tuple[int, ...]:
    """Return numbers of layers, of which there are `count`, in order. Raises BadModel for what is no such list."""
    found = list(keys.list(name))
    numbers = [int(n) for n in found if isinstance(n, int | np.integer) and not isinstance(n, bool) and 0 <= n < count]
    if len(numbers) < len(found) or sorted({*numbers}) != numbers or not numbers:
        raise keys.wrong(name, f"rising numbers of layers, from 0 to {count - 1}")
    return tuple(numbers)
