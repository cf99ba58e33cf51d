"""What the user knows about the limits of the service, as a value."""

from collections.abc import Mapping

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks

__all__ = ["LANES", "Limits"]

LANES: Mapping[str, int] = {"interactive": 16, "default": 4, "batch": 1}
"""The lanes and their shares: while all three wait, of 21 requests 16 are interactive, 4 default and 1 batch."""

_check = Checks(ConfigurationError, "Limits.")


@frozen
class Limits:
    """How much may be asked of the service at once and per minute.

    The defaults are the limits that OneLLM publishes: a token bucket of 40 requests, refilled at 40 a minute, for each
    key.

    Attributes:
        max_concurrency: Requests under way at once. Default 48, which keeps 40 a minute busy up to a latency of 72 s.
        requests_per_minute: The service's refill rate; None when it is not known and has to be found out.
        burst: Requests that the service lets through at once after a pause. Default 40.
        tokens_per_minute: Input and output tokens per minute, None when there is no such limit. A request is
            admitted on an estimate and settled to what its reply says.
        rate_limited: False when there is no limit by rate at all; use `unlimited` instead of setting it.
        max_pending: Chats that may wait for admission; the next is refused with `QueueFullError`. None: any number.

    Raises:
        ConfigurationError: If a value is out of range; the message names it.

    Example:
        >>> Limits(requests_per_minute=600, burst=100, max_pending=1000).max_concurrency
        48
    """

    max_concurrency: int = field(default=48, validator=_check.integer(1))
    requests_per_minute: float | None = field(default=40.0, validator=_check.number(0, above=True, optional=True))
    burst: int = field(default=40, validator=_check.integer(1))
    tokens_per_minute: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    max_pending: int | None = field(default=None, validator=_check.integer(0, optional=True))
    rate_limited: bool = field(default=True, kw_only=True, repr=False, validator=_check.kind(bool, "it must be a bool"))

    @classmethod
    def unlimited(cls, max_concurrency: int = 1000) -> "Limits":
        """No admission by rate at all, for a service that has no limit: only `max_concurrency` slots.

        Refusals are then answered by backing off, as there is no rate to correct.
        """
        return cls(max_concurrency=max_concurrency, requests_per_minute=None, rate_limited=False)
