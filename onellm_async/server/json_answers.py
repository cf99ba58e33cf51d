"""Answers of the local server to a request with a schema: a value that conforms, or deliberately does not. Pure."""

import json
from collections.abc import Mapping

from onellm_async.chat import JSON

_MAX_DEPTH = 8
"""Levels of a value below which nothing optional is filled in: a recursive schema would never end."""
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "P1D",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "ada@example.com",
    "uri": "https://example.com",
}
"""A text of each format that readers of JSON check."""
_WORDS = "I would rather not say."


def conforming_text(schema: Mapping[str, JSON], text: str) -> str:
    """A JSON text that conforms to `schema`, as far as it has no patterns and no conditions.

    Args:
        schema: JSON Schema.
        text: What stands in its strings, as far as they may hold it.

    Example:
        >>> conforming_text({"type": "object", "properties": {"city": {"type": "string"}}}, "Oslo")
        '{"city": "Oslo"}'
    """
    return json.dumps(_value(schema, schema, text, 0), ensure_ascii=False)


def unfit_text(content: str, number: int) -> str:
    """A text in place of `content` that is no JSON value, and no longer: words, or a value that is cut off.

    Args:
        content: The answer.
        number: Of the request; one in two is cut off.
    """
    return f"{{{content[: len(content) // 2]}" if number % 2 and len(content) > 1 else _WORDS[: len(content)]


def _value(schema: JSON, root: JSON, text: str, depth: int) -> JSON:
    if not isinstance(schema, Mapping) or depth > 4 * _MAX_DEPTH:
        return text
    if isinstance(reference := schema.get("$ref"), str):
        return _value(_referred(reference, root), root, text, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if parts := schema.get("allOf"):
        merged = {**{name: value for name, value in schema.items() if name != "allOf"}, **parts[0]}
        return _value({**merged, "allOf": parts[1:]} if parts[1:] else merged, root, text, depth + 1)
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice):
            return _value(schema[choice][0], root, text, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return _of_kind(kind[0] if isinstance(kind, list) else kind, schema, root, text, depth)


def _of_kind(kind: str, schema: Mapping[str, JSON], root: JSON, text: str, depth: int) -> JSON:
    if kind == "object":
        required = schema.get("required", ())
        properties = schema.get("properties", {})
        wanted = [name for name in properties if depth < _MAX_DEPTH or name in required]
        wanted += [name for name in required if name not in properties]
        return {name: _value(properties.get(name, {}), root, text, depth + 1) for name in wanted}
    if kind == "array":
        items = [_value(each, root, text, depth + 1) for each in schema.get("prefixItems", ())]
        number = max(schema.get("minItems", 0), min(1, schema.get("maxItems", 1)) if depth < _MAX_DEPTH else 0)
        rest = schema.get("items", {})
        return items + [_value(rest, root, text, depth + 1) for _ in range(number - len(items))]
    if kind in ("integer", "number"):
        return _number(schema)
    if kind == "string":
        filled = _FORMATS.get(schema.get("format", ""), text)
        return filled.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
    return True if kind == "boolean" else None


def _number(schema: Mapping[str, JSON]) -> JSON:
    low = max(schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)
    high = min(schema.get("maximum", low), schema.get("exclusiveMaximum", low + 1) - 1)
    return min(low, high)


def _referred(reference: str, root: JSON) -> JSON:
    """What a reference within the schema refers to; {} for any other."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    return found
