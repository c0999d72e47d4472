"""Text to token ids, with or without control tokens, over one library tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Model
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer


@dataclass(frozen=True)
class Marker:
    """A text that is a token of its own wherever it stands."""

    text: str
    token: int
    control: bool  # not if the text is untrusted


class Engine:
    """A library tokenizer in two settings that share one model; neither changes after construction."""

    def __init__(self, tokenizer: Tokenizer, numbering: npt.NDArray[np.uint32] | None = None) -> None:
        """numbering: the file's token id for each id of the library's; None if they are the same."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._marked, self._plain, self._numbering = tokenizer, _spelling_out(tokenizer), numbering

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of text; nothing is put around them."""
        engine = self._marked if special else self._plain
        ids = engine.encode(text, add_special_tokens=False).ids
        return ids if self._numbering is None else self._numbering[ids].tolist()


def assemble(
    model: Model,
    tokens: Sequence[int],
    markers: Iterable[Marker],
    *,
    normalizer: Normalizer | None = None,
    pre_tokenizer: PreTokenizer | None = None,
) -> Engine:
    """Return an engine over a model whose own ids 0, 1, ... stand for the file's ids in tokens.

    The library gives markers the ids that follow the model's, whatever ids the file gives them: hence the numbering.
    In return control tokens need no place in the model's vocabulary, where text could be merged into them.
    """
    tokenizer = _over(model, normalizer, pre_tokenizer)
    by_text = {marker.text: marker for marker in markers if marker.text}
    _add(tokenizer, [AddedToken(m.text, special=m.control, normalized=False) for m in by_text.values()])
    numbering = np.array([*tokens, *(0 for _ in by_text)], np.uint32)
    for text, marker in by_text.items():
        number = tokenizer.token_to_id(text)
        assert number is not None, "every marker was added"
        numbering[number] = marker.token
    return Engine(tokenizer, numbering)


def _over(model: Model, normalizer: Normalizer | None, pre_tokenizer: PreTokenizer | None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def _spelling_out(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer over the same model that treats the text of control tokens as any other text."""
    twin = _over(tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer)
    _add(twin, [token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    twin.encode_special_tokens = True
    return twin


def _add(tokenizer: Tokenizer, tokens: Sequence[AddedToken]) -> None:
    """Add tokens in order. Runs of one kind go together: the library rebuilds its search automaton at each call."""
    for special, run in groupby(tokens, key=attrgetter("special")):
        if special:
            tokenizer.add_special_tokens(list(run))
        else:
            tokenizer.add_tokens(list(run))
