"""The token list of a GGUF file, checked before anything is built from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.keys import Keys
from .ends import END_MARKERS

NO_TOKEN = 0xFFFF_FFFF  # how some converters write "this model has no such token"


class Kind(IntEnum):
    """The values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Pieces of text by token id, with the kind of each."""

    pieces: list[str]
    kinds: npt.NDArray[np.int64]

    def ids(self, *kinds: Kind) -> list[int]:
        """Return the id of every token of these kinds, in order."""
        found: list[int] = np.flatnonzero(np.isin(self.kinds, kinds)).tolist()
        return found

    def of(self, *kinds: Kind) -> Iterator[tuple[int, str]]:
        """Yield (id, piece) of every token of these kinds, in the order of ids."""
        return ((token, self.pieces[token]) for token in self.ids(*kinds))


def read_vocabulary(keys: Keys) -> Vocabulary:
    """Return the token list under `tokens` and `token_type`. Raises BadModel naming the key that is wrong."""
    pieces = read_strings(keys, "tokens")
    if not pieces:
        raise keys.wrong("tokens", "a list of texts")
    if "token_type" in keys:
        kinds = read_numbers(keys, "token_type", length=len(pieces))
        if kinds.dtype.kind not in "iu" or kinds.min() < 0 or kinds.max() > max(Kind):
            raise keys.wrong("token_type", f"whole numbers from 0 to {max(Kind):d}")
    else:
        kinds = np.full(len(pieces), Kind.NORMAL)
    return Vocabulary(pieces, _mended(pieces, np.where(kinds == 0, Kind.NORMAL, kinds)))


def _mended(pieces: list[str], kinds: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return kinds with two habits of converters undone, either of which would let text become a wrong token."""
    mended = kinds.astype(np.int64)
    for token in np.flatnonzero(kinds == Kind.USER_DEFINED).tolist():
        if pieces[token] in END_MARKERS:
            mended[token] = Kind.CONTROL
    # The rows that pad a vocabulary are named [PAD0], [PAD1], ... and must not be found in text.
    for token in range(len(pieces) - 1, -1, -1):
        if not re.fullmatch(r"\[PAD\d+\]", pieces[token]):
            break
        mended[token] = Kind.UNUSED
    return mended


def read_strings(keys: Keys, name: str) -> list[str]:
    """Return an array of texts; [] if there is none. Raises BadModel if one is no text or no valid Unicode."""
    values: list[Any] = list(keys.list(name))
    if not set(map(type, values)) <= {str}:
        raise keys.wrong(name, "a list of texts")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raise keys.wrong(name, "texts in UTF-8") from None
    return values


def read_numbers(keys: Keys, name: str, *, length: int) -> npt.NDArray[Any]:
    """Return an array of length numbers. Raises BadModel if it is missing, shorter, longer or not of numbers."""
    values = np.asarray(keys.list(name))
    if values.shape != (length,) or values.dtype.kind not in "iuf":
        raise keys.wrong(name, f"{length} numbers, one for each token")
    return values


def read_id(keys: Keys, name: str, *, size: int) -> int | None:
    """Return a token id below size; None if the file has none. Raises BadModel for one outside the vocabulary."""
    if name not in keys:
        return None
    token = keys.integer(name, low=-1, high=NO_TOKEN)
    if token in (-1, NO_TOKEN):
        return None
    if token >= size:
        raise keys.wrong(name, f"a token id below {size}")
    return token


def check_ids(keys: Keys, name: str, values: Iterable[object], *, size: int) -> list[int]:
    """Return values, which were read from name, if all are token ids below size. Raises BadModel if one is not."""
    ids = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < size:
            raise keys.wrong(name, f"token ids below {size}")
        ids.append(int(value))
    return ids
