"""Outcomes as JSON: what the journal keeps of one, and what an output says of a row.

The journal keeps everything that an output needs, and nothing that differs between attempts.
"""

from onellm_async.batch.inputs.items import Item
from onellm_async.batch.journal.rows import Row, State
from onellm_async.chat import ChatResponse
from onellm_async.errors import OneLLMError
from onellm_async.wire import dump_json

__all__ = ["answer_json", "failure_json", "outcome_of"]


def answer_json(response: ChatResponse, item: Item) -> bytes:
    """An answer."""
    usage = response.usage
    return dump_json(
        {
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
    )


def failure_json(error: OneLLMError) -> bytes:
    """A failure; its message without the figures of this attempt, which another would not share."""
    message = f"{error.message} {error.advice}".strip()
    return dump_json(
        {"type": type(error).__name__, "message": message, "status_code": getattr(error, "status_code", None)}
    )


_POSSIBLY_BILLED = dump_json(
    {
        "type": "PossiblyBilled",
        "message": "It was sent and no answer has come; it may be billed. Run the same command again to go on.",
        "status_code": None,
    }
)
"""The failure of a row that has no outcome yet."""
_NO_OUTCOME = dump_json(
    {
        "type": "NoOutcome",
        "message": "The journal has no outcome of it. Run the same command again with --retry-failed.",
        "status_code": None,
    }
)
"""The failure of a duplicate whose original has lost its own; only journals of earlier versions have such."""


def outcome_of(row: Row) -> tuple[bool, bytes]:
    """What an output says of a row: whether it is an answer, and the answer or the failure as JSON."""
    if row.state is State.SENT:
        return False, _POSSIBLY_BILLED
    if not row.result:
        return False, _NO_OUTCOME
    return row.state is State.ANSWERED, row.result
