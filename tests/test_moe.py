"""Mixtures of experts: every token gets what its own experts say, whatever is computed beside it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.tensor import gated_mlp, largest, moe
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import CpuMatrix, Experts
from puna.core.tensor.experts import ASKING, BEFORE, EXPERT, FIRST, UNPACKING, pieces_of, sorted_by_expert
from puna.core.tensor.operands import padded_count
from puna.core.tensor.product import RECORDS

from .packed import packed, random_blocks

EXPERTS, D, INNER = 5, 256, 512


def experts(rng, name, rows, columns, *, precise=False):
    """Return the same weight of every expert, packed or as in a file."""
    form = by_name(name)
    raws = [random_blocks(rng, form, rows, columns) for _ in range(EXPERTS)]
    if precise:
        return Experts(tuple(CpuMatrix(form, raw, (rows, columns)) for raw in raws))
    return Experts(tuple(packed(form, raw) for raw in raws))


def layer(rng, names=("Q4_K", "Q4_K", "Q6_K"), **options):
    """Return gate, up and down of every expert."""
    shapes = (INNER, D), (INNER, D), (D, INNER)
    return [experts(rng, name, *shape, **options) for name, shape in zip(names, shapes, strict=True)]


def choices(rng, T, k):
    """Return which experts each token asks, all different, and their shares."""
    chosen = np.stack([rng.permutation(EXPERTS)[:k] for _ in range(T)]).astype(np.int32)
    return chosen, rng.random((T, k), np.float32)


def one_by_one(x, chosen, share, gate, up, down, activation):
    """Return the mixture in the words of its definition."""
    out = np.zeros_like(x)
    for t in range(len(x)):
        for expert, part in zip(chosen[t], share[t], strict=True):
            parts = (weight.each[expert] for weight in (gate, up, down))
            out[t] += part * gated_mlp(x[t : t + 1], *parts, activation=activation)[0]
    return out


@pytest.mark.parametrize("names", [("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q8_0", "Q8_0"), ("Q4_K", "Q8_0", "Q8_0")])
@pytest.mark.parametrize(("T", "k"), [(1, 1), (1, 2), (3, 2), (40, 2), (70, 1)])
def test_each_token_gets_the_mixture_of_its_own_experts(names, T, k):
    rng = np.random.default_rng(T)
    weights, x = layer(rng, names), rng.standard_normal((T, D), np.float32)
    chosen, share = choices(rng, T, k)
    found = moe(x, chosen, share, *weights)
    np.testing.assert_allclose(
        found, one_by_one(x, chosen, share, *weights, "silu"), rtol=1e-5, atol=1e-5 * abs(found).max()
    )


@pytest.mark.parametrize(("T", "k"), [(1, 1), (40, 2)])
def test_shares_may_be_of_what_experts_are_asked(T, k):
    rng = np.random.default_rng(T)
    weights, x = layer(rng), rng.standard_normal((T, D), np.float32)
    chosen, share = choices(rng, T, k)
    found = moe(x, chosen, share, *weights, shares_of="inputs")
    whole = np.ones((1, 1), np.float32)
    for t in range(T):
        asked = [moe(x[t : t + 1] * share[t, j], chosen[t : t + 1, j : j + 1], whole, *weights) for j in range(k)]
        np.testing.assert_allclose(found[t], np.sum(asked, axis=0)[0], rtol=1e-5, atol=1e-5 * abs(found).max())
    assert np.abs(found - moe(x, chosen, share, *weights)).max() > 0.01 * abs(found).max()


def test_experts_of_floats_and_another_activation():
    rng = np.random.default_rng(1)
    raws = [
        [rng.standard_normal(shape, np.float32) / 16 for _ in range(EXPERTS)]
        for shape in ((INNER, D), (INNER, D), (D, INNER))
    ]
    for parts in raws:
        for raw in parts:
            raw.flags.writeable = False
    weights = [Experts(tuple(packed(by_name("F32"), raw.view(np.uint8)) for raw in parts)) for parts in raws]
    x = rng.standard_normal((9, D), np.float32)
    chosen, share = choices(rng, 9, 2)
    found = moe(x, chosen, share, *weights, activation="gelu_tanh")
    np.testing.assert_allclose(found, one_by_one(x, chosen, share, *weights, "gelu_tanh"), rtol=1e-4, atol=1e-5)


def test_experts_as_they_lie_in_the_file_are_asked_too():
    rng = np.random.default_rng(2)
    weights, x = layer(rng, precise=True), rng.standard_normal((4, D), np.float32)
    chosen, share = choices(rng, 4, 2)
    found = moe(x, chosen, share, *weights)
    np.testing.assert_allclose(
        found, one_by_one(x, chosen, share, *weights, "silu"), rtol=1e-4, atol=1e-4 * abs(found).max()
    )


def nowhere(matrix):
    """Return a matrix whose weights lie where nothing may be read: whoever does ends the process."""
    row = matrix.job.row.copy()
    row[0, RECORDS] = 0
    return replace(matrix, job=replace(matrix.job, row=row))


def test_experts_that_nobody_asks_are_not_read():
    rng = np.random.default_rng(3)
    weights, x = layer(rng), rng.standard_normal((6, D), np.float32)
    without = [Experts((nowhere(weight.each[0]), *weight.each[1:])) for weight in weights]
    chosen, share = np.full((6, 1), 2, np.int32), np.ones((6, 1), np.float32)
    np.testing.assert_array_equal(moe(x, chosen, share, *without), moe(x, chosen, share, *weights))


@pytest.mark.parametrize("shares_of", ["answers", "inputs"])
@pytest.mark.parametrize("names", [("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q4_K", "F16")])
def test_a_token_has_the_same_mixture_in_any_company(names, shares_of):
    rng = np.random.default_rng(4)
    weights, x = layer(rng, names), rng.standard_normal((60, D), np.float32)
    chosen, share = choices(rng, 60, 2)
    together = moe(x, chosen, share, *weights, shares_of=shares_of)
    for own in (slice(1), slice(1, 4), slice(4, 20), slice(20, 60), rng.permutation(60), np.arange(0, 60, 7)):
        found = moe(x[own], chosen[own], share[own], *weights, shares_of=shares_of)
        np.testing.assert_array_equal(found, together[own])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80))
def test_tokens_are_sorted_by_the_expert_that_they_ask(chosen):
    groups, order = sorted_by_expert(np.array(chosen, np.int32), 7)
    np.testing.assert_array_equal(order, np.argsort(chosen, kind="stable"))
    assert groups[:, EXPERT].tolist() == sorted({*chosen})
    assert groups[:, ASKING].tolist() == [chosen.count(expert) for expert in sorted({*chosen})]
    room = [0, *itertools.accumulate(padded_count(count) for count in groups[:, ASKING])]
    assert groups[:, BEFORE].tolist() == room[:-1]
    for group in groups:
        assert {chosen[i] for i in order[group[FIRST] : group[FIRST] + group[ASKING]]} == {group[EXPERT]}


def test_what_is_not_a_number_is_the_least_of_all():
    nan, inf = np.nan, np.inf
    places, values = largest(np.float32([[nan, 1, -inf, nan, 2], [nan, nan, nan, nan, nan], [0, inf, nan, inf, 3]]), 4)
    assert places.tolist() == [[4, 1, 2, 0], [0, 1, 2, 3], [1, 3, 4, 0]]
    np.testing.assert_array_equal(values, [[2, 1, -inf, nan], [nan] * 4, [inf, inf, 3, 0]])


@pytest.mark.parametrize("chosen", [[0, 7], [-1, 2]])
def test_nobody_is_sorted_if_an_expert_is_asked_that_there_is_not(chosen):
    groups, order = sorted_by_expert(np.array(chosen, np.int32), 7)
    assert (len(groups), len(order)) == (0, 0)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 70), st.integers(1, 64))
def test_every_pair_of_rows_is_in_one_piece_of_work_and_none_is_much_larger_than_the_others(counts, paired, wanted):
    groups = np.zeros((len(counts), 4), np.int64)
    groups[:, ASKING] = counts
    pieces = pieces_of(groups, paired, wanted)
    done = [(index, pair) for index, first, stop in pieces for pair in range(first, stop)]
    assert done == [(index, pair) for index in range(len(counts)) for pair in range(paired)]
    costs = [(stop - first) * (counts[index] + UNPACKING) for index, first, stop in pieces]
    least = max(counts) + UNPACKING  # what cannot be cut
    assert max(costs) <= max(sum(costs) / wanted, least)
