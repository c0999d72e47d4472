"""The texts that models read: each kind of request has its own way to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio.to_thread

from ..core.errors import Unsupported
from ..core.scheduler.runner import Runner
from ..text.conversation import Message, PromptTemplate, fit_messages
from .library import Model


class Prompt(Protocol):
    """A text that may depend on how a model's tokenizer counts."""

    async def text(self, runner: Runner, limit: int) -> str:
        """Return the text, as short as limit (tokens) demands where there is a choice."""


@dataclass(frozen=True)
class Raw:
    """A text that is read as it stands."""

    prompt: str

    async def text(self, runner: Runner, limit: int) -> str:
        """Return it."""
        return self.prompt


@dataclass(frozen=True)
class Conversation:
    """Messages, written by a template. truncate: drop the oldest ones until the prompt fits."""

    template: PromptTemplate
    messages: Sequence[Message]
    truncate: bool = True

    async def text(self, runner: Runner, limit: int) -> str:
        """Return the rendered conversation."""

        async def fits(messages: Sequence[Message]) -> bool:
            return len(await runner.tokenize(await self._render(messages))) <= limit

        kept = await fit_messages(self.messages, fits) if self.truncate else self.messages
        return await self._render(kept)

    async def _render(self, messages: Sequence[Message]) -> str:
        # In a thread of its own: a template is a program, and it may be a slow one.
        return await anyio.to_thread.run_sync(self.template.chat, messages)


@dataclass(frozen=True)
class Insertion:
    """Text before and text after the one to be written."""

    template: PromptTemplate
    prompt: str
    suffix: str

    async def text(self, runner: Runner, limit: int) -> str:
        """Return what the template makes of the two."""
        return await anyio.to_thread.run_sync(self.template.complete, self.prompt, self.suffix)


@dataclass(frozen=True)
class Continued:
    """A prompt behind the tokens of an earlier request and its answer."""

    context: Sequence[int]
    prompt: Prompt

    async def text(self, runner: Runner, limit: int) -> str:
        """Return the earlier text and the new prompt. Raises BadRequest for tokens that the model does not have."""
        earlier, new = await runner.detokenize(self.context), await self.prompt.text(runner, limit)
        # Templates of Hugging Face begin with the start token, which belongs at the start alone.
        start = await runner.detokenize(await runner.tokenize("", start=True))
        return earlier + new.removeprefix(start)


def chat(model: Model, messages: Sequence[Message], *, truncate: bool = True) -> Prompt:
    """Return the prompt of a conversation: the model's own messages come first, and before them its system text.

    A request whose first message has the role system has brought its own.
    """
    own_system = bool(messages) and messages[0].role == "system"
    return Conversation(
        model.template, [*([] if own_system else _system(model.system)), *model.messages, *messages], truncate
    )


def completion(
    model: Model,
    prompt: str,
    *,
    suffix: str = "",
    system: str = "",
    template: PromptTemplate | None = None,
    context: Sequence[int] = (),
    truncate: bool = True,
) -> Prompt:
    """Return the prompt of a completion. system and template stand in for the model's, unless empty.

    context: tokens of an earlier prompt and its answer, which the new prompt continues. They hold the model's own
    messages already. Raises Unsupported for a suffix if the template has no place for one.
    """
    template = template or model.template
    text: Prompt
    if suffix:
        if "insert" not in template.capabilities:
            raise Unsupported(f"{model.full_name} does not support insert")
        text = Insertion(template, prompt, suffix)
    else:
        stored = () if context else model.messages
        messages = [*_system(system or model.system), *stored, Message(role="user", content=prompt)]
        text = Conversation(template, messages, truncate)
    return Continued(context, text) if context else text


def _system(text: str) -> list[Message]:
    return [Message(role="system", content=text)] if text else []
