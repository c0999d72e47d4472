"""The sizes of Qwen 2.5 VL's text decoders, read from GGUF files and checkpoints.

Source: Qwen2.5-VL Technical Report, arXiv:2502.13923, table 1.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..core.plugin import Keys
from ..core.tensor import (
    Scaling,
    rope_base_from_hf,
    scaling_from_gguf,
    scaling_from_hf,
    scaling_to_gguf,
)

MOST_LAYERS = 1 << 12  # far above any model: each layer's window is listed before the file's tensors are counted
SECTIONS = (16, 24, 24)  # of the published models, whose heads have 128 dimensions; older files do not say


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
    sections: tuple[int, int, int]  # pairs of a head that turn by time, by row and by column
    windows: tuple[int | None, ...]  # of each layer: tokens a token sees; None: all

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
        """Read `qwen25vl.*` or `qwen2vl.*`. These files have no key for a window: every layer sees everything."""
        heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
        head_size = keys.integer("attention.key_length", hidden // heads)
        keys.integer("attention.value_length", head_size, low=head_size, high=head_size)
        keys.integer("rope.dimension_count", head_size, low=head_size, high=head_size)
        count = keys.integer("block_count", high=MOST_LAYERS)
        sections = "rope.dimension_sections" if "rope.dimension_sections" in keys else "rope.mrope_section"
        return cls(
            layers=count,
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
            sections=_sections(keys, sections, head_size // 2),
            windows=(None,) * count,
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `qwen25vl.*`, which do not say that a layer has a window."""
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
            "rope.mrope_section": list(self.sections),
            **scaling_to_gguf(self.scaling),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> Config:
        """Read config.json, whose newer form has the decoder's part in a section of its own."""
        keys = keys.section("text_config") or keys
        keys.text("hidden_act", "silu", allowed=("silu",))
        heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
        head_size = keys.integer("head_dim", hidden // heads)
        count = keys.integer("num_hidden_layers", high=MOST_LAYERS)
        rule = keys.section("rope_scaling") or keys.section("rope_parameters") or keys
        return cls(
            layers=count,
            hidden=hidden,
            inner=keys.integer("intermediate_size"),
            heads=heads,
            kv_heads=keys.divisor("num_key_value_heads", of=heads),
            head_size=head_size,
            vocabulary=keys.integer("vocab_size"),
            context_length=keys.integer("max_position_embeddings", 32768),
            eps=keys.number("rms_norm_eps", 1e-5, low=0.0, high=1.0),
            rope_base=rope_base_from_hf(keys, 1e6),
            scaling=scaling_from_hf(keys),
            sections=_sections(rule, "mrope_section", head_size // 2),
            windows=_windows(keys, count),
        )


def _sections(keys: Keys, name: str, pairs: int) -> tuple[int, int, int]:
    """Return how many pairs turn by each of the three streams. Some files list a fourth, which has none."""
    found = list(keys.list(name)) or list(SECTIONS)
    try:
        time, rows, columns, *others = map(int, found)
    except (TypeError, ValueError):
        time, rows, columns, others = 0, 0, 0, []
    if min(time, rows, columns) < 0 or time + rows + columns != pairs or any(others):
        raise keys.wrong(name, f"three numbers of pairs that add up to {pairs}")
    return time, rows, columns


def _windows(keys: Keys, count: int) -> tuple[int | None, ...]:
    """Return each layer's window. By the config's older rule only layers from `max_window_layers` on have one."""
    size = keys.integer("sliding_window", 4096) if keys.flag("use_sliding_window", False) else None
    kinds = keys.list("layer_types") or [
        "sliding_attention" if i >= keys.integer("max_window_layers", 80, low=0) else "full_attention"
        for i in range(count)
    ]
    if len(kinds) != count or any(kind not in ("sliding_attention", "full_attention") for kind in kinds):
        raise keys.wrong("layer_types", f"{count} entries, each sliding_attention or full_attention")
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)
