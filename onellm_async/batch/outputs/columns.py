"""The columns of a table of answers, and a record's values in them. Pure."""

from collections.abc import Mapping, Sequence

from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.outcomes import outcome_of
from onellm_async.chat import JSON
from onellm_async.wire import dump_json, parse_json

COLUMNS: dict[str, type] = {
    "index": int,
    "custom_id": str,
    "sample": int,
    "content": str,
    "parsed": str,
    "error_type": str,
    "error_message": str,
    "status_code": int,
    "model": str,
    "provider": str,
    "finish_reason": str,
    "input_tokens": int,
    "output_tokens": int,
    "total_tokens": int,
    "cost": float,
    "copy_of": int,
    "extra": str,
}
"""Names in their order, and what is in them; everything but ``index`` may be missing. ``sample`` counts the answers to
one prompt, from 1, where each is asked several times. ``parsed`` is the value of a schema, as JSON. ``cost`` is in USD,
and 0 for an answer that was copied from the prompt with the index ``copy_of``. ``extra`` is what else the reply held,
as JSON."""

_FAILURE = ("error_type", "error_message", "status_code")

WHOLE = ("*",)
"""Kept fields of which the names are not known before the first record: one column ``input`` has them, as JSON."""


def kept_names(columns: Sequence[str]) -> list[str]:
    """The names of the columns that hold fields of the input: their own, or ``input_…`` where an answer has that name.

    Example:
        >>> kept_names(["question", "model"])
        ['question', 'input_model']
    """
    if tuple(columns) == WHOLE:
        return ["input"]
    names: list[str] = []
    for column in columns:
        name = column
        while name in COLUMNS or name in names or (name != column and name in columns):
            name = f"input_{name}"
        names.append(name)
    return names


def kept_values(record: JournalRecord, columns: Sequence[str]) -> list[str | None]:
    """What stands in the columns of the input, as text; None where there is nothing."""
    if not columns:
        return []
    if record.kept is None:
        return [None] * len(columns)
    if tuple(columns) == WHOLE:
        return [record.kept.decode()]
    kept = parse_json(record.kept)
    return [_text(kept.get(column)) for column in columns]


def _text(value: JSON) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return dump_json(value).decode()


def values_of(record: JournalRecord) -> list[JSON]:
    """What stands in the columns of the answer; None where there is nothing."""
    answered, text = outcome_of(record)
    result = parse_json(text)
    if not answered:
        failure = [result["type"], result["message"], result["status_code"]]
        values: dict[str, JSON] = dict(zip(_FAILURE, failure, strict=True))
        values |= {"index": record.index, "custom_id": record.custom_id, "sample": record.sample}
        values["cost"] = result.get("cost")  # of an answer that does not fit
        return [values.get(name) for name in COLUMNS]
    usage = result["usage"] or {}
    return [
        record.index,
        record.custom_id,
        record.sample,
        result["content"],
        _json(result, "parsed"),
        None,
        None,
        None,
        result["model"],
        result["provider"],
        result["finish_reason"],
        usage.get("input_tokens"),
        usage.get("output_tokens"),
        usage.get("total_tokens"),
        result["cost"],
        record.copy_of,
        _json(result, "extra"),
    ]


def _json(result: Mapping[str, JSON], name: str) -> str | None:
    return dump_json(result[name]).decode() if name in result else None


def encode_columns(record: JournalRecord, columns: Sequence[str] = ()) -> bytes:
    """The values as a JSON line, which is how they travel to a sink that writes columns.

    Args:
        record: The record.
        columns: Fields of the input that follow the answer.
    """
    return dump_json([*values_of(record), *kept_values(record, columns)]) + b"\n"
