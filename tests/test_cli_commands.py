"""The commands against a fake server: what they ask, what they print, and how they fail."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.cli.app import run_command

from .cli_fake import Fake, fake_server


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with fake_server() as fake:
        monkeypatch.setenv("PUNA_HOST", fake.url)
        monkeypatch.setattr("sys.stdin", io.StringIO())
        yield fake


Puna = Callable[..., tuple[str, str, int]]


@pytest.fixture
def puna(capsys: pytest.CaptureFixture[str]) -> Puna:
    """Run a command and return its stdout, its stderr and its exit status."""

    def run(*arguments: str) -> tuple[str, str, int]:
        status: Any = 0
        try:
            run_command(list(arguments))
        except SystemExit as ending:
            status = ending.code
        out, err = capsys.readouterr()
        return out, err, status

    return run


def test_without_a_server_a_command_says_how_to_start_one(puna: Puna, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PUNA_HOST", "127.0.0.1:9")
    out, err, status = puna("list")
    assert (out, status) == ("", 1)
    assert err == "Error: no server is running at http://127.0.0.1:9; start one with `puna serve`\n"


def test_list_filters_by_prefix_in_any_letter_case(puna: Puna, fake: Fake):
    fake.models["other:latest"] = {}
    out, _, _ = puna("ls", "TI")
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "tiny:latest"]


def test_ps_shows_what_is_loaded(puna: Puna, fake: Fake):
    out, _, _ = puna("ps")
    assert out.splitlines()[1].split() == ["tiny:latest", "0123456789ab", "1.2", "GB", "100%", "CPU", "4096", "Forever"]


def test_show_prints_one_part(puna: Puna, fake: Fake):
    assert puna("show", "tiny", "--system")[0] == "Be brief.\n"


def test_show_refuses_two_parts(puna: Puna, fake: Fake):
    assert puna("show", "tiny", "--system", "--license")[1:] == (
        "Error: only one of --license, --system can be shown at a time\n",
        1,
    )


def test_show_without_flags_prints_sections(puna: Puna, fake: Fake):
    assert puna("show", "tiny")[0].split() == ["Capabilities", "completion", "System", "Be", "brief."]


def test_cp_copies(puna: Puna, fake: Fake):
    assert puna("cp", "tiny", "twin") == ("copied 'tiny' to 'twin'\n", "", 0)
    assert "twin:latest" in fake.models


def test_rm_unloads_and_deletes_in_order_and_stops_at_the_first_error(puna: Puna, fake: Fake):
    fake.models["last:latest"] = {}
    out, err, status = puna("rm", "tiny", "gone", "last")
    assert (out, err, status) == ("deleted 'tiny'\n", "Error: model 'gone' not found\n", 1)
    assert fake.bodies("/api/generate")[0] == {"model": "tiny", "stream": False, "keep_alive": 0}
    assert "last:latest" in fake.models


def test_stop_unloads(puna: Puna, fake: Fake):
    assert puna("stop", "tiny") == ("", "", 0)
    assert fake.bodies("/api/generate") == [{"model": "tiny", "stream": False, "keep_alive": 0}]


def test_stop_of_an_unknown_model_says_so(puna: Puna, fake: Fake):
    assert puna("stop", "gone")[1:] == ('Error: couldn\'t find model "gone" to stop\n', 1)


def test_run_prints_the_answer_and_two_line_feeds(puna: Puna, fake: Fake):
    assert puna("run", "tiny", "Good", "day") == ("Hello there.\n\n", "", 0)
    assert fake.bodies("/api/generate") == [{"model": "tiny", "prompt": "Good day"}]


def test_run_puts_piped_text_in_front_of_the_words(puna: Puna, fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("some text\n"))
    puna("run", "tiny", "summarize")
    assert fake.bodies("/api/generate")[0]["prompt"] == "some text\n summarize"


def test_run_with_an_empty_prompt_only_loads(puna: Puna, fake: Fake):
    assert puna("run", "tiny", "", "--keepalive", "1h") == ("", "", 0)
    assert fake.bodies("/api/generate") == [{"model": "tiny", "stream": False, "keep_alive": "1h"}]


def test_run_sends_what_the_flags_ask_for(puna: Puna, fake: Fake):
    puna("run", "tiny", "hi", "--keepalive", "5m", "--format", '{"type": "object"}', "--think=high")
    puna("run", "tiny", "hi", "--format", "json", "--think")
    assert fake.bodies("/api/generate") == [
        {"model": "tiny", "prompt": "hi", "keep_alive": "5m", "format": {"type": "object"}, "think": "high"},
        {"model": "tiny", "prompt": "hi", "format": "json", "think": True},
    ]


@pytest.mark.parametrize("text", ["yaml", "[1]", "{"])
def test_run_refuses_a_format_that_is_no_schema(puna: Puna, fake: Fake, text: str):
    _, err, status = puna("run", "tiny", "hi", "--format", text)
    assert err.startswith("Error: --format must be json or a JSON Schema")
    assert status == 1


def test_run_shows_figures_on_stderr(puna: Puna, fake: Fake):
    out, err, _ = puna("run", "tiny", "hi", "--verbose")
    assert out == "Hello there.\n\n"
    assert "eval rate:            20.00 tokens/s" in err.splitlines()


def test_run_shows_thinking_apart_unless_it_is_hidden(puna: Puna, fake: Fake):
    fake.thinking = ["Hm", "..."]
    assert puna("run", "tiny", "hi")[0] == "Thinking...\nHm...\n...done thinking.\n\nHello there.\n\n"
    assert puna("run", "tiny", "hi", "--hidethinking")[0] == "Hello there.\n\n"


def test_run_of_an_unknown_model_says_how_to_make_one(puna: Puna, fake: Fake):
    out, err, status = puna("run", "gone", "hi")
    assert (out, status) == ("", 1)
    assert "cannot download models" in err
    assert "puna create gone -f Modelfile" in err


def test_an_error_in_the_middle_of_an_answer_ends_the_command(puna: Puna, fake: Fake):
    fake.failure = "the runner died"
    assert puna("run", "tiny", "hi") == ("Hello there.\n\n", "Error: the runner died\n", 1)


def test_an_answer_that_breaks_off_is_an_error(puna: Puna, fake: Fake):
    fake.breaks_off = True
    out, err, status = puna("run", "tiny", "hi")
    assert (out, status) == ("Hello there.\n\n", 1)
    assert err == "Error: the server ended the answer before it was complete\n"


def test_line_separators_inside_an_answer_do_not_break_the_stream(puna: Puna, fake: Fake):
    fake.words = ["a\u2028b\x85c"]
    assert puna("run", "tiny", "hi")[0] == "a\u2028b\x85c\n\n"


def test_version_is_the_servers_and_ours_where_it_differs(puna: Puna, fake: Fake):
    assert puna("--version")[0] == "puna version is 0.1.0\n"
    fake.versions = "9.9"
    assert puna("-v")[0] == "puna version is 9.9\nWarning: client version is 0.1.0\n"


def test_version_without_a_server_is_ours(puna: Puna, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PUNA_HOST", "127.0.0.1:9")
    out, _, status = puna("--version")
    assert out.splitlines()[-1] == "Warning: client version is 0.1.0"
    assert status == 0


def test_an_unknown_option_is_a_usage_error(puna: Puna):
    _, err, status = puna("list", "--colour")
    assert err == "Error: Unknown option: --colour.\n"
    assert status != 0


def test_a_setting_that_is_not_allowed_is_named(puna: Puna, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PUNA_HOST", "localhost:99999")
    assert puna("list")[1].startswith("Error: PUNA_HOST='localhost:99999' is not allowed")


def test_a_body_that_is_not_understood_is_an_error_and_no_traceback(puna: Puna, fake: Fake):
    fake.models["tiny:latest"] = {"capabilities": "all"}
    _, err, status = puna("show", "tiny")
    assert err.startswith("Error: the server's answer is not understood")
    assert status == 1


def test_images_are_taken_out_of_a_prompt_for_models_that_see(
    puna: Puna, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    fake.models["tiny:latest"] = {"capabilities": ["completion", "vision"]}
    _, err, _ = puna("run", "tiny", "what is on ./my\\ cat.png or on ./dog.jpg?")
    assert err == "Added image './my cat.png'\n"
    assert fake.bodies("/api/generate") == [
        {"model": "tiny", "prompt": "what is on  or on ./dog.jpg?", "images": ["iVBORw0KGgo="]}
    ]
    assert json.dumps(fake.bodies("/api/show")) == '[{"model": "tiny", "verbose": false}]'


def test_a_path_to_an_image_may_start_inside_what_looked_like_one(
    puna: Puna, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.webp").write_bytes(b"RIFF\x00\x00\x00\x00WEBP")
    fake.models["tiny:latest"] = {"capabilities": ["vision"]}
    puna("run", "tiny", "dog / cat? './cat.webp'")
    assert fake.bodies("/api/generate")[0]["prompt"] == "dog / cat?"


@pytest.mark.parametrize(
    ("prompt", "text", "added"),
    [
        ("what is in ./a.png and './my b.jpg'?", "what is in  and ?", ["./a.png", "./my b.jpg"]),
        ('"./my b.jpg"', "", ["./my b.jpg"]),
        ("./a.png ./a.png", "", ["./a.png", "./a.png"]),
        ("./a.pngs and ./A.PNG", "./a.pngs and ./A.PNG", []),
        ("'./a.png\"", "'\"", ["./a.png"]),
        ("it's ./a.png'", "it's '", ["./a.png"]),
        ("x/./a.png", "x/", ["./a.png"]),
        ("{root}/a.png, {root}/sub\\ folder/c\\(1\\).WEBP: which?", ", : which?",
         ["{root}/a.png", "{root}/sub folder/c(1).WEBP"]),
        ("see a.png", "see a.png", []),
        ("./a.png\n./my b.jpg", "", ["./a.png", "./my b.jpg"]),
    ],
)  # fmt: skip
def test_images_may_be_several_quoted_or_hold_blanks(
    prompt: str, text: str, added: list[str], puna: Puna, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub folder").mkdir()
    for name, data in (
        ("a.png", b"\x89PNG\r\n\x1a\n"), ("my b.jpg", b"\xff\xd8\xff"),
        ("sub folder/c(1).WEBP", b"RIFF\x00\x00\x00\x00WEBP"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    fake.models["tiny:latest"] = {"capabilities": ["completion", "vision"]}
    _, err, _ = puna("run", "tiny", prompt.replace("{root}", str(tmp_path)))
    assert err.splitlines() == [f"Added image '{path.replace('{root}', str(tmp_path))}'" for path in added]
    [sent] = fake.bodies("/api/generate")
    assert (sent["prompt"], len(sent.get("images") or [])) == (text, len(added))


def test_paths_stay_in_prompts_for_models_that_do_not_see(
    puna: Puna, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    _, err, _ = puna("run", "tiny", "what is ./a.png?")
    assert err == ""
    assert fake.bodies("/api/generate")[0]["prompt"] == "what is ./a.png?"


def test_a_file_that_only_looks_like_an_image_is_refused(
    puna: Puna, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "key.png").write_text("secret")
    fake.models["tiny:latest"] = {"capabilities": ["vision"]}
    _, err, status = puna("run", "tiny", f"look at {tmp_path}/key.png")
    assert err == f"Error: {tmp_path}/key.png: not a JPEG, PNG or WebP image\n"
    assert status == 1
    assert fake.bodies("/api/generate") == []


def test_plugins_lists_what_works_and_why_something_does_not(puna: Puna, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PUNA_PLUGINS", "no_such_module")
    out, err, status = puna("plugins")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["NAME", "PACKAGE", "ARCHITECTURES"]
    assert rows[1] == ["no_such_module", "PUNA_PLUGINS", "(disabled)"]
    assert ["llama", "puna"] in [row[:2] for row in rows]
    assert "no_such_module is disabled: ModuleNotFoundError: No module named 'no_such_module'" in out
    assert (err, status) == ("", 0)
