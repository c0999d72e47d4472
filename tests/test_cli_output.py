"""Tables, sections and word wrap, character by character."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from puna.cli.answer import figures
from puna.cli.replies import Chunk, Details, ListedModel, LoadedModel, ModelCard, Tensor
from puna.cli.tables import card, loaded_table, model_table
from puna.cli.wrap import WordWrap, printable

NOW = datetime(2025, 5, 14, 9, 0, tzinfo=UTC)
DIGEST = "0123456789abcdef" * 4


def test_the_list_of_models_is_aligned_with_four_blanks_after_each_column():
    models = [
        ListedModel("llama3.2:latest", DIGEST, 2_019_393_189, NOW - timedelta(weeks=3)),
        ListedModel("q:1b", DIGEST, 42_000_000_000, NOW - timedelta(seconds=5)),
    ]
    assert model_table(models, NOW) == (
        "NAME               ID              SIZE      MODIFIED         \n"
        "llama3.2:latest    0123456789ab    2.0 GB    3 weeks ago      \n"
        "q:1b               0123456789ab    42 GB     5 seconds ago    \n"
    )


def test_an_empty_list_has_its_heads_only():
    assert model_table([], NOW) == "NAME    ID    SIZE    MODIFIED    \n"


def test_loaded_models_show_processor_context_and_end():
    model = LoadedModel("m:latest", DIGEST, 6_000_000_000, NOW + timedelta(minutes=4, seconds=1), context_length=4096)
    assert loaded_table([model], NOW) == (
        "NAME        ID              SIZE    PROCESSOR    CONTEXT    UNTIL                 \n"
        "m:latest    0123456789ab    6 GB    100% CPU     4096       4 minutes from now    \n"
    )


CARD = ModelCard(
    system="You are\na careful\nhelper.\n",
    license="",
    parameters='stop                           "<|end|>"\ntemperature                    0.5',
    details=Details(quantization_level="Q4_K_M", parameter_size="8.0B"),
    model_info={
        "general.architecture": "llama",
        "general.parameter_count": 8_030_261_248,
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "tokenizer.ggml.tokens": None,
        "rope.sections": [1, 2, 3, 4, 5, 6],
    },
    tensors=[Tensor("output.weight", "Q6_K", [4096, 128])],
    capabilities=["completion", "tools"],
)


def trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_show_has_a_section_for_what_there_is():
    assert trimmed(card(CARD)) == [
        "  Model",
        "    architecture        llama",
        "    parameters          8.0B",
        "    context length      131072",
        "    embedding length    4096",
        "    quantization        Q4_K_M",
        "",
        "  Capabilities",
        "    completion",
        "    tools",
        "",
        "  Parameters",
        '    stop           "<|end|>"',
        "    temperature    0.5",
        "",
        "  System",
        "    You are",
        "    a careful",
        "    ...",
    ]


def test_a_verbose_show_adds_metadata_with_long_arrays_cut_and_the_tensors():
    lines = trimmed(card(CARD, verbose=True))
    assert "    rope.sections              [1, 2, 3, ...+3 more]" in lines
    assert "    tokenizer.ggml.tokens      ..." in lines
    assert "    output.weight    Q6_K    [4096, 128]" in lines


def test_a_model_that_says_nothing_shows_nothing():
    assert card(ModelCard()) == ""


def test_a_draft_has_a_section_of_its_own():
    draft = ModelCard(draft_info={"general.architecture": "llama", "general.parameter_count": 1_235_814_432})
    lines = [line.split() for line in card(draft).splitlines()]
    assert lines == [["Draft"], ["architecture", "llama"], ["parameters", "1.2B"]]


def test_a_word_that_does_not_fit_is_wiped_out_and_written_on_the_next_line():
    wrap = WordWrap(15)  # ten columns are used
    assert [wrap.push(piece) for piece in ("hello ", "wor", "ld!", " x")] == [
        "hello ",
        "wor",
        "l\x1b[4D\x1b[K\nworld!",
        " x",
    ]


def test_a_word_longer_than_the_line_is_broken_where_the_line_ends():
    assert WordWrap(15).push("abcdefghijklm") == "abcdefghij\nklm"


def test_a_blank_at_the_end_of_a_full_line_becomes_the_line_feed():
    assert WordWrap(15).push("abcd efghi jk") == "abcd efghi\njk"


def test_wide_characters_count_double_and_break_anywhere():
    assert WordWrap(15).push("日本語日本語") == "日本語日本\n語"


def test_line_feeds_of_the_text_start_the_line_anew():
    assert WordWrap(15).push("abcdefgh\nabcdefgh") == "abcdefgh\nabcdefgh"


@pytest.mark.parametrize("columns", [0, 9])
def test_a_narrow_terminal_wraps_by_itself(columns: int):
    assert WordWrap(columns).push("hello wonderful world") == "hello wonderful world"


def test_a_model_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x9bc\rd\ne\tf") == "a[2Jbcd\ne\tf"


def test_figures_start_in_column_23():
    last = Chunk(
        done=True,
        total_duration=1_500_000_000,
        load_duration=2_000_000,
        prompt_eval_count=10,
        prompt_eval_duration=500_000_000,
        eval_count=20,
        eval_duration=3_000_000_000,
    )
    assert figures(last).splitlines() == [
        "total duration:       1.5s",
        "load duration:        2ms",
        "prompt eval count:    10 token(s)",
        "prompt eval duration: 500ms",
        "prompt eval rate:     20.00 tokens/s",
        "eval count:           20 token(s)",
        "eval duration:        3s",
        "eval rate:            6.67 tokens/s",
    ]


def test_figures_of_an_answer_without_tokens_do_not_divide_by_zero():
    assert "eval rate:            0.00 tokens/s" in figures(Chunk(done=True))
