"""Errors in the shape of OpenAI's API. Pure.

The status of an upstream failure follows from its kind, in one table. A 429 is never passed on: clients would retry,
and the requests of the gateway wait instead. Most errors carry ``x-should-retry: false``, because the gateway has
retried already and each further request could be paid for.
"""

from collections.abc import Mapping
from math import ceil
from types import MappingProxyType

from attrs import frozen

from onellm_async.chat import JSON
from onellm_async.errors import (
    APIStatusError,
    BudgetExceededError,
    CircuitOpenError,
    DeadlineExceededError,
    InvalidRequestError,
    OneLLMError,
    QueueFullError,
)
from onellm_async.failure_kinds import FailureKind
from onellm_async.limits.snapshot import Snapshot


@frozen(kw_only=True)
class ErrorReply:
    """One error reply.

    Attributes:
        status: HTTP status.
        message: What happened and what to do.
        type: OpenAI's class of the error.
        param: The field of the request that is at fault; None if none is.
        code: What programs compare with.
        retry_after: Seconds until a new request can succeed; None if that is not known.
        retry: Whether a client may retry at once by itself.
        headers: Further headers.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None
    retry: bool = False
    headers: Mapping[str, str] = MappingProxyType({})

    def body(self) -> dict[str, JSON]:
        """Returns the JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def all_headers(self) -> dict[str, str]:
        """Returns the headers; ``Retry-After`` is rounded up to whole seconds."""
        headers = {"x-should-retry": "true" if self.retry else "false", **self.headers}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, ceil(self.retry_after)))
        return headers


class RequestRejectedError(Exception):
    """A request that the gateway answers with an error.

    Args:
        reply: The answer.
    """

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.message)
        self.reply: ErrorReply = reply


_K = FailureKind
_SERVER, _UPSTREAM = "server_error", "upstream_error"

_STATUS: Mapping[FailureKind, tuple[int, str, str]] = MappingProxyType({
    # kind                  status, type, code
    _K.RATE_LIMITED:     (503, _SERVER,   "rate_limited"),
    _K.CANNOT_CONNECT:   (502, _UPSTREAM, "service_unreachable"),
    _K.CANNOT_RECONNECT: (502, _UPSTREAM, "service_unreachable"),
    _K.GATEWAY_ERROR:    (502, _UPSTREAM, "service_failed"),
    _K.CONNECTION_LOST:  (502, _UPSTREAM, "connection_lost"),
    _K.SERVER_ERROR:     (502, _UPSTREAM, "service_failed"),
    _K.NOT_IMPLEMENTED:  (502, _UPSTREAM, "service_failed"),
    _K.NOT_JSON:         (502, _UPSTREAM, "reply_unreadable"),
    _K.NOT_A_CHAT_REPLY: (502, _UPSTREAM, "reply_unreadable"),
    _K.REQUEST_TIMEOUT:  (502, _UPSTREAM, "service_failed"),
    _K.REJECTED:         (400, "invalid_request_error", "rejected_by_service"),  # the status is the service's own
    _K.UNKNOWN_KEY:      (502, _UPSTREAM, "onellm_key_rejected"),
    _K.REVOKED_KEY:      (502, _UPSTREAM, "onellm_key_rejected"),
    _K.OVERLOADED:       (503, _UPSTREAM, "service_overloaded"),
    _K.BALANCE_TOO_LOW:  (402, "insufficient_quota", "balance_too_low"),
    _K.WRONG_ADDRESS:    (502, _UPSTREAM, "service_address_wrong"),
    _K.NOT_TRUSTED:      (502, _UPSTREAM, "service_not_trusted"),
    _K.LOCAL:            (502, _SERVER,   "gateway_misconfigured"),
    _K.DEADLINE:         (504, _SERVER,   "wait_too_long"),
    _K.CANCELLED:        (503, _SERVER,   "shutting_down"),
    _K.CLOSED:           (503, _SERVER,   "shutting_down"),
    _K.NOT_SENT:         (503, _SERVER,   "not_sent"),
    _K.RUN_STOPPED:      (402, "insufficient_quota", "max_cost_reached"),
    _K.UNFIT_ANSWER:     (502, _UPSTREAM, "unfit_answer"),
    _K.INVALID:          (400, "invalid_request_error", "invalid_value"),
})  # fmt: skip

_FIELDS = frozenset(
    [
        "model",
        "messages",
        "temperature",
        "max_tokens",
        "top_p",
        "stop_sequences",
        "response_format",
        "seed",
        "user",
        "frequency_penalty",
        "presence_penalty",
        "logprobs",
        "top_logprobs",
        "top_k",
    ]
)
"""Fields that a message of the library can begin with."""
_OPENAI_NAMES = {"stop_sequences": "stop"}
_SHUTDOWN_RETRY = 1.0
"""Seconds after which a request that a shutdown ended may be retried: another gateway, or the next one, has it."""


def translate_error(error: OneLLMError, snapshot: Snapshot, *, max_wait: float) -> ErrorReply:
    """Translates an error of the client.

    Args:
        error: What `AsyncOneLLM.send` raised.
        snapshot: The client at that moment; the time until a shed request can succeed follows from it.
        max_wait: Seconds that a request may wait.
    """
    status, kind, code = _STATUS[error.kind]
    message, retry_after = _message(error), None
    if isinstance(error, QueueFullError | CircuitOpenError):
        code = "queue_full" if isinstance(error, QueueFullError) else "circuit_open"
        retry_after = error.retry_after
    elif isinstance(error, DeadlineExceededError) and not error.attempts:
        status, retry_after = 503, seconds_until_room(snapshot, max_wait)
    elif error.kind is FailureKind.CLOSED and not error.possibly_billed:
        retry_after = _SHUTDOWN_RETRY
    elif error.kind is FailureKind.REJECTED and isinstance(error, APIStatusError):
        status = error.status_code
    return ErrorReply(
        status=status,
        message=message,
        type=kind,
        param=_param(error),
        code=code,
        retry_after=retry_after,
        retry=retry_after == _SHUTDOWN_RETRY and error.kind is FailureKind.CLOSED,
    )


def seconds_until_room(snapshot: Snapshot, max_wait: float) -> float:
    """Seconds until a new request would wait for at most `max_wait`, by the current rate; at least 1.

    Args:
        snapshot: The queue and the rate.
        max_wait: Seconds that a request may wait.
    """
    held = max(snapshot.retry_after or 0.0, snapshot.trial_in or 0.0)
    if not snapshot.rate:
        return max(1.0, held, snapshot.next_in or 0.0)
    share = snapshot.rate / 60 / max(1, snapshot.participants or 1)  # other processes may want theirs
    missing = sum(snapshot.queued.values()) + 1 - (snapshot.level or 0)
    return max(1.0, held + max(0, missing) / share - max_wait)


def _message(error: OneLLMError) -> str:
    parts = [error.message]
    if isinstance(error, InvalidRequestError) and error.advice:
        parts.append(error.advice)
    if error.kind in {FailureKind.UNKNOWN_KEY, FailureKind.REVOKED_KEY}:
        parts.insert(0, "The service rejects the OneLLM key of the gateway; yours is accepted.")
    if isinstance(error, BudgetExceededError) and error.advice:
        parts.append(error.advice)
    if error.possibly_billed:
        parts.append(f"Attempts that may be billed: {error.possibly_billed}.")
    return " ".join(parts)


def _param(error: OneLLMError) -> str | None:
    if not isinstance(error, InvalidRequestError):
        return None
    first = error.message.split(" ", 1)[0]
    if error.message.startswith(("A message", "messages")):
        return "messages"
    return _OPENAI_NAMES.get(first, first) if first in _FIELDS else None
