"""A hand-written server for the tests of the command line: fixed models, recorded requests, answers on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIGEST = "0123456789abcdef" * 4


@dataclass
class Fake:
    """What the server knows and has seen. words: the pieces of every answer."""

    url: str = ""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    words: list[str] = field(default_factory=lambda: ["Hello", " there", "."])
    thinking: list[str] = field(default_factory=list)
    failure: str = ""  # sent as the last line of every stream
    breaks_off: bool = False  # streams end without their last line
    endless: bool = False  # answers go on until the client leaves
    left: threading.Event = field(default_factory=threading.Event)  # a client went away in the middle of an answer
    versions: str = "0.1.0"

    def bodies(self, path: str) -> list[Any]:
        """Return the bodies of the requests for path, oldest first."""
        return [body for _, seen, body in self.requests if seen == path]


@contextmanager
def fake_server() -> Iterator[Fake]:
    """Run a fake server on a free port."""
    fake = Fake(models={"tiny:latest": {"system": "Be brief.", "capabilities": ["completion"]}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        digest = self.path.removeprefix("/api/blobs/")
        self._reply(200 if self.path == "/" or digest in self.fake.blobs else 404)

    def do_GET(self) -> None:
        self.fake.requests.append(("GET", self.path, None))
        entries = [
            {"name": name, "digest": DIGEST, "size": 1_234_567_890, "size_vram": 0, "context_length": 4096}
            | {"modified_at": "2025-05-14T09:00:00.123456789+02:00", "expires_at": "2318-01-01T00:00:00Z"}
            for name in self.fake.models
        ]
        version = {"version": "0.7.0", "puna": self.fake.versions}
        self._reply(200, version if self.path == "/api/version" else {"models": entries})

    def do_DELETE(self) -> None:
        body = self._body()
        known = self.fake.models.pop(_full(body["model"]), None)
        self._reply(200) if known is not None else self._missing(body["model"])

    def do_POST(self) -> None:
        if self.path.startswith("/api/blobs/"):
            self.fake.blobs[self.path.removeprefix("/api/blobs/")] = self._read()
            return self._reply(201)
        body = self._body()
        name = body.get("source" if self.path == "/api/copy" else "model")
        if self.path == "/api/create":
            return self._create(body)
        if _full(name) not in self.fake.models:
            return self._missing(name)
        if self.path == "/api/show":
            return self._reply(200, self.fake.models[_full(name)])
        if self.path == "/api/copy":
            self.fake.models[_full(body["destination"])] = self.fake.models[_full(name)]
            return self._reply(200)
        return self._answer(body)

    def _create(self, body: dict[str, Any]) -> None:
        self.fake.models[_full(body["model"])] = {}
        self._stream([{"status": status} for status in ("parsing GGUF", "writing manifest", "success")])

    def _answer(self, body: dict[str, Any]) -> None:
        if not body.get("prompt") and not body.get("messages"):
            return self._reply(200, {"done": True, "done_reason": "load"})
        native = self.path == "/api/generate"
        lines: list[dict[str, Any]] = [
            {"thinking": text, "response": ""} if native else {"message": {"role": "assistant", "thinking": text}}
            for text in self.fake.thinking
        ]
        lines += [
            {"response": text} if native else {"message": {"role": "assistant", "content": text}}
            for text in self.fake.words
        ]
        last = {"done": True, "done_reason": "stop", "total_duration": 1_500_000_000, "load_duration": 2_000_000}
        last |= {"prompt_eval_count": 10, "prompt_eval_duration": 500_000_000}
        lines.append(last | {"eval_count": 20, "eval_duration": 1_000_000_000})
        return self._stream(lines)

    def _stream(self, lines: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in lines[:-1]:
                self._chunk(line)
            while self.fake.endless:
                for line in lines[:-1]:
                    self._chunk(line)
            if not self.fake.breaks_off:
                self._chunk({"error": self.fake.failure} if self.fake.failure else lines[-1])
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.fake.left.set()
            self.close_connection = True

    def _chunk(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _missing(self, name: str) -> None:
        self._reply(404, {"error": f"model '{name}' not found"})

    def _reply(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> Any:
        body = json.loads(self._read())
        self.fake.requests.append((self.command, self.path, body))
        return body

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
