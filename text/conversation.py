"""Conversations and the prompts they become: the messages, one model's way to write them, and what to leave out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from .templates.messages import Message, Part, ToolCall, with_images
from .templates.places import Places
from .templates.prompts import GoPrompts, JinjaPrompts, PromptWriter, Thinking

__all__ = ["Message", "Part", "PromptTemplate", "ToolCall", "fit_messages", "with_images"]

Think = bool | str | None  # None: the request says nothing; a string: true, and how much (low, medium, high)


class PromptTemplate:
    """One model's way to write prompts. Immutable and safe to use from several threads; parsing happens once."""

    def __init__(self, writer: PromptWriter) -> None:
        self._writer = writer

    @classmethod
    def open(cls, *, go: str | None = None, jinja: str | None = None, bos: str = "", eos: str = "") -> Self:
        """Return the template in Go's language, else the one in Jinja, else one that passes prompts on as they are.

        bos, eos: the text of the tokens that a Jinja template may write itself. Raises BadRequest with Go's message
        and line, or BadModel for a Jinja template, if it does not parse.
        """
        if go is None and jinja is not None:
            return cls(JinjaPrompts(jinja, bos=bos, eos=eos))
        return cls(GoPrompts("{{ .Prompt }}" if go is None else go))

    @property
    def source(self) -> str:
        """The template as it was written."""
        return self._writer.source

    @property
    def capabilities(self) -> frozenset[str]:
        """What the template has room for: "completion" always, "insert", "tools", "thinking"."""
        return self._writer.capabilities

    @property
    def thinking_tags(self) -> tuple[str, str] | None:
        """The marks before and after thinking, read off the template; None if it shows none."""
        return self._writer.thinking_tags

    @property
    def tool_tag(self) -> str | None:
        """The text that begins tool calls ("{" for bare JSON), read off a Go template; None if it shows none."""
        return self._writer.tool_tag

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: Think = None,
        image_marker: str = "",
    ) -> list[Part]:
        """Return the conversation as the model reads it, with the next reply left open: texts, and images between them.

        If the last message is the assistant's, the reply goes on from its text. tools: JSON schemas as clients send
        them. image_marker: what the model's own template writes for an image. What messages say is never taken for an
        image's place. Raises BadRequest with the template's own words if it refuses the conversation, for bad tools, or
        if it has no place for an image; BadModel if it fails.
        """
        places = Places(messages, [tools, self.source], marker=image_marker)
        return places.parts(self._writer.chat(places, tools or (), _thinking(think)))

    def insert(self, prompt: str, suffix: str, *, think: Think = None) -> str:
        """Return the prompt for the text between prompt and suffix. Raises Unsupported if there is no place for it."""
        return self._writer.insert(prompt, suffix, _thinking(think))


def _thinking(think: Think) -> Thinking:
    if isinstance(think, str):
        return Thinking(wanted=True, level=think)
    return Thinking(wanted=think, level="medium" if think else "")


async def fit_messages(
    messages: Sequence[Message], fits: Callable[[Sequence[Message]], Awaitable[bool]]
) -> list[Message]:
    """Return the longest run of latest messages that fits, with all system messages that come before it.

    The last message is always kept, even if it alone is too long. fits must not turn false when messages are left
    out; it is asked once if all of them fit and about log2(len(messages)) times if not.
    """
    if len(messages) < 2 or await fits(messages):
        return list(messages)
    too_early, start = 0, len(messages) - 1  # a run from too_early is too long; one from start has to do
    while start - too_early > 1:
        middle = (too_early + start) // 2
        if await fits(_kept(messages, middle)):
            start = middle
        else:
            too_early = middle
    return _kept(messages, start)


def _kept(messages: Sequence[Message], start: int) -> list[Message]:
    return [*(message for message in messages[:start] if message.role == "system"), *messages[start:]]
