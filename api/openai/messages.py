"""Turns the messages of an OpenAI chat into those that templates read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ...core.errors import BadRequest, Unsupported
from ...text.conversation import Message, ToolCall
from ..requests import type_name
from .schema import ChatMessage


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return messages with each part of a content as a message of its own; templates join neighbours of one role.

    Raises BadRequest for a content or a tool call of the wrong form, Unsupported for parts that are no text.
    """
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    return [turn for message in messages for turn in _turns(message, names)]


def _turns(message: ChatMessage, names: dict[str, str]) -> Iterator[Message]:
    calls = tuple(_call(call, names) for call in message.tool_calls or ())
    role = "system" if message.role == "developer" else message.role  # the newer name of the same thing
    for number, text in enumerate(_texts(message, has_calls=bool(calls))):
        yield Message(
            role=role,
            content=text,
            tool_calls=() if number else calls,  # joining the parts keeps those of the first
            thinking=message.reasoning or "",
            tool_name=names.get(message.tool_call_id or "", ""),
            tool_call_id=message.tool_call_id or "",
        )


def _texts(message: ChatMessage, *, has_calls: bool) -> list[str]:
    content = message.content
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        return [_text(part) for part in content]
    if content is None and has_calls:
        return [""]
    raise BadRequest(f"invalid message content type: {type_name(content)}")


def _text(part: Any) -> str:
    match part:
        case {"type": "text" | "refusal" as kind} if isinstance(part.get(kind), str):
            return str(part[kind])
        case {"type": "image_url"}:
            raise Unsupported("this model cannot read images")
        case {"type": str(kind)} if kind not in ("text", "refusal"):
            raise Unsupported(f"message parts of type {kind} are not supported")
    raise BadRequest("invalid message format")


def _call(call: Any, names: dict[str, str]) -> ToolCall:
    match call:
        case {"function": {"name": str(name), "arguments": str(text)}}:
            names[str(call.get("id", ""))] = name
            return ToolCall(name=name, arguments=_arguments(text), id=str(call.get("id", "")))
    raise BadRequest("invalid tool call: expected a function with a name and arguments, both strings")


def _arguments(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise BadRequest("invalid tool call arguments") from None
