"""Every error that this package raises.

::

    OneLLMError
    ├── ConfigurationError               a setting of the client is unusable          (also a ValueError)
    ├── InvalidRequestError              a prompt or parameter is unusable, unsent    (also a ValueError)
    ├── ClientClosedError                the client was closed before this was sent
    ├── RequestCancelledError                   the fan-out it belongs to was stopped before this was sent
    ├── DeadlineExceededError            the caller's deadline passed or cannot be met (also a TimeoutError)
    ├── QueueFullError                   ``max_pending`` chats are waiting already
    ├── CircuitOpenError                 the service fails again and again; not sent
    ├── BudgetExceededError              the next request could pass the budget
    ├── StructureError                   an answer does not conform to the schema; it is paid for
    ├── BatchError                       a durable run cannot start or go on
    └── APIError                         the service, or the way to it, failed
        ├── APIConnectionError           no HTTP answer arrived
        │   └── APITimeoutError          … in time
        ├── ResponseDecodeError          an answer arrived that holds no chat reply
        └── APIStatusError               the service answered with an error status
            ├── BadRequestError              400
            ├── AuthenticationError          401
            ├── PermissionDeniedError        403
            ├── NotFoundError                404
            ├── MethodNotAllowedError        405
            ├── UnprocessableEntityError     422
            ├── RateLimitError               429
            ├── InternalServerError          500 and above
            └── InsufficientBalanceError     any status; only topping up helps

The names below `APIError` are those of openai-python, so that its users know them already.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from onellm_async.failure_kinds import RULES, Billing, FailureKind, kind_of_status

if TYPE_CHECKING:
    from onellm_async.chat import ChatResponse

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "BatchError",
    "Billing",
    "BudgetExceededError",
    "CircuitOpenError",
    "ClientClosedError",
    "ConfigurationError",
    "DeadlineExceededError",
    "FailureKind",
    "InsufficientBalanceError",
    "InternalServerError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "NotFoundError",
    "OneLLMError",
    "PermissionDeniedError",
    "QueueFullError",
    "RateLimitError",
    "RequestCancelledError",
    "ResponseDecodeError",
    "StructureError",
    "UnprocessableEntityError",
]


class OneLLMError(Exception):
    """Base of every error raised here.

    Args:
        message: What happened.
        advice: What the user can do about it; "" when there is nothing to say.

    Attributes:
        kind: Why there is no answer; `onellm_async.failure_kinds` has a table of what follows from each kind.
        affects_every_prompt: Whether all other prompts would fail in the same way, so that a fan-out or a run ends.
        request: The request it happened to, for example ``"request 17 (GPT-5-Mini)"``; "" when it concerns none.
        attempts: How many times the request had been sent when the error was raised, 429s not counted.
        rate_limited: How many times it was answered 429.
        elapsed: Seconds from the call until the error, waiting included.
        possibly_billed: How many of these may have been billed without an answer.
        partial_results: Outcomes that a stopped fan-out already had, in input order. They are paid for: keep them.
    """

    kind: FailureKind = FailureKind.NOT_SENT

    def __init__(self, message: str, *, advice: str = "", kind: FailureKind | None = None) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind
        self.affects_every_prompt: bool = RULES[self.kind].every_prompt == "yes"
        self.message: str = message
        self.advice: str = advice
        self.request: str = ""
        self.attempts: int = 0
        self.rate_limited: int = 0
        self.elapsed: float = 0.0
        self.possibly_billed: int = 0
        self.partial_results: tuple[object, ...] = ()

    def __str__(self) -> str:
        parts = [self.message]
        if self.request:
            parts.append(f"[{self.request}, {self._sent()}, {self.elapsed:.1f} s]")
        if self.possibly_billed:
            parts.append(f"Attempts that may be billed: {self.possibly_billed}.")
        if isinstance(self, APIError) and self.stop_reason:
            parts.append(f"Gave up {self.stop_reason}.")
        if self.partial_results:
            were = "outcome was" if len(self.partial_results) == 1 else "outcomes were"
            parts.append(f"{len(self.partial_results)} {were} already there: see .partial_results.")
        if self.advice:
            parts.append(self.advice)
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Returns the error as a dict that JSON can hold, without what is not set.

        Example:
            >>> ClientClosedError("The client is closed.").to_dict()["type"]
            'ClientClosedError'
        """
        billing = getattr(self, "billing", None)
        found = {
            "type": type(self).__name__,
            "message": self.message,
            "advice": self.advice or None,
            "kind": self.kind.value,
            "billing": None if billing is None else billing.value,
            "status_code": getattr(self, "status_code", None),
            "retry_after": getattr(self, "retry_after", None),
            "request": self.request or None,
            "attempts": self.attempts,
            "rate_limited": self.rate_limited,
            "possibly_billed": self.possibly_billed,
            "elapsed": self.elapsed,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _sent(self) -> str:
        if not self.attempts:
            return f"{self.rate_limited} × 429" if self.rate_limited else "never sent"
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"{attempts} and {self.rate_limited} × 429" if self.rate_limited else attempts

    def __reduce__(self) -> tuple[Any, ...]:
        # The attributes travel as state, not as arguments: an outcome in `partial_results` may hold this very error.
        return _restore, (type(self), self.args), self.__dict__


def _restore(cls: type[OneLLMError], args: tuple[object, ...]) -> OneLLMError:
    error = cls.__new__(cls, *args)
    error.args = args
    return error


class ConfigurationError(OneLLMError, ValueError):
    """A setting of the client (key, base URL, limits, policies) is missing or unusable."""

    kind = FailureKind.LOCAL


class InvalidRequestError(OneLLMError, ValueError):
    """A prompt or one of its parameters is unusable; nothing was sent."""

    kind = FailureKind.INVALID


class ClientClosedError(OneLLMError):
    """The client was closed before this request was sent."""

    kind = FailureKind.CLOSED


class RequestCancelledError(OneLLMError):
    """The group of this request, or its turn of a conversation, was cancelled."""

    kind = FailureKind.CANCELLED


class DeadlineExceededError(OneLLMError, TimeoutError):
    """The caller's deadline has passed or cannot be met.

    Attributes:
        billing: `Billing.NOT_PROCESSED` when nothing was in flight, `Billing.POSSIBLY_BILLED` when an attempt was.
    """

    kind = FailureKind.DEADLINE

    def __init__(self, message: str, *, advice: str = "", billing: Billing = Billing.NOT_PROCESSED) -> None:
        super().__init__(message, advice=advice)
        self.billing: Billing = billing


class QueueFullError(OneLLMError):
    """``Limits.max_pending`` requests are queued already; this one was not sent.

    Attributes:
        pending: Requests that were queued, those of fan-outs and runs and retries not counted.
        retry_after: Estimated seconds until a new request would be sent.
    """

    def __init__(self, message: str, *, pending: int, retry_after: float, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.pending = pending
        self.retry_after = retry_after


class CircuitOpenError(OneLLMError):
    """The circuit is open after several failures in a row; nothing is sent until the service recovers.

    Attributes:
        retry_after: Seconds until the next trial request.
    """

    def __init__(self, message: str, *, retry_after: float, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.retry_after = retry_after


class BudgetExceededError(OneLLMError):
    """The next request could pass the cost cap; it was not sent."""

    kind = FailureKind.RUN_STOPPED


class StructureError(OneLLMError):
    """An answer does not conform to the schema of its ``response_model``, corrective turns included.

    Attributes:
        response: The last answer, with attempts, tokens and cost of all turns. It is paid for.
        problems: What does not fit, each with the path of the value.
        correction_error: Why the last corrective turn got no answer; None where all turns were answered.
    """

    kind = FailureKind.UNFIT_ANSWER

    def __init__(
        self,
        message: str,
        *,
        response: "ChatResponse[object]",
        problems: tuple[str, ...],
        advice: str = "",
        correction_error: OneLLMError | None = None,
    ) -> None:
        super().__init__(message, advice=advice)
        self.response: ChatResponse[object] = response
        self.problems: tuple[str, ...] = problems
        self.correction_error: OneLLMError | None = correction_error
        self.attempts: int = response.attempts
        self.rate_limited: int = response.rate_limited
        self.possibly_billed: int = response.possibly_billed
        if correction_error is not None:
            self.attempts += correction_error.attempts
            self.rate_limited += correction_error.rate_limited
            self.possibly_billed += correction_error.possibly_billed


class BatchError(OneLLMError):
    """A durable run cannot start or continue; its answers are kept."""

    kind = FailureKind.RUN_STOPPED


class APIError(OneLLMError):
    """The service, or the way to it, failed.

    Attributes:
        stop_reason: Why no further attempt was made, for failures that are worth one, for example ``"after 4
            attempts"``; else "".
    """

    kind = FailureKind.CONNECTION_LOST
    stop_reason: str = ""

    @property
    def billing(self) -> Billing:
        """Whether the failed attempt was billed, as far as a client can know."""
        return RULES[self.kind].billing

    @property
    def retryable(self) -> bool:
        """Whether a retry can succeed."""
        return RULES[self.kind].retry != "no"


class APIConnectionError(APIError):
    """No HTTP answer arrived: name not found, refused, reset, disconnected, bad certificate.

    A transport of your own raises it with the `FailureKind` that fits; the default is that of a request that was sent.
    """


class APITimeoutError(APIConnectionError, TimeoutError):
    """No HTTP answer arrived in time (`Timeout.connect` or `Timeout.total`)."""


class _AnsweredError(APIError):
    def __init__(
        self, message: str, *, status_code: int, body: str = "", advice: str = "", kind: FailureKind | None = None
    ) -> None:
        super().__init__(message, advice=advice, kind=kind)
        self.status_code = status_code
        self.body = body


class ResponseDecodeError(_AnsweredError):
    """An answer arrived that holds no chat reply; it may have been billed.

    Attributes:
        status_code: The status of the answer.
        body: The first 500 characters of the answer.
    """

    kind = FailureKind.NOT_JSON


class APIStatusError(_AnsweredError):
    """The service answered with an error status, over HTTP or inside the envelope.

    Attributes:
        status_code: The status, from the envelope if there is one, else from HTTP.
        body: The first 500 characters of the answer.
        retry_after: Seconds to wait by `Retry-After`; None without one.
    """

    retry_after: float | None = None
    _own_kind: ClassVar[FailureKind | None] = None

    def __init__(
        self, message: str, *, status_code: int, body: str = "", advice: str = "", kind: FailureKind | None = None
    ) -> None:
        kind = kind or self._own_kind or kind_of_status(status_code)
        super().__init__(message, status_code=status_code, body=body, advice=advice, kind=kind)


class BadRequestError(APIStatusError):
    """400: the service could not read the request."""


class AuthenticationError(APIStatusError):
    """401: the key is missing or unknown."""


class PermissionDeniedError(APIStatusError):
    """403: the key has no access."""


class NotFoundError(APIStatusError):
    """404: the URL is not one of the API."""


class MethodNotAllowedError(APIStatusError):
    """405: the URL does not take POST."""


class UnprocessableEntityError(APIStatusError):
    """422: a field is missing, unknown or of the wrong type."""


class RateLimitError(APIStatusError):
    """429: rate-limited; not processed, not billed."""

    _own_kind = FailureKind.RATE_LIMITED


class InternalServerError(APIStatusError):
    """500 and above: the service or its provider failed.

    A 500 is not billed (`Billing.NOT_BILLED`). A 502, 503 or 504 may be (`Billing.POSSIBLY_BILLED`).

    So is a 401 with the text of a database that has no connection left (`FailureKind.OVERLOADED`): the key is not at
    fault, so it is no `AuthenticationError`. Its ``status_code`` is 401.
    """


class InsufficientBalanceError(APIStatusError):
    """The balance of the key is too low (any status). Never retried: only topping up helps."""

    _own_kind = FailureKind.BALANCE_TOO_LOW
