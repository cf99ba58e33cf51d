"""The columns of a table of answers, and a row's values in them. Pure."""

from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.outcomes import outcome_of
from onellm_async.chat import JSON
from onellm_async.wire import dump_json, parse_json

COLUMNS: dict[str, type] = {
    "index": int,
    "custom_id": str,
    "content": str,
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
"""Names in their order, and what is in them; everything but ``index`` may be missing. ``cost`` is in USD, and 0 for an
answer that was copied from the prompt with the index ``copy_of``. ``extra`` is what else the reply held, as JSON."""


def values_of(row: JournalRecord) -> list[JSON]:
    """What stands in the columns; None where there is nothing."""
    answered, text = outcome_of(row)
    result = parse_json(text)
    if not answered:
        failure = [result["type"], result["message"], result["status_code"]]
        return [row.index, row.custom_id, None, *failure, *[None] * (len(COLUMNS) - 6)]
    usage, extra = result["usage"] or {}, result.get("extra")
    return [
        row.index,
        row.custom_id,
        result["content"],
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
        row.copy_of,
        None if extra is None else dump_json(extra).decode(),
    ]


def encode_columns(row: JournalRecord) -> bytes:
    """The values as a JSON line, which is how they travel to a sink that writes columns."""
    return dump_json(values_of(row)) + b"\n"
