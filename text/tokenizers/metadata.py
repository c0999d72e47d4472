"""Reads a tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import Unsupported
from ...core.keys import Keys
from .byte_level import byte_level_bpe
from .embedded import (
    embedded_bos_eos,
    ggml_keys,
    is_embedded,
    named_ends,
    open_embedded,
    vocab_size,
)
from .ends import find_ends
from .family import Family
from .pieces import Pieces, Texts
from .sentencepiece import sentencepiece_bpe
from .tokenizer import Frame, TextTokenizer
from .vocabulary import Kind, Vocabulary, read_id, read_vocabulary
from .wordpiece import word_piece

FAMILIES = {"gpt2": byte_level_bpe, "llama": sentencepiece_bpe, "bert": word_piece}


def open_tokenizer(metadata: Mapping[str, Any], *, pre: str | None = None) -> TextTokenizer:
    """Return the tokenizer that the tokenizer.ggml.* keys describe; see `puna.text.tokenizers.open_tokenizer`.

    Where they list no tokens, tokenizer.huggingface.json is read.
    """
    if is_embedded(metadata):
        return open_embedded(metadata)
    keys = ggml_keys(metadata)
    name = keys.text("model")
    if name not in FAMILIES:
        raise Unsupported(f"tokenizer.ggml.model is {name!r}; tokenizers of {', '.join(FAMILIES)} can be read")
    vocabulary = read_vocabulary(keys)
    family = FAMILIES[name](keys, vocabulary, pre)
    control = {piece: token for token, piece in vocabulary.of(Kind.CONTROL)}
    bos, eos = _bos_eos(keys, vocabulary)
    return TextTokenizer(
        family.engine,
        Pieces(
            Texts(family.vocabulary.pieces),
            family.spelling,
            control=frozenset(vocabulary.ids(Kind.CONTROL, Kind.UNKNOWN)),
            padding=frozenset(vocabulary.ids(Kind.UNUSED)),
            dummy_prefix=family.dummy_prefix,
        ),
        _frame(keys, family, bos, eos),
        stop_ids=find_ends(named_ends(keys, len(vocabulary.pieces)), control),
        bos_token=_text(vocabulary, bos),
        eos_token=_text(vocabulary, eos),
        vocab_size=vocab_size(metadata),
    )


def read_bos_eos(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """Return the texts of two tokens; see `puna.text.tokenizers.read_bos_eos`."""
    if is_embedded(metadata):
        return embedded_bos_eos(metadata)
    keys = ggml_keys(metadata)
    vocabulary = read_vocabulary(keys)
    bos, eos = _bos_eos(keys, vocabulary)
    return _text(vocabulary, bos), _text(vocabulary, eos)


def _bos_eos(keys: Keys, vocabulary: Vocabulary) -> tuple[int | None, int | None]:
    return _first_id(keys, vocabulary, "bos", "cls"), _first_id(keys, vocabulary, "eos", "separator", "seperator")


def _first_id(keys: Keys, vocabulary: Vocabulary, *names: str) -> int | None:
    """Return the first id that the file gives under one of these names ("seperator" is how llama.cpp writes it)."""
    found = (read_id(keys, f"{name}_token_id", size=len(vocabulary.pieces)) for name in names)
    return next((token for token in found if token is not None), None)


def _frame(keys: Keys, family: Family, bos: int | None, eos: int | None) -> Frame:
    add_bos = keys.flag("add_bos_token", family.add_bos)
    add_eos = keys.flag("add_eos_token", family.add_eos)
    return Frame(
        before=[bos] if add_bos and bos is not None else [],
        after=[eos] if add_eos and eos is not None else [],
    )


def _text(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.pieces[token]
