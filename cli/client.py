"""A typed client of the server's HTTP interface: one method for each route that the command line uses."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import httpx2
import msgspec

from ..core.errors import Failure
from .replies import (
    Chunk,
    ErrorBody,
    ListedModel,
    LoadedList,
    LoadedModel,
    Message,
    ModelCard,
    ModelList,
    Status,
    Version,
)

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 64 * 2**20  # a longer line is no stream of ours; do not collect it in memory


class NotRunning(Failure):
    """Nothing answers at the server's address."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no server is running at {url}; start one with `puna serve`")
        self.url = url


class Refused(Failure):
    """The server answered with an error. status is its HTTP status, or None for an error in the middle of a stream."""

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """A connection to the server at url. Use it as a context manager.

    Every method raises NotRunning if nothing answers and Refused with the server's own words if it says no. An iterator
    that a method returns must be exhausted or closed: closing it cancels the work on the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        timeout = httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S)  # a model may load and think for minutes
        self._http = httpx2.Client(base_url=url, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def check(self) -> None:
        """Return if a server answers at all."""
        self._send("HEAD", "/")

    def version(self) -> str:
        """Return the server's version."""
        found = self._ask("GET", "/api/version", Version)
        return found.puna or found.version

    def models(self) -> list[ListedModel]:
        """Return the models in the store, newest first."""
        return self._ask("GET", "/api/tags", ModelList).models

    def loaded(self) -> list[LoadedModel]:
        """Return the models in memory."""
        return self._ask("GET", "/api/ps", LoadedList).models

    def show(self, model: str, *, verbose: bool = False) -> ModelCard:
        """Return what the server knows about model; with verbose also long arrays."""
        return self._ask("POST", "/api/show", ModelCard, {"model": model, "verbose": verbose})

    def copy(self, source: str, destination: str) -> None:
        """Give the model source a second name."""
        self._send("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        """Remove model from the store."""
        self._send("DELETE", "/api/delete", {"model": model})

    def load(self, model: str, keep_alive: str | None = None) -> None:
        """Bring model into memory, and return when it is there."""
        body = {"model": model, "stream": False, **_given(keep_alive=keep_alive)}
        self._ask("POST", "/api/generate", Chunk, body)

    def unload(self, model: str) -> None:
        """Take model out of memory as soon as it is idle."""
        self._ask("POST", "/api/generate", Chunk, {"model": model, "stream": False, "keep_alive": 0})

    def generate(self, model: str, prompt: str, **fields: Any) -> Generator[Chunk, None, None]:
        """Yield the answer to prompt. fields: further fields of the request; those that are None are left out."""
        return self._stream("/api/generate", Chunk, {"model": model, "prompt": prompt, **_given(**fields)})

    def chat(self, model: str, messages: list[Message], **fields: Any) -> Generator[Chunk, None, None]:
        """Yield the next message of a conversation. fields: as in `generate`."""
        return self._stream("/api/chat", Chunk, {"model": model, "messages": messages, **_given(**fields)})

    def create(self, request: object) -> Generator[Status, None, None]:
        """Yield the progress of a model's creation. request: the body of /api/create."""
        return self._stream("/api/create", Status, request)

    def has_blob(self, digest: str) -> bool:
        """Return whether the server already holds the file with this digest ("sha256:…")."""
        try:
            self._send("HEAD", f"/api/blobs/{digest}")
        except Refused as refusal:
            if refusal.status == 404:
                return False
            raise
        return True

    def upload(self, digest: str, size: int, content: Iterable[bytes]) -> None:
        """Send a file of size bytes. The server compares it with digest."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self._translated():
            _refuse(self._http.post(f"/api/blobs/{digest}", content=content, headers=headers))

    def _ask(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        return _decode(self._send(method, path, body).content, kind)

    def _send(self, method: str, path: str, body: object = None) -> httpx2.Response:
        with self._translated():
            response = self._http.request(method, path, content=None if body is None else msgspec.json.encode(body))
        _refuse(response)
        return response

    def _stream(self, path: str, kind: type[T], body: object) -> Generator[T, None, None]:
        with self._translated(), self._http.stream("POST", path, content=msgspec.json.encode(body)) as response:
            if response.is_error:
                response.read()
                _refuse(response)
            for line in _lines(response.iter_bytes()):
                if error := _decode(line, ErrorBody).error:
                    raise Refused(None, error)
                yield _decode(line, kind)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the transport's errors into ours."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise NotRunning(self.url) from error
        except httpx2.TransportError as error:
            raise Failure(f"the connection to {self.url} broke: {error or type(error).__name__}") from error


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _refuse(response: httpx2.Response) -> None:
    """Raise Refused if response is an error, with the best text it offers."""
    if response.is_success:
        return
    try:
        text = msgspec.json.decode(response.content, type=ErrorBody).error
    except msgspec.DecodeError:
        text = response.text.strip()
    raise Refused(response.status_code, text or f"{response.status_code} {response.reason_phrase}")


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise Failure(f"the server's answer is not understood: {error}: {data[:200]!r}") from error


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream. Only line feeds separate them: JSON strings may hold U+2028 and its like."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from filter(None, lines)
        if len(rest) > _MAX_LINE_BYTES:
            raise Failure(f"the server sent a line of more than {_MAX_LINE_BYTES} bytes")
    if rest:
        yield rest
