"""Rows and identities that the tests of the journal share."""

from attrs import evolve

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.journal import Intent, RecordState, Settled

IDENTITY = RunIdentity(input="in.jsonl", input_digest="aa", max_tokens=100)


def intent(index: int, **changes: object) -> Intent:
    made = Intent(index, index + 1, index * 7919, f"id-{index}", b"d" * 16, 0.01, 1000.0 + index, 50)
    return evolve(made, **changes)


def answer(index: int, **changes: object) -> Settled:
    result = b'{"content":"%d"}' % index
    made = Settled(index, RecordState.ANSWERED, 1001.0 + index, 1, 0, 0, 0.002, 10, 20, 2.0, 0.5 + index, result)
    return evolve(made, **changes)


def failure(index: int, **changes: object) -> Settled:
    error = {"state": RecordState.FAILED, "cost": None, "input_tokens": None, "output_tokens": None}
    return answer(index, **{**error, "result": b'{"type":"APIError"}', **changes})
