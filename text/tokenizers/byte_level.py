"""Byte-level BPE (`gpt2`) from a GGUF file: GPT-2, Llama 3 and 4, Qwen, Mistral's Tekken.

Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), section 2.2.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import repeat

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ...core.keys import Keys
from . import pieces as spelling
from .engine import assemble
from .family import Family, markers, numbered, ordinary
from .patterns import Split, find_split
from .vocabulary import Kind, Vocabulary, read_strings


def byte_level_bpe(keys: Keys, vocabulary: Vocabulary, pre: str | None) -> Family:
    """Return the tokenizer of a file whose pieces are spelled in GPT-2's byte alphabet."""
    split = _find_split(keys, pre)
    marked = list(markers(vocabulary))
    tokens = ordinary(vocabulary, marked)
    cuts = [pre_tokenizers.Split(_regex(keys, pattern), "isolated") for pattern in split.patterns]
    engine = assemble(
        _model(keys, vocabulary, tokens, split),
        list(tokens.values()),
        marked,
        normalizer=normalizers.NFC() if split.nfc else None,
        pre_tokenizer=pre_tokenizers.Sequence(
            [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    )
    return Family(engine, _all_in_alphabet(vocabulary), spelling.byte_level, add_bos=split.add_bos)


def _all_in_alphabet(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary with markers, which the file has as plain text, spelled like the rest."""
    pieces = vocabulary.pieces.copy()
    for token, piece in vocabulary.of(Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED):
        pieces[token] = spelling.in_byte_alphabet(piece)
    return replace(vocabulary, pieces=pieces)


def _model(keys: Keys, vocabulary: Vocabulary, tokens: dict[str, int], split: Split) -> BPE:
    numbers, merges = numbered(tokens), read_strings(keys, "merges")
    pairs = [(left, right) for left, _, right in map(str.partition, merges, repeat(" "))]
    # The library looks both parts of a pair up, so that is not done twice; but it panics where they make a text longer
    # than any token.
    if all(map(numbers.__contains__, map("".join, pairs))):
        with suppress(Exception):  # nothing more precise: a part is none of these tokens
            return BPE(numbers, pairs, ignore_merges=split.ignore_merges)
    return BPE(numbers, _within(tokens, keys, vocabulary, merges), ignore_merges=split.ignore_merges)


def _within(tokens: dict[str, int], keys: Keys, vocabulary: Vocabulary, merges: list[str]) -> list[tuple[str, str]]:
    """Return the pairs in merges, without those that lead to or from a marker: text never becomes one."""
    known = set(vocabulary.pieces)
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        both = left + right
        if left not in known or right not in known or both not in known:
            raise keys.wrong("merges", f"pairs of tokens that make a token, which {merge!r} is not")
        if left in tokens and right in tokens and both in tokens:
            pairs.append((left, right))
    return pairs


def _find_split(keys: Keys, pre: str | None) -> Split:
    if "pretokenizer" in keys:  # a pattern spelled out; Ollama's converter writes it for some models
        return Split((keys.text("pretokenizer"),))
    return find_split(keys.text("pre", "default"), fallback=pre)


def _regex(keys: Keys, pattern: str) -> Regex:
    try:
        return Regex(pattern)
    except Exception as error:  # the library raises nothing more precise
        raise keys.wrong("pretokenizer", f"a regular expression ({error})") from error
