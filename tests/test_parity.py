"""Every dense architecture against the reference implementation's logits and greedy continuations."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from puna.core.kernel import find_plugins
from puna.core.memory.cache import Rows, SequenceCache, StepView
from puna.core.model import LoadedModel, find_architecture, load_model
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.weights import open_weights

from .reference import Case, expected, text_cases

# The reference states 1e-3 for an engine that works in float32. Its quantised cases hold the logits of the dequantised
# weights in float32, which is what we compute, so they are held to the same bound.
ATOL = 1e-3
CASES = list(text_cases())


@cache
def model(file: Path) -> LoadedModel:
    architectures = [a for report in find_plugins() for a in report.architectures]
    source = open_weights(file)
    return load_model(find_architecture(architectures, source), source, CpuLoader(precise=True))


def forward(loaded: LoadedModel, cache: SequenceCache, tokens: list[int]) -> np.ndarray:
    """Return what leaves the last block for tokens that follow what cache holds, [T, D]."""
    cache.reserve(cache.length + len(tokens))
    step = StepView(loaded.cache, [Rows(cache, 0, len(tokens))])
    hidden = loaded.model.forward(loaded.model.embed(np.array(tokens, np.int32)), step)
    cache.length += len(tokens)
    return np.asarray(hidden)


def logits(loaded: LoadedModel, tokens: list[int], chunk: int) -> np.ndarray:
    """Return the logits of every position, [T, V], fed in chunks with a float32 cache."""
    cache = SequenceCache(loaded.cache, len(tokens), "f32")
    parts = [forward(loaded, cache, tokens[at : at + chunk]) for at in range(0, len(tokens), chunk)]
    return np.asarray(loaded.model.logits(np.concatenate(parts)))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_logits_match_the_reference_in_chunks_of_any_size(case: Case, chunk: int) -> None:
    got = case.kept(logits(model(case.file), case.case["ids"], chunk))
    worst = np.abs(got - case.logits).max(axis=1)
    assert got.shape == case.logits.shape
    assert worst.max() <= ATOL, f"off by {worst.max():.3g}, first at row {int(np.argmax(worst > ATOL))}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_continuation_is_the_reference_s(case: Case) -> None:
    loaded, tokens = model(case.file), list(case.case["ids"])
    cache = SequenceCache(loaded.cache, len(tokens) + 16, "f32")
    out: list[int] = []
    for _ in range(16):
        hidden = forward(loaded, cache, tokens[cache.length :])
        out.append(int(np.asarray(loaded.model.logits(hidden[-1:])).argmax()))
        tokens.append(out[-1])
    assert case.case["greedy_margin"] > 2 * ATOL, "the reference's own choice is too close to compare"
    assert out == case.case["greedy"]


@pytest.mark.parametrize("case", [case for case in CASES if "layers" in case.case], ids=str)
def test_every_layer_matches_the_reference(case: Case) -> None:
    """The first number that differs names the layer at fault."""
    loaded, tokens = model(case.file), case.case["ids"]
    cache = SequenceCache(loaded.cache, len(tokens), "f32")
    cache.reserve(len(tokens))
    seen: list[np.ndarray] = []
    x = loaded.model.embed(np.array(tokens, np.int32))
    seen.append(np.asarray(x))
    blocks = loaded.model.blocks  # type: ignore[attr-defined]
    kind = type(blocks[0])
    original = kind.forward

    def watched(self, *args):
        out = original(self, *args)
        seen.append(np.asarray(out))
        return out

    kind.forward = watched
    try:
        loaded.model.forward(x, StepView(loaded.cache, [Rows(cache, 0, len(tokens))]))
    finally:
        kind.forward = original
    want = expected(case.variant)[case.case["layers"]]
    for layer, (got, reference) in enumerate(zip(seen, want, strict=True)):
        assert np.abs(got - reference).max() <= ATOL, f"layer {layer}"
