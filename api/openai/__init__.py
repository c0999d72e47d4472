"""OpenAI's HTTP API, under /v1."""

from __future__ import annotations

from starlette.routing import Route

from ..serving import Serving
from .models import ModelEndpoints
from .replying import ReplyEndpoints

__all__ = ["routes"]


def routes(serving: Serving) -> list[Route]:
    """Return the routes of the API."""
    return [*ModelEndpoints(serving).routes(), *ReplyEndpoints(serving).routes()]
