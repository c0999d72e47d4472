"""The turns of a conversation, before any template has written them down."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace


class ToolCall(Struct, frozen=True):
    """A call that the assistant made. arguments: the JSON object, in the order sent. index: its place in the reply."""

    name: str
    arguments: dict[str, Any] = {}
    id: str = ""
    index: int = 0


class Message(Struct, frozen=True):
    """One turn. role: system, user, assistant, tool or what else a template knows. images: encoded files.

    tool_name, tool_call_id: which call a message of role tool answers.
    """

    role: str
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""
    images: tuple[bytes, ...] = ()


def with_image_marks(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose text says where their images are: `[img-N]`, N counting over all of them from 0.

    A mark replaces a literal `[img]` of the text, in order, and stands before the text where there is none.
    """
    numbers = itertools.count()
    marked = []
    for message in messages:
        before, content = "", message.content
        for number in itertools.islice(numbers, len(message.images)):
            if "[img]" in content:
                content = content.replace("[img]", f"[img-{number}]", 1)
            else:
                before += f"[img-{number}]"
        marked.append(replace(message, content=before + content) if message.images else message)
    return marked


def merged(messages: Sequence[Message]) -> list[Message]:
    """Return messages with neighbours of one role made one, their texts a blank line apart.

    Of a later neighbour only the text survives. Results of tools stay apart.
    """
    together: list[Message] = []
    for message in messages:
        if together and together[-1].role == message.role != "tool":
            together[-1] = replace(together[-1], content=f"{together[-1].content}\n\n{message.content}")
        else:
            together.append(message)
    return together
