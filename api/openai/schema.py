"""The messages of /v1: what OpenAI's SDKs send and what they get back."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class StreamOptions(Struct, frozen=True):
    """Extras of a stream."""

    include_usage: bool | None = None


class NamedSchema(Struct, frozen=True):
    """A JSON Schema, which is followed to the letter whatever `strict` says; its name and description are comments."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """Which form the reply must have: text, json_object, or json_schema."""

    type: str = "text"
    json_schema: NamedSchema | None = None


class Reasoning(Struct, frozen=True):
    """How much a model should think."""

    effort: str | None = None


class ChatMessage(Struct):
    """A turn of a conversation. content is a text, a list of parts, or nothing beside tool calls."""

    role: str
    content: Any = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None


class SharedRequest(Struct, kw_only=True):
    """What both endpoints take. None of the fields may be null here: the parser drops nulls."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    response_format: ResponseFormat = ResponseFormat()
    n: int = 1
    logit_bias: dict[str, float] = {}


class ChatRequest(SharedRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = []
    max_completion_tokens: int | None = None
    tools: list[Any] = []
    tool_choice: Any = "none"
    functions: list[Any] = []
    function_call: Any = "none"
    verbosity: str = "medium"
    reasoning_effort: str | None = None
    reasoning: Reasoning = Reasoning()
    logprobs: bool = False
    top_logprobs: int = 0
    modalities: tuple[str, ...] = ("text",)
    audio: Any = None
    web_search_options: Any = None


class CompletionRequest(SharedRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: str = ""
    suffix: str = ""
    echo: bool = False
    best_of: int = 1
    logprobs: int | None = None


class PromptTokens(Struct, omit_defaults=True):
    """What became of a prompt's tokens; the last two are Puna's own."""

    cached_tokens: int = 0  # that need not be computed
    truncated_tokens: int = 0  # cut, because the prompt was too long
    shifted_tokens: int = 0  # dropped later, because the context was full


class Usage(Struct, omit_defaults=True):
    """Tokens of a request and its reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens | None = None


class TokenEntry(Struct):
    """A likely token at some place, its natural log probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobEntry(TokenEntry):
    """A sampled token and the likeliest ones at its place."""

    top_logprobs: list[TokenEntry]


class ChatLogprobs(Struct):
    """Log probabilities of a chat reply's tokens."""

    content: list[LogprobEntry]


class CompletionLogprobs(Struct):
    """Log probabilities of a completion's tokens; text_offset counts characters from the reply's start."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Delta(Struct, omit_defaults=True):
    """New text of a chat reply. The role comes in the first chunk only, and nothing in the last."""

    role: str | None = None
    content: str | None = None


class Message(Struct):
    """A whole chat reply."""

    content: str
    role: str = "assistant"


class ChunkChoice(Struct, kw_only=True):
    """The one choice of a streamed chat chunk."""

    index: int = 0
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Struct, omit_defaults=True, kw_only=True):
    """One event of a streamed chat reply."""

    id: str
    object: str
    created: int  # unix seconds
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class MessageChoice(Struct, kw_only=True):
    """The one choice of a whole chat reply."""

    index: int = 0
    message: Message
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Struct, kw_only=True):
    """A whole chat reply."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[MessageChoice]
    usage: Usage


class TextChoice(Struct, kw_only=True):
    """The one choice of a completion, whole or streamed."""

    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(Struct, omit_defaults=True, kw_only=True):
    """A whole completion or one event of a streamed one."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | None = None


class ModelEntry(Struct):
    """A model, as GET /v1/models lists it."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(Struct):
    """GET /v1/models."""

    object: str
    data: list[ModelEntry]
