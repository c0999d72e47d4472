"""Request bodies: JSON bytes in, a checked struct out."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.requests import Request

from ..core.errors import BadRequest, Busy
from .bodies import hold

T = TypeVar("T", bound=msgspec.Struct)

MAX_BODY_BYTES = 256 * 2**20
MAX_BODIES_BYTES = 2 * MAX_BODY_BYTES  # of all requests in progress; what becomes of a body takes a few times as much
MAX_VALUES = 2**20  # each takes a hundred bytes once parsed; a prompt with as many commas fits no context either

_HALF_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NAMES = {dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "bool"}


class BodyTooLarge(BadRequest):
    """A client sends more JSON than any request can need."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"the request body is too large: at most {limit} are allowed")


def client_of(request: Request) -> str:
    """Return who asks, so that places can be dealt out evenly: a machine, whatever key it claims to hold."""
    return request.client.host if request.client else ""


async def read_body(request: Request, kind: type[T], *, missing: str = "missing request body") -> T:
    """Return the JSON body of request as a kind, whatever its Content-Type says. Raises BadRequest, and Busy.

    missing: what to say about an empty body.
    """
    return parse_body(await _received(request), kind, missing=missing)


async def _received(request: Request) -> bytearray:
    """Return the body of request. Raises BodyTooLarge, and Busy once all has come, for a client that sends is deaf."""
    body, size = bytearray(), 0
    refusal: Busy | None = None
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(f"{MAX_BODY_BYTES} bytes")
        if refusal:
            continue
        try:
            hold(request, len(chunk))
            body += chunk
        except Busy as error:
            refusal = error
            body.clear()
    if refusal:
        raise refusal
    return body


def parse_body(body: bytes | bytearray, kind: type[T], *, missing: str = "missing request body") -> T:
    """Return body as a kind, the way Go's decoder reads a request.

    Only the first JSON value counts. Keys of the outermost object match in any letter case, the last of equal keys
    wins, null means "not given" and unknown keys are ignored. Bytes and escapes that are no Unicode become U+FFFD.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:  # a bound that needs no parsing
        raise BodyTooLarge(f"{MAX_VALUES} commas and brackets")
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise BadRequest(missing)
    value = _first_value(text)
    if not isinstance(value, dict):
        raise BadRequest(f"the request body must be a JSON object, not {type_name(value)}")
    if _HALF_SURROGATE.search(text):
        value = _mend(value)
    given = {key.lower(): item for key, item in value.items() if item is not None}
    return convert(given, kind)


def convert(value: object, kind: type[T]) -> T:
    """Return a decoded JSON value as a kind. Raises BadRequest naming the field, what it holds and what it should."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        where = f"{path.rstrip('`')}: " if path else ""
        raise BadRequest(f"{where}{problem[:1].lower()}{problem[1:]}") from None


def type_name(value: object) -> str:
    """Return JSON's name for the type of a decoded value."""
    return "null" if value is None else _NAMES[type(value)]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _first_value(text: str) -> Any:
    try:
        return _DECODER.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise BadRequest(f"invalid JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise BadRequest(f"invalid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("invalid JSON: nested too deeply") from None


def _mend(value: Any) -> Any:
    """Return value with every half of a surrogate pair replaced by U+FFFD: clients cut texts inside an emoji."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mend(item) for item in value]
    if isinstance(value, dict):
        return {_mend(key): _mend(item) for key, item in value.items()}
    return value
