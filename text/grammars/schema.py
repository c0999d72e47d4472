"""Which JSON Schemas are taken: a check of untrusted text, before the library compiles it.

The library refuses most of what it cannot follow, but not all: keywords of other drafts than the one that a schema
names are comments to it, and it counts properties of equal names twice. It also recurses once for each schema that
refers to another, so their number is bounded by the stack that the compiler runs on.

Source: JSON Schema 2020-12, https://json-schema.org/draft/2020-12 (core and validation); JSON pointers, RFC 6901.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from ...core.errors import BadRequest, Unsupported

MAX_BYTES = 256 * 1024
MAX_OBJECTS = 2048  # braces, to be exact: a bound that needs no parsing
MAX_SHOWN = 200  # characters of a name or a pointer, in errors

MAPS = ("properties", "patternProperties", "$defs", "definitions")  # name -> schema
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLES = ("items", "additionalProperties", "additionalItems")
PARENTS = tuple(dict.fromkeys(MAPS + LISTS + SINGLES))

UNSUPPORTED = frozenset(
    {
        "contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems", "propertyNames",
        "unevaluatedProperties", "dependentRequired", "dependentSchemas", "dependencies", "not", "if", "then", "else",
        "$dynamicRef", "$recursiveRef", "divisibleBy", "disallow", "extends",
    }
)  # fmt: skip

# The values of these keywords that restrict nothing. They are as good as not there.
HARMLESS: dict[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "not": (False,),
    "propertyNames": (True, {}),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
}

# Strings are written with \\ \" \b \f \n \r \t and no other escapes, so that each text has one spelling.
UNWRITABLE = {*map(chr, range(0x20)), "\x7f"} - set("\b\f\n\r\t")


class UnsupportedSchema(Unsupported):
    """A JSON Schema that replies could not be made to follow."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"replies cannot be made to follow this JSON schema: {problem}")
        self.problem = problem


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
    for place, schema in _schemas(root):
        _drop_harmless(schema)
        _check_keywords(place, schema)
        _check_reference(place, schema, root)
    _check_texts(root)
    return root


class Place(NamedTuple):
    """Where a schema is: its JSON pointer, spelled for errors only, for names may be long and shared by thousands."""

    parent: Place | None
    key: str

    def __str__(self) -> str:
        """Return the pointer, or how it begins."""
        keys: list[str] = []
        place: Place | None = self
        while place:
            keys.append(_escaped(_shortened(place.key)))
            place = place.parent
        return _shortened("/".join(reversed(keys)))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _schemas(root: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield every schema within root, itself included, and where it is."""
    rest = [(Place(None, "#"), root)]
    while rest:
        place, schema = rest.pop()
        yield place, schema
        for key in PARENTS:
            value, inner = schema.get(key), Place(place, key)
            if key in SINGLES and isinstance(value, dict):
                rest.append((inner, value))
            elif key in MAPS and isinstance(value, dict):
                rest += [(Place(inner, name), named) for name, named in value.items() if isinstance(named, dict)]
            elif key in LISTS and isinstance(value, list):
                rest += [(Place(inner, str(i)), listed) for i, listed in enumerate(value) if isinstance(listed, dict)]


def _leads_to_schema(root: dict[str, Any], pointer: str) -> bool:
    """Whether pointer is that of a schema that `_schemas` yields."""
    first, *keys = pointer.split("/")
    value: object = root
    within = None  # the keyword that the next key is a name or an index of
    for key in keys:
        if within is None:
            if not isinstance(value, dict) or key not in PARENTS:
                return False
            value = value.get(key)
            within = None if key in SINGLES and isinstance(value, dict) else key
        elif within in MAPS and isinstance(value, dict):
            name = key.replace("~1", "/").replace("~0", "~")
            value, within = value.get(name) if _escaped(name) == key else None, None
        elif within in LISTS and isinstance(value, list):
            index = int(key) if key.isdecimal() and len(key) < 9 else len(value)
            value, within = value[index] if index < len(value) and str(index) == key else None, None
        else:
            return False
    return first == "#" and within is None and isinstance(value, dict)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _drop_harmless(schema: dict[str, Any]) -> None:
    """Take those keywords out of one schema that restrict nothing: the library knows them with no value at all."""
    for keyword in schema.keys() & HARMLESS.keys():
        if any(type(schema[keyword]) is type(value) and schema[keyword] == value for value in HARMLESS[keyword]):
            del schema[keyword]


def _check_keywords(place: Place, schema: dict[str, Any]) -> None:
    """Raise UnsupportedSchema for keywords of one schema that are not honoured."""
    if refused := sorted(UNSUPPORTED & schema.keys()):
        raise UnsupportedSchema(f"{', '.join(refused)} is not supported, at {place}")
    if "$id" in schema and place.parent:
        raise UnsupportedSchema(f"an $id is supported at the root only, not at {place}")
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(name), bool):
            raise UnsupportedSchema(f"{name} must be a number, at {place}")
    # A reply may repeat a name, and then has fewer properties than were written.
    distinct = len(set(map(str, _list(schema.get("required")))))
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    least = schema.get("minProperties", 0)
    if not closed and not (isinstance(least, int) and least <= distinct):
        raise UnsupportedSchema(
            f"minProperties above the number of required ones needs additionalProperties to be false, at {place}"
        )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _check_reference(place: Place, schema: dict[str, Any], root: dict[str, Any]) -> None:
    """Raise UnsupportedSchema for a reference that leads to nothing that is checked."""
    target = schema.get("$ref")
    if target is None:
        return
    if not (isinstance(target, str) and _leads_to_schema(root, unquote(target).removesuffix("/"))):
        shown = _shortened(repr(target))
        raise UnsupportedSchema(f"$ref must point to a schema within this one, not to {shown}, at {place}")


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
