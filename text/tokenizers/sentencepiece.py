"""SentencePiece BPE (`llama`) from a GGUF file: Llama 2, Mistral 7B, Gemma.

Source: Kudo and Richardson, SentencePiece, arXiv:1808.06226.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from ...core.keys import Keys
from . import pieces as spelling
from .engine import Marker, assemble
from .family import Family, markers, numbered, ordinary, unknown_token
from .merging import ScoredMerging, derive_merges
from .pieces import SPACE
from .vocabulary import Kind, Vocabulary, read_numbers

LONGEST_PIECE = 1024  # characters; SentencePiece's trainer stops at 16 unless told otherwise
Prefix = Literal["never", "first", "always"]


def sentencepiece_bpe(keys: Keys, vocabulary: Vocabulary, pre: str | None) -> Family:
    """Return the tokenizer of a file whose pieces have scores. It cuts nothing before merging, so pre has no say."""
    marked = [spelled for marker in markers(vocabulary) for spelled in _with_either_space(marker)]
    runs = _runs_of_spaces(vocabulary)
    normal = ordinary(vocabulary, marked)
    scores = dict.fromkeys(runs, math.inf) | _read_scores(keys, vocabulary, normal)
    unknown = unknown_token(keys, vocabulary)
    tokens = runs | normal | _byte_tokens(keys, vocabulary) | unknown
    ties = _has_ties(scores)
    prefix = _prefix(keys, vocabulary)
    model = BPE(
        numbered(tokens),
        [] if ties else derive_merges(scores),
        unk_token=next(iter(unknown), None),
        fuse_unk=True,
        byte_fallback=True,
        ignore_merges=ties,  # ScoredMerging hands over whole pieces
    )
    cuts = _pre_tokenizer(prefix, ScoredMerging(scores) if ties else None)
    engine = assemble(model, list(tokens.values()), marked, normalizer=_normalizer(prefix), pre_tokenizer=cuts)
    return Family(engine, vocabulary, spelling.sentencepiece, dummy_prefix=prefix != "never", add_bos=True)


def _runs_of_spaces(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the user-defined pieces of several spaces, longest first: they are merged before anything else is."""
    pieces = ((token, piece.replace(" ", SPACE)) for token, piece in vocabulary.of(Kind.USER_DEFINED))
    runs = {piece: token for token, piece in pieces if set(piece) == {SPACE}}
    return dict(sorted(runs.items(), key=lambda run: -len(run[0])))


def _read_scores(keys: Keys, vocabulary: Vocabulary, tokens: Mapping[str, int]) -> dict[str, float]:
    values = read_numbers(keys, "scores", length=len(vocabulary.pieces))
    if not np.isfinite(values).all():
        raise keys.wrong("scores", "finite numbers")
    longest = max(tokens, key=len, default="")
    if len(longest) > LONGEST_PIECE:  # deriving merges takes time in proportion to the square of it
        raise keys.wrong("tokens", f"at most {LONGEST_PIECE} characters in a token, and one has {len(longest)}")
    listed = values.tolist()
    return {piece: listed[token] for piece, token in tokens.items()}


def _has_ties(scores: Mapping[str, float]) -> bool:
    """Say whether two pieces that merging can make have one score; those of single characters are never used."""
    made = [score for piece, score in scores.items() if len(piece) > 1 and score < math.inf]
    return len(set(made)) < len(made)


def _byte_tokens(keys: Keys, vocabulary: Vocabulary) -> dict[str, int]:
    """Return the tokens for single bytes, spelled as the library looks them up."""
    tokens = {}
    for token, piece in vocabulary.of(Kind.BYTE):
        value = spelling.byte_value(piece)
        if value is None:
            raise keys.wrong("tokens", f"<0x00> to <0xFF> for byte tokens, and token {token} is {piece!r}")
        tokens[f"<0x{value:02X}>"] = token
    return tokens


def _with_either_space(marker: Marker) -> Iterator[Marker]:
    """Yield a user-defined piece as texts may have it: converters write spaces in it, SentencePiece has U+2581."""
    spelled = replace(marker, text=marker.text.replace(" ", SPACE))
    if marker.control:
        yield marker
    elif set(spelled.text) == {SPACE}:
        yield spelled  # spaces are left to merging, which also finds where spaces and U+2581 meet
    else:
        yield replace(marker, text=marker.text.replace(SPACE, " "))
        yield spelled


def _prefix(keys: Keys, vocabulary: Vocabulary) -> Prefix:
    """Say where a space is put in front of text that has none.

    A GGUF file says only whether. Llama 2 and its relatives put one at the start and after every control token, and
    so does llama.cpp for every model. Mistral's tokenizers that made [INST] a control token (7B v0.3, Mixtral 8x22B,
    Codestral) put one at the start only; the templates of these models count on it and write "[INST] " themselves.
    """
    if not keys.flag("add_space_prefix", True):
        return "never"
    return "first" if any(piece == "[INST]" for _, piece in vocabulary.of(Kind.CONTROL)) else "always"


def _normalizer(prefix: Prefix) -> Normalizer | None:
    """Return what turns spaces to U+2581; None where Metaspace does it."""
    if prefix == "first":
        return None
    spaces = normalizers.Replace(" ", SPACE)
    return normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix == "always" else spaces


def _pre_tokenizer(prefix: Prefix, merging: ScoredMerging | None) -> PreTokenizer | None:
    steps: list[PreTokenizer] = []
    if prefix == "first":
        steps.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False))
    if merging is not None:
        steps.append(pre_tokenizers.PreTokenizer.custom(merging))
    return pre_tokenizers.Sequence(steps) if steps else None
