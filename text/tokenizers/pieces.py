"""The bytes that each token adds to a text, for the three ways in which vocabularies spell them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SPACE = "▁"  # U+2581, how SentencePiece and GGUF's WordPiece write a space

Spelling = Callable[[str], bytes]


def _byte_alphabet() -> dict[int, str]:
    """Return GPT-2's byte -> character map: printable characters stand for themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
# Latin-1 characters outside the alphabet go where no byte is, so that encoding them fails.
_TO_LATIN1 = str.maketrans(dict.fromkeys(map(chr, range(256)), "\uffff") | {c: chr(b) for b, c in _ALPHABET.items()})


def in_byte_alphabet(text: str) -> str:
    """Return text as a byte-level BPE piece spells it."""
    return text.encode("utf-8").decode("latin-1").translate(_ALPHABET)


def byte_level(piece: str) -> bytes:
    """Return the bytes of a byte-level BPE piece; one with characters outside the alphabet stands for itself."""
    try:
        return piece.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return piece.encode()


def byte_value(piece: str) -> int | None:
    """Return the value of a byte piece such as <0x0A>; None for any other."""
    return int(piece[3:5], 16) if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece) else None


def sentencepiece(piece: str) -> bytes:
    """Return the bytes of a SentencePiece piece."""
    if piece.startswith("<0x") and (value := byte_value(piece)) is not None:
        return bytes([value])
    return piece.replace(SPACE, " ").encode()


def word_piece(piece: str, *, tidy: bool) -> bytes:
    """Return the bytes of a WordPiece piece as Hugging Face spells it: "word" with a space before it, or "##ing".

    tidy: without the space before punctuation and English contractions.
    """
    if piece.startswith("##"):
        return piece[2:].encode()
    text = " " + piece
    return (re.sub(r" ([.?!,]|n't|'m|'s|'ve|'re)", r"\1", text) if tidy else text).encode()


class Texts:
    """Many short texts as one: each of its own would take 50 bytes beside its characters."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._joined = "".join(texts)
        self._starts = np.cumsum([0, *map(len, texts)], dtype=np.uint32)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, at: int) -> str:  # at: not negative
        return self._joined[self._starts[at] : self._starts[at + 1]]


@dataclass(frozen=True)
class Pieces:
    """The bytes of every token. They are spelled when asked for: a reply needs few of a hundred thousand.

    Ids outside the vocabulary and those that pad it add nothing.
    """

    texts: Texts  # by token id
    spelling: Spelling
    control: frozenset[int]  # spelled out only where special tokens are wanted
    padding: frozenset[int]
    dummy_prefix: bool  # the first space of a text was put there by the tokenizer and is no part of it

    def shown(self, token: int) -> bytes:
        """Return the bytes of a token, with control tokens spelled out."""
        if not 0 <= token < len(self.texts) or token in self.padding:
            return b""
        return self.spelling(self.texts[token])

    def hidden(self, token: int) -> bytes:
        """Return the bytes of a token, none for control tokens."""
        return b"" if token in self.control else self.shown(token)
