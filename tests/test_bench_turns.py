"""The measurement of turns about a picture runs, on the smallest model that sees."""

from pathlib import Path

import pytest
from bench.turns import measure
from bench.vision import show_turns

GGUF = Path(__file__).parent / "fixtures" / "gemma3-vl" / "gguf"

pytestmark = pytest.mark.asyncio


async def test_turns_about_a_picture_are_measured(capsys, monkeypatch):
    turns = await measure({file.name: file for file in GGUF.iterdir()}, side=64, threads=1)
    first, second, other = turns
    assert all(turn.first_s > 0 for turn in turns)
    assert [(turn.decoded, turn.encoded, turn.hits) for turn in turns] == [(1, 1, 0), (0, 0, 1), (0, 0, 1)]
    assert first.computed == first.prompt
    assert second.computed < second.prompt - first.prompt + 32
    assert other.computed == other.prompt
    monkeypatch.setenv("COLUMNS", "120")
    show_turns(turns)
    assert "second turn" in capsys.readouterr().out
