"""What a failure looks like over HTTP: its status and, in each API's words, its body."""

from __future__ import annotations

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ..core.errors import BadModel, BadRequest, Busy, Failure, NotFound, RunnerDied
from ..store.options import WrongType
from .requests import BodyTooLarge


class ReportedAs500(BadRequest):
    """A mistake of the caller that this protocol answers with a 500, as it does a WrongType."""


STATUS: dict[type[BaseException], int] = {
    ReportedAs500: 500,
    WrongType: 500,
    BodyTooLarge: 413,
    NotFound: 404,
    BadRequest: 400,
    Busy: 503,
    BadModel: 500,
    RunnerDied: 500,
    Failure: 500,
}
DIED = "an error was encountered while running the model"
OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error", 413: "invalid_request_error"}


class NativeError(msgspec.Struct):
    """The error body of /api: `{"error": "text"}`."""

    error: str


class OpenAIProblem(msgspec.Struct):
    """What went wrong, as the OpenAI SDKs parse it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(msgspec.Struct):
    """The error body of /v1."""

    error: OpenAIProblem


def status_of(error: Exception) -> int:
    """Return the HTTP status that tells a client about error; 500 for one that nobody raised on purpose."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def text_of(error: Exception) -> str:
    """Return what a client may read about error. A bug says no more than that it is one; the log has the rest."""
    if isinstance(error, RunnerDied):
        text = str(error)
        return text if text.startswith(DIED) else f"{DIED}: {text}"
    if isinstance(error, Failure):
        return str(error)
    if isinstance(error, HTTPException):
        return error.detail
    return "internal server error"


def native_body(error: Exception) -> NativeError:
    """Return the body in which /api reports error, as a whole answer or as a stream's last line."""
    return NativeError(text_of(error))


def openai_body(error: Exception) -> OpenAIError:
    """Return the body in which /v1 reports error, as a whole answer or as a stream's last event."""
    return OpenAIError(OpenAIProblem(text_of(error), OPENAI_TYPES.get(status_of(error), "api_error")))


async def answer_failure(request: Request, error: Exception) -> Response:
    """Return the answer to a request that failed before its response began."""
    body = openai_body(error) if request.url.path.startswith("/v1/") else native_body(error)
    return Response(
        msgspec.json.encode(body), status_code=status_of(error), media_type="application/json; charset=utf-8"
    )


async def answer_nobody(request: Request, error: Exception) -> Response:
    """Return what ends a request whose client left while it was sending."""
    return Response(status_code=499)


async def answer_routing(request: Request, error: Exception) -> Response:
    """Return the plain-text answer to a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    text = {404: "404 page not found", 405: "405 method not allowed"}[error.status_code]
    return PlainTextResponse(text, status_code=error.status_code, headers=error.headers)
