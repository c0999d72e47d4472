"""The example plugin, as its author would ship it: installed by pip from its own package, no change to the core."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

PUNA = Path(sys.executable).parent / "puna"
TEMPLATE = Path(__file__).parent.parent / "examples" / "plugin-template"
START_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the package was installed into, its metadata included."""
    work = tmp_path_factory.mktemp("plugin")
    shutil.copytree(TEMPLATE, work / "source")  # a build leaves files beside the sources
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "--target", work / "site", work / "source"], check=True)
    return work / "site"


@pytest.fixture(scope="module")
def environment(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    models = tmp_path_factory.mktemp("models")
    return {
        **os.environ, "PYTHONPATH": str(installed), "PUNA_HOST": f"127.0.0.1:{port}", "PUNA_MODELS": str(models),
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[str]:
    url = f"http://{environment['PUNA_HOST']}"
    process = subprocess.Popen([PUNA, "serve"], env=environment)
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.head(url).is_success:
                    break
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def run(environment: dict[str, str], *command: object) -> str:
    done = subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def test_plugins_lists_the_package_with_its_architecture(environment: dict[str, str]) -> None:
    listed = run(environment, PUNA, "plugins")
    line = next(line for line in listed.splitlines() if "duet" in line)
    assert "puna-duet" in line
    assert "0.1.0" in line


def test_an_installed_plugin_serves_its_model(environment: dict[str, str], server: str, tmp_path: Path) -> None:
    run(environment, sys.executable, "-m", "puna_duet.sample", tmp_path / "duet.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./duet.gguf\nPARAMETER temperature 0\nPARAMETER num_predict 24\n")
    run(environment, PUNA, "create", "duet", "-f", tmp_path / "Modelfile")

    body = {"model": "duet", "prompt": "Hello, you two", "raw": True, "stream": False}
    first = httpx2.post(f"{server}/api/generate", json=body, timeout=60).raise_for_status().json()
    again = httpx2.post(f"{server}/api/generate", json=body | {"stream": True}, timeout=60).raise_for_status()

    assert first["done_reason"] == "length"
    assert first["eval_count"] == 24
    assert first["prompt_eval_count"] == len("Hello, you two")  # its vocabulary has one token a byte
    assert "".join(json.loads(line)["response"] for line in again.iter_lines()) == first["response"]
    shown = httpx2.post(f"{server}/api/show", json={"model": "duet"}).raise_for_status().json()
    assert shown["details"]["family"] == "duet"
