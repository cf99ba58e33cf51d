"""Which fields of a record are fields of a request, by which names, and of which types. Pure."""

from collections.abc import Container, Mapping

import attrs

from onellm_async.chat import JSON, OPENAI_NAMES, ChatRequest, join_text_parts
from onellm_async.errors import InvalidRequestError
from onellm_async.validation import truncated_repr
from onellm_async.wire import parse_json

_OTHER_NAMES = OPENAI_NAMES | {
    "max_output_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "system_prompt": "system",
    "system_instruction": "system",
}
"""What other services call fields of a request."""

RECORD_FIELDS: Mapping[str, str] = {
    **{each.name: each.name for each in attrs.fields(ChatRequest) if each.name != "messages"},
    **_OTHER_NAMES,
    "safety_settings": "safety_settings",
    "generation_config": "generation_config",
}
"""Fields of a JSON line that are fields of its request, and what the request calls them."""

_DATA_IN_TABLES = {
    "n",
    "user",
    "tools",
    "tool_choice",
    "logprobs",
    "top_logprobs",
    "extra",
    "safety_settings",
    "generation_config",
}
"""Columns of these names hold data far more often than settings of a request; ``n`` would even multiply the cost."""

ROW_FIELDS: Mapping[str, str] = {name: field for name, field in RECORD_FIELDS.items() if field not in _DATA_IN_TABLES}
"""Columns of a table that are fields of the request of each row."""

DOCUMENTED = frozenset(RECORD_FIELDS.values()) | {
    "messages",
    "stream",
    "contents",
    "endpoint",
}
"""Fields that the API documents."""

_INTEGERS = frozenset({"max_tokens", "seed", "n", "top_logprobs", "top_k"})
_NUMBERS = _INTEGERS | {"temperature", "top_p", "frequency_penalty", "presence_penalty"}
_BOOLEANS = {"true": True, "false": False}
_STRUCTURED = frozenset({"stop_sequences", "tools", "response_format", "extra"})


def request_fields(
    record: Mapping[str, JSON], names: Mapping[str, str], *, but: Container[str] = (), from_text: bool = False
) -> dict[str, JSON]:
    """The fields of a request that `record` sets. What is null sets nothing; in tables an empty cell neither.

    Args:
        record: A line or row.
        names: `RECORD_FIELDS` or `ROW_FIELDS`.
        but: Names that are something else in this input, such as the field of the prompt.
        from_text: Whether text stands for numbers, lists and objects, as in CSV.

    Raises:
        InvalidRequestError: If two spellings of one field disagree.

    Example:
        >>> request_fields({"q": "Hi", "stop": "END", "max_tokens": 9.0, "seed": None}, RECORD_FIELDS)
        {'stop_sequences': ['END'], 'max_tokens': 9}
    """
    found: dict[str, JSON] = {}
    if names.keys().isdisjoint(record):  # as most lines are
        return found
    for name, value in record.items():
        field = names.get(name)
        if field is None or value is None or name in but:
            continue
        if from_text and isinstance(value, str):
            value = _from_text(field, value)  # noqa: PLW2901
            if value is None:
                continue
        value = _converted(field, value)  # noqa: PLW2901
        if field in found and found[field] != value:
            raise InvalidRequestError(
                f"{name} is {truncated_repr(value)}, but another spelling of {field} is {truncated_repr(found[field])}."
            )
        found[field] = value
    return found


def _converted(field: str, value: JSON) -> JSON:
    if field in _INTEGERS and isinstance(value, float) and value.is_integer():
        return int(value)
    if field == "stop_sequences" and isinstance(value, str):
        return [value]
    if field == "system" and isinstance(value, list):
        return join_text_parts(value)
    if field == "response_format" and isinstance(value, str):
        return {"type": value}
    if field == "user" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _from_text(field: str, text: str) -> JSON:
    """The value that the text of a cell stands for; None for an empty one."""
    bare = text.strip()
    if not bare:
        return None
    if field in _NUMBERS:
        return _number(bare)
    if field in _STRUCTURED and bare[0] in "[{":
        try:
            return parse_json(bare.encode(errors="surrogatepass"))
        except (ValueError, RecursionError):
            return text
    if field == "logprobs":
        return _BOOLEANS.get(bare.lower(), text)
    return bare if field == "model" else text


def _number(text: str) -> JSON:
    """The number in a cell, with a point or a comma; the text itself where there is none."""
    for spelling in (text, text.replace(",", ".", 1)):
        try:
            return int(spelling)
        except ValueError:
            try:
                return float(spelling)
            except ValueError:
                continue
    return text
