"""Ollama's HTTP API, under /api."""

from __future__ import annotations

from starlette.routing import Route

from ..serving import Serving
from .chat import ChatEndpoint
from .create import CreateEndpoints
from .generate import GenerateEndpoint
from .models import ModelEndpoints

__all__ = ["routes"]


def routes(serving: Serving) -> list[Route]:
    """Return the routes of the API."""
    endpoints = (ModelEndpoints(serving), GenerateEndpoint(serving), ChatEndpoint(serving), CreateEndpoints(serving))
    return [route for endpoint in endpoints for route in endpoint.routes()]
