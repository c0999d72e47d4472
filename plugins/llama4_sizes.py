"""The sizes of Llama 4's text decoders, read from GGUF files and checkpoints, and which layer is of which kind.

Sources: Llama 4's model card and reference code, as published by Meta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..core.plugin import Keys
from ..core.tensor import (
    Llama3,
    NoScaling,
    Scaling,
    rope_base_from_hf,
    scaling_from_gguf,
    scaling_from_hf,
    scaling_to_gguf,
)

MOST_LAYERS = 1 << 12  # far above any model: layers are listed before the file's tensors are counted
CHUNK = 8192  # tokens that layers with positions see, and at which those without get sharper
SHARPENING = 0.1
NOPE_EVERY = 4  # layers: three turn their heads, the fourth sees everything and knows no positions
MAVERICK = 128  # experts of the model whose queries and keys have no norm, which GGUF files need not say


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of one model."""

    layers: int
    hidden: int  # D
    inner: int  # width of the MLP in layers without experts
    expert_inner: int  # width of each expert, and of the one that all tokens share
    experts: int  # X
    used: int  # experts that a token asks
    moe_layers: tuple[int, ...]
    rope_layers: tuple[bool, ...]  # of each layer: whether it has positions
    chunks: tuple[int | None, ...]  # of each layer: tokens of the chunks within which it sees; None: it sees everything
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E
    vocabulary: int  # V
    context_length: int
    eps: float
    rope_base: float
    scaling: Scaling
    qk_norm: bool  # in layers with positions
    sharpening: float  # 0: none
    floor: float  # tokens from one step of it to the next

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Those that have no experts."""
        return tuple(sorted({*range(self.layers)} - {*self.moe_layers}))

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
        """Read `llama4.*`. Most files leave out what all published models have in common."""
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", hidden // heads)
        keys.integer("attention.value_length", head_size, low=head_size, high=head_size)
        keys.integer("rope.dimension_count", head_size, low=head_size, high=head_size)
        keys.integer("attention.sliding_window", CHUNK)  # 0 is for other models, which have positions in every layer
        count, experts = keys.integer("block_count", high=MOST_LAYERS), keys.integer("expert_count")
        rope_layers = _all_but_every(keys.integer("no_rope_interval", NOPE_EVERY), count)
        chunk = keys.integer("attention.chunk_size", CHUNK)
        tuned = keys.flag("attention.temperature_tuning", True)
        return cls(
            layers=count,
            hidden=hidden,
            inner=keys.integer("feed_forward_length"),
            expert_inner=keys.integer("expert_feed_forward_length"),
            experts=experts,
            used=keys.integer("expert_used_count", 1, high=experts),
            moe_layers=_every(keys.integer("interleave_moe_layer_step", 1), count),
            rope_layers=rope_layers,
            chunks=tuple(chunk if turns else None for turns in rope_layers),
            heads=heads,
            kv_heads=keys.divisor("attention.head_count_kv", of=heads),
            head_size=head_size,
            vocabulary=keys.integer("vocab_size", len(keys.list("tokenizer.ggml.tokens")) or None),
            context_length=keys.integer("context_length"),
            eps=keys.number("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
            rope_base=keys.number("rope.freq_base", 500000.0, low=1.0001),
            scaling=scaling_from_gguf(keys),
            qk_norm=keys.flag("use_qk_norm", experts != MAVERICK),
            sharpening=keys.number("attention.scale", SHARPENING, low=0.0) if tuned else 0.0,
            floor=keys.number("attention.floor_scale", CHUNK, low=1.0),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `llama4.*`. The scaling of Llama 3 is no key but a tensor, `rope_divisors`.

        Where layers follow no pattern they are listed, under names that nobody reads: Puna does not write such a file.
        """
        chunks = {size for size in self.chunks if size is not None}
        experts = _period(self.moe_layers, self.layers)
        whole = _period([layer for layer, turns in enumerate(self.rope_layers) if not turns], self.layers)
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
            "attention.head_dim": self.head_size,
            "attention.layer_norm_rms_epsilon": self.eps,
            "attention.temperature_tuning": self.sharpening > 0,
            "attention.scale": self.sharpening,
            "attention.floor_scale": self.floor,
            **({"attention.chunk_size": max(chunks)} if chunks else {}),
            "expert_count": self.experts,
            "expert_used_count": self.used,
            "expert_feed_forward_length": self.expert_inner,
            **({"interleave_moe_layer_step": experts} if experts else {"moe_layers": list(self.moe_layers)}),
            **({"no_rope_interval": whole} if whole else {"no_rope_layers": list(self.rope_layers)}),
            "use_qk_norm": self.qk_norm,
            "rope.dimension_count": self.head_size,
            "rope.freq_base": self.rope_base,
            **scaling_to_gguf(NoScaling() if isinstance(self.scaling, Llama3) else self.scaling),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read config.json, in which models with pictures have a section for the decoder.

        What it leaves out is as in the reference's class.
        """
        text = keys.section("text_config") or keys
        text.text("hidden_act", "silu", allowed=("silu",))
        if text.flag("attention_bias", False):
            raise text.wrong("attention_bias", "false: no published model has these biases")
        heads, hidden = text.integer("num_attention_heads"), text.integer("hidden_size")
        count, experts = text.integer("num_hidden_layers", high=MOST_LAYERS), text.integer("num_local_experts", 16)
        rope_layers = _rope_layers(text, count)
        return cls(
            layers=count,
            hidden=hidden,
            inner=text.integer("intermediate_size_mlp", 16384),
            expert_inner=text.integer("intermediate_size", 8192),
            experts=experts,
            used=text.integer("num_experts_per_tok", 1, high=experts),
            moe_layers=_moe_layers(text, count),
            rope_layers=rope_layers,
            chunks=_chunks(text, rope_layers),
            heads=heads,
            kv_heads=text.divisor("num_key_value_heads", of=heads, default=8),
            head_size=text.integer("head_dim", hidden // heads),
            vocabulary=text.integer("vocab_size"),
            context_length=text.integer("max_position_embeddings", 131072),
            eps=text.number("rms_norm_eps", 1e-5, low=0.0, high=1.0),
            rope_base=rope_base_from_hf(text, 500000.0),
            scaling=scaling_from_hf(text),
            qk_norm=text.flag("use_qk_norm", True),
            sharpening=text.number("attn_scale", SHARPENING, low=0.0) if _tuned(text) else 0.0,
            floor=text.number("floor_scale", CHUNK, low=1.0),
        )


def _every(period: int, count: int) -> tuple[int, ...]:
    """Return the numbers of the layers that end a period."""
    return tuple(range(period - 1, count, period))


def _period(ending: Sequence[int], count: int) -> int | None:
    """Return the period that these layers end, one beyond all layers if there are none; None if they end no such."""
    period = min(ending, default=count) + 1
    return period if tuple(ending) == _every(period, count) else None


def _all_but_every(period: int, count: int) -> tuple[bool, ...]:
    """Return for each layer whether it does not end a period."""
    return tuple(layer % period != 0 for layer in range(1, count + 1))


def _moe_layers(keys: Keys, count: int) -> tuple[int, ...]:
    """Return the layers with experts: listed, or those that end a period."""
    if not keys.holds_list("moe_layers"):
        return _every(keys.integer("interleave_moe_layer_step", 1), count)
    listed = list(keys.list("moe_layers"))
    if not all(isinstance(layer, int) and 0 <= layer < count for layer in listed) or len({*listed}) < len(listed):
        raise keys.wrong("moe_layers", f"different numbers of layers, from 0 to {count - 1}")
    return tuple(sorted(map(int, listed)))


def _rope_layers(keys: Keys, count: int) -> tuple[bool, ...]:
    """Return for each layer whether it has positions. The list's name says the contrary of what its ones mean."""
    listed = list(keys.list("no_rope_layers"))
    if not listed:  # as published configs have it
        return _all_but_every(keys.integer("no_rope_layer_interval", NOPE_EVERY), count)
    if len(listed) != count or any(flag not in (0, 1) for flag in listed):
        raise keys.wrong("no_rope_layers", f"{count} entries, each 0 or 1")
    return tuple(map(bool, listed))


def _chunks(keys: Keys, rope_layers: Sequence[bool]) -> tuple[int | None, ...]:
    """Return each layer's chunk: kinds are listed, or those with positions have one. A null means that none has."""
    size = None if keys.is_null("attention_chunk_size") else keys.integer("attention_chunk_size", CHUNK)
    kinds = keys.list("layer_types")
    if len(kinds) == 0:
        return tuple(size if turns else None for turns in rope_layers)
    if len(kinds) != len(rope_layers) or any(kind not in ("chunked_attention", "full_attention") for kind in kinds):
        raise keys.wrong("layer_types", f"{len(rope_layers)} entries, each chunked_attention or full_attention")
    return tuple(size if kind == "chunked_attention" else None for kind in kinds)


def _tuned(keys: Keys) -> bool:
    """Return whether layers without positions get sharper. Early configs say 4 for true."""
    name = "attn_temperature_tuning"
    return keys.number(name) != 0 if keys.holds_number(name) else keys.flag(name, True)
