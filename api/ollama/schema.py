"""The messages of /api: what clients send and what they get back. Fields are in the order in which they are written."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from ...store import CreateRequest, Details, Message


class GenerateRequest(Struct, kw_only=True):
    """POST /api/generate."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] = []
    stream: bool = True
    raw: bool = False
    format: Any = None
    images: list[str] = []
    keep_alive: float | str | UnsetType = UNSET
    options: dict[str, Any] = {}
    think: bool | str | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    render_only: bool = field(default=False, name="_debug_render_only")
    width: int = 0
    height: int = 0
    steps: int = 0


class MessageFunction(Struct, omit_defaults=True):
    """The function that an assistant called."""

    name: str = ""
    arguments: dict[str, Any] = {}
    index: int = 0


class MessageToolCall(Struct, omit_defaults=True):
    """One call in an assistant's message."""

    function: MessageFunction
    id: str = ""


class ChatMessage(Struct, omit_defaults=True):
    """A turn of a conversation."""

    role: str
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[MessageToolCall] | None = None
    thinking: str | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatRequest(Struct, kw_only=True):
    """POST /api/chat."""

    model: str = ""
    messages: list[ChatMessage] = []
    tools: list[Any] = []
    stream: bool = True
    format: Any = None
    keep_alive: float | str | UnsetType = UNSET
    options: dict[str, Any] = {}
    think: bool | str | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    render_only: bool = field(default=False, name="_debug_render_only")


class TokenEntry(Struct):
    """A likely token at some place, its natural log probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobEntry(TokenEntry, omit_defaults=True):
    """A sampled token and, if they were asked for, the likeliest ones at its place."""

    top_logprobs: list[TokenEntry] = []


class DebugInfo(Struct, omit_defaults=True):
    """What `_debug_render_only` shows."""

    rendered_template: str
    image_count: int = 0


class Chunk(Struct, omit_defaults=True, kw_only=True):
    """What chunks of both kinds hold. Durations in nanoseconds; fields that have their default are left out."""

    model: str
    created_at: str
    done: bool
    done_reason: str = ""
    context: list[int] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    prompt_cached_count: int = 0  # of prompt_eval_count, what need not be computed: Puna's own, as are the next two
    prompt_truncated_count: int = 0  # tokens cut from a prompt that was too long
    context_shifted_count: int = 0  # tokens dropped from a context that was full
    logprobs: list[LogprobEntry] = []
    debug_info: DebugInfo | None = field(default=None, name="_debug_info")


class GenerateChunk(Chunk, kw_only=True):
    """Some text of a completion; the last one of a stream has done set, no text, and the metrics."""

    response: str


class AnswerMessage(Struct):
    """New text of a reply."""

    content: str
    role: str = "assistant"


class ChatChunk(Chunk, kw_only=True):
    """Some text of a chat reply; the last one of a stream has done set, no text, and the metrics."""

    message: AnswerMessage


class NamedRequest(Struct):
    """A request about one model. Older clients send `"model": ""` and the name in `name`."""

    model: str = ""
    name: str = ""

    @property
    def target(self) -> str:
        """The name, whichever field holds it."""
        return self.model or self.name


class ShowRequest(NamedRequest):
    """POST /api/show. system, template and options alter the modelfile that is shown, and nothing else."""

    verbose: bool = False
    system: str = ""
    template: str = ""
    options: dict[str, Any] = {}


class CopyRequest(Struct):
    """POST /api/copy."""

    source: str = ""
    destination: str = ""


class CreateBody(CreateRequest, frozen=True, kw_only=True):
    """POST /api/create: what the store is asked for, under older names too."""

    model: str = ""
    name: str = ""
    quantization: str | None = None
    info: dict[str, Any] | None = None
    stream: bool = True


class ListedModel(Struct):
    """A model of GET /api/tags."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class ModelList(Struct):
    """GET /api/tags."""

    models: list[ListedModel]


class LoadedModel(Struct):
    """A model of GET /api/ps."""

    name: str
    model: str
    size: int  # bytes in memory
    digest: str
    details: Details
    expires_at: str
    size_vram: int  # bytes on accelerators
    context_length: int


class LoadedList(Struct):
    """GET /api/ps."""

    models: list[LoadedModel]


class TensorEntry(Struct):
    """A tensor of POST /api/show. shape is fastest dimension first, as GGUF writes it."""

    name: str
    type: str
    shape: list[int]


class ModelCard(Struct, omit_defaults=True, kw_only=True):
    """POST /api/show."""

    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    details: Details
    messages: list[Message] = []
    model_info: dict[str, Any]
    projector_info: dict[str, Any] | None = None
    draft_info: dict[str, Any] | None = None  # as projector_info, of the small model that guesses ahead
    tensors: list[TensorEntry] = []
    capabilities: list[str]
    modified_at: str
    requires: str = ""


class Version(Struct):
    """GET /api/version. Clients compare `version` with the Ollama release that a feature of theirs needs."""

    version: str
    puna: str
