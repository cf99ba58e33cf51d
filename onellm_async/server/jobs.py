"""What passes between the pure service and its host, as values."""

from attrs import frozen

from onellm_async.chat import ChatRequest, Usage
from onellm_async.server.accounts import Account
from onellm_async.server.settings import FaultPlan
from onellm_async.transport import RawReply

__all__ = ["Completion", "Delivery", "Job"]


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
    """

    content: str
    usage: Usage
    finish_reason: str | None = "stop"
    model: str | None = None


@frozen
class Delivery:
    """What is written to the connection.

    Attributes:
        reply: The whole reply; None when the connection is reset instead.
        truncated: Announce the whole body, write its first half and close.
    """

    reply: RawReply | None
    truncated: bool = False
