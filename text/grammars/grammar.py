"""The grammar of one reply."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import BadRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")  # in a text that nobody outside has seen

# What the library says in terms that mean nothing to whoever wrote the schema.
WORDS = {
    "NoExtensionBias": "no token can come next",
    "oneOf constraints": "the alternatives of a oneOf must exclude each other by type, or by a text that one of their "
    "properties has to be; anyOf asks for less",
}


def problem(matcher: LLMatcher) -> str:
    """Return why a matcher gave up, in one line; "" if it did not."""
    first = _PLACE.sub("", matcher.get_error()).partition("\n")[0]
    return next((ours for theirs, ours in WORDS.items() if first.startswith(theirs)), first)


class SchemaGrammar:
    """Implements `core.protocols.Grammar`: JSON that follows a schema."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        """matcher: at the beginning of a reply, and nobody else's. tokenizer: the one it was made for."""
        self._matcher, self._tokenizer = matcher, tokenizer
        self._words = -(-tokenizer.vocab_size // 32)

    @property
    def ended(self) -> bool:
        """Whether the value is complete and nothing can be added to it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self) -> npt.NDArray[np.int32]:
        """Return the tokens that may come next, a bit each. Raises BadRequest when the library gives the reply up."""
        words = np.empty(self._words, np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)  # which lets other threads run
        if reason := problem(self._matcher):  # then the mask is that of an end, which would cut the value off
            raise BadRequest(f"the output format can be followed no further: {reason}")
        return words

    def accept(self, token: int) -> None:
        """Take note of the next token. An error is told by the next mask."""
        self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """Return the longest tokens that spell what has to come next, up to a character that is not complete."""
        return self._tokenizer.greedy_tokenize(self._matcher.compute_ff_bytes().decode("utf-8", "ignore"))
