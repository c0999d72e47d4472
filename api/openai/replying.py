"""POST /v1/chat/completions and POST /v1/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...core.errors import BadRequest, NotFound, Unsupported
from ...store import InvalidName
from ..asking import Wish, check_think
from ..library import Model
from ..prompts import chat, completion
from ..replies import respond
from ..requests import client_of, read_body
from ..serving import Serving
from ..streaming import EVENTS, SINGLE
from . import asking
from .chunks import ChatWriter, CompletionWriter
from .messages import conversation, has_media
from .schema import ChatRequest, CompletionRequest


class ReplyEndpoints:
    """The endpoints at which models speak."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Return the routes to these endpoints."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        body = await read_body(request, ChatRequest, missing="EOF")
        asking.check_chat(body)
        wish = Wish(
            client=client_of(request),
            options=asking.chat_options(body),
            schema=asking.chat_schema(body),
            logprobs=asking.chat_logprobs(body),
        )
        think = asking.think_level(body)
        try:
            model = await self._serving.open(body.model)
        except InvalidName:
            raise BadRequest("model is required") from None
        check_think(body.model, think)
        if body.tools:
            raise Unsupported(f"{model.full_name} does not support tools")
        if has_media(body.messages):
            await self._serving.check_sight(model, body.model)
        messages = await conversation(body.messages, self._serving.media())
        writer = ChatWriter(body.model, include_usage=bool(body.stream_options.include_usage))
        events = self._serving.reply(model, wish, chat(model, messages))
        return respond(events, writer, EVENTS if body.stream else SINGLE)

    async def complete(self, request: Request) -> Response:
        """Answer POST /v1/completions: with the model's template, as /api/generate."""
        body = await read_body(request, CompletionRequest, missing="EOF")
        asking.check_completion(body)
        wish = Wish(
            client=client_of(request),
            options=asking.completion_options(body),
            logprobs=asking.completion_logprobs(body),
        )
        model = await self._open(body.model)
        writer = CompletionWriter(body.model, include_usage=bool(body.stream_options.include_usage))
        if body.prompt:
            events = self._serving.reply(model, wish, completion(model, body.prompt, suffix=body.suffix))
        else:
            events = self._serving.load(model, wish)
        return respond(events, writer, EVENTS if body.stream else SINGLE)

    async def _open(self, name: str) -> Model:
        try:
            return await self._serving.open(name)
        except InvalidName:
            raise NotFound(f"model '{name}' not found") from None
