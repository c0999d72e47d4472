"""Listing, showing, copying and deleting models, and what is loaded."""

from __future__ import annotations

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import __version__
from ...core.errors import BadModel, BadRequest, NotFound
from ...core.scheduler import models as loading
from ...store import Details, Digest, InvalidName, ModelName, ModelNotFound, ShowInfo, StoredModel, show
from ..replies import json_response
from ..requests import read_body
from ..serving import Serving
from ..times import expiry, rfc3339
from .schema import (
    CopyRequest,
    ListedModel,
    LoadedList,
    LoadedModel,
    ModelCard,
    ModelList,
    NamedRequest,
    ShowRequest,
    TensorEntry,
    Version,
)

OLLAMA_VERSION = "0.7.0"  # the release whose interface this is; what later ones added is marked in docs/api.md


class ModelEndpoints:
    """The endpoints that look after the store."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self._store = serving, serving.store

    def routes(self) -> list[Route]:
        """Return the routes to these endpoints."""
        return [
            Route("/api/version", self.version, methods=["GET"]),
            Route("/api/tags", self.list, methods=["GET"]),
            Route("/api/ps", self.loaded, methods=["GET"]),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/copy", self.copy, methods=["POST"]),
            Route("/api/delete", self.delete, methods=["DELETE"]),
        ]

    async def version(self, request: Request) -> Response:
        """Answer GET /api/version."""
        return json_response(Version(version=OLLAMA_VERSION, puna=__version__))

    async def list(self, request: Request) -> Response:
        """Answer GET /api/tags."""
        models = await anyio.to_thread.run_sync(self._store.list)
        return json_response(ModelList([_listed(model) for model in models]))

    async def loaded(self, request: Request) -> Response:
        """Answer GET /api/ps: the one that stays longest first."""
        models = sorted(self._serving.models.loaded(), key=lambda model: expiry(model.expires_at), reverse=True)
        return json_response(LoadedList([await self._loaded(model) for model in models]))

    async def _loaded(self, model: loading.Resident) -> LoadedModel:
        """Return the line of a loaded model."""
        digest, details = await self._identity(model)
        return LoadedModel(
            name=model.name,
            model=model.name,
            size=model.runner.memory_bytes if model.runner else 0,
            digest=digest.hex,
            details=details,
            expires_at=rfc3339(expiry(model.expires_at)),
            size_vram=0,
            context_length=self._serving.context_length(model.runner),
        )

    async def _identity(self, model: loading.Resident) -> tuple[Digest, Details]:
        """Return the digest and the details of a loaded model.

        If its name was deleted or its files spoilt meanwhile, they are what is known about the weights in memory.
        """
        try:
            stored = await anyio.to_thread.run_sync(self._store.open, model.name)
        except (NotFound, BadModel):
            family = model.runner.facts.architecture if model.runner else ""
            return Digest(model.key), Details(
                parent_model="",
                format="",
                family=family,
                families=[family],
                parameter_size="",
                quantization_level="",
            )
        return stored.digest, stored.details

    async def show(self, request: Request) -> Response:
        """Answer POST /api/show."""
        body = await read_body(request, ShowRequest)
        if not body.target:
            raise BadRequest("model is required")
        model = await anyio.to_thread.run_sync(self._store.open, body.target)
        info = await anyio.to_thread.run_sync(
            lambda: show(
                model,
                verbose=body.verbose,
                system=body.system or None,
                template=body.template or None,
                options=body.options,
            )
        )
        return json_response(_card(info, await self._serving.library.capabilities(model)))

    async def copy(self, request: Request) -> Response:
        """Answer POST /api/copy."""
        body = await read_body(request, CopyRequest)
        for field, name in (("source", body.source), ("destination", body.destination)):
            _check_name(name, f'{field} "{name}" is invalid')
        try:
            await anyio.to_thread.run_sync(self._store.copy, body.source, body.destination)
        except ModelNotFound:
            raise NotFound(f'model "{body.source}" not found') from None
        return Response()

    async def delete(self, request: Request) -> Response:
        """Answer DELETE /api/delete."""
        body = await read_body(request, NamedRequest)
        _check_name(body.target, f'name "{body.target}" is invalid')
        await anyio.to_thread.run_sync(self._store.delete, body.target)
        return Response()


def _check_name(name: str, problem: str) -> None:
    try:
        ModelName.parse(name)
    except InvalidName:
        raise BadRequest(problem) from None


def _listed(model: StoredModel) -> ListedModel:
    return ListedModel(
        name=model.name.short,
        model=model.name.short,
        modified_at=rfc3339(model.modified_at),
        size=model.size,
        digest=model.digest.hex,
        details=msgspec.structs.replace(model.details, parent_model=""),
    )


def _card(info: ShowInfo, capabilities: list[str]) -> ModelCard:
    return ModelCard(
        license=info.license,
        modelfile=info.modelfile,
        parameters=info.parameters,
        template=info.template,
        system=info.system,
        details=info.details,
        messages=info.messages,
        model_info=info.model_info,
        projector_info=info.projector_info,
        draft_info=info.draft_info,
        tensors=[TensorEntry(tensor.name, tensor.type, list(reversed(tensor.shape))) for tensor in info.tensors],
        capabilities=capabilities,
        modified_at=rfc3339(info.modified_at),
        requires=info.requires,
    )
