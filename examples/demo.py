"""Serves a tiny model and streams a chat with it through the HTTP API: what `make demo` runs.

The model is one of the test fixtures, a Llama of 190,000 random weights: what it says means nothing, but every part of
a real reply is there: the store, the server, the template, the tokenizer, the kernels, the stream.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

MODEL = Path(__file__).parent.parent / "tests" / "fixtures" / "llama-bpe" / "gguf" / "model-f32.gguf"
PUNA = Path(sys.executable).parent / "puna"  # the command of the environment this script runs in
START_TIMEOUT_S = 180.0  # the first start on a machine compiles the kernels


def main() -> None:
    """Run the demo; the exit status says whether it worked."""
    with tempfile.TemporaryDirectory(prefix="puna-demo-") as folder, running_server(Path(folder)) as url:
        modelfile = Path(folder) / "Modelfile"
        modelfile.write_text(f"FROM {MODEL}\nPARAMETER num_predict 48\nPARAMETER seed 7\nPARAMETER temperature 0.6\n")
        puna(url, "create", "demo", "-f", str(modelfile))
        puna(url, "list")
        chat(url, "Tell me about the lighthouse.")


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Start `puna serve` on a free port with a store of its own; yield its URL, and stop it in the end."""
    url = f"http://127.0.0.1:{free_port()}"
    server = subprocess.Popen([PUNA, "serve"], env=environment(url, folder))
    try:
        wait_until_ready(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def environment(url: str, folder: Path | None = None) -> dict[str, str]:
    """Return this process's environment, pointed at the demo's server and store."""
    return {**os.environ, "PUNA_HOST": url} | ({"PUNA_MODELS": str(folder / "models")} if folder else {})


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers; end the program if it dies or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.head(url).is_success:
                return
        time.sleep(0.1)
    sys.exit("the server did not start")


def puna(url: str, *command: str) -> None:
    """Run a `puna` command as a user would."""
    print(f"$ puna {' '.join(command)}", flush=True)
    subprocess.run([PUNA, *command], env=environment(url), check=True)


def chat(url: str, question: str) -> None:
    """Stream one answer to the terminal, then say how fast it was."""
    print(f"\nYou: {question}\nModel: ", end="", flush=True)
    body = {"model": "demo", "messages": [{"role": "user", "content": question}]}
    with httpx2.stream("POST", f"{url}/api/chat", json=body, timeout=120) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            chunk = json.loads(line)
            if "error" in chunk:
                sys.exit(f"\nthe server said: {chunk['error']}")
            print(chunk["message"]["content"], end="", flush=True)
    seconds = chunk["eval_duration"] / 1e9
    print(
        f"\n\n{chunk['eval_count']} tokens, {chunk['eval_count'] / seconds:.0f} a second; done: {chunk['done_reason']}"
    )


if __name__ == "__main__":
    main()
