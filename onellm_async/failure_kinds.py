"""What each kind of failure means: the one table that retry, circuit breaker, admission, fan-outs and runs read.

`transport` and `wire` choose the kind, the error carries it, and `RULES` has what follows. Every decision about
a failure belongs into this table.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from attrs import frozen


class Billing(Enum):
    """What became of the bill of a failed attempt, as far as a client can know."""

    NOT_PROCESSED = "not processed"
    """It never reached the model: nothing was billed."""
    NOT_BILLED = "failed, not billed"
    """The service says that it failed. A failure is not billed."""
    POSSIBLY_BILLED = "possibly billed"
    """It was sent, and no proof came back of what became of it."""


class FailureKind(Enum):
    """Why a request, or one attempt of it, brought no answer."""

    RATE_LIMITED = "rate limited"
    """429, over HTTP or inside the envelope."""
    CANNOT_CONNECT = "cannot connect"
    """Name not found, connection refused, TLS broken; the service has never answered this client."""
    CANNOT_RECONNECT = "cannot reconnect"
    """The same, after the service has answered this client at least once."""
    GATEWAY_ERROR = "gateway error"
    """502, 503 or 504, and unnamed statuses above 500."""
    CONNECTION_LOST = "connection lost"
    """Timeout, reset, disconnect or a torn reply after the request was sent."""
    SERVER_ERROR = "server error"
    """500, over HTTP or inside the envelope."""
    NOT_IMPLEMENTED = "not implemented"
    """501, 505, 506, 508, 510 or 511."""
    NOT_JSON = "not JSON"
    """A complete reply with 2xx that is not JSON, or a status outside of 200 to 599."""
    NOT_A_CHAT_REPLY = "not a chat reply"
    """A complete JSON reply with 2xx that is no chat reply at all."""
    REQUEST_TIMEOUT = "request timeout"
    """408 or 425."""
    REJECTED = "rejected"
    """400, 403, 413, 415, 422 and other statuses from 400 to 499."""
    UNKNOWN_KEY = "unknown key"
    """401 for a key that was never accepted."""
    REVOKED_KEY = "revoked key"
    """401 for a key that was accepted before."""
    OVERLOADED = "overloaded"
    """529, "overloaded", or the text of a database that has no connection left."""
    BALANCE_TOO_LOW = "balance too low"
    """Any status with a text that says so."""
    WRONG_ADDRESS = "wrong address"
    """404, 405 or a redirect."""
    NOT_TRUSTED = "not trusted"
    """A certificate that is not accepted, or a proxy that answers 403 or 407."""
    LOCAL = "local"
    """Of this process: no file descriptor left, HTTP session closed, unusable URL."""
    DEADLINE = "deadline"
    """The caller's deadline passed."""
    CANCELLED = "cancelled"
    """The group of the request was cancelled."""
    CLOSED = "closed"
    """The client was closed."""
    NOT_SENT = "not sent"
    """Queue full, circuit open, or the deadline cannot be met."""
    RUN_STOPPED = "run stopped"
    """Budget used up, or the journal cannot be written."""
    UNFIT_ANSWER = "unfit answer"
    """An answer that does not conform to the schema that was asked for. It is paid for."""
    INVALID = "invalid"
    """A prompt or a parameter is unusable."""


Retry: TypeAlias = Literal[
    "no", "requeue", "attempts", "wait for ready", "ambiguous", "server errors", "key", "overload"
]
"""``"requeue"``: at once, without an attempt. ``"attempts"``: up to ``max_attempts``. ``"wait for ready"``: likewise,
but a wait-for-ready group waits until the service is back. ``"ambiguous"``: as `RetryPolicy.ambiguous` says.
``"server errors"``: up to ``max_server_error_retries``. ``"key"``: over at least ten seconds. ``"overload"``: with
less concurrency."""

CountsAttempt: TypeAlias = Literal["always", "never", "if in flight", "after the last cut"]
"""``"after the last cut"``: only a request that was sent after overload last took concurrency away."""

BreakerEffect: TypeAlias = Literal["opens", "closes", "ignores"]
"""``"closes"`` also resets the count of failures in a row: the service is up."""

GivesBack: TypeAlias = Literal["nothing", "tokens", "everything", "if unsent"]
"""What admission took: ``"everything"`` is the request of the rate and the tokens, ``"if unsent"`` the same
for a request that was not sent."""

AffectsEveryPrompt: TypeAlias = Literal["no", "yes", "unless answered", "third in a row"]
"""Whether all prompts of a fan-out would fail in the same way, so that it ends. ``"unless answered"``: only while the
service has never answered this client. ``"third in a row"``: when three requests in a row ended so."""


@frozen
class FailureRule:
    """What follows from a failure of one kind.

    Attributes:
        retry: Whether and how it is retried.
        budgeted: Whether a retry uses up the client's retry budget. The others are paced by other means: less
            concurrency, or a wait of their own.
        attempt: Whether it counts as an attempt of its request.
        breaker: What it does to the circuit breaker.
        gives_back: What goes back to admission.
        billing: What became of the bill. ``DEADLINE``, ``CANCELLED`` and ``CLOSED`` are possibly billed if the request
            was in flight.
        every_prompt: Whether it ends a fan-out or a run.
        new_key: Whether a new key can help: an ``api_key`` function is asked for one, and if it returns another key,
            the request is sent once more at once.
    """

    retry: Retry
    budgeted: bool
    attempt: CountsAttempt
    breaker: BreakerEffect
    gives_back: GivesBack
    billing: Billing
    every_prompt: AffectsEveryPrompt
    new_key: bool = False


_K, _R = FailureKind, FailureRule
_NO, _FREE, _MAYBE = Billing.NOT_PROCESSED, Billing.NOT_BILLED, Billing.POSSIBLY_BILLED
_UNLESS: Final = "unless answered"
_THIRD: Final = "third in a row"

RULES: Mapping[FailureKind, FailureRule] = MappingProxyType({
    # kind                  retry            budgeted  attempt        breaker    gives back    billing every prompt
    _K.RATE_LIMITED:     _R("requeue",        False, "never",             "closes",  "tokens",     _NO,    "no"),
    _K.CANNOT_CONNECT:   _R("attempts",       True,  "always",            "opens",   "everything", _NO,    "yes"),
    _K.CANNOT_RECONNECT: _R("wait for ready", True,  "always",            "opens",   "everything", _NO,    "no"),
    _K.GATEWAY_ERROR:    _R("ambiguous",      True,  "always",            "opens",   "nothing",    _MAYBE, "no"),
    _K.CONNECTION_LOST:  _R("ambiguous",      True,  "always",            "opens",   "nothing",    _MAYBE, "no"),
    _K.SERVER_ERROR:     _R("server errors",  True,  "always",            "closes",  "nothing",    _FREE,  "no"),
    _K.NOT_IMPLEMENTED:  _R("no",             False, "always",            "closes",  "tokens",     _FREE,  "no"),
    _K.NOT_JSON:         _R("ambiguous",      True,  "always",            "ignores", "nothing",    _MAYBE, _UNLESS),
    _K.NOT_A_CHAT_REPLY: _R("no",             False, "always",            "ignores", "nothing",    _MAYBE, _UNLESS),
    _K.REQUEST_TIMEOUT:  _R("ambiguous",      True,  "always",            "closes",  "nothing",    _MAYBE, "no"),
    _K.REJECTED:         _R("no",             False, "always",            "closes",  "tokens",     _FREE,  "no"),
    _K.UNKNOWN_KEY:      _R("no",             False, "always",            "closes",  "tokens",     _FREE,  "yes", True),
    _K.REVOKED_KEY:      _R("key",            False, "always",            "closes",  "tokens",     _FREE, _THIRD, True),
    _K.OVERLOADED:       _R("overload",       False, "after the last cut", "ignores", "tokens",     _FREE,  "no"),
    _K.BALANCE_TOO_LOW:  _R("no",             False, "always",            "closes",  "tokens",     _FREE,  "yes"),
    _K.WRONG_ADDRESS:    _R("no",             False, "always",            "closes",  "tokens",     _FREE,  "yes"),
    _K.NOT_TRUSTED:      _R("no",             False, "always",            "ignores", "everything", _NO,    "yes"),
    _K.LOCAL:            _R("no",             False, "never",             "ignores", "everything", _NO,    "yes"),
    _K.DEADLINE:         _R("no",             False, "if in flight",      "ignores", "if unsent",  _NO,    "no"),
    _K.CANCELLED:        _R("no",             False, "if in flight",      "ignores", "if unsent",  _NO,    "no"),
    _K.CLOSED:           _R("no",             False, "if in flight",      "ignores", "if unsent",  _NO,    "yes"),
    _K.NOT_SENT:         _R("no",             False, "never",             "ignores", "everything", _NO,    "no"),
    _K.RUN_STOPPED:      _R("no",             False, "never",             "ignores", "everything", _NO,    "yes"),
    _K.UNFIT_ANSWER:     _R("no",             False, "always",            "closes",  "nothing",    _MAYBE, "no"),
    _K.INVALID:          _R("no",             False, "never",             "ignores", "everything", _NO,    "no"),
})  # fmt: skip

_BY_STATUS: Mapping[int, FailureKind] = {
    401: _K.UNKNOWN_KEY,
    404: _K.WRONG_ADDRESS,
    405: _K.WRONG_ADDRESS,
    408: _K.REQUEST_TIMEOUT,
    425: _K.REQUEST_TIMEOUT,
    429: _K.RATE_LIMITED,
    500: _K.SERVER_ERROR,
    529: _K.OVERLOADED,
} | dict.fromkeys((501, 505, 506, 508, 510, 511), _K.NOT_IMPLEMENTED)


def kind_of_status(status: int) -> FailureKind:
    """The kind of a reply with an error status, as far as the status alone determines it.

    Args:
        status: Of the envelope if there is one, else of HTTP.

    Example:
        >>> [kind_of_status(status).value for status in (302, 401, 418, 503, 999)]
        ['wrong address', 'unknown key', 'rejected', 'gateway error', 'not JSON']
    """
    if (kind := _BY_STATUS.get(status)) is not None:
        return kind
    if 300 <= status < 400:
        return _K.WRONG_ADDRESS
    if 400 <= status < 500:
        return _K.REJECTED
    return _K.GATEWAY_ERROR if 500 < status < 600 else _K.NOT_JSON


def in_context(kind: FailureKind, *, answered: bool, key_accepted: bool) -> FailureKind:
    """`kind` as this client has to take it.

    Args:
        kind: As transport or wire found it.
        answered: Whether the service has answered this client before, with a kind that closes the circuit.
        key_accepted: Whether it has accepted the key before.
    """
    if kind is _K.CANNOT_CONNECT and answered:
        return _K.CANNOT_RECONNECT
    if kind is _K.UNKNOWN_KEY and key_accepted:
        return _K.REVOKED_KEY
    return kind
