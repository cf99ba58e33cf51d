"""Records as OpenAI's batch service writes them. Pure.

An HTTP error is a response, and ``error`` is for what never got an HTTP answer::

    {"id", "custom_id", "sample", "input", "response": {"status_code", "request_id", "body"} or null,
     "error": null or {"code", "message"}}

``sample`` counts the answers to one prompt, and is there only where each is asked several times. ``input`` has the kept
fields of the line, and is there only if there are such.
"""

from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.outcomes import outcome_of
from onellm_async.chat import JSON
from onellm_async.wire import dump_json, parse_json


def encode_openai_batch(record: JournalRecord) -> bytes:
    """A JSON line as OpenAI's batch service writes it."""
    name = f"batch_req_{_number(record)}"
    line: dict[str, JSON] = {"id": name, "custom_id": record.custom_id, "response": None, "error": None}
    if record.sample is not None:
        line["sample"] = record.sample
    if record.kept is not None:
        line["input"] = parse_json(record.kept)
    answered, text = outcome_of(record)
    result = parse_json(text)
    if answered:
        line["response"] = {"status_code": 200, "request_id": name, "body": _completion(record, result)}
    elif (status := result["status_code"]) is not None:
        body = {"error": {"message": result["message"], "type": result["type"], "code": status}}
        line["response"] = {"status_code": status, "request_id": name, "body": body}
    else:
        line["error"] = {"code": result["type"], "message": result["message"]}
    return dump_json(line) + b"\n"


def _number(record: JournalRecord) -> str:
    return f"{record.index}" if record.sample is None else f"{record.index}_{record.sample}"


def encode_bad_line(index: int, raw: bytes, message: str) -> bytes:
    """The record of a line that holds no usable request, so that a join by ``custom_id`` misses none."""
    try:
        line = parse_json(raw)
    except (ValueError, RecursionError):
        line = None
    custom_id = line.get("custom_id") if isinstance(line, dict) else None
    record = {
        "id": f"batch_req_{index}",
        "custom_id": custom_id if isinstance(custom_id, str | int) else None,
        "response": None,
        "error": {"code": "InvalidRequestError", "message": message},
    }
    return dump_json(record) + b"\n"


_IN_MESSAGE = ("tool_calls", "function_call", "refusal", "annotations", "audio", "reasoning", "reasoning_content")
"""Fields of a reply that OpenAI's shape has in the message."""
_IN_COMPLETION = ("system_fingerprint", "service_tier")
"""Fields of a reply that OpenAI's shape has at the top."""
_COUNTS = {"input_tokens", "output_tokens", "total_tokens", "prompt_tokens", "completion_tokens"}


def _completion(record: JournalRecord, result: dict[str, JSON]) -> dict[str, JSON]:
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
        "id": f"chatcmpl-{_number(record)}",
        "object": "chat.completion",
        "created": int(record.completed_at or 0),
        "model": result["model"],
        "choices": _all_choices(extra) or [choice],
        "usage": _usage(result["usage"], extra),
        **taken(_IN_COMPLETION),
    }
    own = {"provider": result["provider"], "cost": result["cost"]}
    if record.copy_of is not None:
        own["copy_of"] = record.copy_of
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
