"""A conversation at the terminal: its messages, its settings, and how the next answer is asked for."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

from .answer import Answer, Style, show_answer
from .client import Client
from .media import take_images
from .progress import Progress, waiting
from .replies import Chunk, Message, ModelCard


@dataclass
class Session:
    """The state of one conversation. The messages a model brings with it are the server's business, not kept here."""

    client: Client
    model: str
    card: ModelCard
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    format: Any = None
    think: bool | str | None = None
    keep_alive: str | None = None
    style: Style = Style()
    remembers: bool = True  # whether prompts go to the history file

    @property
    def sees(self) -> bool:
        """Whether the model reads images."""
        return "vision" in self.card.capabilities

    def load(self) -> None:
        """Bring the model into memory, with a spinner."""
        with waiting("loading model"):
            self.client.load(self.model, self.keep_alive)

    def switch(self, model: str) -> None:
        """Go on with another model and an empty conversation. Nothing changes if the model cannot be loaded."""
        other = replace(self, model=model, card=self.client.show(model))
        other.load()
        self.model, self.card = other.model, other.card
        self.clear()

    def clear(self) -> None:
        """Forget the conversation, but not the system text."""
        self.messages.clear()

    def say(self, text: str) -> None:
        """Send a message and show the answer.

        Interrupted with Ctrl-C, what has arrived of the answer stays part of the conversation. After an error the
        message is taken back, so that it can be sent again.
        """
        content, images = take_images(text) if self.sees else (text, [])
        question, answer = Message("user", content, images=images), Answer()
        try:
            show_answer(self._ask(question), self.style, answer)
        except KeyboardInterrupt:
            if not answer.text:
                return
        self.messages += [question, Message("assistant", answer.text, answer.thinking, tool_calls=answer.tool_calls)]

    def _ask(self, question: Message) -> Generator[Chunk, None, None]:
        system = [Message("system", self.system)] if self.system else []
        return self.client.chat(
            self.model,
            [*system, *self.messages, question],
            options=self.options or None,
            format=self.format,
            think=self.think,
            keep_alive=self.keep_alive,
        )

    def save(self, name: str) -> None:
        """Create a model from this one with the conversation's settings and messages."""
        request: dict[str, Any] = {
            "model": name,
            "from": self.model,
            "parameters": self.options,
            "messages": [*(self.card.messages or []), *self.messages],
        }
        if self.system:
            request["system"] = self.system
        with Progress() as progress:
            progress.follow(self.client.create(request))
