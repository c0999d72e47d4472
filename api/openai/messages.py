"""Turns the messages of an OpenAI chat into those that templates read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ...core.errors import BadRequest, Unsupported
from ...text.conversation import Message, Part, ToolCall
from ..media import MediaReader
from ..requests import type_name
from .schema import ChatMessage

MEDIA = ("image_url", "video", "video_url")  # types of parts
FRAMES_A_SECOND = 2  # at which models take videos to be shown
DETAILS = ("auto", "low", "high", None)  # accepted for what they are: each model has sizes of its own for images


async def conversation(messages: Sequence[ChatMessage], media: MediaReader) -> list[Message]:
    """Return messages with their parts in order.

    Raises BadRequest for a content, a part, an image or a tool call of the wrong form, Unsupported for other parts.
    """
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    return [await _turn(message, names, media) for message in messages]


def has_media(messages: Iterable[ChatMessage]) -> bool:
    """Whether there is anything but text in messages."""
    parts = (part for message in messages if isinstance(message.content, list) for part in message.content)
    return any(isinstance(part, dict) and part.get("type") in MEDIA for part in parts)


async def _turn(message: ChatMessage, names: dict[str, str], media: MediaReader) -> Message:
    calls = tuple(_call(call, names) for call in message.tool_calls or ())
    return Message(
        role="system" if message.role == "developer" else message.role,  # the newer name of the same thing
        content=await _content(message.content, media, may_be_missing=bool(calls)),
        tool_calls=calls,
        thinking=message.reasoning or "",
        tool_name=names.get(message.tool_call_id or "", ""),
        tool_call_id=message.tool_call_id or "",
    )


async def _content(content: Any, media: MediaReader, *, may_be_missing: bool) -> str | tuple[Part, ...]:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return _joined([await _part(part, media) for part in content])
    if content is None and may_be_missing:
        return ""
    raise BadRequest(f"invalid message content type: {type_name(content)}")


async def _part(part: Any, media: MediaReader) -> Part:
    match part:
        case {"type": "text" | "refusal" as kind} if isinstance(part.get(kind), str):
            return str(part[kind])
        case {"type": "image_url", "image_url": str(url)}:
            return await media.image(url)
        case {"type": "image_url", "image_url": {"url": str(url), **more}}:
            if more.get("detail") not in DETAILS:
                raise BadRequest("invalid image input: detail must be auto, low or high")
            return await media.image(url)
        case {"type": "video", "video": [_, *_] as urls} if all(isinstance(url, str) for url in urls):
            _check_rate(part)
            return await media.video(urls)
        case {"type": "video_url", "video_url": str(url) | {"url": str(url)}}:
            _check_rate(part)
            return await media.video_at(url)
        case {"type": str(kind)} if kind not in ("text", "refusal", *MEDIA):
            raise Unsupported(f"message parts of type {kind} are not supported")
    raise BadRequest("invalid message format")


def _check_rate(part: dict[str, Any]) -> None:
    if part.get("fps", FRAMES_A_SECOND) != FRAMES_A_SECOND:
        raise Unsupported(f"videos are read at {FRAMES_A_SECOND} frames a second: send as many, and no other fps")


def _joined(parts: Sequence[Part]) -> str | tuple[Part, ...]:
    """Return parts with neighbouring texts made one, a blank line apart, as Ollama does."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += f"\n\n{part}"
        else:
            joined.append(part)
    match joined:
        case []:
            return ""
        case [str(text)]:
            return text
    return tuple(joined)


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
