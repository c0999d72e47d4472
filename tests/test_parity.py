"""Every dense architecture against the reference implementation's logits and greedy continuations.

First in float32, which must agree; then as models run unless told otherwise, with products in 8 bits.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from puna.core.kernel import find_plugins
from puna.core.memory.cache import Cache, Capacity, ElementType, Rows, StepView
from puna.core.model import LoadedModel, find_architecture, load_model
from puna.core.tensor import cpu
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.layouts import LAYOUTS
from puna.core.tensor.weights import open_weights

from .packed import rounded
from .reference import SIXTEEN, Case, expected, relative, rounding, text_cases

# The reference states 1e-3 for an engine that works in float32. Its quantised cases hold the logits of the dequantised
# weights in float32, which is what we compute, so they are held to the same bound.
ATOL = 1e-3
CASES = list(text_cases())


@cache
def model(file: Path, *, precise: bool = True) -> LoadedModel:
    architectures = [a for report in find_plugins() for a in report.architectures]
    source = open_weights(file)
    return load_model(find_architecture(architectures, source), source, CpuLoader(precise=precise))


class Alone:
    """A sequence with a cache to itself."""

    def __init__(self, loaded: LoadedModel, positions: int, element: ElementType = "f32") -> None:
        self.loaded = loaded
        self.cache = Cache(loaded.cache, element, Capacity(positions, 1, positions))
        self.table = self.cache.blocks.table()
        self.tokens: list[int] = []

    def step(self, tokens: list[int]) -> StepView:
        """Return the view of a step of these tokens, for which there is room."""
        assert self.table.reserve(self.table.length + len(tokens))
        streams = self.loaded.architecture.streams
        return StepView(self.cache, [Rows(self.table, 0, len(tokens))], streams=streams)

    def forward(self, tokens: list[int]) -> np.ndarray:
        """Return what leaves the last block for the tokens that come next, [T, D]."""
        hidden = self.loaded.model.forward(self.loaded.model.embed(np.array(tokens, np.int32)), self.step(tokens))
        self.tokens += tokens
        self.table.advance(self.tokens, len(tokens))
        return np.asarray(hidden)


def logits(loaded: LoadedModel, tokens: list[int], chunk: int, element: ElementType = "f32") -> np.ndarray:
    """Return the logits of every position, [T, V], fed in chunks."""
    alone = Alone(loaded, len(tokens), element)
    parts = [alone.forward(tokens[at : at + chunk]) for at in range(0, len(tokens), chunk)]
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
    alone = Alone(loaded, len(tokens) + 16)
    out: list[int] = []
    for _ in range(16):
        hidden = alone.forward(tokens[alone.table.length :])
        out.append(int(np.asarray(loaded.model.logits(hidden[-1:])).argmax()))
        tokens.append(out[-1])
    assert case.case["greedy_margin"] > 2 * ATOL, "the reference's own choice is too close to compare"
    assert out == case.case["greedy"]


@pytest.mark.parametrize("case", [case for case in CASES if "layers" in case.case], ids=str)
def test_every_layer_matches_the_reference(case: Case) -> None:
    """The first number that differs names the layer at fault."""
    loaded, tokens = model(case.file), case.case["ids"]
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
        loaded.model.forward(x, Alone(loaded, len(tokens)).step(tokens))
    finally:
        kind.forward = original
    want = expected(case.variant)[case.case["layers"]]
    for layer, (got, reference) in enumerate(zip(seen, want, strict=True)):
        assert np.abs(got - reference).max() <= ATOL, f"layer {layer}"


# ---- products in 16 bits -------------------------------------------------------------------------------------------

SIXTEENS = [case for case in CASES if case.file.name in ("model-f16.gguf", "model-bf16.gguf")]
LLAMA_CPP_S = 6e-2  # what the reference states of llama.cpp with F16; with BF16 it is 0.7


@pytest.mark.parametrize("case", SIXTEENS, ids=str)
def test_products_in_16_bits_are_as_close_to_the_reference_as_rounding_lets_them(case: Case) -> None:
    got = case.kept(logits(model(case.file, precise=False), case.case["ids"], 512))
    assert np.abs(got - case.logits).max() <= LLAMA_CPP_S
    assert relative(got, case.logits) <= IN_A_ROW * SIXTEEN


@pytest.mark.parametrize("case", SIXTEENS, ids=str)
def test_logits_in_16_bits_are_the_same_in_chunks_of_any_size(case: Case) -> None:
    loaded, tokens = model(case.file, precise=False), case.case["ids"]
    at_once = logits(loaded, tokens, 512, "f16")
    for chunk in (1, 7, 16):
        np.testing.assert_array_equal(logits(loaded, tokens, chunk, "f16"), at_once)


# ---- products in 8 bits --------------------------------------------------------------------------------------------

QUANTISED = [case for case in CASES if case.quantised]
WORST = {"model-Q8_0.gguf": 1.0, "model-Q4_K_M.gguf": 1.6}  # the reference states these of llama.cpp
UNIT = {"model-Q8_0.gguf": 32, "model-Q4_K_M.gguf": 256}  # activations that share a step size
IN_A_ROW = 9  # products on the way to a logit: queries, output, gate and down in each of two layers, and the head


@pytest.mark.parametrize("case", QUANTISED, ids=str)
def test_products_in_8_bits_are_as_close_to_the_reference_as_rounding_lets_them(case: Case) -> None:
    """The bound lets the errors of all products in a row line up."""
    got = case.kept(logits(model(case.file, precise=False), case.case["ids"], 512, "f16"))
    one = rounding(UNIT[case.file.name], 127)
    assert ATOL < np.abs(got - case.logits).max() <= WORST[case.file.name]
    assert relative(got, case.logits) <= IN_A_ROW * one


@pytest.mark.parametrize("case", QUANTISED, ids=str)
def test_products_in_8_bits_are_products_of_rounded_activations_and_nothing_else_is_lost(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding activations in numpy and multiplying in float32 gives the same logits, to float32's own rounding.

    Not everywhere: a code on the edge of two may fall to the other side, which the positions behind it see. That costs
    them less than a third of what rounding all codes costs, and there are few such positions.
    """
    got = logits(model(case.file, precise=False), case.case["ids"], 512)
    unrounded = logits(model(case.file), case.case["ids"], 512)
    exact = cpu._plain_product

    def product(x: np.ndarray, weight: cpu.CpuMatrix) -> np.ndarray:
        return exact(rounded(x, LAYOUTS[weight.format.name].unit), weight)

    monkeypatch.setattr(cpu, "_plain_product", product)
    wanted = logits(model(case.file), case.case["ids"], 512)
    apart = np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.quantile(apart, 0.1) <= 1e-5
    assert relative(got, wanted) <= relative(unrounded, wanted) / 3


@pytest.mark.parametrize("case", QUANTISED, ids=str)
def test_logits_in_8_bits_are_the_same_in_chunks_of_any_size(case: Case) -> None:
    loaded, tokens = model(case.file, precise=False), case.case["ids"]
    at_once = logits(loaded, tokens, 512, "f16")
    for chunk in (1, 7, 16):
        np.testing.assert_array_equal(logits(loaded, tokens, chunk, "f16"), at_once)


@pytest.mark.parametrize("case", QUANTISED, ids=str)
def test_greedy_choices_in_8_bits_are_the_reference_s_where_it_is_sure(case: Case) -> None:
    """Along the reference's own continuation: a choice by more than twice the largest error has to be the same."""
    prompt, greedy = case.case["ids"], case.case["greedy"]
    tokens, rows = prompt + greedy, slice(len(prompt) - 1, -1)
    exact = logits(model(case.file), tokens, 512)[rows]
    got = logits(model(case.file, precise=False), tokens, 1, "f16")[rows]
    second, first = np.sort(exact, axis=1)[:, -2:].T
    sure = first - second > 2 * WORST[case.file.name]
    assert sure.sum() >= 2
    assert got.argmax(axis=1)[sure].tolist() == np.array(greedy)[sure].tolist()
