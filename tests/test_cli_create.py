"""`puna create`: what a Modelfile becomes on its way to the server."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from puna.cli.app import run_command
from puna.cli.progress import Progress
from puna.cli.replies import Status
from puna.core.errors import Failure

from .cli_fake import Fake, fake_server

GGUF = b"GGUF\x03\x00\x00\x00" + bytes(100)
DIGEST = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    with fake_server() as fake:
        monkeypatch.setenv("PUNA_HOST", fake.url)
        monkeypatch.chdir(tmp_path)
        yield fake


@pytest.fixture
def create(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, int]]:
    """Run `puna create` and return its stderr and exit status; stdout stays empty."""

    def run(*arguments: str) -> tuple[str, int]:
        status: Any = 0
        try:
            run_command(["create", *arguments])
        except SystemExit as ending:
            status = ending.code
        out, err = capsys.readouterr()
        assert out == ""
        return err, status

    return run


Create = Callable[..., tuple[str, int]]


def sent(fake: Fake) -> dict[str, Any]:
    """Return what the request to create says, without the fields that say nothing."""
    (body,) = fake.bodies("/api/create")
    return {name: value for name, value in body.items() if value is not None}


def test_a_name_that_cannot_be_one_is_refused_before_anything_is_sent(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(GGUF)
    (tmp_path / "Modelfile").write_text("FROM ./model.gguf\n")
    assert create("a b") == ("Error: invalid model name\n", 1)
    assert fake.blobs == {}


def test_files_are_uploaded_and_every_instruction_is_sent(create: Create, fake: Fake, tmp_path: Path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "weights.gguf").write_bytes(GGUF)
    (folder / "My.Modelfile").write_text(
        "FROM ./weights.gguf\nPARAMETER temperature 0.5\nPARAMETER stop A\nPARAMETER stop B\n"
        'TEMPLATE """{{ .Prompt }}\n"""\n'
        "SYSTEM Be kind.\nLICENSE MIT\nMESSAGE user Hi\nMESSAGE assistant Hello\n"
    )
    err, status = create("mine", "-f", str(folder / "My.Modelfile"))
    assert status == 0
    assert err.splitlines() == [
        "gathering model components",
        "hashing weights.gguf",
        f"copying file {DIGEST}",
        "parsing GGUF",
        "writing manifest",
        "success",
    ]
    assert fake.blobs == {DIGEST: GGUF}
    assert sent(fake) == {
        "model": "mine",
        "files": {"weights.gguf": DIGEST},
        "parameters": {"temperature": 0.5, "stop": ["A", "B"]},
        "template": "{{ .Prompt }}\n",
        "system": "Be kind.",
        "license": ["MIT"],
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    }


def test_a_draft_is_uploaded_beside_the_model(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "weights.gguf").write_bytes(GGUF)
    (tmp_path / "small.gguf").write_bytes(GGUF + b"small")
    (tmp_path / "Modelfile").write_text("FROM weights.gguf\nDRAFT small.gguf\n")
    small = f"sha256:{hashlib.sha256(GGUF + b'small').hexdigest()}"
    assert create("mine")[1] == 0
    assert fake.blobs == {DIGEST: GGUF, small: GGUF + b"small"}
    assert sent(fake) == {"model": "mine", "files": {"weights.gguf": DIGEST}, "draft_files": {"small.gguf": small}}


def test_a_draft_that_is_no_file_is_a_model(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "Modelfile").write_text("FROM llama3\nDRAFT small")
    create("mine")
    assert sent(fake) == {"model": "mine", "from": "llama3", "draft": "small"}


def test_a_file_that_the_server_has_is_not_sent_again(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "weights.gguf").write_bytes(GGUF)
    (tmp_path / "Modelfile").write_text("FROM ./weights.gguf")
    fake.blobs[DIGEST] = b"as before"
    err, _ = create("mine")
    assert "copying" not in err
    assert fake.blobs == {DIGEST: b"as before"}


def test_a_from_that_is_no_file_is_a_model(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "Modelfile").write_text("FROM llama3\nSYSTEM Be kind.")
    create("kind")
    assert sent(fake) == {"model": "kind", "from": "llama3", "system": "Be kind."}


def test_without_a_modelfile_the_folder_is_the_model(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "weights.gguf").write_bytes(GGUF)
    create("mine")
    assert sent(fake) == {"model": "mine", "files": {"weights.gguf": DIGEST}}


def test_a_modelfile_that_is_named_must_be_there(create: Create, fake: Fake):
    assert create("mine", "-f", "Missing") == ("Error: specified Modelfile wasn't found: Missing\n", 1)


def test_an_error_in_the_modelfile_is_shown_with_its_line(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "Modelfile").write_text("FROM x\nNONSENSE y\n")
    err, status = create("mine")
    assert err.startswith("Error: (line 2): command must be one of")
    assert status == 1
    assert fake.bodies("/api/create") == []


def test_a_deprecated_parameter_is_warned_about(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "Modelfile").write_text("FROM x\nPARAMETER mirostat 1\n")
    assert create("mine")[0].splitlines()[0] == "warning: parameter mirostat is deprecated"


def test_the_format_to_convert_to_is_sent(create: Create, fake: Fake, tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(GGUF)
    assert create("mine", "-q", "f16")[1] == 0
    assert sent(fake)["quantize"] == "f16"


def test_a_creation_that_ends_without_success_is_an_error():
    with Progress(Console(file=io.StringIO())) as progress, pytest.raises(Failure, match="'parsing GGUF'"):
        progress.follow([Status("parsing GGUF")])


def test_a_bar_on_a_terminal_ends_as_a_line_of_text():
    screen = io.StringIO()
    with Progress(Console(file=screen, force_terminal=True, width=80)) as progress:
        progress.bar("copying file", 2_000_000)
        assert list(progress.reading([b"x" * 10**6] * 2)) == [b"x" * 10**6] * 2
        progress.step("writing manifest")
    assert "copying file\n" in screen.getvalue()
    assert "100%" in screen.getvalue()
    assert screen.getvalue().endswith("writing manifest\n")


def test_the_same_step_is_shown_once():
    screen = io.StringIO()
    with Progress(Console(file=screen)) as progress:
        for done in (1, 2, 3):
            progress.tally("compiling kernels", done, 3)
        progress.step("writing manifest")
        progress.step("writing manifest")
    assert screen.getvalue() == "compiling kernels\nwriting manifest\n"
