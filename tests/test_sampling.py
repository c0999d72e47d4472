"""The sampler against a literal, slow reading of its own specification, one token and one row at a time."""

import math
from collections import Counter
from itertools import accumulate

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from puna.core.errors import BadRequest
from puna.core.tensor.pcg import Pcg
from puna.core.tensor.sampling import BadLogits, DeadEnd, Sampler, SamplingParams, log_probabilities, sample

f32 = np.float32

# ---- the twin ----------------------------------------------------------------------------------------------------


def running(values):
    return list(accumulate(values, lambda a, b: f32(a + b)))


def twin_softmax(values):
    powers = [f32(math.exp(float(f32(v - values[0])))) for v in values]
    total = running(powers)[-1]
    return [f32(p / total) for p in powers]


def twin_penalise(logits, params, history):
    logits = list(logits)
    last = len(history) if params.repeat_last_n < 0 else params.repeat_last_n
    for token, count in Counter(history[max(0, len(history) - last) :]).items():
        if 0 <= token < len(logits):
            value, repeat = logits[token], f32(params.repeat_penalty)
            value = f32(value * repeat) if value <= 0 else f32(value / repeat)
            logits[token] = f32(value - f32(count * params.frequency_penalty + params.presence_penalty))
    return logits


def twin_typical(kept, p):
    probabilities = twin_softmax([value for value, _ in kept])
    information = [-np.log(q) if q > 0 else None for q in probabilities]
    entropy = np.array([q * i for q, i in zip(probabilities, information, strict=True) if q > 0]).sum()
    order = sorted((abs(i - entropy), n) for n, i in enumerate(information) if i is not None)
    chosen, total = set(), f32(0)
    for _, n in order:
        chosen.add(n)
        total = f32(total + probabilities[n])
        if total > f32(p):
            break
    return [pair for n, pair in enumerate(kept) if n in chosen]


def twin(logits, params, history, uniform):
    logits = twin_penalise(logits, params, history)
    if params.temperature == 0:
        return logits.index(max(logits))
    kept = sorted(((v, t) for t, v in enumerate(logits) if v > -np.inf), key=lambda pair: (-pair[0], pair[1]))
    kept = kept[: params.top_k] if params.top_k > 0 else kept
    kept = twin_typical(kept, params.typical_p) if params.typical_p < 1 else kept
    temperature = f32(max(params.temperature, 1e-7))
    probabilities = twin_softmax([f32(value / temperature) for value, _ in kept])
    if params.top_p < 1:
        exceeds = [total > f32(params.top_p) for total in running(probabilities)]
        probabilities = probabilities[: exceeds.index(True) + 1] if True in exceeds else probabilities
    threshold = f32(f32(params.min_p) * probabilities[0])
    probabilities = [p for p in probabilities if p >= threshold]
    sums = running(probabilities)
    drawn = f32(uniform * sums[-1])
    return kept[next(n for n, total in enumerate(sums) if total >= drawn)][1]


# ---- comparison over generated rows --------------------------------------------------------------------------------

TOKENS = 600  # more than two chunks of the search for the largest, and a rest
fractions = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))
any_params = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.just(1e-12), st.floats(0.01, 5)),
    top_k=st.one_of(st.sampled_from([0, 1, 2, 3, 40, TOKENS - 1, TOKENS, TOKENS + 1])),
    top_p=fractions,
    min_p=fractions,
    typical_p=fractions,
    repeat_last_n=st.sampled_from([-1, 0, 1, 5, 64]),
    repeat_penalty=st.sampled_from([0.5, 1.0, 1.1, 2.0]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([-0.25, 0.0, 0.5]),
    seed=st.integers(-1, 2**64),
)
finite = st.floats(-40, 40, width=32)
# Few distinct values make ties, many -inf make short rows.
any_row = st.one_of(
    arrays(f32, TOKENS, elements=finite),
    arrays(f32, TOKENS, elements=st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 2.5]), fill=st.just(-np.inf)),
    arrays(f32, TOKENS, elements=finite, fill=st.just(f32(-np.inf))),
    st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).normal(size=TOKENS).astype(f32) * 4),
).filter(lambda row: row.max() > -np.inf)
any_history = st.lists(st.integers(-1, TOKENS), max_size=20)
any_case = st.tuples(any_row, any_params, any_history)


@settings(deadline=None)
@given(any_case)
def test_a_token_is_the_one_that_the_literal_reading_gives(case):
    row, params, history = case
    uniform = Pcg(params.seed).uniform()
    assert sample(row[None].copy(), [Sampler(params)], [history])[0] == twin(row, params, history, uniform)


@settings(deadline=None)
@given(st.lists(any_case, max_size=6))
def test_a_batch_gives_each_row_what_it_gets_alone_and_leaves_the_logits_as_they_were(cases):
    logits = np.array([row for row, _, _ in cases], f32).reshape(len(cases), TOKENS)
    before = logits.copy()
    together = sample(logits, [Sampler(p) for _, p, _ in cases], [h for _, _, h in cases])
    alone = [sample(row[None].copy(), [Sampler(p)], [h])[0] for row, p, h in cases]
    assert together.tolist() == alone
    assert np.array_equal(logits, before)


@settings(deadline=None)
@given(any_row, st.integers(1, TOKENS + 1))
def test_top_k_keeps_the_largest_and_lower_ids_among_equals(row, k):
    top = log_probabilities(row, 0, k).likeliest
    expected = sorted((t for t in range(TOKENS) if row[t] > -np.inf), key=lambda t: (-row[t], t))[:k]
    assert [token for token, _ in top] == expected


# ---- what a reader of the interface relies on ----------------------------------------------------------------------

ROW = np.array([[1.0, 3.0, 2.0, 3.0, -1.0]], f32)  # 1 and 3 are equally likely


def draws(n, logits=ROW, history=(), **params):
    sampler = Sampler(SamplingParams(**params))
    return [int(sample(logits.copy(), [sampler], [history])[0]) for _ in range(n)]


def words(*tokens, size=1):
    mask = np.zeros(size, np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1) << np.uint32(token % 32)
    return mask.view(np.int32)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, [0.154665828, 0.944389462, 0.084704816]), (42, [0.591304839, 0.791534185, 0.200311601])],
)
def test_random_numbers_are_those_of_the_published_generator(seed, expected):
    pcg = Pcg(seed)
    assert [float(pcg.uniform()) for _ in expected] == pytest.approx(expected, abs=1e-9)


def test_a_seed_reproduces_a_reply_and_other_seeds_differ():
    flat = {"top_p": 1.0, "temperature": 2.0}
    assert draws(50, seed=7, **flat) == draws(50, seed=7, **flat)
    assert draws(50, seed=7, **flat) != draws(50, seed=8, **flat)
    assert draws(50, **flat) != draws(50, **flat)


def test_a_seed_of_minus_one_is_the_largest_unsigned_seed():
    assert Pcg(-1).next64() == Pcg(2**64 - 1).next64()


def test_draws_follow_the_probabilities():
    counts = Counter(draws(4000, seed=1, temperature=1.0, top_p=1.0))
    expected = 4000 * np.exp(ROW[0]) / np.exp(ROW[0]).sum()
    chi_square = sum((counts[token] - want) ** 2 / want for token, want in enumerate(expected))
    assert chi_square < 18.5  # four degrees of freedom: passed by chance in 999 of 1000 seeds


def test_temperature_zero_takes_the_first_of_equal_maxima():
    assert draws(20, temperature=0) == [1] * 20
    assert draws(20, temperature=-3) == [1] * 20


def test_top_p_keeps_the_token_that_makes_the_sum_exceed_it():
    half = np.log(np.array([[0.5, 0.25, 0.25]], f32))
    assert set(draws(200, half, top_p=0.4, temperature=1, seed=1)) == {0}
    assert set(draws(200, half, top_p=0.6, temperature=1, seed=1)) == {0, 1}
    assert set(draws(200, half, top_p=0, temperature=1, seed=1)) == {0}


def test_min_p_is_relative_to_the_likeliest():
    row = np.log(np.array([[0.6, 0.29, 0.11]], f32))
    assert set(draws(300, row, min_p=0.4, top_p=1, temperature=1, seed=1)) == {0, 1}
    assert set(draws(300, row, min_p=1, top_p=1, temperature=1, seed=1)) == {0}


def test_typical_p_can_leave_out_the_likeliest_token():
    row = np.log(np.array([[0.4, *[0.06] * 10]], f32))  # its information is farther from the entropy than the others'
    assert 0 not in draws(300, row, typical_p=0.5, top_p=1, temperature=1, seed=1)


def test_penalties_count_the_prompt_within_their_window():
    greedy = {"temperature": 0, "presence_penalty": 5.0}
    assert draws(1, history=[1, 0, 0], repeat_last_n=3, **greedy) == [3]
    assert draws(1, history=[1, 0, 0], repeat_last_n=2, **greedy) == [1]
    assert draws(1, history=[1, 0, 0], repeat_last_n=-1, **greedy) == [3]
    assert draws(1, history=[1, 0, 0], repeat_last_n=0, **greedy) == [1]


def test_frequency_penalises_each_occurrence_and_presence_only_the_first():
    history = [1, 3, 3]
    assert draws(1, history=history, temperature=0, frequency_penalty=0.9) == [1]
    assert draws(1, np.array([[0.0, 3.0, 2.0, 3.5, 0.0]], f32), history, temperature=0, presence_penalty=0.9) == [3]


def test_repeat_penalty_lowers_positive_and_negative_logits():
    row = np.array([[4.0, 3.0, -1.0, -1.5]], f32)
    assert draws(1, row, history=[0], temperature=0, repeat_penalty=2.0) == [1]
    assert draws(1, row[:, 2:], history=[0], temperature=0, repeat_penalty=2.0) == [1]


def test_a_ruled_out_token_is_never_drawn():
    row = np.full((1, 300), -np.inf, f32)
    row[0, [7, 280]] = [0.0, 1.0]
    for top_k in (0, 1, 2, 40, 300):
        assert set(draws(40, row, top_k=top_k, top_p=1, temperature=100, seed=2)) <= {7, 280}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [(np.nan, "row 1 of the model's logits holds NaN"), (np.inf, "row 1 of the model's logits has the maximum inf")],
)
def test_broken_logits_are_an_error_that_names_the_row(bad, problem):
    logits = np.zeros((2, 600), f32)
    logits[1, 599] = bad
    sampler = Sampler(SamplingParams(seed=0, repeat_penalty=1.5))
    with pytest.raises(BadLogits, match=problem) as error:
        sample(logits, [sampler, sampler], [[1], [1]])
    assert error.value.row == 1
    assert sampler.uniform() == Pcg(0).uniform()  # nothing was drawn
    assert (logits[0] == 0).all()


def test_a_row_without_any_possible_token_is_an_error():
    with pytest.raises(BadLogits, match="logits has the maximum -inf"):
        draws(1, np.full((1, 5), -np.inf, f32))


# ---- grammars ------------------------------------------------------------------------------------------------------


def test_a_token_that_the_grammar_allows_costs_one_random_number():
    free, bound = Sampler(SamplingParams(seed=3)), Sampler(SamplingParams(seed=3))
    everything = words(*range(5))
    for _ in range(20):
        assert sample(ROW.copy(), [free], [[]]) == sample(ROW.copy(), [bound], [[]], [everything])


def test_a_refused_token_is_drawn_again_among_the_allowed_with_a_second_number():
    sampler, stream = Sampler(SamplingParams(seed=3, top_p=1.0)), Pcg(3)
    allowed = np.array([[1.0, -np.inf, 2.0, -np.inf, -np.inf]], f32)
    for _ in range(20):
        expected = twin(ROW[0], sampler.params, [], stream.uniform())
        if expected not in (0, 2):
            expected = twin(allowed[0], sampler.params, [], stream.uniform())
        assert sample(ROW.copy(), [sampler], [[]], [words(0, 2)])[0] == expected


def test_only_the_rows_with_a_grammar_are_bound_by_it():
    logits, greedy = np.zeros((3, 100), f32), Sampler(SamplingParams(temperature=0))
    logits[:, 99] = 1
    masks = [None, words(40, 63, size=2), words(31, 99, size=4)]
    assert sample(logits, [greedy] * 3, [[]] * 3, masks).tolist() == [99, 40, 99]


def test_penalties_hold_within_a_grammar():
    params = SamplingParams(temperature=0, presence_penalty=5)
    assert sample(ROW.copy(), [Sampler(params)], [[2]], [words(0, 2)]).tolist() == [0]


def test_a_grammar_that_allows_nothing_is_an_error_that_names_the_row():
    with pytest.raises(DeadEnd, match="output format of row 0") as error:
        sample(ROW.copy(), [Sampler(SamplingParams())], [[]], [words()])
    assert error.value.row == 0


# ---- parameters ----------------------------------------------------------------------------------------------------


def test_parameters_out_of_range_are_clamped():
    params = SamplingParams(temperature=-1.0, top_p=7.0, min_p=-0.5, typical_p=2.0)
    assert (params.temperature, params.top_p, params.min_p, params.typical_p) == (0, 1, 0, 1)


@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty"])
def test_a_parameter_that_is_not_a_number_is_refused_by_name(field):
    with pytest.raises(BadRequest, match=f"{field} is nan"):
        SamplingParams(**{field: math.nan})


def test_every_temperature_that_json_can_write_is_one_that_float32_can_hold():
    assert set(draws(100, temperature=1e308, seed=1)) == set(range(ROW.size))


def test_a_repeat_penalty_of_zero_is_refused():
    with pytest.raises(BadRequest, match="repeat_penalty is 0: expected a number from 1e-06 to 1e"):
        SamplingParams(repeat_penalty=0)


def test_parameters_survive_the_wire():
    params = SamplingParams(temperature=0.5, seed=2**63, top_k=-1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


# ---- log probabilities ---------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_raw_logits():
    exact = ROW[0].astype(float) - math.log(sum(math.exp(v) for v in ROW[0].astype(float)))
    result = log_probabilities(ROW[0], 2, 3)
    assert result.chosen == pytest.approx(exact[2], abs=1e-14)
    assert [token for token, _ in result.likeliest] == [1, 3, 2]
    assert [value for _, value in result.likeliest] == pytest.approx(exact[[1, 3, 2]], abs=1e-14)


def test_log_probabilities_of_a_large_vocabulary_do_not_drift():
    uniform = np.zeros(200_000, f32)
    assert log_probabilities(uniform, 5, 0).chosen == pytest.approx(-math.log(200_000), abs=1e-12)


def test_a_ruled_out_token_has_minus_infinity_and_is_not_listed():
    result = log_probabilities(np.array([0.0, -np.inf, 1.0], f32), 1, 3)
    assert result.chosen == -math.inf
    assert [token for token, _ in result.likeliest] == [2, 0]
