"""What Puna asks of the `llguidance` library: its form of a tokenizer, and matchers of grammars."""

from __future__ import annotations

import llguidance

from ...core.protocols import Tokenizer

LIMITS = llguidance.LLParserLimits(
    max_items_in_row=4_000,  # four for each optional property of an object
    max_lexer_states=50_000,  # of up to 2 KB, for each reply
    verbose_errors=False,  # they would quote the schema and the reply
)


class _Tokens:
    """The bytes of every token, and which tokens end a reply: what `llguidance.TokenizerWrapper` reads."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, ends: list[int]) -> None:
        stop = frozenset(ends)
        ids = range(max(tokenizer.size, max(ends) + 1))
        # Control tokens and those that pad a vocabulary have no bytes, and are therefore never allowed.
        self.tokens = [b"" if token in stop else tokenizer.piece(token) for token in ids]
        self.special_token_ids = ends
        self.eos_token_id = ends[0]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), special=False, start=False)


def library_tokenizer(tokenizer: Tokenizer, stop_ids: frozenset[int]) -> llguidance.LLTokenizer:
    """Return tokenizer in the library's form. Takes about a second for 262,144 tokens.

    stop_ids: allowed exactly where a value may end. A model without any gets one behind its vocabulary, which is never
    sampled: its replies end where nothing can follow.
    """
    ends = sorted(stop_ids) or [tokenizer.size]
    wrapped = llguidance.TokenizerWrapper(_Tokens(tokenizer, ends))
    return llguidance.LLTokenizer(wrapped, eos_token=ends, slices=llguidance.LLTokenizer.json_slices())


def open_matcher(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """Return a matcher of a grammar in the library's dialect of Lark, at the beginning of a reply."""
    compiled = llguidance.LLMatcher.grammar_from_lark(grammar)
    return llguidance.LLMatcher(tokenizer, compiled, log_level=0, limits=LIMITS)
