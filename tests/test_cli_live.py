"""The commands as processes against a server that `puna serve` started, with a real (tiny) model."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from puna.cli.serve import is_exposed

WEIGHTS = Path(__file__).parent / "fixtures/llama-bpe/gguf/model-f32.gguf"
COMMAND = (sys.executable, "-c", "from puna.cli import main; main()")


def start_server(models: Path, host: str = "127.0.0.1:0") -> subprocess.Popen[str]:
    environment = os.environ | {"PUNA_HOST": host, "PUNA_MODELS": str(models)}
    return subprocess.Popen(
        [*COMMAND, "serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A running server's address; at the end the server must shut down cleanly."""
    server = start_server(folder / "models")
    assert server.stdout is not None
    greeting = server.stdout.readline()
    match = re.fullmatch(r"Puna \S+ listens on (http://127\.0\.0\.1:\d+), models are in (.*)\n", greeting)
    assert match is not None, greeting
    assert match[2] == str(folder / "models")
    yield match[1]
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=30)
    assert server.returncode == 0


Puna = Callable[..., str]


@pytest.fixture
def puna(url: str) -> Puna:
    """Run a command that must succeed, and return its stdout."""

    def run(*arguments: str, stdin: str = "") -> str:
        environment = os.environ | {"PUNA_HOST": url}
        result = subprocess.run(
            [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, env=environment, timeout=120
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def names(table: str) -> list[str]:
    return [line.split()[0] for line in table.splitlines()[1:]]


def test_a_checkpoint_is_converted_to_a_single_file_that_answers(puna: Puna, folder: Path):
    modelfile = folder / "Converted"
    modelfile.write_text(f"FROM {WEIGHTS.parent.parent / 'hf'}\nPARAMETER temperature 0\nPARAMETER num_predict 8\n")
    puna("create", "converted", "-f", str(modelfile), "-q", "f16")
    assert re.search(r"quantization +F16", puna("show", "converted"))
    puna("create", "asitis", "-f", str(modelfile))
    assert puna("run", "converted", "the") == puna("run", "asitis", "the") != ""
    for model in ("converted", "asitis"):
        puna("rm", model)


def test_the_life_of_a_model(puna: Puna, folder: Path):
    modelfile = folder / "Modelfile"
    modelfile.write_text(f"FROM {WEIGHTS}\nPARAMETER num_predict 5\nPARAMETER temperature 0\nSYSTEM You are tiny.\n")
    puna("create", "tiny", "-f", str(modelfile))
    assert names(puna("list")) == ["tiny:latest"]
    assert puna("show", "tiny", "--system") == "You are tiny.\n"
    assert "llama" in puna("show", "tiny")

    answer = puna("run", "tiny", "Hello", "--keepalive", "10m")
    assert answer.endswith("\n\n")
    assert puna("run", "tiny", stdin="Hello") == answer
    loaded = puna("ps")
    assert names(loaded) == ["tiny:latest"]
    assert "minutes from now" in loaded

    puna("cp", "tiny", "twin")
    assert sorted(names(puna("list"))) == ["tiny:latest", "twin:latest"]
    puna("stop", "tiny")
    assert names(puna("ps")) == []
    assert puna("rm", "tiny", "twin") == "deleted 'tiny'\ndeleted 'twin'\n"
    assert names(puna("list")) == []


def test_a_server_has_left_no_kernel_to_compile(puna: Puna):
    assert re.fullmatch(r"all kernels are ready, in \S+\n", puna("warmup"))


def test_a_port_in_use_is_a_clear_error(url: str, tmp_path: Path):
    host = url.removeprefix("http://")
    server = start_server(tmp_path, host)
    out, err = server.communicate(timeout=60)
    assert (out, server.returncode) == ("", 1)
    assert err.startswith(f"Error: cannot listen on {host}: Address already in use")


def test_a_model_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path):
    occupied = tmp_path / "file"
    occupied.touch()
    server = start_server(occupied)
    out, err = server.communicate(timeout=60)
    assert (out, server.returncode) == ("", 1)
    assert re.fullmatch(rf"Error: .*{re.escape(str(occupied))}.*\n", err), err


def test_a_second_server_beside_the_first_shuts_down_on_ctrl_c(tmp_path: Path):
    server = start_server(tmp_path)
    assert server.stdout is not None
    port = int(re.findall(r":(\d+),", server.stdout.readline())[0])
    socket.create_connection(("127.0.0.1", port)).close()
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=30)
    assert server.returncode == 0


@pytest.mark.parametrize(
    ("host", "exposed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("box.lan", True)],
)
def test_a_host_that_other_machines_reach_is_exposed(host: str, exposed: bool):
    assert is_exposed(host) == exposed
