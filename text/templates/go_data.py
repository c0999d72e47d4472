"""Messages and tools as Go templates see them: the field names of records and the order of their JSON.

A tool's JSON schema is reduced to the fields a template may name; what else it holds is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from ...core.errors import BadRequest
from .go import Listed, Ordered, Record, Shape
from .messages import Message, ToolCall

_MESSAGE = Shape(
    "Message",
    Role="role",
    Content="content",
    Thinking="thinking?",
    Images="images?",
    ToolCalls="tool_calls?",
    ToolName="tool_name?",
    ToolCallID="tool_call_id?",
)
_CALL = Shape("ToolCall", ID="id?", Function="function")
_CALLED = Shape("ToolCallFunction", Index="index?", Name="name", Arguments="arguments")
_TOOL = Shape("Tool", Type="type", Items="items?", Function="function")
_FUNCTION = Shape("ToolFunction", Name="name", Description="description?", Parameters="parameters")
_PARAMETERS = Shape(
    "ToolFunctionParameters",
    Type="type",
    Defs="$defs?",
    Items="items?",
    Required="required?",
    Properties="properties",
)
_PROPERTY = Shape(
    "ToolProperty",
    AnyOf="anyOf?",
    Type="type?",
    Items="items?",
    Description="description?",
    Enum="enum?",
    Properties="properties?",
    Required="required?",
)


def message_record(message: Message, images: int = 0) -> Record:
    """Return message with the fields of `.Messages`. Of its images a template may learn the number."""
    fields = {
        "Role": message.role,
        "Content": message.text,
        "Thinking": message.thinking,
        "Images": [b""] * images,
        "ToolCalls": Listed(map(_call_record, message.tool_calls)),
        "ToolName": message.tool_name,
        "ToolCallID": message.tool_call_id,
    }
    return Record(_MESSAGE, fields)


def _call_record(call: ToolCall) -> Record:
    called = {"Index": call.index, "Name": call.name, "Arguments": Ordered(call.arguments)}
    return Record(_CALL, {"ID": call.id, "Function": Record(_CALLED, called)})


class _Property(Struct):
    any_of: list[_Property] | None = field(default=None, name="anyOf")
    type: str | list[str] | None = None
    items: Any = None
    description: str | None = None
    enum: list[Any] | None = None
    properties: dict[str, _Property] | None = None
    required: list[str] | None = None


class _Parameters(Struct):
    type: str | list[str] | None = "object"
    defs: Any = field(default=None, name="$defs")
    items: Any = None
    required: list[str] | None = None
    properties: dict[str, _Property] | None = None


class _Function(Struct):
    name: str
    description: str | None = None
    parameters: _Parameters | None = None


class _Tool(Struct):
    function: _Function
    type: str = "function"
    items: Any = None


def tool_records(tools: Sequence[Mapping[str, Any]]) -> Listed:
    """Return tools as `.Tools`. Raises BadRequest naming the field that is missing or of the wrong type."""
    try:
        return Listed(map(_tool_record, msgspec.convert(list(tools), list[_Tool])))
    except msgspec.ValidationError as error:
        raise BadRequest(f"invalid tools: {error}") from None
    except RecursionError:
        raise BadRequest("invalid tools: nested too deeply") from None


def _tool_record(tool: _Tool) -> Record:
    function = {
        "Name": tool.function.name,
        "Description": tool.function.description or "",
        "Parameters": _parameters_record(tool.function.parameters or _Parameters()),
    }
    return Record(_TOOL, {"Type": tool.type, "Items": tool.items, "Function": Record(_FUNCTION, function)})


def _parameters_record(parameters: _Parameters) -> Record:
    fields = {
        "Type": parameters.type or "",
        "Defs": parameters.defs,
        "Items": parameters.items,
        "Required": parameters.required or [],
        "Properties": _properties(parameters.properties),
    }
    return Record(_PARAMETERS, fields)


def _properties(properties: Mapping[str, _Property] | None) -> Ordered:
    return Ordered({name: _property_record(schema) for name, schema in (properties or {}).items()})


def _property_record(schema: _Property) -> Record:
    fields = {
        "AnyOf": [_property_record(option) for option in schema.any_of or ()],
        "Type": schema.type or "",
        "Items": schema.items,
        "Description": schema.description or "",
        "Enum": schema.enum or [],
        "Properties": _properties(schema.properties),
        "Required": schema.required or [],
    }
    return Record(_PROPERTY, fields)
