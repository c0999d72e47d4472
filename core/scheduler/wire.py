"""How a server and a runner talk through a socket: frames of MessagePack, and the messages in them.

A frame is its length, 4 bytes, the highest first, and then one message. Both sides begin with `Hello`. Then the server
sends `Load`, which is answered by `Ready` or, with the id 0, `Refused`. What follows carries an id: each `Ask` is
answered by any number of `Said`, the last of them with a Finished, each `Tokenize`, `Detokenize` and `Look` by one
`Tokens`, `Text` or `Seen`, and each of these may end in `Refused` instead. `Status` comes unasked, `Close` has no
answer but the end.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from .. import errors
from ..errors import BadRequest, Failure
from .engine import EngineOptions
from .messages import VERSION, Finished, Generate, Media, Piece, Sight
from .runner import RunnerFacts
from .stats import EngineStats

MAX_FRAME = 128 * 2**20  # bytes of one message: a request brings its pictures along
LENGTH = 4  # bytes in front of it


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first message in both directions."""

    version: int


class Load(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Which model to load, and everything about how to run it that the server decides."""

    files: dict[str, str]  # original file name -> where its bytes lie
    draft: dict[str, str] = {}  # the same of a small model that guesses; empty: none
    options: EngineOptions
    plugins: tuple[str, ...] = ()  # modules besides the installed plugins
    debug: int = 0


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Start a reply."""

    id: int
    request: Generate


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """End a reply whose client has gone; one that has ended is left alone."""

    id: int


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    """Ask for the token ids of text."""

    id: int
    text: str
    special: bool
    start: bool


class Detokenize(msgspec.Struct, frozen=True, tag=True):
    """Ask for the text of tokens."""

    id: int
    tokens: list[int]


class Look(msgspec.Struct, frozen=True, tag=True):
    """Ask what stands for media in a prompt."""

    id: int
    media: Media


class Close(msgspec.Struct, frozen=True, tag=True):
    """End every reply, say so, and exit."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    facts: RunnerFacts


class Said(msgspec.Struct, frozen=True, tag=True):
    """What a reply consists of."""

    id: int
    event: Piece | Finished


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """The answer to Tokenize."""

    id: int
    value: list[int]


class Text(msgspec.Struct, frozen=True, tag=True):
    """The answer to Detokenize."""

    id: int
    value: str


class Seen(msgspec.Struct, frozen=True, tag=True):
    """The answer to Look."""

    id: int
    value: Sight


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The exception that something ended with: the class in `puna.core.errors` next to its own, and its attributes."""

    id: int
    kind: str
    message: str
    details: dict[str, str | int] = {}

    @classmethod
    def because(cls, id: int, error: Failure) -> Refused:
        """Return the message that stands for error."""
        kind = next(kind.__name__ for kind in type(error).__mro__ if vars(errors).get(kind.__name__) is kind)
        values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(error).items()}
        return cls(id, kind, str(error), {k: v for k, v in values.items() if isinstance(v, str | int)})

    @property
    def error(self) -> Failure:
        """The exception again; the plain Failure if its class does not exist here."""
        kind = vars(errors).get(self.kind)
        kind = kind if isinstance(kind, type) and issubclass(kind, Failure) else Failure
        error = kind.__new__(kind, self.message)  # constructors would word their message once more
        error.__dict__.update(self.details)
        return error


class Status(msgspec.Struct, frozen=True, tag=True):
    """How a runner is, about once a second while it works."""

    stats: EngineStats
    memory_bytes: int


FromServer = Hello | Load | Ask | Cancel | Tokenize | Detokenize | Look | Close
FromRunner = Hello | Ready | Said | Tokens | Text | Seen | Refused | Status

Received = TypeVar("Received")


class WireError(Exception):
    """The other side sent what no message looks like."""


def pack(message: FromServer | FromRunner) -> bytes:
    """Return a message as a frame. Raises BadRequest for what no frame can hold."""
    try:
        data = msgspec.msgpack.encode(message)
    except (OverflowError, UnicodeEncodeError) as error:
        raise BadRequest(f"the request cannot be handed to the model: {error}") from None
    if len(data) > MAX_FRAME:
        raise BadRequest(f"a request, or an answer, of {len(data)} bytes is too large: at most {MAX_FRAME} are allowed")
    return len(data).to_bytes(LENGTH, "big") + data


class Channel(Generic[Received]):
    """One end of the socket. Belongs to one event loop."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[Received]
    ) -> None:
        self._reader, self._writer, self._decoder = reader, writer, decoder

    @classmethod
    async def over(cls, end: socket.socket, expected: object) -> Channel[Received]:
        """Return a channel over a connected socket, whose owner it becomes. expected: the type of what arrives."""
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer, msgspec.msgpack.Decoder(expected))

    def send_soon(self, message: FromServer | FromRunner) -> None:
        """Send a message that is too small to wait for. Nothing happens if the other side has gone."""
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    async def send(self, message: FromServer | FromRunner) -> None:
        """Send a message, waiting while the other side is behind. Nothing happens if it has gone."""
        self.send_soon(message)
        try:
            await self._writer.drain()
        except OSError:
            self._writer.close()  # whoever reads finds the end

    async def receive(self) -> Received | None:
        """Return the next message; None at the end. Raises WireError."""
        try:
            size = int.from_bytes(await self._reader.readexactly(LENGTH), "big")
            if size > MAX_FRAME:
                raise WireError(f"a message of {size} bytes, at most {MAX_FRAME} are allowed")
            return self._decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except (msgspec.MsgspecError, ValueError, RecursionError, Failure) as error:
            raise WireError(f"a message that is none: {error}") from None

    async def greet(self) -> None:
        """Exchange versions. Raises WireError if they differ; returns also if the other side has gone."""
        await self.send(Hello(VERSION))
        hello = await self.receive()
        if hello is not None and hello != Hello(VERSION):
            raise WireError(f"{hello!r}, expected {Hello(VERSION)!r}: server and runner are of different versions")

    async def close(self) -> None:
        """Close the socket."""
        self._writer.close()
        with suppress(OSError):  # the other side was first
            await self._writer.wait_closed()
