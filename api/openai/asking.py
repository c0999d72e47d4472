"""Reads requests of /v1 in the server's own terms, and refuses what this version cannot do."""

from __future__ import annotations

from typing import Any

from ...core.errors import BadRequest, Unsupported
from ..asking import MAX_TOP_LOGPROBS, check_top_logprobs, schema_of
from .schema import ChatRequest, CompletionRequest, SharedRequest

EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}


def chat_options(request: ChatRequest) -> dict[str, Any]:
    """Return the options that a chat request sets. `max_completion_tokens` is the newer name of `max_tokens`."""
    limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    return _options(request) | {"num_predict": limit}


def completion_options(request: CompletionRequest) -> dict[str, Any]:
    """Return the options that a completion request sets. A top_p of 0 counts as absent; penalties default to 0."""
    return _options(request) | {
        "num_predict": request.max_tokens,
        "top_p": request.top_p or 1.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "presence_penalty": request.presence_penalty or 0.0,
    }


def think_level(request: ChatRequest) -> bool | str | None:
    """Return what the request says about thinking, in the native API's terms. Raises BadRequest."""
    effort = request.reasoning_effort if request.reasoning_effort is not None else request.reasoning.effort
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise BadRequest(f'invalid reasoning value: "{effort}" (must be one of {", ".join(EFFORTS)})')
    return EFFORTS[effort]


def chat_logprobs(request: ChatRequest) -> int | None:
    """Return how many likely tokens to report at each place; None for no log probabilities. Raises BadRequest."""
    return check_top_logprobs(request.logprobs, request.top_logprobs)


def completion_logprobs(request: CompletionRequest) -> int | None:
    """As `chat_logprobs`, for the endpoint where one number says both."""
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    return request.logprobs


def chat_schema(request: ChatRequest) -> str | None:
    """Return the JSON Schema that the reply must follow, None if it is free. Raises BadRequest, Unsupported."""
    wanted = request.response_format
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return schema_of("json")
    if wanted.type != "json_schema":
        raise Unsupported(f'response_format: type "{wanted.type}" is not supported: text, json_object, json_schema are')
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise BadRequest("response_format: type json_schema needs json_schema.schema")
    return schema_of(wanted.json_schema.schema)


def check_chat(request: ChatRequest) -> None:
    """Raise BadRequest or Unsupported if the request asks for what this version cannot give."""
    _check_shared(request)
    if not request.messages:
        raise BadRequest("[] is too short - 'messages'")
    if request.tool_choice not in ("none", "auto") and not request.tools:
        raise BadRequest("tool_choice needs tools")
    if request.functions:
        raise Unsupported("functions are not supported; they were replaced by tools")
    if request.function_call not in ("none", "auto"):
        raise Unsupported("function_call is not supported; it was replaced by tool_choice")
    if request.verbosity != "medium":
        raise Unsupported("verbosity is not supported: only medium, which asks for nothing, is accepted")
    if request.audio is not None or set(request.modalities) - {"text"}:
        raise Unsupported('this server answers in text only: modalities must be ["text"], without audio')
    if request.web_search_options is not None:
        raise Unsupported("web_search_options are not supported: this server does not search the web")


def check_completion(request: CompletionRequest) -> None:
    """Raise Unsupported if the request asks for what this version cannot give."""
    _check_shared(request)
    if request.echo:
        raise Unsupported("echo is not supported")
    if request.best_of != 1:
        raise Unsupported("best_of must be 1")
    if request.response_format.type != "text":
        raise Unsupported("response_format is not supported here: /v1/chat/completions honours it")


def _check_shared(request: SharedRequest) -> None:
    if request.n != 1:
        raise Unsupported("n must be 1: this server gives one choice a request")
    if request.logit_bias:
        raise Unsupported("logit_bias is not supported")


def _options(request: SharedRequest) -> dict[str, Any]:
    return {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": _stop(request.stop),
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
    }


def _stop(value: Any) -> list[str] | None:
    texts = [value] if isinstance(value, str) else value
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise BadRequest("stop: expected a string or a list of strings")
    return texts
