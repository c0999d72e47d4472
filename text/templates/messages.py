"""The turns of a conversation, before any template has written them down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ...core.scheduler.messages import Media

Part = str | Media


class ToolCall(Struct, frozen=True):
    """A call that the assistant made. arguments: the JSON object, in the order sent. index: its place in the reply."""

    name: str
    arguments: dict[str, Any] = {}
    id: str = ""
    index: int = 0


class Message(Struct, frozen=True):
    """One turn. role: system, user, assistant, tool or what else a template knows.

    content: a text, or texts and images in their order. tool_name, tool_call_id: which call a message of role tool
    answers.
    """

    role: str
    content: str | tuple[Part, ...] = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""

    @property
    def media(self) -> list[Media]:
        """The images."""
        return [] if isinstance(self.content, str) else [part for part in self.content if isinstance(part, Media)]

    @property
    def text(self) -> str:
        """The content of a message without images, or in which stand-ins stand for them."""
        assert isinstance(self.content, str)
        return self.content


def with_images(text: str, images: Sequence[Media]) -> str | tuple[Part, ...]:
    """Return the content of a message that holds its images apart from its text.

    An image replaces a literal `[img]` of the text, in order, and stands before the text where there is none.
    """
    if not images:
        return text
    pieces = text.split("[img]", min(text.count("[img]"), len(images)))
    placed = len(pieces) - 1
    parts: list[Part] = [*images[placed:], pieces[0]]
    for image, piece in zip(images[:placed], pieces[1:], strict=True):
        parts += [image, piece]
    return tuple(part for part in parts if part != "")


def merged(messages: Sequence[Message]) -> list[Message]:
    """Return messages with neighbours of one role made one, their texts a blank line apart.

    Of a later neighbour only the text survives. Results of tools stay apart.
    """
    together: list[Message] = []
    for message in messages:
        if together and together[-1].role == message.role != "tool":
            together[-1] = replace(together[-1], content=f"{together[-1].text}\n\n{message.text}")
        else:
            together.append(message)
    return together
