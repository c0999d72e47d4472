"""Building models: blobs, and POST /api/create."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...core.errors import BadRequest, Failure, Unsupported
from ...store import Progress
from ...text.conversation import PromptTemplate
from ..requests import read_body
from ..serving import Serving
from ..streaming import NDJSON, SINGLE, ProducedResponse
from .schema import CreateBody


class CreateEndpoints:
    """The endpoints that add to the store."""

    def __init__(self, serving: Serving) -> None:
        self._store = serving.store

    def routes(self) -> list[Route]:
        """Return the routes to these endpoints. A blob may be of any size; it is stored while it arrives."""
        return [
            Route("/api/create", self.create, methods=["POST"]),
            Route("/api/blobs/{digest}", self.has_blob, methods=["HEAD"]),
            Route("/api/blobs/{digest}", self.add_blob, methods=["POST"]),
        ]

    async def has_blob(self, request: Request) -> Response:
        """Answer HEAD /api/blobs/DIGEST."""
        there = await anyio.to_thread.run_sync(self._store.has_blob, request.path_params["digest"])
        return Response(status_code=200 if there else 404)

    async def add_blob(self, request: Request) -> Response:
        """Answer POST /api/blobs/DIGEST: 201 if it is stored, 200 if it was there already."""
        new = await self._store.add_blob(request.path_params["digest"], request.stream())
        return Response(status_code=201 if new else 200)

    async def create(self, request: Request) -> Response:
        """Answer POST /api/create."""
        body = await read_body(request, CreateBody)
        if body.info:
            raise Unsupported("info is not supported: the facts of a model are read from its files")
        wanted = msgspec.structs.replace(
            body, model=body.model or body.name, quantize=body.quantize or body.quantization
        )
        if wanted.template:
            await anyio.to_thread.run_sync(_check_template, wanted.template)
        steps = await anyio.to_thread.run_sync(self._store.create, wanted)
        if body.stream:
            return ProducedResponse(_in_thread(steps), NDJSON)
        return ProducedResponse(_last(_in_thread(steps)), SINGLE)


def _check_template(text: str) -> None:
    """Raise BadRequest for a template that does not parse: it would spoil every request to the new model."""
    try:
        PromptTemplate.open(go=text)
    except Failure as error:
        raise BadRequest(f"template error: {error}") from None


async def _in_thread(steps: Generator[Progress, None, None]) -> AsyncGenerator[Progress, None]:
    """Yield the steps of work that blocks, each taken in a worker thread; closing this closes them."""
    try:
        while (step := await anyio.to_thread.run_sync(next, steps, None)) is not None:
            yield step
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(steps.close)


async def _last(steps: AsyncGenerator[Progress, None]) -> AsyncGenerator[Progress, None]:
    """Yield the last of steps."""
    async with aclosing(steps):
        async for step in steps:
            last = step
    yield last
