"""Servers under load, each in a process of its own for as long as a measurement takes: Puna, and llama.cpp's."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2
import psutil

START_TIMEOUT_S = 600.0  # the first start on a machine compiles the kernels
REPLY_TIMEOUT_S = 600.0
PUNA = [sys.executable, "-c", "from puna.cli import main; main()"]

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Setting:
    """How a server is started."""

    model: Path
    context: int  # tokens that one reply may hold, prompt included
    places: int  # replies at once
    threads: int


@dataclass(frozen=True)
class Said:
    """A part of a reply. tokens: of the prompt and of the reply, in the last part, if the server tells."""

    text: str = ""
    tokens: tuple[int, int] | None = None


class Refused(Exception):
    """A server answered with an error, or in the middle of a reply with one."""


class Server(Protocol):
    """A server that streams replies to chats. Closing the stream is what a client does who leaves."""

    @property
    def pid(self) -> int:
        """Its process, whose children count too."""

    def reply(self, messages: Messages, max_tokens: int) -> AsyncIterator[Said]:
        """Yield the parts of a reply as they arrive, over a connection of their own. Raises Refused."""

    async def prompt_tokens(self, messages: Messages) -> int:
        """Return how long a prompt is."""


@dataclass(frozen=True)
class HttpServer:
    """A server that speaks OpenAI's API (`Server`)."""

    url: str
    model: str
    pid: int

    async def reply(self, messages: Messages, max_tokens: int) -> AsyncIterator[Said]:
        """Yield the parts of a reply as they arrive."""
        body = {
            "model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        async with (
            httpx2.AsyncClient(timeout=REPLY_TIMEOUT_S) as client,
            client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer,
        ):
            if not answer.is_success:
                raise Refused(f"{answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    yield said(json.loads(line.removeprefix("data: ")))

    async def prompt_tokens(self, messages: Messages) -> int:
        """Return how long a prompt is."""
        body = {"model": self.model, "messages": messages, "max_tokens": 1}
        async with httpx2.AsyncClient(timeout=REPLY_TIMEOUT_S) as client:
            answer = await client.post(f"{self.url}/v1/chat/completions", json=body)
        return int(answer.raise_for_status().json()["usage"]["prompt_tokens"])


def said(chunk: dict[str, Any]) -> Said:
    """Return what a chunk of OpenAI's chat stream says. Raises Refused if it is an error."""
    if "error" in chunk:
        raise Refused(str(chunk["error"]))
    text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    usage = chunk.get("usage")
    return Said(text, (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None)


@contextlib.contextmanager
def puna_server(setting: Setting) -> Iterator[HttpServer]:
    """Start Puna on a free port, with a store of its own that holds the model."""
    with tempfile.TemporaryDirectory(prefix="puna-load-") as folder:
        url = f"http://127.0.0.1:{free_port()}"
        environment = os.environ | {
            "PUNA_HOST": url, "PUNA_MODELS": folder, "PUNA_CONTEXT_LENGTH": str(setting.context),
            "PUNA_NUM_PARALLEL": str(setting.places), "PUNA_NUM_THREADS": str(setting.threads),
            "PUNA_KEEP_ALIVE": "-1",
        }  # fmt: skip
        with started([*PUNA, "serve"], url, environment) as pid:
            modelfile = Path(folder) / "Modelfile"
            modelfile.write_text(f"FROM {setting.model.resolve()}\n")
            create = [*PUNA, "create", "load", "-f", str(modelfile)]
            subprocess.run(create, env=environment, check=True, capture_output=True)
            yield HttpServer(url, "load", pid)


@contextlib.contextmanager
def llama_server(setting: Setting) -> Iterator[Server]:
    """Start llama-cpp-python's server, or without its extra have the class that it serves, without HTTP."""
    if importlib.util.find_spec("fastapi") is None:
        print("llama-cpp-python's server is not installed: its class Llama is called without HTTP", file=sys.stderr)
        yield LlamaHere(setting)
        return
    port = free_port()
    options = {
        "model": setting.model.resolve(), "port": port, "n_ctx": setting.context, "n_threads": setting.threads,
        "n_threads_batch": setting.threads, "interrupt_requests": False,
    }  # fmt: skip
    command = [sys.executable, "-m", "llama_cpp.server"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    url = f"http://127.0.0.1:{port}"
    with started(command, f"{url}/v1/models", dict(os.environ)) as pid:
        yield HttpServer(url, "load", pid)


class LlamaHere:
    """What llama-cpp-python's server does, in this process: one reply after the other (`Server`)."""

    def __init__(self, setting: Setting) -> None:
        from llama_cpp import Llama

        self.pid = os.getpid()
        self._turn = asyncio.Lock()
        self._llama = Llama(
            str(setting.model), n_ctx=setting.context, n_threads=setting.threads, n_threads_batch=setting.threads,
            verbose=False,
        )  # fmt: skip

    async def reply(self, messages: Messages, max_tokens: int) -> AsyncIterator[Said]:
        """Yield the parts of a reply once those before have ended."""
        async with self._turn:
            parts = self._llama.create_chat_completion(messages, max_tokens=max_tokens, temperature=0, stream=True)
            count = 0
            while (part := await asyncio.to_thread(_next, parts)) is not None:
                count += bool(part.text)
                yield part
            yield Said(tokens=(int(self._llama.n_tokens) - count, count))

    async def prompt_tokens(self, messages: Messages) -> int:
        """Return how long a prompt is."""
        return int(self._llama.create_chat_completion(messages, max_tokens=1)["usage"]["prompt_tokens"])


def _next(parts: Iterator[Any]) -> Said | None:
    try:
        chunk = next(parts, None)
    except ValueError as error:  # a prompt that is too long
        raise Refused(str(error)) from error
    return None if chunk is None else said(chunk)


@contextlib.contextmanager
def started(command: Sequence[str], url: str, environment: dict[str, str]) -> Iterator[int]:
    """Run a server, yield its process id once it answers, and stop it in the end. Raises RuntimeError if it ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read().decode()}")
                time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()
            process.wait(timeout=60)


def answers(url: str) -> bool:
    """Whether a server answers a GET."""
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.get(url).is_success
    return False


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def resident_bytes(pid: int) -> int:
    """Return the memory that a process and all below it have resident."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in processes)
