"""What the journal has of a prompt, as a record of the output. Pure.

Records are made of journal rows and never of live responses, so that a resumed run writes the bytes that an undisturbed
one would have written. ``jsonl``::

    {"index": 0, "custom_id": "a", "copy_of": 3, "response": {"content", "role", "model", "provider", "usage",
     "finish_reason", "cost", "extra"} or null, "error": null or {"type", "message", "status_code"}}

``copy_of`` is the index of an identical prompt whose answer this is, too; its ``cost`` is then 0. ``extra`` holds the
further fields of the reply. Both are there only where there is something to say. ``openai-batch``, where an HTTP error
is a response, and ``error`` is for what never got an HTTP answer::

    {"id", "custom_id", "response": {"status_code", "request_id", "body"} or null, "error": null or {"code", "message"}}

``csv`` and ``parquet`` have the columns of `onellm_async.batch.outputs.columns`.
"""

from collections.abc import Callable

from onellm_async.batch.formats import OutputFormat
from onellm_async.batch.journal.record import JournalRecord
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
        self.line: Callable[[JournalRecord], bytes]
        if shape is OutputFormat.JSONL:
            self.line = plain_line
        elif shape is OutputFormat.OPENAI_BATCH:
            self.line = openai_line
        elif shape is OutputFormat.CSV:
            from onellm_async.batch.outputs.csv import CSV_HEADER, csv_line  # noqa: PLC0415  # which need this file

            self.header, self.line = CSV_HEADER, csv_line
        else:
            from onellm_async.batch.outputs.columns import packed_line  # noqa: PLC0415

            self.line = packed_line


def plain_line(row: JournalRecord) -> bytes:
    """A JSON line around the result as the journal has it: nothing in it is encoded again."""
    named = b"" if row.custom_id is None else b'"custom_id":%b,' % dump_json(row.custom_id)
    answered, result = outcome_of(row)
    if row.copy_of is not None:
        named += b'"copy_of":%d,' % row.copy_of
    if answered:
        return b'{"index":%d,%b"response":%b,"error":null}\n' % (row.index, named, result)
    return b'{"index":%d,%b"response":null,"error":%b}\n' % (row.index, named, result)


def openai_line(row: JournalRecord) -> bytes:
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


_IN_MESSAGE = ("tool_calls", "function_call", "refusal", "annotations", "audio", "reasoning", "reasoning_content")
"""Fields of a reply that OpenAI's shape has in the message."""
_IN_COMPLETION = ("system_fingerprint", "service_tier")
"""Fields of a reply that OpenAI's shape has at the top."""
_COUNTS = {"input_tokens", "output_tokens", "total_tokens", "prompt_tokens", "completion_tokens"}


def _completion(row: JournalRecord, result: dict[str, JSON]) -> dict[str, JSON]:
    extra: dict[str, JSON] = dict(result.get("extra") or {})

    def taken(names: tuple[str, ...]) -> dict[str, JSON]:
        return {name: extra.pop(name) for name in names if name in extra}

    message = {"role": result["role"] or "assistant", "content": result["content"], **taken(_IN_MESSAGE)}
    if not message["content"] and any(message.get(name) for name in ("tool_calls", "function_call", "refusal")):
        message["content"] = None  # as OpenAI has it
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": result["finish_reason"],
        "logprobs": extra.pop("logprobs", None),
    }
    completion = {
        "id": f"chatcmpl-{row.index}",
        "object": "chat.completion",
        "created": int(row.completed_at or 0),
        "model": result["model"],
        "choices": _all_choices(extra) or [choice],
        "usage": _usage(result["usage"], extra),
        **taken(_IN_COMPLETION),
    }
    own = {"provider": result["provider"], "cost": result["cost"]}
    if row.copy_of is not None:
        own["copy_of"] = row.copy_of
    if extra:
        own["extra"] = extra
    return {**completion, "onellm": own}


def _all_choices(extra: dict[str, JSON]) -> list[JSON] | None:
    """The choices of a reply that had several, or more in one than a choice has here."""
    choices = extra.get("choices")
    if isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices):
        del extra["choices"]
        return choices
    return None


def _usage(usage: dict[str, JSON] | None, extra: dict[str, JSON]) -> dict[str, JSON] | None:
    if usage is None:
        return None
    counts = {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }
    as_it_came = extra.get("usage")
    if not isinstance(as_it_came, dict):
        return counts
    if all(as_it_came.get(name) is None or isinstance(as_it_came[name], int) for name in _COUNTS):
        del extra["usage"]  # nothing in it is lost
    return counts | {name: value for name, value in as_it_came.items() if name not in _COUNTS}
