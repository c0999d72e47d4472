"""What the server answers, as far as the command line looks at it. Fields a server leaves out have a default."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Version(msgspec.Struct, frozen=True):
    """GET /api/version: the interface's, and Puna's own if the server is one."""

    version: str
    puna: str = ""


class Details(msgspec.Struct, frozen=True):
    """What kind of model a model is."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class ListedModel(msgspec.Struct, frozen=True):
    """An entry of GET /api/tags. size in bytes."""

    name: str
    digest: str
    size: int
    modified_at: datetime


class LoadedModel(msgspec.Struct, frozen=True):
    """An entry of GET /api/ps. Sizes in bytes; size_vram is the part that accelerators hold."""

    name: str
    digest: str
    size: int
    expires_at: datetime
    size_vram: int = 0
    context_length: int = 0


class ModelList(msgspec.Struct, frozen=True):
    """GET /api/tags."""

    models: list[ListedModel]


class LoadedList(msgspec.Struct, frozen=True):
    """GET /api/ps."""

    models: list[LoadedModel]


class ToolFunction(msgspec.Struct, frozen=True):
    """The function a model wants called."""

    name: str
    arguments: dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True):
    """A call a model asks for."""

    function: ToolFunction


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, both ways. images are base64."""

    role: str
    content: str = ""
    thinking: str = ""
    images: list[str] = []
    tool_calls: list[ToolCall] = []


class Tensor(msgspec.Struct, frozen=True):
    """A row of a model's tensor table."""

    name: str
    type: str
    shape: list[int]


class ModelCard(msgspec.Struct, frozen=True):
    """POST /api/show."""

    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    messages: list[Message] | None = None
    details: Details = Details()
    model_info: dict[str, Any] = {}
    projector_info: dict[str, Any] = {}
    draft_info: dict[str, Any] = {}
    tensors: list[Tensor] | None = None
    capabilities: list[str] = []


class Chunk(msgspec.Struct, frozen=True):
    """A line of /api/generate or /api/chat; the last one has `done` and the figures. Durations in nanoseconds."""

    response: str = ""
    thinking: str = ""
    message: Message | None = None
    done: bool = False
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0

    @property
    def text(self) -> str:
        """The new text of the answer, whichever endpoint sent it."""
        return self.message.content if self.message else self.response

    @property
    def thought(self) -> str:
        """The new text of the model's thinking, whichever endpoint sent it."""
        return self.message.thinking if self.message else self.thinking


class Status(msgspec.Struct, frozen=True):
    """A progress line of /api/create. Sizes in bytes."""

    status: str = ""
    total: int = 0
    completed: int = 0


class ErrorBody(msgspec.Struct, frozen=True):
    """An error answer, or the error line that ends a stream."""

    error: str = ""
