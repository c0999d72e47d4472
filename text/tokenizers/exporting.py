"""A model's tokenizer as the metadata of a GGUF file.

A checkpoint's goes in whole, as its tokenizer.json. Byte-level BPE also goes in as the lists that all readers of GGUF
know, if its parts are exactly those that such lists stand for; readers take these first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from ...core.tensor.source import WeightSource
from . import checkpoint
from .embedded import WHOLE
from .ends import END_MARKERS
from .huggingface import Parts, build, parse, token_text
from .patterns import GPT2, SPLITS, Split
from .tokenizer import Frame, TextTokenizer
from .vocabulary import Kind

_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_keys(source: WeightSource) -> dict[str, Any]:
    """Return the keys `tokenizer.*` for a model: those of a GGUF file as they are. Raises as `open_tokenizer`."""
    if source.kind == "gguf":
        return {key: value for key, value in source.metadata.items() if key.startswith("tokenizer.")}
    parts = checkpoint.read_parts(source)
    tokenizer = parse(parts)
    opened, whole = build(parts, tokenizer), tokenizer.to_str()
    ids = _ids(tokenizer, parts)
    known = {**ids, "eos_token_ids": sorted(opened.stop_ids)} if opened.stop_ids else ids
    flags = _flags(opened.frame, ids.get("bos_token_id"), ids.get("eos_token_id"))
    tables = None if flags is None else _byte_level_tables(_Layout.of(whole), opened)
    keys = {**(tables or {}), **known, **(flags or {})}
    return {**{f"tokenizer.ggml.{key}": value for key, value in keys.items()}, WHOLE: whole}


def _ids(tokenizer: Tokenizer, parts: Parts) -> dict[str, int]:
    found = {f"{name}_token_id": tokenizer.token_to_id(token_text(parts.names, role)) for name, role in _ROLES.items()}
    return {name: token for name, token in found.items() if token is not None}


def _flags(frame: Frame, bos: int | None, eos: int | None) -> dict[str, bool] | None:
    """Return what goes around a text as two flags; None where two flags cannot say it."""
    if frame.before not in ([], [bos]) or frame.after not in ([], [eos]):
        return None
    return {"add_bos_token": bool(frame.before), "add_eos_token": bool(frame.after)}


# ---- byte-level BPE ------------------------------------------------------------------------------------------------


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


class _Bpe(msgspec.Struct, forbid_unknown_fields=True):
    """The library's BPE with all its options: one that is not known here could change what text becomes."""

    type: str
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False

    @property
    def plain(self) -> bool:
        """Whether merges are all there is to it."""
        affixes = self.continuing_subword_prefix or self.end_of_word_suffix
        return self.type == "BPE" and not (self.dropout or self.unk_token or affixes or self.byte_fallback)


class _Layout(msgspec.Struct):
    """A tokenizer.json, as the library writes it."""

    added_tokens: list[_Added]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    decoder: dict[str, Any] | None
    model: msgspec.Raw

    @classmethod
    def of(cls, whole: str) -> _Layout:
        return msgspec.json.decode(whole, type=cls)

    def bpe(self) -> _Bpe | None:
        """Return the model, if it is one of plain byte-level BPE."""
        try:
            model = msgspec.json.decode(self.model, type=_Bpe)
        except msgspec.ValidationError:
            return None
        return model if model.plain and (self.decoder or {}).get("type") == "ByteLevel" else None


def _byte_level_tables(layout: _Layout, opened: TextTokenizer) -> dict[str, Any] | None:
    """Return the lists of a byte-level BPE; None if it is another, or lists would not say all of it."""
    model = layout.bpe()
    pre = None if model is None else _split_name(layout, model.ignore_merges)
    if model is None or pre is None or not all(map(_is_plain, layout.added_tokens)):
        return None
    pieces = {token: piece for piece, token in model.vocab.items()}
    kinds = dict.fromkeys(pieces, Kind.NORMAL)
    for added in layout.added_tokens:
        pieces[added.id] = added.content
        kinds[added.id] = Kind.CONTROL if added.special else Kind.USER_DEFINED
    count = opened.size
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [pieces.get(token, f"[PAD{token}]") for token in range(count)],
        "token_type": np.array([kinds.get(token, Kind.UNUSED) for token in range(count)], np.int32),
        "merges": [" ".join(pair) for pair in model.merges],
    }


def _is_plain(added: _Added) -> bool:
    """Whether a list of tokens says all of an added one. Readers take end markers for control tokens in any case."""
    options = added.single_word or added.lstrip or added.rstrip or added.normalized
    return not options and (added.special or added.content not in END_MARKERS)


def _split_name(layout: _Layout, ignore_merges: bool) -> str | None:
    """Return what GGUF files call the way in which text is cut; None if there is no name for it."""
    if layout.normalizer not in (None, {"type": "NFC"}):
        return None
    patterns = _patterns(layout.pre_tokenizer or {})
    for name, known in SPLITS.items():
        wanted = Split(patterns, ignore_merges, nfc=layout.normalizer is not None, add_bos=known.add_bos)
        if name != "default" and wanted == known:
            return name
    return None


def _patterns(pre_tokenizer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the patterns by which text is cut, one after the other; () if there is more to it than patterns."""
    steps: Sequence[Mapping[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *cuts, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return ()
    found = []
    for cut in cuts:
        pattern = cut.get("pattern", {}).get("Regex")
        if pattern is None or (cut["type"], cut["behavior"], cut["invert"]) != ("Split", "Isolated", False):
            return ()
        found.append(pattern)
    return (*found, GPT2) if last.get("use_regex", True) else tuple(found)
