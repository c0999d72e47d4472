"""Writes a tiny Duet model of random weights: `python -m puna_duet.sample duet.gguf`."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

LAYERS, HIDDEN, INNER, HEADS, WINDOW, CONTEXT = 3, 64, 96, 4, 16, 256


def byte_characters() -> list[str]:
    """Return the printable characters that byte-level vocabularies write bytes 0..255 with (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def write_sample(path: Path, seed: int = 1) -> None:
    """Write the model: one token a byte, an end token, and weights large enough that replies are not all alike."""
    tokens = [*byte_characters(), "<|end|>"]
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "duet")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_sliding_window(WINDOW)
    writer.add_context_length(CONTEXT)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
    writer.add_token_merges([])
    writer.add_eos_token_id(256)
    writer.add_add_bos_token(False)

    def add(name: str, *shape: int) -> None:
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
        values = np.ones(shape) if len(shape) == 1 else random.standard_normal(shape) * scale
        if name == "token_embd.weight":
            values[-1] = 0.0  # the end token's logit is always 0, never the largest: greedy replies end by length
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), HIDDEN)
    for layer in range(LAYERS):
        add(f"blk.{layer}.attn_norm.weight", HIDDEN)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", INNER, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", INNER, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, INNER)
    add("output_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]))
