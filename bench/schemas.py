"""Random JSON Schemas, for the tests and the benchmark of output formats."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Schema = dict[str, Any]

PATTERNS = ("^[a-z]{1,8}$", "^(yes|no|maybe)$", "^[A-Z][a-z]*-[0-9]{2}$", "[aeiou]{2}", "^\\w+ \\d?$", "^.{2,5}$")
FORMATS = ("ipv4", "uuid", "email")
NAMES = ("name", "age", "size", "Ünit", "a b", 'q"', "tags", "x/y", "n\n", "of", "kind", "")
VALUES = (0, -7, 12.5, True, False, None, "red", "a\\b", "ré\n", [1, "two"], {"x": 1}, [], {})


def schemas(seed: int) -> Iterator[Schema]:
    """Yield schemas without end, the same for a seed. Some ask for what no grammar can give, and are to be refused."""
    random = Random(seed)
    while True:
        schema = _any(random, depth=3)
        if random.random() < 0.2:
            yield _with_definitions(random, schema)
        else:
            yield schema


def _any(random: Random, depth: int) -> Schema:
    kinds: list[Callable[[Random, int], Schema]] = [_scalar, _text, _integer, _number, _values]
    if depth > 0:
        kinds += [_object, _object, _object, _array, _array, _tuple, _either, _both]
    return random.choice(kinds)(random, depth - 1)


def _scalar(random: Random, depth: int) -> Schema:
    return {"type": random.choice(["boolean", "null", ["boolean", "null"], ["integer", "null"]])}


def _text(random: Random, depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    match random.randrange(4):
        case 0:
            schema["pattern"] = random.choice(PATTERNS)
        case 1:
            schema["format"] = random.choice(FORMATS)
        case 2:
            schema["minLength"] = random.randrange(6)
    return schema | ({} if "format" in schema else {"maxLength": random.randrange(6, 20)})


def _integer(random: Random, depth: int) -> Schema:
    low = random.randrange(-1000, 1000)
    bounds = {"minimum": low, "maximum": low + random.randrange(2000)}
    match random.randrange(4):
        case 0:
            return {"type": "integer"} | bounds
        case 1:
            return {"type": "integer", "exclusiveMinimum": low}
        case 2:
            return {"type": "integer", "multipleOf": random.randrange(1, 20)}
    return {"type": "integer"}


def _number(random: Random, depth: int) -> Schema:
    low = random.randrange(-1000, 1000) / 8
    match random.randrange(3):
        case 0:
            return {"type": "number", "minimum": low, "maximum": low + random.random() * 50}
        case 1:
            return {"type": "number", "exclusiveMaximum": low}
    return {"type": "number"}


def _values(random: Random, depth: int) -> Schema:
    if random.random() < 0.3:
        return {"const": random.choice(VALUES)}
    return {"enum": random.sample(VALUES, random.randrange(1, 5))}


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(NAMES, random.randrange(5))
    schema: Schema = {"type": "object", "properties": {name: _any(random, depth) for name in names}}
    schema["required"] = [name for name in names if random.random() < 0.7]
    match random.randrange(5):
        case 0:
            schema["additionalProperties"] = _any(random, depth)
            schema["maxProperties"] = len(names) + 2
        case 1:
            schema["maxProperties"] = len(names) + 1
        case 2:
            schema["patternProperties"] = {"^x-[a-z]{1,3}$": _any(random, 0)}
            schema["additionalProperties"] = False
        case 3:
            schema |= {"additionalProperties": False, "minProperties": random.randrange(len(names) + 1)}
        case 4:
            schema["additionalProperties"] = False
    return schema


def _array(random: Random, depth: int) -> Schema:
    low = random.randrange(3)
    return {"type": "array", "items": _any(random, depth), "minItems": low, "maxItems": low + random.randrange(4)}


def _tuple(random: Random, depth: int) -> Schema:
    return {
        "type": "array",
        "prefixItems": [_any(random, depth) for _ in range(random.randrange(1, 4))],
        "items": False,
    }


def _either(random: Random, depth: int) -> Schema:
    return {random.choice(["anyOf", "oneOf"]): [_any(random, depth) for _ in range(random.randrange(1, 4))]}


def _both(random: Random, depth: int) -> Schema:
    return {"allOf": [_object(random, depth), _object(random, depth)]}


def _with_definitions(random: Random, schema: Schema) -> Schema:
    """Return a schema with references, one of them to itself."""
    name = random.choice(string.ascii_lowercase)
    chain = {
        "type": "object",
        "properties": {"value": schema, "next": {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
    }
    return {"$ref": f"#/$defs/{name}", "$defs": {name: chain}}
