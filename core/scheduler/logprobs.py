"""Log probabilities of a reply's tokens, with the text that each stands for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..protocols import Tokenizer
from ..tensor.sampling import log_probabilities
from .messages import SampledLogprob, TokenLogprob


def sampled_logprob(
    tokenizer: Tokenizer, logits: npt.NDArray[np.float32], token: int, candidates: int
) -> SampledLogprob:
    """Return the log probability of a sampled token and those of the likeliest candidates. logits: [V], raw."""
    found = log_probabilities(logits, token, candidates)

    def named(token: int, logprob: float) -> TokenLogprob:
        data = tokenizer.piece(token, special=True)
        return TokenLogprob(token, data.decode("utf-8", "replace"), data, logprob)

    return SampledLogprob(named(token, found.chosen), [named(*candidate) for candidate in found.likeliest])
