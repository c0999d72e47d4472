"""WordPiece (`bert`) from a GGUF file.

Source: Devlin et al., BERT, arXiv:1810.04805; the files write U+2581 before a word's first piece and drop the "##".
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from ...core.keys import Keys
from . import pieces as spelling
from .engine import assemble
from .family import Family, markers, numbered, ordinary, unknown_token
from .pieces import SPACE
from .vocabulary import Kind, Vocabulary

LONGEST_WORD = 100  # characters; a longer word is unknown, as in the published tokenizers


def word_piece(keys: Keys, vocabulary: Vocabulary, pre: str | None) -> Family:
    """Return a BERT tokenizer. Words are cut as BERT cuts them, so pre has no say."""
    unknown = unknown_token(keys, vocabulary)
    if not unknown:
        raise keys.wrong("unknown_token_id", "the id of the token for unknown words")
    vocabulary = _as_published(vocabulary)
    marked = list(markers(vocabulary))
    tokens = ordinary(vocabulary, marked) | unknown
    engine = assemble(
        WordPiece(numbered(tokens), unk_token=next(iter(unknown)), max_input_chars_per_word=LONGEST_WORD),
        list(tokens.values()),
        marked,
        # Told nothing about accents, the library drops them where it lowers capitals, as BERT does.
        normalizer=normalizers.BertNormalizer(lowercase=keys.flag("normalizer.lowercase", True)),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )
    spelled = partial(spelling.word_piece, tidy=True)
    return Family(engine, vocabulary, spelled, dummy_prefix=True, add_bos=True, add_eos=True)


def _as_published(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary with "word" and "##ing" for the file's "▁word" and "ing"."""
    pieces = vocabulary.pieces.copy()
    for token, piece in vocabulary.of(Kind.NORMAL):
        pieces[token] = piece[1:] if piece.startswith(SPACE) else "##" + piece
    return replace(vocabulary, pieces=pieces)
