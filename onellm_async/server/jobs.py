"""What passes between the pure service and its host, as values."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from attrs.validators import instance_of

from onellm_async.chat import JSON, ChatRequest, Usage
from onellm_async.server.accounts import Account
from onellm_async.server.settings import FaultPlan
from onellm_async.transport import RawReply
from onellm_async.validation import shown
from onellm_async.wire import Dialect, dump_json

MAX_TOKEN_COUNT = 2**53
"""No count is larger: up to here the arithmetic with prices is safe."""

_TEXT_OR_NONE: tuple[type, ...] = (str, type(None))


def _counts(_: object, attribute: object, usage: Any) -> None:
    if not isinstance(usage, Usage):
        raise TypeError(f"The usage of a completion is a {type(usage).__name__}; it must be a Usage.")
    for name, count in (("input", usage.input_tokens), ("output", usage.output_tokens), ("total", usage.total_tokens)):
        whole = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_TOKEN_COUNT
        if count is not None and not whole:
            raise ValueError(f"{name}_tokens of a completion is {shown(count)}; it must be a count or None.")


def _fields(_: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{attribute.name} of a completion is {shown(value)}; it must map names to JSON values.")
    if value:
        try:
            dump_json(dict(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"{attribute.name} of a completion is not JSON: {error}") from None


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
        dialect: In which dialect it was asked.
        reserved: USD set aside for it until it ends.
        affordable_tokens: Most tokens that the balance pays for in each answer; None: no bound.
    """

    number: int
    request: ChatRequest
    max_tokens: int | None
    plan: FaultPlan
    received_at: float
    account: Account
    dialect: Dialect = Dialect.DOCUMENTED
    reserved: float = 0.0
    affordable_tokens: int | None = None


@frozen
class Completion:
    """What a backend made of a job.

    Attributes:
        content: The text; "" where there is none, for example beside tool calls.
        usage: Tokens to bill.
        finish_reason: Why the model stopped, in its own words.
        model: The model's own name; None: derived from the name that was asked, and the provider with it.
        role: Who speaks.
        provider: Who answered, where `model` is given; None: nothing is known.
        extra: Further fields of the reply, such as ``tool_calls``. They replace none of the above.
        usage_details: Further counts of the usage.

    Raises:
        TypeError: If one of them is of another type, or not JSON.
        ValueError: If a count of tokens is negative or beyond 2**53.
    """

    content: str = field(validator=instance_of(str))
    usage: Usage = field(validator=_counts)
    finish_reason: str | None = field(default="stop", validator=instance_of(_TEXT_OR_NONE))
    model: str | None = field(default=None, validator=instance_of(_TEXT_OR_NONE))
    role: str = field(default="assistant", kw_only=True, validator=instance_of(str))
    provider: str | None = field(default=None, kw_only=True, validator=instance_of(_TEXT_OR_NONE))
    extra: Mapping[str, JSON] = field(factory=dict, kw_only=True, hash=False, validator=_fields)
    usage_details: Mapping[str, JSON] = field(factory=dict, kw_only=True, hash=False, validator=_fields)


@frozen
class ServerReply:
    """What is written to the connection.

    Attributes:
        reply: The whole reply; None when the connection is reset instead.
        truncated: Announce the whole body, write its first half and close.
    """

    reply: RawReply | None
    truncated: bool = False
