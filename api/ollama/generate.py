"""POST /api/generate: a completion."""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...core.errors import BadRequest, Failure, NotFound, Unsupported
from ...core.scheduler.messages import Media
from ...store import InvalidName
from ...text.conversation import PromptTemplate
from ..asking import Wish, check_think, check_top_logprobs, parse_keep_alive, schema_of
from ..composing import shown
from ..errors import ReportedAs500
from ..library import Model
from ..prompts import Prompt, Raw, completion
from ..replies import json_response, respond
from ..requests import client_of, read_body
from ..serving import Serving
from ..streaming import NDJSON, SINGLE
from .chunks import GenerateWriter
from .schema import GenerateRequest


class GenerateEndpoint:
    """The endpoint of completions."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Return the route to this endpoint."""
        return [Route("/api/generate", self.generate, methods=["POST"])]

    async def generate(self, request: Request) -> Response:
        """Answer POST /api/generate. With nothing to read it only loads the model, or unloads it if keep_alive is 0."""
        body = await read_body(request, GenerateRequest)
        wish, writer = _wish(body, client_of(request)), GenerateWriter(body.model)
        model = await self._open(body.model)
        asks = bool(body.prompt or body.images)
        if not asks and wish.keep_alive == 0:
            return respond(self._serving.unload(model), writer, SINGLE)
        _check(body)
        if body.images:
            await self._serving.check_sight(model, body.model)
        if not asks:
            return respond(self._serving.load(model, wish), writer, SINGLE)
        prompt = await _prompt(body, model, await self._serving.media().images(body.images))
        if body.render_only:
            return json_response(writer.rendered(*shown(await self._serving.render(model, wish, prompt))))
        events = self._serving.reply(model, wish, prompt, with_context=not body.raw)
        return respond(events, writer, NDJSON if body.stream else SINGLE)

    async def _open(self, name: str) -> Model:
        """Return the model called name; here, a name that cannot be one is merely not found."""
        try:
            return await self._serving.open(name)
        except InvalidName:
            raise NotFound(f"model '{name}' not found") from None


def _wish(body: GenerateRequest, client: str) -> Wish:
    return Wish(
        client=client,
        options=body.options,
        keep_alive=parse_keep_alive(body.keep_alive),
        truncate=body.truncate,
        shift=body.shift,
        schema=schema_of(body.format),
        logprobs=check_top_logprobs(body.logprobs, body.top_logprobs),
    )


def _check(body: GenerateRequest) -> None:
    """Raise BadRequest for contradictions, Unsupported for what this version cannot do."""
    if body.raw and (body.template or body.system or body.context):
        raise BadRequest("raw mode does not support template, system, or context")
    if body.raw and body.suffix:
        raise BadRequest("raw mode does not support suffix: write the markers into the prompt")
    check_think(body.model, body.think)
    if body.width or body.height or body.steps:
        raise Unsupported("image generation models are not supported: leave out width, height and steps")


async def _prompt(body: GenerateRequest, model: Model, images: Sequence[Media]) -> Prompt:
    """Return what the model shall read."""
    if body.raw:
        return Raw(body.prompt, images)
    return completion(
        model,
        body.prompt,
        images=images,
        suffix=body.suffix,
        system=body.system,
        template=await anyio.to_thread.run_sync(_parse_template, body.template) if body.template else None,
        context=body.context,
        truncate=body.truncate,
    )


def _parse_template(text: str) -> PromptTemplate:
    try:
        return PromptTemplate.open(go=text)
    except Failure as error:
        raise ReportedAs500(str(error)) from None
