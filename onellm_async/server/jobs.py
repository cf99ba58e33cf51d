"""What passes between the pure service and its host, as values."""

from typing import Any

from attrs import field, frozen
from attrs.validators import instance_of

from onellm_async.chat import ChatRequest, Usage
from onellm_async.server.accounts import Account
from onellm_async.server.settings import FaultPlan
from onellm_async.transport import RawReply
from onellm_async.validation import shown

__all__ = ["MOST_TOKENS", "Completion", "Delivery", "Job"]

MOST_TOKENS = 2**53
"""No count is larger: up to here the arithmetic with prices is safe."""

_TEXT_OR_NONE: tuple[type, ...] = (str, type(None))


def _counts(_: object, attribute: object, usage: Any) -> None:
    if not isinstance(usage, Usage):
        raise TypeError(f"The usage of a completion is a {type(usage).__name__}; it must be a Usage.")
    for name, count in (("input", usage.input_tokens), ("output", usage.output_tokens), ("total", usage.total_tokens)):
        whole = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MOST_TOKENS
        if count is not None and not whole:
            raise ValueError(f"{name}_tokens of a completion is {shown(count)}; it must be a count or None.")


@frozen
class Job:
    """An accepted request that still has to be processed. Each one must be ended exactly once.

    Attributes:
        number: In order of arrival, from 1.
        request: What was asked.
        max_tokens: Most tokens to generate, lowered to what the balance affords; None: no bound.
        plan: What will happen to it.
        received_at: Seconds on the server's clock.
        account: Whose it is.
    """

    number: int
    request: ChatRequest
    max_tokens: int | None
    plan: FaultPlan
    received_at: float
    account: Account


@frozen
class Completion:
    """What a backend made of a job.

    Attributes:
        content: The text.
        usage: Tokens to bill.
        finish_reason: Why the model stopped, in its own words.
        model: The model's own name; None: derived from the name that was asked.

    Raises:
        TypeError: If one of them is of another type.
        ValueError: If a count of tokens is negative or beyond 2**53.
    """

    content: str = field(validator=instance_of(str))
    usage: Usage = field(validator=_counts)
    finish_reason: str | None = field(default="stop", validator=instance_of(_TEXT_OR_NONE))
    model: str | None = field(default=None, validator=instance_of(_TEXT_OR_NONE))


@frozen
class Delivery:
    """What is written to the connection.

    Attributes:
        reply: The whole reply; None when the connection is reset instead.
        truncated: Announce the whole body, write its first half and close.
    """

    reply: RawReply | None
    truncated: bool = False
