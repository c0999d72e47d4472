"""From logits to tokens: penalties, filters and a reproducible draw, for a whole batch of sequences at once.

Each row goes through the following, in 32-bit floats throughout (the order and arithmetic of Ollama's own sampler, so
that a seed means here what it means there):

1. penalties for tokens seen lately, on the raw logits;
2. temperature 0: the first maximum, and nothing else;
3. top_k: the k largest, largest first, lower ids first among equals;
4. typical_p: the most typical tokens that together exceed p (arXiv:2202.00666), by probabilities without temperature,
   as in llama.cpp;
5. division by the temperature, softmax;
6. top_p: cut after the first token at which the running sum exceeds p;
7. min_p: cut before the first token less likely than p times the likeliest;
8. a draw, in proportion to what is left.

A grammar comes last: a token is drawn without it, and only if the grammar refuses that token are the logits masked and
steps 2 to 8 repeated, with a second random number.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import BadModel, BadRequest
from .pcg import Pcg

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.int32]

__all__ = ["BadLogits", "DeadEnd", "LogProbabilities", "Sampler", "SamplingParams", "log_probabilities", "sample"]

MIN_TEMPERATURE = 1e-7  # below it a division could overflow
MAX_TEMPERATURE = 1e30  # well within float32, and all tokens are equally likely long before
MAX_PENALTY = 1e6  # beyond it a float32 would lose the logit itself
CHUNK = 256  # logits; see _largest


class BadLogits(BadModel):
    """A model gave a row of logits from which no token can be drawn; `row` is its place in the batch."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row} of the model's logits {problem}")
        self.row = row


class DeadEnd(BadRequest):
    """The grammar of a row allows no further token; `row` is its place in the batch."""

    def __init__(self, row: int) -> None:
        super().__init__(f"the output format of row {row} allows no token after what was generated so far")
        self.row = row


class SamplingParams(msgspec.Struct, frozen=True):
    """How the next token is chosen. Values out of range are clamped; values without a meaning raise BadRequest."""

    temperature: float = 0.8  # 0 takes the likeliest token; a negative one counts as 0
    top_k: int = 40  # 0 or less: off
    top_p: float = 0.9  # clamped to 0..1; 1: off; 0: one token
    min_p: float = 0.0  # clamped to 0..1; 0: off
    typical_p: float = 1.0  # clamped to 0..1; 1: off; 0: one token
    repeat_last_n: int = 64  # tokens, the prompt's among them, that penalties look back on; 0: none; below 0: all
    repeat_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: different each time

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "typical_p"):
            _require(name, getattr(self, name), -math.inf, math.inf)
        _require("repeat_penalty", self.repeat_penalty, 1 / MAX_PENALTY, MAX_PENALTY)
        _require("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _require("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        msgspec.structs.force_setattr(self, "temperature", min(max(self.temperature, 0.0), MAX_TEMPERATURE))
        for name in ("top_p", "min_p", "typical_p"):
            msgspec.structs.force_setattr(self, name, min(max(getattr(self, name), 0.0), 1.0))

    @property
    def penalises(self) -> bool:
        """Whether tokens seen lately change the logits."""
        wanted = self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return wanted and self.repeat_last_n != 0


class Sampler:
    """What one sequence keeps between its tokens: its parameters and its stream of random numbers."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed
        self._random = Pcg(seed)

    def uniform(self) -> np.float32:
        """Return the next random number of this sequence, in [0, 1)."""
        return self._random.uniform()


def sample(
    logits: Floats,
    samplers: Sequence[Sampler],
    histories: Sequence[Sequence[int]],
    masks: Sequence[Mask | None] | None = None,
) -> Ids:
    """Return the next token of each sequence, [N] int64.

    logits: [N, V] float32, writable; penalties change it during the call and it is restored before the return.
    samplers: one for each row; their random streams advance. histories: for each row the prompt and reply so far; ids
    outside the vocabulary (an image's placeholders) are passed over.
    masks: for each row the tokens its grammar allows, bit t % 32 of int32 word t // 32 (tokens beyond the last word are
    not allowed), or None.
    Raises BadLogits if a row holds NaN, +inf, or nothing but -inf, before any random number is drawn, so that the rest
    of the batch can be sampled again; DeadEnd if a mask allows nothing.
    """
    assert logits.ndim == 2 and logits.dtype == np.float32, "logits are [N, V] float32"
    assert masks is None or len(masks) == len(logits), "a mask, or None, for each row"
    with _penalised(logits, samplers, histories):
        tokens = _choose(logits, samplers)
        for row, mask in enumerate(masks or ()):
            if mask is not None and not _allows(mask, int(tokens[row])):
                tokens[row] = _choose(_masked(logits, row, mask), [samplers[row]])[0]
    return tokens


@dataclass(frozen=True)
class LogProbabilities:
    """Natural logarithms of the model's own probabilities, before temperature and filters."""

    chosen: float
    likeliest: tuple[tuple[int, float], ...]  # (token, log probability), the likeliest first


def log_probabilities(logits: Floats, token: int, top: int) -> LogProbabilities:
    """Return the log probability of token and those of the `top` likeliest. logits: [V] float32, one raw row.

    The softmax is accumulated in float64. A token that the model rules out (-inf) has -inf here too, and is never among
    the likeliest.
    """
    maximum = float(logits.max())
    total = maximum + math.log(np.exp(logits.astype(np.float64) - maximum).sum())
    ids = _largest(logits, top) if top > 0 else np.empty(0, np.int64)
    likeliest = tuple((int(id_), float(logits[id_]) - total) for id_ in ids)
    return LogProbabilities(float(logits[token]) - total, likeliest)


def _require(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        wanted = "a finite number" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise BadRequest(f"{name} is {value}: expected {wanted}")


@contextmanager
def _penalised(logits: Floats, samplers: Sequence[Sampler], histories: Sequence[Sequence[int]]) -> Iterator[None]:
    """Apply each row's penalties to logits; undo them at the end (copying a batch would cost more than sampling it)."""
    undo: list[tuple[int, Ids, Floats]] = []
    for row, (sampler, history) in enumerate(zip(samplers, histories, strict=True)):
        if sampler.params.penalises:
            tokens, counts = _seen(history, sampler.params.repeat_last_n, logits.shape[1])
            before = logits[row, tokens]
            undo.append((row, tokens, before))
            logits[row, tokens] = _penalise(before, counts, sampler.params)
    try:
        yield
    finally:
        for row, tokens, before in undo:
            logits[row, tokens] = before


def _seen(history: Sequence[int], last: int, vocabulary: int) -> tuple[Ids, Ids]:
    """Return the distinct tokens among the last of history (all of it, if last < 0) and how often each occurs."""
    recent = np.asarray(history[-last:] if last > 0 else history, np.int64)
    return np.unique(recent[(recent >= 0) & (recent < vocabulary)], return_counts=True)


def _penalise(values: Floats, counts: Ids, params: SamplingParams) -> Floats:
    repeat = np.float32(params.repeat_penalty)
    scaled = np.where(values <= 0, values * repeat, values / repeat)
    subtracted = counts * params.frequency_penalty + params.presence_penalty
    return scaled - subtracted.astype(np.float32)


def _choose(logits: Floats, samplers: Sequence[Sampler]) -> Ids:
    """Return a token for each row, without penalties and grammar (steps 2 to 8 above)."""
    tokens: Ids = logits.argmax(axis=1)  # for every row: a NaN anywhere comes out as the maximum
    for row, peak in enumerate(np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]):
        if not np.isfinite(peak):
            raise BadLogits(row, "holds NaN" if np.isnan(peak) else f"has the maximum {peak}")
    drawn = [row for row, sampler in enumerate(samplers) if sampler.params.temperature > 0]
    kept = {row: _candidates(logits[row], samplers[row].params) for row in drawn}
    drawn.sort(key=lambda row: len(kept[row]))
    for _, group in itertools.groupby(drawn, key=lambda row: len(kept[row])):  # most often one: all share a top_k
        rows = list(group)
        ids = np.stack([kept[row] for row in rows])
        columns = _draw(logits[np.array(rows)[:, None], ids], [samplers[row] for row in rows])
        tokens[rows] = np.take_along_axis(ids, columns[:, None], axis=1)[:, 0]
    return tokens


def _candidates(logits: Floats, params: SamplingParams) -> Ids:
    """Return the tokens of one row that top_k and typical_p keep, the likeliest first."""
    ids = _largest(logits, params.top_k)
    return ids[_typical(logits[ids], params.typical_p)] if params.typical_p < 1 else ids


def _largest(logits: Floats, k: int) -> Ids:
    """Return the ids of the k largest logits of one row (k <= 0: of all), largest first, never one that is -inf.

    The k-th largest of the chunks' maxima bounds the k-th largest logit from below, so only chunks with a maximum that
    high are looked at: a quarter of the time of a partition of the whole row.
    """
    starts = np.arange(0, len(logits), CHUNK)
    if not 0 < k < len(logits):
        ids = np.flatnonzero(logits > -np.inf)
    elif k >= len(starts):
        ids = np.flatnonzero(logits >= _kth_largest(logits, k))
    else:
        maxima = np.maximum.reduceat(logits, starts)
        bound = _kth_largest(maxima, k)
        ids = (starts[maxima >= bound, None] + np.arange(CHUNK)).ravel()
        ids = ids[: np.searchsorted(ids, len(logits))]  # the last chunk may be short
        ids = ids[logits[ids] >= bound]
    return _descending(logits, ids)[: k if k > 0 else None]


def _kth_largest(values: Floats, k: int) -> np.float32:
    """Return the k-th largest of values, at least the lowest finite number."""
    return max(np.partition(values, -k)[-k], np.finfo(np.float32).min)


def _descending(logits: Floats, ids: Ids) -> Ids:
    """Return ids by falling logit, equal ones by rising id.

    One integer holds (logit, id): its sort is the same on every processor, and six times as fast as one of floats that
    keeps equal ones in order.
    """
    bits = (logits[ids] + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0: they are equal
    falling = np.where(bits >> 31, bits, ~bits & 0x7FFFFFFF)
    keys = np.sort(falling.astype(np.uint64) << 32 | ids.astype(np.uint64))
    return (keys & 0xFFFFFFFF).astype(np.int64)


def _typical(values: Floats, p: float) -> npt.NDArray[np.bool_]:
    """Return which logits, sorted, are locally typical: those whose information is closest to the entropy.

    As many as it takes for their probabilities to exceed p.
    """
    probabilities = _softmax(values[None])[0]
    possible = np.flatnonzero(probabilities)
    information = -np.log(probabilities[possible])
    entropy = (probabilities[possible] * information).sum()
    order = possible[np.argsort(np.abs(information - entropy), kind="stable")]
    sums = np.cumsum(probabilities[order])
    keep = np.zeros(len(values), np.bool_)
    keep[order[: 1 + int((sums <= np.float32(p)).sum())]] = True
    return keep


def _draw(values: Floats, samplers: Sequence[Sampler]) -> Ids:
    """Return the column drawn in each row. values: [N, C] logits, falling along each row."""
    temperature = _column(max(s.params.temperature, MIN_TEMPERATURE) for s in samplers)
    top_p = _column(s.params.top_p if s.params.top_p < 1 else np.inf for s in samplers)  # sums may round above 1
    min_p = _column(s.params.min_p for s in samplers)
    probabilities = _softmax(values / temperature)
    keep = probabilities >= min_p * probabilities[:, :1]
    keep[:, 1:] &= np.cumsum(probabilities, axis=1)[:, :-1] <= top_p
    sums = np.cumsum(np.where(keep, probabilities, np.float32(0)), axis=1)
    drawn = _column(s.uniform() for s in samplers) * sums[:, -1:]
    columns: Ids = (sums < drawn).sum(axis=1)
    return columns


def _column(values: Iterator[float | np.float32]) -> Floats:
    return np.fromiter(values, np.float32)[:, None]


def _softmax(values: Floats) -> Floats:
    """Return the softmax of each row of values, which fall: [N, C]."""
    # Like Go's: the exponential in float64, rounded; then a plain running sum in float32.
    powers = np.exp((values - values[:, :1]).astype(np.float64)).astype(np.float32)
    return powers / np.cumsum(powers, axis=1)[:, -1:]


def _allows(mask: Mask, token: int) -> bool:
    return token // 32 < len(mask) and bool(mask[token // 32] >> token % 32 & 1)


def _masked(logits: Floats, row: int, mask: Mask) -> Floats:
    """Return a copy of one row, [1, V], with -inf for each token that mask does not allow."""
    allowed = np.unpackbits(mask.astype("<i4").view(np.uint8), bitorder="little", count=logits.shape[1])
    masked = np.where(allowed, logits[row], np.float32(-np.inf))
    if masked.max() == -np.inf:
        raise DeadEnd(row)
    return masked[None]
