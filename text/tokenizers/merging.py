"""SentencePiece's merging, where a vocabulary gives scores in place of a list of merges.

Source: Kudo and Richardson, SentencePiece, arXiv:1808.06226; its bpe_model.cc defines the order of merges.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise

from tokenizers import NormalizedString, PreTokenizedString


def derive_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the merges that build every piece from two others, highest score first.

    Equals SentencePiece's own order if no two scores are the same. scores is in the order of token ids.
    """
    # The left part is looked up before the right one is cut: this runs 1.5 million times for Gemma. Comparing hashes
    # of all parts in numpy was no faster on the first call, for the memory it touches.
    return [
        (left, right)
        for piece in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in scores and (right := piece[cut:]) in scores
    ]


class ScoredMerging:
    """A pre-tokenizer that merges all the way, for vocabularies with equal scores: among these the leftmost goes first.

    A list of merges cannot say that. The model after it looks every piece up as a whole.
    """

    def __init__(self, scores: Mapping[str, float]) -> None:
        self._scores = scores

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Cut text into pieces; called by the tokenizers library."""
        text.split(self._split)

    def _split(self, _: int, text: NormalizedString) -> list[NormalizedString]:
        slices = [text[start:end] for start, end in pairwise([*self.cuts(text.normalized), len(text.normalized)])]
        return [piece for piece in slices if piece is not None]

    def cuts(self, text: str) -> list[int]:
        """Return where each piece of text starts."""
        ends = list(range(1, len(text) + 1))  # of the piece that starts here; 0 once it was merged into another
        starts = list(range(-1, len(text)))  # of the piece before the one that starts here
        heap: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(text) and (score := self._scores.get(text[left : ends[right]])) is not None:
                heapq.heappush(heap, (-score, left, right, ends[right]))

        for right in range(1, len(text)):
            offer(right - 1, right)
        while heap:
            _, left, right, end = heapq.heappop(heap)
            if ends[left] == right and ends[right] == end:  # else one of the two was merged meanwhile
                ends[left], ends[right] = end, 0
                starts[end] = left
                offer(starts[left], left)
                offer(left, end)
        return [start for start, end in enumerate(ends) if end]
