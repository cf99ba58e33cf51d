"""Rows and identities that the tests of the journal share."""

from attrs import evolve

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.record import JournalRecord, RecordState

IDENTITY = RunIdentity(input="in.jsonl", input_digest="aa", max_tokens=100)


def intent(index: int, **changes: object) -> JournalRecord:
    """A request that is about to be sent for the first time."""
    made = JournalRecord(
        index=index,
        line=index + 1,
        line_digest=index * 7919,
        request_digest=b"d" * 16,
        custom_id=f"id-{index}",
        reserved=0.01,
        reserved_tokens=50,
        sent_at=1000.0 + index,
        possibly_billed=1,
    )
    return evolve(made, **changes)


def answer(index: int, **changes: object) -> JournalRecord:
    """The answer to it."""
    made = evolve(
        intent(index),
        possibly_billed=0,
        state=RecordState.ANSWERED,
        completed_at=1001.0 + index,
        attempts=1,
        cost=0.002,
        input_tokens=10,
        output_tokens=20,
        elapsed=2.0,
        latency=0.5 + index,
        result=b'{"content":"%d"}' % index,
    )
    return evolve(made, **changes)


def failure(index: int, **changes: object) -> JournalRecord:
    """Its failure."""
    error = {"state": RecordState.FAILED, "cost": None, "input_tokens": None, "output_tokens": None}
    return answer(index, **{**error, "result": b'{"type":"APIError"}', **changes})


def duplicate(index: int, original: JournalRecord, **changes: object) -> JournalRecord:
    """A request that was not sent: it has the answer to an identical one."""
    unsent = {"reserved": None, "reserved_tokens": None, "sent_at": None, "attempts": 0, "latency": None}
    free = {"cost": 0.0, "input_tokens": 0, "output_tokens": 0}
    made = answer(index, **unsent, **free, copy_of=original.index, result=original.result)
    return evolve(made, **changes)
