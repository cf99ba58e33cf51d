"""Rows of a journal, as outputs are made of them."""

from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.wire import dump_json

ANSWER = {
    "content": "Hello",
    "role": "assistant",
    "model": "gpt-5",
    "provider": "OpenAI",
    "usage": {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8},
    "finish_reason": "stop",
    "cost": 0.5,
}
LOST = {"type": "APIConnectionError", "message": "reset", "status_code": None}
REFUSED = {"type": "AuthenticationError", "message": "No such key", "status_code": 401}


def row(state, result, *, index=2, custom_id="a", attempts=1):
    return JournalRecord(
        index, 5, 77, custom_id, b"d" * 16, state, attempts, 0, 0, None, None, 0.5, 3, 5, 1233.0, 1234.5, 1.0, 1.0,
        dump_json(result) if result is not None else b"", None,
    )  # fmt: skip


def answered(**changes):
    return row(RecordState.ANSWERED, ANSWER | changes)
