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
        index=index,
        line=5,
        line_digest=77,
        request_digest=b"d" * 16,
        custom_id=custom_id,
        sent_at=1233.0,
        state=state,
        completed_at=1234.5,
        attempts=attempts,
        cost=0.5,
        input_tokens=3,
        output_tokens=5,
        elapsed=1.0,
        latency=1.0,
        result=dump_json(result) if result is not None else b"",
    )


def answered(**changes):
    return row(RecordState.ANSWERED, ANSWER | changes)
