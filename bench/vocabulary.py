"""A byte-level BPE vocabulary of any size, made up but valid: every text has tokens, and the tokens give it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal

from gguf import TokenType

LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by their frequency, so that early merges are useful ones
SPACE = "\u0120"  # how byte-level BPE writes a space

LLAMA_CONTROL = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
LLAMA_CONTROL |= {8: "<|eom_id|>", 9: "<|eot_id|>"}
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about text."""

    pre: str  # the pre-tokenizer family
    tokens: list[str]
    types: list[TokenType]
    merges: list[str]
    template: str
    bos: int
    eos: int
    add_bos: bool
    eot: int
    eom: int | None = None


def make_vocabulary(architecture: Literal["llama", "qwen2", "llama4"], size: int) -> Vocabulary:
    """Return a vocabulary of exactly size tokens, control tokens at its end as the real ones have them."""
    if architecture != "qwen2":
        first = size - 256
        control = [LLAMA_CONTROL.get(n, f"<|reserved_special_token_{n}|>") for n in range(256)]
        tokens, types, merges = _tokens(first, control, padding=0)
        return Vocabulary(
            "llama-bpe", tokens, types, merges, LLAMA_TEMPLATE, first, first + 1, True, eot=first + 9, eom=first + 8
        )
    first = size - 293  # 151643 of 151936
    tokens, types, merges = _tokens(first, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], padding=290)
    return Vocabulary("qwen2", tokens, types, merges, QWEN_TEMPLATE, first, first + 2, False, eot=first + 2)


def _tokens(ordinary: int, control: list[str], padding: int) -> tuple[list[str], list[TokenType], list[str]]:
    pairs = list(islice(_merges(), ordinary - 256))
    assert len(pairs) == ordinary - 256, "more tokens than there are merges"
    tokens = _byte_tokens() + [left + right for left, right in pairs]
    tokens += control + [f"[PAD{ordinary + len(control) + n}]" for n in range(padding)]
    types = [TokenType.NORMAL] * ordinary + [TokenType.CONTROL] * len(control) + [TokenType.UNUSED] * padding
    return tokens, types, [f"{left} {right}" for left, right in pairs]


def _byte_tokens() -> list[str]:
    """Return a printable character for each byte, as GPT-2 maps them, printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


def _merges() -> Iterator[tuple[str, str]]:
    """Yield 490,000 pairs to merge, each of two earlier tokens: words of up to four letters, some after a space."""
    pairs = [left + right for left, right in product(LETTERS, LETTERS)]
    yield from product(LETTERS, LETTERS)
    yield from product([SPACE], LETTERS)
    yield from product([SPACE + letter for letter in LETTERS], LETTERS)
    yield from product([SPACE + pair for pair in pairs], LETTERS)
    yield from product(pairs, LETTERS)
    yield from product(pairs, pairs)
