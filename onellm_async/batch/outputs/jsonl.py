"""Our own records as JSON lines. Pure.

::

    {"index": 0, "custom_id": "a", "sample": 1, "copy_of": 3, "response": {"content", "role", "model", "provider",
     "usage", "finish_reason", "cost", "parsed", "extra"} or null, "error": null or {"type", "message", "status_code"}}

``sample`` counts the answers to one prompt, where each is asked several times. ``copy_of`` is the index of an identical
prompt whose answer this is, too; its ``cost`` is then 0. ``parsed`` is the value of the schema that was asked for,
``extra`` holds the further fields of the reply, and ``input`` after the id the kept fields of the line or row. All five
are there only where there is something to say. An answer that does not conform to the schema is an error, which has it
as ``content``, with its ``cost``.
"""

from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.outcomes import outcome_of
from onellm_async.wire import dump_json


def encode_jsonl(record: JournalRecord) -> bytes:
    """A JSON line around the result as the journal has it: nothing in it is encoded again."""
    named = b"" if record.custom_id is None else b'"custom_id":%b,' % dump_json(record.custom_id)
    if record.sample is not None:
        named += b'"sample":%d,' % record.sample
    answered, result = outcome_of(record)
    if record.copy_of is not None:
        named += b'"copy_of":%d,' % record.copy_of
    if record.kept is not None:
        named += b'"input":%b,' % record.kept
    if answered:
        return b'{"index":%d,%b"response":%b,"error":null}\n' % (record.index, named, result)
    return b'{"index":%d,%b"response":null,"error":%b}\n' % (record.index, named, result)
