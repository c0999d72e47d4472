"""Reads a tokenizer from the tokenizer.json that a GGUF file may hold whole, under `tokenizer.huggingface.json`.

Source: the GGUF specification in ggml's documentation, section on tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from ...core.decoding import MALFORMED
from ...core.errors import BadFile
from ...core.keys import Keys
from .huggingface import Parts, build, parse
from .tokenizer import TextTokenizer
from .vocabulary import NO_TOKEN, check_ids, read_id

WHOLE = "tokenizer.huggingface.json"


class _Token(msgspec.Struct):
    id: int
    content: str


class _Layout(msgspec.Struct):
    """The part of a tokenizer.json that tells tokens by their ids without the whole of it being read."""

    added_tokens: list[_Token] = []


def is_embedded(metadata: Mapping[str, Any]) -> bool:
    """Whether a file holds a tokenizer.json, and no list of tokens beside it."""
    return WHOLE in metadata and "tokenizer.ggml.tokens" not in metadata


def open_embedded(metadata: Mapping[str, Any]) -> TextTokenizer:
    """Return the tokenizer of such a file; see `puna.text.tokenizers.open_tokenizer`."""
    keys = ggml_keys(metadata)
    bos, eos = embedded_bos_eos(metadata)
    names = {"bos_token": bos, "eos_token": eos}
    parts = Parts(_data(metadata), names, keys, partial(named_ends, keys), vocab_size(metadata))
    return build(parts, parse(parts))


def embedded_bos_eos(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """Return the texts of two tokens of such a file, which are among those that were added to its vocabulary."""
    try:
        added = msgspec.json.decode(_data(metadata), type=_Layout).added_tokens
    except MALFORMED as error:
        raise BadFile(WHOLE, str(error)) from error
    texts, keys = {token.id: token.content for token in added}, ggml_keys(metadata)
    bos, eos = (read_id(keys, f"{name}_token_id", size=NO_TOKEN) for name in ("bos", "eos"))
    return ("" if bos is None else texts.get(bos, "")), ("" if eos is None else texts.get(eos, ""))


def _data(metadata: Mapping[str, Any]) -> bytes:
    return Keys(metadata, origin="GGUF metadata").text(WHOLE).encode("utf-8", "surrogateescape")


def ggml_keys(metadata: Mapping[str, Any]) -> Keys:
    """Return the keys that describe a tokenizer, to be found without their prefix."""
    return Keys(metadata, prefix="tokenizer.ggml.", origin="GGUF metadata")


def named_ends(keys: Keys, size: int) -> set[int]:
    """Return the ids that a file names as those that end a reply. size: ids are below it."""
    single = [read_id(keys, f"{name}_token_id", size=size) for name in ("eos", "eot", "eom")]
    several = check_ids(keys, "eos_token_ids", keys.list("eos_token_ids"), size=size)
    return {token for token in [*single, *several] if token is not None}


def vocab_size(metadata: Mapping[str, Any]) -> int:
    """Return the rows of the embedding, where the file says it; 0 where it leaves that to the length of the list."""
    prefix = f"{metadata.get('general.architecture')}."
    return Keys(metadata, prefix=prefix, origin="GGUF metadata").integer("vocab_size", 0, low=0)
