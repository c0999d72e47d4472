"""What a request asks for, whichever API it came through, and the fields that several APIs read alike."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import UnsetType

from ..core.durations import LONGEST_S, parse_go_duration
from ..core.errors import BadRequest, Unsupported
from ..core.scheduler.models import UNSET, KeepAlive
from .errors import ReportedAs500

MAX_TOP_LOGPROBS = 20
THINK_LEVELS = ("high", "medium", "low", "max")
ANY_OBJECT = '{"type":"object"}'  # the JSON Schema of what is called JSON mode


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a request says about a reply, besides the text and the model."""

    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: KeepAlive = UNSET
    truncate: bool = True
    shift: bool = True
    schema: str | None = None  # the text of a JSON Schema that the reply must follow
    client: str = ""  # who asks
    logprobs: int | None = None  # likely tokens to report at each place; None: no log probabilities at all
    arrived_ns: int = field(default_factory=time.monotonic_ns)


def parse_keep_alive(value: float | str | UnsetType) -> KeepAlive:
    """Return how long a model shall stay from a number of seconds or a Go duration.

    Negative means forever, and so does a number of centuries: no client's clock reaches so far. Raises BadRequest for
    a text that is no duration.
    """
    if isinstance(value, UnsetType):
        return UNSET
    try:
        seconds = parse_go_duration(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadRequest(str(error)) from None
    return seconds if 0 <= seconds < LONGEST_S else None


def check_think(name: str, think: bool | str | None) -> None:
    """Refuse a wish to think: no model of this version can. Not to think is granted. Raises BadRequest, Unsupported."""
    if isinstance(think, str) and think not in THINK_LEVELS:
        raise BadRequest(f'invalid think value: "{think}" (must be "high", "medium", "low", "max", true, or false)')
    if think:
        raise Unsupported(f'"{name}" does not support thinking')


def schema_of(format: object) -> str | None:
    """Return the JSON Schema that a `format` field asks replies to follow; null and "" ask for nothing.

    Raises ReportedAs500 for what is neither "json" nor an object. Whether an object is a schema shows later.
    """
    if format in (None, ""):
        return None
    if format == "json":
        return ANY_OBJECT
    if isinstance(format, dict):
        return json.dumps(format, ensure_ascii=False, separators=(",", ":"))  # no longer than what was sent
    found = json.dumps(json.dumps(format, ensure_ascii=False), ensure_ascii=False)
    raise ReportedAs500(f'invalid format: {found}; expected "json" or a valid JSON Schema object')


def check_top_logprobs(wanted: bool, top: int) -> int | None:
    """Return how many likely tokens to report at each place, None for no log probabilities. Raises BadRequest."""
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    if top and not wanted:
        raise BadRequest("top_logprobs needs logprobs to be true")
    return top if wanted else None
