"""What the journal has of a prompt, as a record of the output. Pure.

Records are made of journal rows and never of live responses, so that a resumed run writes the bytes that an undisturbed
one would have written. ``jsonl``::

    {"index": 0, "custom_id": "a", "response": {"content", "role", "model", "provider", "usage", "finish_reason",
     "cost"} or null, "error": null or {"type", "message", "status_code"}}

``openai-batch``, where an HTTP error is a response, and ``error`` is for what never got an HTTP answer::

    {"id", "custom_id", "response": {"status_code", "request_id", "body"} or null, "error": null or {"code", "message"}}

``csv`` and ``parquet`` have the columns of `onellm_async.batch.outputs.columns`.
"""

from collections.abc import Callable

from onellm_async.batch.formats import OutputFormat
from onellm_async.batch.journal.rows import Row
from onellm_async.batch.outcomes import outcome_of
from onellm_async.chat import JSON
from onellm_async.wire import dump_json, parse_json

__all__ = ["RecordWriter"]


class RecordWriter:
    """Turns journal rows into records.

    Args:
        shape: How records are written.

    Attributes:
        shape: As given.
        header: What stands before the first record; empty except in CSV.
        line: The record of a row, with its line break. The same row gives the same bytes.

    Example:
        ::

            writer = RecordWriter(OutputFormat.CSV)
            text = writer.header + b"".join(map(writer.line, rows))
    """

    __slots__ = ("header", "line", "shape")

    def __init__(self, shape: OutputFormat = OutputFormat.JSONL) -> None:
        self.shape: OutputFormat = shape
        self.header: bytes = b""
        self.line: Callable[[Row], bytes]
        if shape is OutputFormat.JSONL:
            self.line = plain_line
        elif shape is OutputFormat.OPENAI_BATCH:
            self.line = openai_line
        elif shape is OutputFormat.CSV:
            from onellm_async.batch.outputs.csv_records import CSV_HEADER, csv_line  # noqa: PLC0415  # which need this file

            self.header, self.line = CSV_HEADER, csv_line
        else:
            from onellm_async.batch.outputs.columns import packed_line  # noqa: PLC0415

            self.line = packed_line


def plain_line(row: Row) -> bytes:
    """A JSON line around the result as the journal has it: nothing in it is encoded again."""
    named = b"" if row.custom_id is None else b'"custom_id":%b,' % dump_json(row.custom_id)
    answered, result = outcome_of(row)
    if answered:
        return b'{"index":%d,%b"response":%b,"error":null}\n' % (row.index, named, result)
    return b'{"index":%d,%b"response":null,"error":%b}\n' % (row.index, named, result)


def openai_line(row: Row) -> bytes:
    """A JSON line as OpenAI's batch service writes it."""
    name = f"batch_req_{row.index}"
    record: dict[str, JSON] = {"id": name, "custom_id": row.custom_id, "response": None, "error": None}
    answered, text = outcome_of(row)
    result = parse_json(text)
    if answered:
        record["response"] = {"status_code": 200, "request_id": name, "body": _completion(row, result)}
    elif (status := result["status_code"]) is not None:
        body = {"error": {"message": result["message"], "type": result["type"], "code": status}}
        record["response"] = {"status_code": status, "request_id": name, "body": body}
    else:
        record["error"] = {"code": result["type"], "message": result["message"]}
    return dump_json(record) + b"\n"


def _completion(row: Row, result: dict[str, JSON]) -> dict[str, JSON]:
    usage = result["usage"]
    return {
        "id": f"chatcmpl-{row.index}",
        "object": "chat.completion",
        "created": int(row.settled_at or 0),
        "model": result["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": result["role"] or "assistant", "content": result["content"]},
                "finish_reason": result["finish_reason"],
                "logprobs": None,
            }
        ],
        "usage": None
        if usage is None
        else {
            "prompt_tokens": usage["input_tokens"],
            "completion_tokens": usage["output_tokens"],
            "total_tokens": usage["total_tokens"],
        },
        "onellm": {"provider": result["provider"], "cost": result["cost"]},
    }
