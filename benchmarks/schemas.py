"""Random JSON schemas of a given depth, and whether a value conforms to one: what guided decoding is tried with."""

import random
from typing import Any

_WORDS = ("name", "size", "colour", "tags", "owner", "price", "count", "kind")
_LEAVES = ("integer", "number", "boolean", "null", "enum", "string")
_NODES = ("object", "array", "anyOf")
_INTEGER_RANGE = 1000


def random_schema(seed: int, depth: int) -> dict[str, Any]:
    """The schema of a seed; `depth` levels of objects, arrays and alternatives above its leaves."""
    return _schema(random.Random(f"{seed}-{depth}"), depth)


def _schema(source: random.Random, depth: int) -> dict[str, Any]:
    kind = source.choice(_NODES if depth else _LEAVES)
    match kind:
        case "object":
            names = source.sample(_WORDS, source.randint(1, 3))
            required = [name for name in names if source.random() < 0.7]
            return {
                "type": "object",
                "properties": {name: _schema(source, depth - 1) for name in names},
                "required": required,
                "additionalProperties": False,
            }
        case "array":
            least = source.randint(0, 2)
            most = least + source.randint(0, 2)
            return {
                "type": "array",
                "items": _schema(source, depth - 1),
                "minItems": least,
                "maxItems": most,
            }
        case "anyOf":
            return {"anyOf": [_schema(source, depth - 1) for _ in range(source.randint(2, 3))]}
        case "enum":
            return {"enum": source.sample([*_WORDS, 1, 2.5, True, None], source.randint(1, 4))}
        case "string":
            return {"type": "string", "maxLength": source.randint(1, 12)}
        case "integer":
            low = source.randint(-_INTEGER_RANGE, _INTEGER_RANGE)
            return {"type": "integer", "minimum": low, "maximum": low + source.randint(0, _INTEGER_RANGE)}
        case _:
            return {"type": kind}


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one that a schema of `random_schema` accepts."""
    if "anyOf" in schema:
        return any(conforms(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value == option and type(value) is type(option) for option in schema["enum"])
    match schema["type"]:
        case "object":
            return _conforms_object(value, schema)
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(conforms(item, schema["items"]) for item in value)
            )
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "integer":
            # JSON has one kind of number: 3.0 is an integer.
            whole = type(value) is int or (type(value) is float and value.is_integer())
            return whole and schema["minimum"] <= value <= schema["maximum"]
        case "number":
            return type(value) in (int, float)
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None


def _conforms_object(value: Any, schema: dict[str, Any]) -> bool:
    properties = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(properties)
        and all(conforms(item, properties[name]) for name, item in value.items())
    )
