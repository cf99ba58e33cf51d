"""Values that pass between the service, its host and the backend. Pure."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from attrs.validators import instance_of

from onellm_async.chat import JSON, ChatRequest, Usage
from onellm_async.server.accounts import Account
from onellm_async.server.settings import FaultPlan
from onellm_async.transport import RawReply
from onellm_async.validation import truncated_repr
from onellm_async.wire import Dialect, dump_json

MAX_TOKEN_COUNT = 2**53
"""Upper bound of every token count: up to here a float is exact, so the arithmetic with prices is, too."""

_TEXT_OR_NONE: tuple[type, ...] = (str, type(None))


def _check_usage(_: object, attribute: object, usage: Any) -> None:
    if not isinstance(usage, Usage):
        raise TypeError(f"The usage of a completion is a {type(usage).__name__}; it must be a Usage.")
    for name, count in (("input", usage.input_tokens), ("output", usage.output_tokens), ("total", usage.total_tokens)):
        valid = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_TOKEN_COUNT
        if count is not None and not valid:
            raise ValueError(f"{name}_tokens of a completion is {truncated_repr(count)}; it must be a count or None.")


def _check_fields(_: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(
            f"{attribute.name} of a completion is {truncated_repr(value)}; it must map names to JSON values."
        )
    if value:
        try:
            dump_json(dict(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"{attribute.name} of a completion is not JSON: {error}") from None


@frozen
class Job:
    """An accepted request that has to be processed. The host must end each job exactly once.

    Attributes:
        number: Order of arrival, from 1.
        request: The chat request.
        max_tokens: Maximum number of tokens to generate, lowered to what the balance pays for; None means no limit.
        plan: Latency and fault of this request.
        received_at: Seconds on the server's clock.
        account: Account of the key.
        dialect: Dialect of the request.
        reserved: USD reserved until the job ends.
        affordable_tokens: Maximum number of tokens that the balance pays for in each answer; None means no limit.
        tokens: Tokens that the request counts in a limit of tokens.
        rate_headers: Headers of the answer that say what is left of the limits.
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
    tokens: int = 0
    rate_headers: Mapping[str, str] = field(factory=dict, hash=False)


@frozen
class Completion:
    """A backend's answer to a job.

    Attributes:
        content: The text; "" if there is none, for example beside tool calls.
        usage: Tokens to bill.
        finish_reason: Why the model stopped, in the model's own words.
        model: The model's own name. None derives model and provider from the requested model.
        role: Role of the message.
        provider: Provider of `model`; None if it is not known.
        extra: Further fields of the reply, such as ``tool_calls``. They never replace a field above.
        usage_details: Further counts of the usage.

    Raises:
        TypeError: If a field has another type, or is not JSON.
        ValueError: If a token count is negative or greater than 2**53.
    """

    content: str = field(validator=instance_of(str))
    usage: Usage = field(validator=_check_usage)
    finish_reason: str | None = field(default="stop", validator=instance_of(_TEXT_OR_NONE))
    model: str | None = field(default=None, validator=instance_of(_TEXT_OR_NONE))
    role: str = field(default="assistant", kw_only=True, validator=instance_of(str))
    provider: str | None = field(default=None, kw_only=True, validator=instance_of(_TEXT_OR_NONE))
    extra: Mapping[str, JSON] = field(factory=dict, kw_only=True, hash=False, validator=_check_fields)
    usage_details: Mapping[str, JSON] = field(factory=dict, kw_only=True, hash=False, validator=_check_fields)


@frozen
class ServerReply:
    """What the host writes to the connection.

    Attributes:
        reply: The complete reply; None resets the connection instead.
        truncated: Whether the host announces the complete body, writes its first half and closes the connection.
    """

    reply: RawReply | None
    truncated: bool = False
