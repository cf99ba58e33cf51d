"""Outcomes as JSON, for the journal and for the outputs.

The journal keeps everything that an output needs, and nothing that differs between attempts.
"""

from collections.abc import Mapping

from onellm_async.batch.inputs.entry import ParsedEntry
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.chat import JSON, ChatResponse
from onellm_async.errors import OneLLMError, StructureError
from onellm_async.structured_output import json_in
from onellm_async.wire import dump_json, parse_json

__all__ = ["answer_json", "failure_json", "outcome_of"]


_MAX_DEPTH = 200
"""Levels; many JSON parsers fail a little beyond."""
_UNKEPT = "It is nested too deeply to be kept."
"""Stands in the place of a field of a reply that no output could hold."""


def answer_json(response: ChatResponse[object], item: ParsedEntry, *, structured: bool = False) -> bytes:
    """An answer; ``extra`` is what the reply holds beyond the known fields, and is there only if it holds such.

    Args:
        response: The answer.
        item: What was asked.
        structured: Whether it conforms to a schema, and its JSON value is ``parsed``.
    """
    usage = response.usage
    answer: dict[str, JSON] = {
        "content": response.content,
        "role": response.role,
        "model": response.model or item.request.model,
        "provider": response.provider,
        "usage": None
        if usage is None
        else {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        },
        "finish_reason": response.finish_reason,
        "cost": response.cost,
    }
    if structured:
        answer["parsed"] = parse_json(json_in(response.content).encode(errors="surrogatepass"))
    if response.extra:
        answer["extra"] = {name: value if _is_flat(value) else _UNKEPT for name, value in response.extra.items()}
    return dump_json(answer)


def _is_flat(value: JSON) -> bool:
    """Whether `value` is nested so little that every output can be written, and read by others."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list | tuple)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        if not level:
            return True
    return False


def failure_json(error: OneLLMError, cost: float | None = None) -> bytes:
    """A failure; its message without the figures of this attempt, which another would not share.

    Args:
        error: What happened. An answer that does not fit is there as ``content``.
        cost: USD of that answer and of those before it.
    """
    message = f"{error.message} {error.advice}".strip()
    failure: dict[str, JSON] = {
        "type": type(error).__name__,
        "message": message,
        "status_code": getattr(error, "status_code", None),
    }
    if isinstance(error, StructureError):
        failure |= {"content": error.response.content, "cost": cost}
    return dump_json(failure)


_POSSIBLY_BILLED = dump_json(
    {
        "type": "PossiblyBilled",
        "message": "It was sent and has no answer, and may be billed. Run the same command again to resume.",
        "status_code": None,
    }
)
"""The failure of a record without an outcome."""
_UNFINISHED = dump_json(
    {
        "type": "Unfinished",
        "message": "Its answer does not conform to the schema, and was not corrected. Run the same command again.",
        "status_code": None,
    }
)
"""The same where no attempt is open: all that was answered is paid for."""


def outcome_of(row: JournalRecord) -> tuple[bool, bytes]:
    """Whether a record is an answer, and the answer or the failure as JSON, for an output."""
    if row.state is RecordState.IN_FLIGHT:
        return False, _UNFINISHED if row.is_paid and not row.possibly_billed else _POSSIBLY_BILLED
    if row.state is not RecordState.ANSWERED:
        return False, row.result
    return True, row.result if row.attempts else _free_of_charge(row.result)


def _free_of_charge(result: bytes) -> bytes:
    """The answer to another request that is this one's, too: it was paid for once, so records add up."""
    return dump_json(parse_json(result) | {"cost": 0.0})
