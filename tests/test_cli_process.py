"""The command as a process: how it ends when its reader leaves, or its user has had enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .cli_fake import Fake, fake_server


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_server() as fake:
        fake.endless = True
        yield fake


@pytest.fixture
def answering(fake: Fake) -> Iterator[subprocess.Popen[bytes]]:
    """A `puna run` whose endless answer has begun."""
    command = [sys.executable, "-c", "from puna.cli import main; main()", "run", "tiny", "talk"]
    environment = os.environ | {"PUNA_HOST": fake.url}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"Hello"
        yield process
        process.kill()


def test_a_reader_that_leaves_ends_the_command_quietly(answering: subprocess.Popen[bytes], fake: Fake):
    assert answering.stdout is not None
    assert answering.stderr is not None
    answering.stdout.close()
    assert answering.stderr.read() == b""
    assert answering.wait(20) == 141
    assert fake.left.wait(20)


def test_ctrl_c_ends_the_command_quietly_and_stops_the_server_too(answering: subprocess.Popen[bytes], fake: Fake):
    answering.send_signal(signal.SIGINT)
    _, err = answering.communicate(timeout=20)
    assert (answering.returncode, err) == (130, b"")
    assert fake.left.wait(20)


def test_help_comes_without_loading_what_only_commands_need():
    code = "import sys; from puna.cli.app import app; app(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(result.stderr))
    assert "Ask a model" in result.stdout
    assert not loaded & {"httpx2", "numpy", "numba", "prompt_toolkit", "puna.api", "puna.store"}
