"""Which JSON Schemas are taken: a check of untrusted text, before the library compiles it.

The library refuses most of what it cannot follow, but not all: keywords of other drafts than the one that a schema
names are comments to it, and it counts properties of equal names twice. It also recurses once for each schema that
refers to another, so their number is bounded by the stack that the compiler runs on.

Source: JSON Schema 2020-12, https://json-schema.org/draft/2020-12 (core and validation); JSON pointers, RFC 6901.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec

from ...core.errors import BadRequest, Unsupported

MAX_BYTES = 256 * 1024
MAX_OBJECTS = 2048  # braces, to be exact: a bound that needs no parsing

MAPS = ("properties", "patternProperties", "$defs", "definitions")  # name -> schema
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLES = ("items", "additionalProperties", "additionalItems")

UNSUPPORTED = frozenset(
    {
        "contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems", "propertyNames",
        "unevaluatedProperties", "dependentRequired", "dependentSchemas", "dependencies", "not", "if", "then", "else",
        "$dynamicRef", "$recursiveRef", "divisibleBy", "disallow", "extends",
    }
)  # fmt: skip

# Strings are written with \\ \" \b \f \n \r \t and no other escapes, so that each text has one spelling.
UNWRITABLE = {*map(chr, range(0x20)), "\x7f"} - set("\b\f\n\r\t")


class UnsupportedSchema(Unsupported):
    """A JSON Schema that replies could not be made to follow."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"replies cannot be made to follow this JSON schema: {problem}")


def parse_schema(text: str) -> dict[str, Any]:
    """Return the object that text holds.

    Raises BadRequest if it holds none or is too large, UnsupportedSchema for keywords that are not honoured.
    """
    if len(text) > MAX_BYTES:
        raise BadRequest(f"the JSON schema has {len(text)} characters: at most {MAX_BYTES} are allowed")
    if (count := text.count("{")) > MAX_OBJECTS:
        raise BadRequest(f"the JSON schema has {count} opening braces: at most {MAX_OBJECTS} are allowed")
    try:
        root = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"the JSON schema is not valid JSON: {error}") from None
    if not isinstance(root, dict):
        raise BadRequest("the JSON schema must be an object")
    schemas = dict(_schemas(root))
    for pointer, schema in schemas.items():
        _check_keywords(pointer, schema)
        _check_reference(pointer, schema, schemas)
    _check_texts(root)
    return root


def _schemas(root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema within root, itself included, by its JSON pointer."""
    rest: list[tuple[str, object]] = [("#", root)]
    while rest:
        pointer, schema = rest.pop()
        if not isinstance(schema, dict):
            continue
        yield pointer, schema
        for key in MAPS:
            if isinstance(named := schema.get(key), dict):
                rest += [(f"{pointer}/{key}/{_escaped(name)}", value) for name, value in named.items()]
        for key in LISTS:
            if isinstance(listed := schema.get(key), list):
                rest += [(f"{pointer}/{key}/{i}", value) for i, value in enumerate(listed)]
        rest += [(f"{pointer}/{key}", schema.get(key)) for key in SINGLES]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _check_keywords(pointer: str, schema: dict[str, Any]) -> None:
    """Raise UnsupportedSchema for keywords of one schema that are not honoured."""
    if refused := sorted(UNSUPPORTED & schema.keys()):
        raise UnsupportedSchema(f"{', '.join(refused)} is not supported, at {pointer}")
    if "$id" in schema and pointer != "#":
        raise UnsupportedSchema(f"an $id is supported at the root only, not at {pointer}")
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(name), bool):
            raise UnsupportedSchema(f"{name} must be a number, at {pointer}")
    # A reply may repeat a name, and then has fewer properties than were written.
    distinct = len(set(map(str, _list(schema.get("required")))))
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    least = schema.get("minProperties", 0)
    if not closed and not (isinstance(least, int) and least <= distinct):
        raise UnsupportedSchema(
            f"minProperties above the number of required ones needs additionalProperties to be false, at {pointer}"
        )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _check_reference(pointer: str, schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Raise UnsupportedSchema for a reference that leads to nothing that was checked."""
    target = schema.get("$ref")
    if target is not None and not (isinstance(target, str) and unquote(target).removesuffix("/") in schemas):
        raise UnsupportedSchema(f"$ref must point to a schema within this one, not to {target!r}, at {pointer}")


def _check_texts(root: object) -> None:
    """Raise UnsupportedSchema for names and values that cannot be spelled."""
    rest = [root]
    while rest:
        value = rest.pop()
        if isinstance(value, str) and not UNWRITABLE.isdisjoint(value):
            raise UnsupportedSchema(f"control characters are not supported, in {value[:40]!r}")
        if isinstance(value, dict):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            rest += value
