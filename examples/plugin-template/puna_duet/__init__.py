"""Duet: a small text decoder whose attention and MLP read the same normed input, side by side.

Parallel blocks: PaLM, arXiv:2204.02311, section 2. Copy this file to start a plugin of your own; everything it uses is
in `puna.core.plugin` (the contract) and `puna.core.tensor` (the operations).
"""

from __future__ import annotations

import msgspec

from puna.core.plugin import (
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
from puna.core.tensor import Rotation, attend, embed, gated_mlp, linear, project, rms_norm, rope, rope_table, rotations


# 1. The sizes, read by name from the file; a missing or absurd value is an error that names the key.
class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of one model."""

    layers: int
    hidden: int  # D
    inner: int
    heads: int  # H, as many for keys and values
    vocabulary: int  # V
    context_length: int
    window: int  # every layer but the last sees this many tokens

    @property
    def head_size(self) -> int:
        """E."""
        return self.hidden // self.heads

    @classmethod
    def from_gguf(cls, keys: Keys) -> Config:
        """Read `duet.*`."""
        hidden = keys.integer("embedding_length")
        return cls(
            layers=keys.integer("block_count"),
            hidden=hidden,
            inner=keys.integer("feed_forward_length"),
            heads=keys.divisor("attention.head_count", of=hidden),
            vocabulary=keys.integer("vocab_size"),
            context_length=keys.integer("context_length"),
            window=keys.integer("attention.sliding_window"),
        )


# 2. The tensors: annotated attributes are the tensor table, with shapes in terms of the config.
class Block(Module):
    """One layer."""

    config: Config
    norm: Array = tensor("hidden", gguf="attn_norm.weight")
    q: Matrix = tensor("hidden", "hidden", gguf="attn_q.weight")
    k: Matrix = tensor("hidden", "hidden", gguf="attn_k.weight")
    v: Matrix = tensor("hidden", "hidden", gguf="attn_v.weight")
    out: Matrix = tensor("hidden", "hidden", gguf="attn_output.weight")
    gate: Matrix = tensor("inner", "hidden", gguf="ffn_gate.weight")
    up: Matrix = tensor("inner", "hidden", gguf="ffn_up.weight")
    down: Matrix = tensor("hidden", "inner", gguf="ffn_down.weight")

    # 3. The computation, which reads like the paper.
    def forward(self, x: Array, turn: Rotation, cache: LayerCache) -> Array:  # [T, D] -> [T, D]
        """Return x after this layer."""
        heads, size = self.config.heads, self.config.head_size
        h = rms_norm(x, self.norm, 1e-5)
        q, k, v = (part.reshape(-1, heads, size) for part in project(h, (self.q, None), (self.k, None), (self.v, None)))
        seen = cache.extend(rope(k, turn), v)
        attention = linear(attend(rope(q, turn), seen, scale=size**-0.5), self.out)
        return x + attention + gated_mlp(h, self.gate, self.up, self.down)


class Duet(Module):
    """The decoder."""

    config: Config
    embedding: Matrix = tensor("vocabulary", "hidden", gguf="token_embd.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.")
    norm: Array = tensor("hidden", gguf="output_norm.weight")

    def ready(self) -> None:
        """Compute the rotary frequencies once."""
        self.table = rope_table(self.config.head_size, base=10000.0, pairing="split")

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
        """Return the logits of chosen rows: the embedding table serves as the output, too."""
        return linear(rms_norm(x, self.norm, 1e-5), self.embedding)


# 4. What each layer keeps for each token.
def cache_layout(config: Config) -> list[CacheLayer]:
    """Return a window for every layer but the last, which sees everything."""
    kinds = [Window(config.window)] * (config.layers - 1) + [Causal()]
    return [CacheLayer(config.heads, config.head_size, config.head_size, kind) for kind in kinds]


# 5. The hook that hands it over.
@hookimpl
def architectures() -> list[Architecture]:
    """Return the architecture of this package."""
    return [Architecture(gguf=("duet",), config=Config, model=Duet, cache=cache_layout)]
