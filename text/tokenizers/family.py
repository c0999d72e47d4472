"""What the readers of the three families of GGUF tokenizers share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from operator import eq

from ...core.keys import Keys
from .engine import Engine, Marker
from .pieces import Spelling
from .vocabulary import Kind, Vocabulary, read_id


@dataclass(frozen=True)
class Family:
    """A tokenizer of one family, and what its name implies where the file is silent."""

    engine: Engine
    vocabulary: Vocabulary  # as `spelling` reads it
    spelling: Spelling
    dummy_prefix: bool = False
    add_bos: bool = False
    add_eos: bool = False


def markers(vocabulary: Vocabulary) -> Iterator[Marker]:
    """Yield the tokens that are found as they are spelled, before text is cut or merged."""
    for token, piece in vocabulary.of(Kind.CONTROL, Kind.UNKNOWN):
        yield Marker(piece, token, control=True)
    for token, piece in vocabulary.of(Kind.USER_DEFINED):
        yield Marker(piece, token, control=False)


def ordinary(vocabulary: Vocabulary, marked: Iterable[Marker]) -> dict[str, int]:
    """Return the pieces that text may be merged into, with their ids. Of two equal pieces the first counts."""
    ids = vocabulary.ids(Kind.NORMAL)
    texts = [vocabulary.pieces[token] for token in ids]
    tokens = dict(zip(texts, ids, strict=True))
    if len(tokens) < len(ids):
        tokens.update(zip(reversed(texts), reversed(ids), strict=True))
    for marker in marked:
        tokens.pop(marker.text, None)
    return tokens


def unknown_token(keys: Keys, vocabulary: Vocabulary) -> dict[str, int]:
    """Return the token for what cannot be spelled, with its id; {} if the file has none."""
    token = read_id(keys, "unknown_token_id", size=len(vocabulary.pieces))
    found = next(vocabulary.of(Kind.UNKNOWN), None) if token is None else (token, vocabulary.pieces[token])
    return {} if found is None else {found[1]: found[0]}


def numbered(tokens: dict[str, int]) -> dict[str, int]:
    """Return pieces numbered from zero in their order, as the library wants them: tokens itself, if its ids are so."""
    if all(map(eq, tokens.values(), count())):
        return tokens
    return dict(zip(tokens, count()))
