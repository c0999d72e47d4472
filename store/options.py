"""The options of a request, a model and a Modelfile's PARAMETER: one table, and what the values come to.

An option is a setting of one reply (honoured exactly), a hint about the machine (accepted, because it can never change
an answer: the server alone decides how weights are placed and threads used), or dead: taken from no one, and refused
in a request unless its value asks for nothing.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from ..core.errors import BadRequest, Unsupported
from ..core.tensor.sampling import SamplingParams

Type = Literal["integer", "float32", "boolean", "array"]
Effect = Literal["reply", "hint"]
Value = int | float | bool | list[str]

INT64 = range(-(1 << 63), 1 << 63)
MAX_FLOAT = sys.float_info.max  # JSON can write larger integers
MIN_CONTEXT = 4  # tokens


@dataclass(frozen=True)
class Option:
    """One option. default: as documented to users; None where the server decides."""

    name: str
    type: Type
    default: Value | None
    effect: Effect


def _table(*options: Option) -> Mapping[str, Option]:
    return MappingProxyType({option.name: option for option in options})


OPTIONS = _table(
    Option("num_ctx", "integer", None, "reply"),  # tokens of context; None: the server's setting
    Option("num_batch", "integer", None, "reply"),  # prompt tokens a step; None: the server's setting
    Option("num_keep", "integer", 4, "reply"),  # leading tokens that survive truncation; negative: the whole prompt
    Option("num_predict", "integer", -1, "reply"),  # most tokens to produce; 0 or less: no limit
    Option("seed", "integer", -1, "reply"),  # -1: different each time
    Option("temperature", "float32", 0.8, "reply"),
    Option("top_k", "integer", 40, "reply"),
    Option("top_p", "float32", 0.9, "reply"),
    Option("min_p", "float32", 0.0, "reply"),
    Option("typical_p", "float32", 1.0, "reply"),
    Option("repeat_last_n", "integer", 64, "reply"),
    Option("repeat_penalty", "float32", 1.0, "reply"),
    Option("presence_penalty", "float32", 0.0, "reply"),
    Option("frequency_penalty", "float32", 0.0, "reply"),
    Option("stop", "array", [], "reply"),
    Option("draft_num_predict", "integer", None, "reply"),  # most tokens of a guess; 0: none; None: as many as pay
    Option("num_gpu", "integer", -1, "hint"),  # layers on the accelerator
    Option("main_gpu", "integer", 0, "hint"),
    Option("num_thread", "integer", 0, "hint"),
    Option("use_mmap", "boolean", None, "hint"),
)

# Options that only warn in a Modelfile, and what they may be in a request: a test for values that ask for nothing.
DEPRECATED: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "penalize_newline": lambda value: value is True,  # a newline is penalised like any other token
        "low_vram": lambda value: True,  # hints that never changed an answer
        "f16_kv": lambda value: True,
        "logits_all": lambda value: True,
        "use_mlock": lambda value: True,
        "vocab_only": lambda value: value is False,
        "mirostat": lambda value: value == 0,
        "mirostat_tau": lambda value: True,  # without mirostat they mean nothing
        "mirostat_eta": lambda value: True,
    }
)

# Older still: clients send them, Modelfiles may not name them.
RETIRED: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "numa": lambda value: True,
        "num_gqa": lambda value: True,  # the model's file says it
        "embedding_only": lambda value: value is False,
        "tfs_z": lambda value: value == 1,
    }
)


class WrongType(BadRequest):
    """An option has a value of another type than its own."""

    def __init__(self, option: Option, problem: str | None = None) -> None:
        super().__init__(f'option "{option.name}" must be of {problem or f"type {option.type}"}')
        self.option = option


class UnknownParameter(BadRequest):
    """A Modelfile or a request to create a model names an option that does not exist."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown parameter '{name}'")
        self.name = name


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one reply, with the meaning of special numbers spelled out: None is "no limit" or "automatic"."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_keep: int = 4  # negative: the whole prompt
    num_predict: int | None = None
    seed: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    draft_num_predict: int | None = None
    num_gpu: int | None = None
    main_gpu: int = 0
    num_thread: int | None = None
    use_mmap: bool | None = None

    @classmethod
    def merge(cls, defaults: Options, model: Mapping[str, Any], request: Mapping[str, Any]) -> Options:
        """Return defaults, overridden by the model's parameters, overridden by the request's options.

        Null is "not given". Unknown names are passed over (see `unknown_options`), and so are dead ones among the
        model's parameters, for they had no effect where the model was made. Raises WrongType, Unsupported.
        """
        check_options(request)
        given: dict[str, Any] = {}
        for options in (model, request):
            given |= {name: _meaning(name, value) for name, value in _live(options).items()}
        return msgspec.structs.replace(defaults, **given)

    def sampling(self) -> SamplingParams:
        """Return the part that the sampler reads. Raises BadRequest for values that have no meaning."""
        return SamplingParams(**{name: getattr(self, name) for name in SamplingParams.__struct_fields__})


def check_options(options: Mapping[str, Any]) -> None:
    """Raise WrongType for a value of the wrong type, Unsupported for a dead option that asks for something."""
    _live(options)
    for name, asks_nothing in (*DEPRECATED.items(), *RETIRED.items()):
        value = options.get(name)
        if value is not None and not asks_nothing(value):
            raise Unsupported(f'option "{name}" is no longer supported; leave it out')


def unknown_options(options: Mapping[str, Any]) -> list[str]:
    """Return the names that no option has and never had, for the log."""
    return [name for name in options if name not in OPTIONS and name not in DEPRECATED and name not in RETIRED]


def checked_parameters(parameters: Mapping[str, Any]) -> dict[str, Value]:
    """Return the parameters that a new model shall keep: live ones, with values of their types.

    Raises UnknownParameter, WrongType, Unsupported.
    """
    check_options(parameters)
    for name in unknown_options(parameters):
        raise UnknownParameter(name)
    return _live(parameters)


def parse_parameter(name: str, text: str) -> Value:
    """Return the value of a Modelfile's PARAMETER, or of a /set: a list of one string for `stop`.

    Raises UnknownParameter, and BadRequest for a text that is no value of the option's type.
    """
    if name not in OPTIONS:
        raise UnknownParameter(name)
    match OPTIONS[name].type:
        case "integer":
            return _integer(text)
        case "float32":
            return _decimal(text)
        case "boolean":
            return _boolean(text)
        case "array":
            return [text]


def _live(options: Mapping[str, Any]) -> dict[str, Value]:
    """Return those of options that have an effect, typed."""
    given = {name: value for name, value in options.items() if name in OPTIONS and value is not None}
    return {name: _typed(OPTIONS[name], value) for name, value in given.items()}


def _typed(option: Option, value: Any) -> Value:
    """Return a JSON value as the option's type: numbers for integers are truncated."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT
    match option.type:
        case "integer" if number and int(value) in INT64:
            return int(value)
        case "float32" if number:
            return float(value)
        case "boolean" if isinstance(value, bool):
            return value
        case "array" if isinstance(value, Sequence) and not isinstance(value, str):
            if all(isinstance(item, str) for item in value):
                return list(value)
            raise WrongType(option, "an array of strings")
    raise WrongType(option)


def _meaning(name: str, value: Value) -> Any:
    """Return what a documented value comes to in `Options`."""
    match name, value:
        case "num_ctx", int(tokens):
            return max(tokens, MIN_CONTEXT)
        case "num_batch", int(tokens):
            return max(tokens, 1)
        case (("num_predict" | "num_thread"), int(count)) if count <= 0:
            return None
        case (("seed" | "num_gpu"), -1):
            return None
        case "draft_num_predict", int(count) if count < 0:
            return None
        case "stop", list(texts):
            return tuple(texts)
        case _:
            return value


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or int(text) not in INT64:
        raise BadRequest(f"invalid int value [{text}]")
    return int(text)


def _decimal(text: str) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text) or math.isinf(float(text)):
        raise BadRequest(f"invalid float value [{text}]")
    return float(text)


def _boolean(text: str) -> bool:
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise BadRequest(f"invalid bool value [{text}]")
