"""The prompts that models read: each kind of request has its own way to one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio.to_thread

from ..core.errors import BadRequest, Unsupported
from ..core.scheduler.messages import Media
from ..text.conversation import Message, Part, PromptTemplate, fit_messages, with_images
from .composing import Composer
from .library import Model

_RAW_PLACE = re.compile(r"\[img-([0-9]{1,9})\]")


class Prompt(Protocol):
    """Texts and images that may depend on how a model's tokenizer counts."""

    async def parts(self, composer: Composer, limit: int) -> list[Part]:
        """Return them in order, as short as limit (tokens) demands where there is a choice."""


@dataclass(frozen=True)
class Raw:
    """A text that is read as it stands. `[img-N]` in it is the place of the image N, if there are any."""

    prompt: str
    images: Sequence[Media] = ()

    async def parts(self, composer: Composer, limit: int) -> list[Part]:
        """Return it. Raises BadRequest for a place without an image, and an image without a place."""
        if not self.images:
            return [self.prompt]
        first, *rest = _RAW_PLACE.split(self.prompt)  # texts and numbers by turns
        numbers = [int(number) for number in rest[::2]]
        if wrong := [number for number in numbers if number >= len(self.images)]:
            raise BadRequest(f"invalid image index: {wrong[0]}")
        if forgotten := set(range(len(self.images))) - set(numbers):
            raise BadRequest(f"a raw prompt says where its images are: there is no [img-{min(forgotten)}] in this one")
        found: list[Part] = [first]
        for number, text in zip(numbers, rest[1::2], strict=True):
            found += [self.images[number], text]
        return [part for part in found if part != ""]


@dataclass(frozen=True)
class Conversation:
    """Messages, written by a template. truncate: drop the oldest ones until the prompt fits."""

    template: PromptTemplate
    messages: Sequence[Message]
    truncate: bool = True

    async def parts(self, composer: Composer, limit: int) -> list[Part]:
        """Return the rendered conversation. Images go with their messages."""
        marker = composer.runner.facts.image_marker

        async def fits(messages: Sequence[Message]) -> bool:
            return len((await composer.compose(await self._render(messages, marker))).tokens) <= limit

        kept = await fit_messages(self.messages, fits) if self.truncate else self.messages
        return await self._render(kept, marker)

    async def _render(self, messages: Sequence[Message], marker: str) -> list[Part]:
        # In a thread of its own: a template is a program, and it may be a slow one.
        return await anyio.to_thread.run_sync(partial(self.template.chat, messages, image_marker=marker))


@dataclass(frozen=True)
class Insertion:
    """Text before and text after the one to be written."""

    template: PromptTemplate
    prompt: str
    suffix: str

    async def parts(self, composer: Composer, limit: int) -> list[Part]:
        """Return what the template makes of the two."""
        return [await anyio.to_thread.run_sync(self.template.insert, self.prompt, self.suffix)]


@dataclass(frozen=True)
class Continued:
    """A prompt behind the tokens of an earlier request and its answer."""

    context: Sequence[int]
    prompt: Prompt

    async def parts(self, composer: Composer, limit: int) -> list[Part]:
        """Return the earlier text and the new prompt. Raises BadRequest for tokens that the model does not have."""
        runner = composer.runner
        earlier = await runner.detokenize(self.context)
        first, *rest = await self.prompt.parts(composer, limit)
        # Templates of Hugging Face begin with the start token, which belongs at the start alone.
        start = await runner.detokenize(await runner.tokenize("", start=True))
        return [earlier, first.removeprefix(start) if isinstance(first, str) else first, *rest]


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
    images: Sequence[Media] = (),
    suffix: str = "",
    system: str = "",
    template: PromptTemplate | None = None,
    context: Sequence[int] = (),
    truncate: bool = True,
) -> Prompt:
    """Return the prompt of a completion. system and template stand in for the model's, unless empty.

    context: tokens of an earlier prompt and its answer, which the new prompt continues. They hold the model's own
    messages already. Raises Unsupported for a suffix if the template has no place for one, BadRequest for one with
    images, which stand before the prompt or where it says `[img]`.
    """
    template = template or model.template
    text: Prompt
    if suffix:
        if "insert" not in template.capabilities:
            raise Unsupported(f"{model.full_name} does not support insert")
        if images:
            raise BadRequest("a text before a suffix is filled in without images")
        text = Insertion(template, prompt, suffix)
    else:
        stored = () if context else model.messages
        messages = [
            *_system(system or model.system),
            *stored,
            Message(role="user", content=with_images(prompt, images)),
        ]
        text = Conversation(template, messages, truncate)
    return Continued(context, text) if context else text


def _system(text: str) -> list[Message]:
    return [Message(role="system", content=text)] if text else []
