"""GET /v1/models and GET /v1/models/NAME."""

from __future__ import annotations

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...core.errors import NotFound
from ...store import InvalidName, StoredModel
from ..replies import json_response
from ..serving import Serving
from .schema import ModelEntry, ModelList


class ModelEndpoints:
    """The endpoints that list models."""

    def __init__(self, serving: Serving) -> None:
        self._store = serving.store

    def routes(self) -> list[Route]:
        """Return the routes to these endpoints. A name may hold slashes."""
        return [
            Route("/v1/models", self.list, methods=["GET"]),
            Route("/v1/models/{name:path}", self.one, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        models = await anyio.to_thread.run_sync(self._store.list)
        return json_response(ModelList("list", [_entry(model, model.name.short) for model in models]))

    async def one(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME; the answer's id is the name as asked."""
        name = request.path_params["name"]
        try:
            model = await anyio.to_thread.run_sync(self._store.open, name)
        except InvalidName:
            raise NotFound(f"model '{name}' not found") from None
        return json_response(_entry(model, name))


def _entry(model: StoredModel, name: str) -> ModelEntry:
    return ModelEntry(name, "model", int(model.modified_at.timestamp()), model.name.namespace)
