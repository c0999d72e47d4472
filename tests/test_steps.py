"""Steps that are recorded and played give what steps give that are neither, bit for bit."""

import logging

import numpy as np
import pytest

from puna.core.memory.cache import Cache, Capacity, Rows
from puna.core.scheduler import steps as module
from puna.core.scheduler.steps import Steps
from puna.core.tensor.team import TEAM, WORKERS, use_threads

from .reference import text_cases
from .test_parity import model

FILES = sorted({case.file for case in text_cases()})
SMALL = next(file for file in FILES if "llama" in str(file) and file.suffix == ".gguf")


class Talks:
    """Several sequences that are read in, and then grow by a few tokens a step."""

    def __init__(self, loaded, count, *, positions=2000, element="f16"):
        self.cache = Cache(loaded.cache, element, Capacity(positions, 8, 64))
        self.steps = Steps(loaded, self.cache)
        self.vocabulary = loaded.config.vocabulary
        self.tables = [self.cache.blocks.table() for _ in range(count)]
        self.texts = [[] for _ in range(count)]
        for i in range(count):
            self.step([0] * i + [5 + 3 * i] + [0] * (count - i - 1), wanted=False)

    def step(self, counts, *, wanted=True, seed=0):
        """Compute so many more tokens of each, and return the logits of all of them."""
        rng, tokens, rows = np.random.default_rng([seed, *map(len, self.texts)]), [], []
        for text, table, count in zip(self.texts, self.tables, counts, strict=True):
            if count == 0:
                continue
            new = rng.integers(0, self.vocabulary, count).tolist()
            assert table.reserve(len(text) + count)
            rows.append(Rows(table, len(tokens), len(tokens) + count))
            text += new
            tokens += new
        found = self.steps.logits(tokens, rows, range(len(tokens)) if wanted else []).copy()
        for text, table, count in zip(self.texts, self.tables, counts, strict=True):
            table.advance(text, count)
        return found


def played(talks):
    """Return how many recordings there are."""
    return sum(recording is not None for recording in talks.steps._recordings.values())


SHAPES = [(1, 1), (1, 1), (1, 1), (2, 3), (1, 0), (1, 1), (0, 1), (2, 3), (1, 0), (4, 1), (1, 4), (2, 3)]


@pytest.mark.parametrize("precise", [False, True], ids=["packed", "precise"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_replies_are_the_same_with_and_without_recordings(file, precise, monkeypatch):
    loaded = model(file, precise=precise)
    with_tapes = Talks(loaded, 2)
    found = [with_tapes.step(counts) for counts in SHAPES * 2]
    assert played(with_tapes) >= 3
    monkeypatch.setattr(module, "FEW", 0)
    without = Talks(loaded, 2)
    for counts, logits in zip(SHAPES * 2, found, strict=True):
        np.testing.assert_array_equal(logits, without.step(counts))
    assert played(without) == 0


@pytest.mark.parametrize("element", ["f32", "f16"])
def test_they_are_for_every_kind_of_cache(element, monkeypatch):
    loaded = model(SMALL, precise=False)
    talks = Talks(loaded, 3, element=element)
    found = [talks.step((1, 1, 1)) for _ in range(4)]
    assert played(talks) == 1
    monkeypatch.setattr(module, "FEW", 0)
    plain = Talks(loaded, 3, element=element)
    for logits in found:
        np.testing.assert_array_equal(logits, plain.step((1, 1, 1)))


def test_sequences_outgrow_their_recording_and_are_recorded_anew(monkeypatch):
    loaded = model(SMALL, precise=False)
    talks = Talks(loaded, 1)
    talks.step((1,)), talks.step((1,))
    first = talks.steps._recordings[1, 1, False]
    found = [talks.step((1,)) for _ in range(300)]
    assert talks.steps._recordings[1, 1, False] is not first
    monkeypatch.setattr(module, "FEW", 0)
    plain = Talks(loaded, 1)
    plain.step((1,)), plain.step((1,))
    for logits in found:
        np.testing.assert_array_equal(logits, plain.step((1,)))


def test_a_cache_that_grew_is_not_played_over():
    loaded = model(SMALL, precise=False)
    talks, small = Talks(loaded, 1, positions=500), Talks(loaded, 1, positions=500)
    for one in (talks, small):
        [one.step((1,)) for _ in range(3)]
    talks.cache.grow(1000)
    for _ in range(3):
        np.testing.assert_array_equal(talks.step((1,)), small.step((1,)))


def test_the_number_of_threads_may_change_between_steps():
    loaded = model(SMALL, precise=False)
    talks, other = Talks(loaded, 1), Talks(loaded, 1)
    before = int(TEAM.ready()[WORKERS]) + 1
    found = [talks.step((1,)) for _ in range(3)]
    try:
        use_threads(1)
        found += [talks.step((1,)) for _ in range(2)]
    finally:
        use_threads(before)
    for logits in found:
        np.testing.assert_array_equal(logits, other.step((1,)))


class Curious:
    """A model whose forward pass looks at numbers."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def embed(self, tokens):
        return self.model.embed(tokens)

    def forward(self, x, step):
        return self.model.forward(x * float(x.max() > -1), step)

    def logits(self, x):
        return self.model.logits(x)


def test_a_model_that_looks_at_numbers_works_without_recordings(caplog):
    loaded = model(SMALL, precise=False)
    plain = Talks(loaded, 2)
    curious = Talks(loaded, 2)
    curious.steps._model = Curious(loaded.model)
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            np.testing.assert_array_equal(curious.step((1, 1)), plain.step((1, 1)))
    assert played(curious) == 0
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "not recorded" in caplog.text


def test_only_so_many_recordings_are_kept(monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    talks = Talks(model(SMALL, precise=False), 1)
    for count in (1, 2, 3, 1, 2, 3):
        talks.step((count,)), talks.step((count,))
        assert len(talks.steps._recordings) <= 2
