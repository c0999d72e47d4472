"""Whoever else is there, a reply is what it is alone: random schedules on real models, compared bit for bit.

`python -m bench.schedules` plays many more of them.
"""

from dataclasses import replace

import numpy as np
import pytest
from bench import schedules
from bench.schedules import Play, Schedule, Tipster, Visit, faults, random_schedule
from bench.subjects import FILES, SEEING, SIZES, TOKENS, Spoken, prompts, subject, subjects

from puna.core.scheduler.guess import Lookup
from puna.core.scheduler.messages import Finished
from puna.core.scheduler.plan import Limits
from puna.core.tensor import cpu

PACKED, PRECISE = subjects(precise=False), subjects(precise=True)
WIDE = Limits(512, 32)


@pytest.mark.parametrize("seed", range(2 * len(PACKED)))
def test_a_reply_is_bit_for_bit_the_same_in_any_company(seed):
    given = PACKED[seed % len(PACKED)]()
    schedule = random_schedule(given, seed)
    assert faults(given, schedule) == [], schedule


@pytest.mark.parametrize("seed", [0, 5, 6, 9, *range(len(FILES), len(PRECISE))])
def test_a_reply_in_float32_is_the_same_in_any_company_where_the_choice_is_clear(seed):
    """Sums of the matrix library depend on how many rows it is given, so that logits are close and not equal."""
    given = PRECISE[seed]()
    schedule = random_schedule(given, seed)
    assert faults(given, schedule) == [], schedule


def test_only_the_matrix_library_makes_a_difference_in_float32(monkeypatch):
    """Without it, when every product is computed row by row, float32 too is bit for bit the same."""
    monkeypatch.setattr(cpu, "FEW", 1 << 30)
    strict = replace(PRECISE[0](), precise=False)
    schedule = random_schedule(strict, 1)
    assert faults(strict, schedule) == [], schedule


# ---- each way by itself, so that random schedules are known to go all of them --------------------------------------


def visits(given, numbers, tokens=TOKENS, guesser=lambda request, due: None, chunk=None):
    asked = [prompts(given)[number] for number in numbers]
    return [
        Visit(schedules.changed(request, tokens, chunk, ""), due, guesser(request, due), arrives=0, leaves=None)
        for request, due in asked
    ]


def played(given, schedule):
    """Play a schedule that must change nothing, and return it, for what happened on the way."""
    play = Play(given, schedule, threads=2)
    play.run()
    assert schedules.faults_of(given, play) == []
    return play


def made(given, numbers, *, limits=WIDE, positions=4000, cost=None, image_cache=1 << 29, **options):
    return Schedule(limits, positions, cost, 1 << 30, visits(given, numbers, **options), image_cache)


@pytest.fixture(scope="module")
def given():
    return PACKED[0]()


def test_32_replies_at_once(given):
    play = played(given, made(given, [*range(16), *range(16)]))
    assert all(outcome.end.preempted == 0 for outcome in play.outcomes)


@pytest.mark.parametrize("chunk", [1, 3, 31, 32, 33])
def test_prompts_in_chunks(given, chunk):
    played(given, made(given, range(0, 16, 3), chunk=chunk))


def test_replies_that_were_set_aside(given):
    whole = [i for i, (request, _) in enumerate(prompts(given)) if request.num_ctx > 100]
    play = played(given, made(given, whole * 2, limits=Limits(64, 32), positions=300))
    stats, ends = play.engine.stats, [outcome.end for outcome in play.outcomes]
    assert stats.preemptions == sum(end.preempted for end in ends) > 0
    once = sum(end.prompt_tokens - end.cached_tokens for end in ends)
    assert stats.recomputed_tokens > 0
    # Whoever is set aside reads its latest token, which nobody has computed yet, together with those that were.
    assert once <= stats.prompt_tokens - stats.recomputed_tokens <= once + stats.preemptions


def test_beginnings_that_others_have_computed(given):
    play = played(given, made(given, [*range(16), *range(16)], limits=Limits(64, 4)))
    assert sum(outcome.end.cached_tokens for outcome in play.outcomes) > 1000


def test_guesses_right_and_wrong(given):
    play = played(given, made(given, range(8), limits=Limits(64, 2), cost=0.01, guesser=lambda r, d: Tipster(r, d, 0)))
    assert 0 < play.engine.stats.accepted_tokens < play.engine.stats.guessed_tokens


def test_guesses_from_the_text(given):
    play = played(given, made(given, range(16), limits=Limits(64, 2), cost=0.01, guesser=lambda r, d: Lookup()))
    assert play.engine.stats.guessed_tokens > 0


def test_contexts_that_fill_up(given):
    short = [i for i, (request, _) in enumerate(prompts(given)) if request.num_ctx < 100]
    play = played(given, made(given, short))
    assert all(outcome.end.shifted > 0 for outcome in play.outcomes)
    assert play.engine.stats.recomputed_tokens > 0


@pytest.fixture(scope="module", params=SEEING)
def seeing(request):
    return subject(request.param)


def showing(given):
    """The numbers of the prompts with pictures."""
    return [i for i, (request, _) in enumerate(prompts(given)) if request.media]


def test_pictures_are_in_most_prompts_and_several_in_some(seeing):
    counts = [len(request.media) for request, _ in prompts(seeing)]
    assert sum(count > 0 for count in counts) > 6
    assert max(counts) == 3
    assert len({placed.media.frames[0] for request, _ in prompts(seeing) for placed in request.media}) == len(SIZES)


@pytest.mark.parametrize("chunk", [1, 15, 33])
def test_pictures_in_chunks(seeing, chunk):
    played(seeing, made(seeing, showing(seeing), chunk=chunk, limits=Limits(8 * chunk, 8)))


def test_pictures_that_many_see_are_encoded_once(seeing):
    play = played(seeing, made(seeing, showing(seeing) * 2))
    images = play.engine.stats.images
    assert images.misses == images.prepared == images.encoded <= len(SIZES)
    assert images.hits == sum(len(outcome.visit.request.media) for outcome in play.outcomes) - images.misses


@pytest.mark.parametrize("limits", [WIDE, Limits(33, 2)], ids=["at once", "by twos"])
def test_pictures_that_no_cache_keeps(seeing, limits):
    play = played(seeing, made(seeing, showing(seeing), limits=limits, image_cache=0))
    images = play.engine.stats.images
    assert images.misses == images.prepared
    assert (images.entries, images.nbytes, images.pinned) == (0, 0, 0)


def test_replies_about_pictures_that_were_set_aside(seeing):
    whole = [i for i in showing(seeing) if prompts(seeing)[i][0].num_ctx > 100]
    long = sorted(whole, key=lambda i: len(prompts(seeing)[i][0].prompt))
    preempted = 0
    for count, places in ((4, 3), (6, 3), (6, 4)):  # some of which may have no room; which, differs between models
        play = played(seeing, made(seeing, long[-count:] * 3, limits=Limits(64, places), positions=1))
        preempted += play.engine.stats.preemptions
    assert preempted > 0


# ---- the judge -----------------------------------------------------------------------------------------------------


def test_a_difference_of_one_bit_is_found(given):
    (visit,) = visits(given, [0])
    other = [logits.copy() for logits in visit.due.logits]
    other[3].view(np.int32)[0] ^= 1
    visit = Visit(visit.request, Spoken(visit.due.tokens, other), None, 0, None)
    (fault,) = faults(given, Schedule(Limits(64, 1), 100, None, 1 << 30, [visit]))
    assert "token 3 is" in fault


@pytest.mark.parametrize(("leaves", "found"), [(None, ["cancelled after 0 tokens, though nobody left"]), (0, [])])
def test_a_reply_that_is_cancelled_though_nobody_left_is_found(given, leaves, found):
    (visit,) = visits(given, [0])
    play = Play(given, Schedule(WIDE, 100, None, 1 << 30, [replace(visit, leaves=leaves)]), threads=1)
    play.engine.close()
    play.outcomes[0].end = Finished(reason="cancelled", prompt_tokens=9, prompt_ns=0, tokens=0, decode_ns=0)
    assert schedules.faults_of(given, play) == found


@pytest.mark.parametrize("file", [FILES[0], SEEING[0]])
def test_equal_seeds_play_equal_schedules(file):
    given = subject(file)
    plays = [Play(given, random_schedule(given, 5), threads=2) for _ in range(2)]
    for play in plays:
        play.run()
    first, second = ([outcome.end.guessed for outcome in play.outcomes] for play in plays)
    assert first == second
    assert plays[0].engine.stats.steps == plays[1].engine.stats.steps
