"""Writes conversations with a template: what each of the two languages is given, and how a reply is left open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec.structs import replace

from ...core.errors import Failure, Unsupported
from .go import GoTemplate, Value
from .go_data import message_record, tool_records
from .jinja import JinjaTemplate
from .messages import Message, merged
from .places import Places

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether a request asks for thinking. wanted: None leaves it to the model. level: low, medium, high, or ""."""

    wanted: bool | None = None
    level: str = ""


class PromptWriter(Protocol):
    """A template of either language."""

    @property
    def source(self) -> str:
        """The template's text."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What the template has room for: completion, insert, tools, thinking."""

    @property
    def thinking_tags(self) -> tuple[str, str] | None:
        """The marks around a message's thinking."""

    @property
    def tool_tag(self) -> str | None:
        """The text that begins tool calls."""

    def chat(self, places: Places, tools: Tools, thinking: Thinking) -> str:
        """Return the conversation, left open for the next reply or for more of the last one, with stand-ins in it."""

    def insert(self, prompt: str, suffix: str, thinking: Thinking) -> str:
        """Return the prompt for the text between prompt and suffix."""


class GoPrompts:
    """A Modelfile's TEMPLATE. Raises BadRequest with Go's message and the line if source does not parse."""

    def __init__(self, source: str) -> None:
        template = GoTemplate(source)
        if not (template.mentions("Messages") or template.mentions("Response")):
            template = GoTemplate(source + "{{ .Response }}")
        self.source = source
        self._template = template
        self._last_turn = template.until_response()

    @property
    def capabilities(self) -> frozenset[str]:
        """What the template has room for."""
        found = {"completion"}
        if self._template.mentions("Suffix"):
            found.add("insert")
        if self._template.mentions("Tools"):
            found.add("tools")
        if self.thinking_tags:
            found.add("thinking")
        return frozenset(found)

    @property
    def thinking_tags(self) -> tuple[str, str] | None:
        """The marks around a message's thinking."""
        return self._template.thinking_tags

    @property
    def tool_tag(self) -> str | None:
        """The text that begins tool calls."""
        return self._template.tool_tag

    def chat(self, places: Places, tools: Tools, thinking: Thinking) -> str:
        """Return the conversation, in one run if the template walks the messages itself, else in one run a turn."""
        messages = merged(places.flattened())
        if not self._template.mentions("Messages"):
            return self._turns(messages, thinking)
        data: dict[str, Value] = {
            "System": "\n\n".join(message.text for message in messages if message.role == "system"),
            "Messages": [message_record(message, places.count(message.text)) for message in messages],
            "Tools": tool_records(tools),
            "Response": "",
        }
        return self._template.render(data | _thinking_data(thinking))

    def _turns(self, messages: Sequence[Message], thinking: Thinking) -> str:
        """Render turn by turn. The last one ends where its answer does, so that an answer begun goes on."""
        rest = _thinking_data(thinking)
        *finished, last = _turns(messages)
        return "".join(self._template.render(turn | rest) for turn in finished) + self._last_turn.render(last | rest)

    def insert(self, prompt: str, suffix: str, thinking: Thinking) -> str:
        """Return the prompt for the text between prompt and suffix. Raises Unsupported if there is no place for it."""
        if not self._template.mentions("Suffix"):
            raise Unsupported("the model's template does not support insert")
        return self._template.render({"Prompt": prompt, "Suffix": suffix, "Response": ""} | _thinking_data(thinking))


def _thinking_data(thinking: Thinking) -> dict[str, Value]:
    return {
        "Think": bool(thinking.wanted),
        "ThinkLevel": thinking.level,
        "IsThinkSet": thinking.wanted is not None,
    }


def _turns(messages: Sequence[Message]) -> list[dict[str, Value]]:
    """Return what each run of a template without `.Messages` gets: system, prompt and response of one turn."""
    turns = [_turn()]
    for message in messages:
        turn = turns[-1]
        match message.role:
            case "system":
                if turn["Prompt"] or turn["Response"]:
                    turns.append(turn := _turn())
                turn["System"] = message.text
            case "user":
                if turn["Response"]:
                    turns.append(turn := _turn())
                turn["Prompt"] = message.text
            case "assistant":
                turn["Response"] = message.text
    return turns


def _turn() -> dict[str, Value]:
    return {"System": "", "Prompt": "", "Response": ""}


# Stands in for a reply begun; templates may trim it, but have no reason to change or look for private characters.
_PREFILL = "\ue0b5\ue0f1\ue0b5"


class JinjaPrompts:
    """A checkpoint's chat template, given the variables that transformers gives it.

    bos, eos: the text of the special tokens it may write. Raises BadModel if source is no template.
    """

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        self.source = source
        self._template = JinjaTemplate(source)
        self._tokens = {"bos_token": bos, "eos_token": eos}

    @property
    def capabilities(self) -> frozenset[str]:
        """What the template has room for, going by the words in it."""
        found = {"completion"}
        if "tools" in self.source or "tool_call" in self.source:
            found.add("tools")
        if self.thinking_tags:
            found.add("thinking")
        return frozenset(found)

    @property
    def thinking_tags(self) -> tuple[str, str] | None:
        """The usual marks, if both occur in the template."""
        tags = "<think>", "</think>"
        return tags if all(tag in self.source for tag in tags) else None

    @property
    def tool_tag(self) -> str | None:
        """None: this language does not show how calls begin without running it."""
        return None

    def chat(self, places: Places, tools: Tools, thinking: Thinking) -> str:
        """Return the conversation. A last message of the assistant is the beginning of the reply."""

        def render(messages: Sequence[Message], *, open_reply: bool) -> str:
            variables = self._variables(tools, thinking, open_reply=open_reply)
            return self._with_markers(messages, variables, places) or self._render(messages, variables)

        messages = places.flattened()
        if not messages or messages[-1].role != "assistant":
            return render(messages, open_reply=True)
        begun = replace(messages[-1], content=_PREFILL, tool_calls=())
        text, found, _ = render([*messages[:-1], begun], open_reply=False).rpartition(_PREFILL)
        if not found:  # the template leaves the reply out or writes it otherwise
            text = render(messages[:-1], open_reply=True)
        return text + messages[-1].text

    def _with_markers(self, messages: Sequence[Message], variables: Mapping[str, Any], places: Places) -> str | None:
        """Return what the template writes when contents are lists of parts, if there is a marker in it for each image.

        Those of models that see do so; others print such lists as Python does, or fail.
        """
        images = sum(places.count(message.text) for message in messages)
        if not images or not places.marker:
            return None
        with suppress(Failure):
            text = self._render(messages, variables, places.listed)
            if text.count(places.marker) == images:
                return places.unlisted(text)
        return None

    def _render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], content: Callable[[str], Any] = str
    ) -> str:
        """Return what the template writes. content: what it is given as the content of a message."""
        return self._template.render(
            messages=[_message_dict(message) | {"content": content(message.text)} for message in messages], **variables
        )

    def _variables(self, tools: Tools, thinking: Thinking, *, open_reply: bool) -> dict[str, Any]:
        fixed = {"tools": list(tools) or None, "documents": None, "add_generation_prompt": open_reply}
        return fixed | self._tokens | _thinking_variables(thinking)

    def insert(self, prompt: str, suffix: str, thinking: Thinking) -> str:
        """Raise Unsupported: chat templates know no text in the middle."""
        raise Unsupported("the model's template does not support insert")


def _message_dict(message: Message) -> dict[str, Any]:
    """Return message as transformers passes it; what is empty is absent, for templates ask `is defined`."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    optional = {
        "thinking": message.thinking,
        "reasoning_content": message.thinking,
        "tool_calls": calls,
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {"role": message.role, "content": message.text} | {name: v for name, v in optional.items() if v}


def _thinking_variables(thinking: Thinking) -> dict[str, Any]:
    """Return the names under which families of templates look for it; unset leaves each its own default."""
    variables: dict[str, Any] = {}
    if thinking.wanted is not None:
        variables |= {"enable_thinking": thinking.wanted, "thinking": thinking.wanted}
    if thinking.level:
        variables["reasoning_effort"] = thinking.level
    return variables
