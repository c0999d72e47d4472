"""POST /api/chat: the next turn of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...core.errors import BadRequest, Unsupported
from ...core.scheduler.messages import Media
from ...store import InvalidName
from ...text.conversation import Message, ToolCall, with_images
from ..asking import Wish, check_think, check_top_logprobs, parse_keep_alive, schema_of
from ..composing import shown
from ..library import Model
from ..prompts import chat
from ..replies import json_response, respond
from ..requests import client_of, read_body
from ..serving import Serving
from ..streaming import NDJSON, SINGLE
from .chunks import ChatWriter
from .schema import ChatMessage, ChatRequest


class ChatEndpoint:
    """The endpoint of conversations."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Return the route to this endpoint."""
        return [Route("/api/chat", self.chat, methods=["POST"])]

    async def chat(self, request: Request) -> Response:
        """Answer POST /api/chat. No messages only load the model, or unload it with a keep_alive of 0."""
        body = await read_body(request, ChatRequest)
        wish, writer = _wish(body, client_of(request)), ChatWriter(body.model)
        model = await self._open(body.model)
        if not body.messages and wish.keep_alive == 0:
            return respond(self._serving.unload(model), writer, SINGLE)
        _check(body, model)
        if any(message.images for message in body.messages):
            await self._serving.check_sight(model, body.model)
        if not body.messages:
            return respond(self._serving.load(model, wish), writer, SINGLE)
        media = self._serving.media()
        messages = [_message(message, await media.images(message.images)) for message in body.messages]
        prompt = chat(model, messages, truncate=body.truncate)
        if body.render_only:
            return json_response(writer.rendered(*shown(await self._serving.render(model, wish, prompt))))
        return respond(self._serving.reply(model, wish, prompt), writer, NDJSON if body.stream else SINGLE)

    async def _open(self, name: str) -> Model:
        """Return the model called name; here, unlike in /api/generate, a name that cannot be one is a bad request."""
        try:
            return await self._serving.open(name)
        except InvalidName:
            raise BadRequest("model is required") from None


def _wish(body: ChatRequest, client: str) -> Wish:
    return Wish(
        client=client,
        options=body.options,
        keep_alive=parse_keep_alive(body.keep_alive),
        truncate=body.truncate,
        shift=body.shift,
        schema=schema_of(body.format),
        logprobs=check_top_logprobs(body.logprobs, body.top_logprobs),
    )


def _check(body: ChatRequest, model: Model) -> None:
    """Raise Unsupported for what the model or this version cannot do."""
    check_think(body.model, body.think)
    if body.tools:
        raise Unsupported(f"{model.full_name} does not support tools")


def _message(message: ChatMessage, images: Sequence[Media]) -> Message:
    return Message(
        role=message.role.lower(),
        content=with_images(message.content or "", images),
        tool_calls=tuple(
            ToolCall(call.function.name, call.function.arguments, call.id, call.function.index)
            for call in message.tool_calls or ()
        ),
        thinking=message.thinking or "",
        tool_name=message.tool_name or "",
        tool_call_id=message.tool_call_id or "",
    )
