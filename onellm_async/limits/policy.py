"""The limits that the caller declares, and the lanes."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks

Mode: TypeAlias = Literal["discover", "correct", "off", "unlimited"]
"""What 429s may change; see `Limits.adaptive`."""

Lane: TypeAlias = Literal["interactive", "default", "batch"]
"""Where a request waits. While several lanes are queued, requests of the more urgent ones are sent more often."""
LANES: Mapping[str, int] = {"interactive": 16, "default": 4, "batch": 1}
"""The lanes and their weights. While all three are queued, 16 of 21 requests are interactive, 4 default, 1 batch."""
RESERVED_LANE: Final = "interactive"
"""The lane for which a few tokens are reserved, once it was used."""
PACED_LANE: Final = "batch"
"""The lane whose first burst is paced until the declaration is confirmed."""

AUTO: Final = "auto"
"""As `Limits.requests_per_minute`: nothing is declared, the client discovers the rate."""

DEFAULT_RATE = 40.0
"""Requests per minute that OneLLM publishes for each key."""
DEFAULT_BURST = 40
"""Requests that OneLLM accepts at once after a pause, as published."""

_check = Checks(ConfigurationError, "Limits.")


def _requests_per_minute(_: object, attribute: object, value: object) -> None:
    if value is None or value == AUTO:
        return
    if isinstance(value, str):
        rule = "it must be a finite number above 0, 'auto' to discover the rate, or None for no limit"
        raise _check.error("requests_per_minute", value, rule)
    _check.check_number("requests_per_minute", value, 0, above=True)


def _adaptive(_: object, attribute: object, value: object) -> None:
    if not isinstance(value, str) or value not in {"auto", "discover", "correct", "off"}:
        raise _check.error("adaptive", value, "it must be 'auto', 'discover', 'correct' or 'off'")


@frozen(kw_only=True)
class Limits:
    """Limits of requests in flight, requests per minute and tokens per minute. All arguments are named.

    The defaults are the limits that OneLLM publishes for each key: a token bucket of 40 requests, refilled at 40 per
    minute.

    Attributes:
        max_concurrency: Maximum number of requests in flight. Default 48, enough for 40 requests per minute with a
            latency of up to 72 s.
        requests_per_minute: The service's refill rate. ``"auto"``: the client discovers it. None: no limit, see
            `unlimited`.
        burst: Requests that the service accepts at once after a pause. Default 40, or `requests_per_minute` if that is
            less, but at least 1.
        tokens_per_minute: Input and output tokens per minute; None: no limit. A request is admitted on an estimate,
            and settled to the usage of its reply.
        max_pending: Maximum number of requests that wait for their first attempt; the next one fails at once with
            `QueueFullError`. Requests of fan-outs and runs do not count and never fail so, nor do retries. None: no
            limit.
        adaptive: What 429s may change.

            - ``"discover"``: the rate is discovered. A declared rate is only the start.
            - ``"correct"``: the declared rate is used. If 429s persist, it is lowered, and recovers gradually.
            - ``"off"``: the declared rate is used, whatever the service answers. A 429 still means that the service's
              bucket is empty, and the client's bucket is emptied, too.
            - ``"auto"``, the default: ``"discover"`` when `requests_per_minute` is ``"auto"``, else ``"correct"``.
        probe_every: While discovering, maximum number of requests between two probes, which find out whether the limit
            rose. A probe costs one 429, which is not billed. Default 300: a doubled limit is noticed 300 requests on.

    Raises:
        ConfigurationError: If a value is out of range or contradicts another one; the message names it.

    Example:
        >>> Limits(requests_per_minute=600, burst=100, max_pending=1000).max_concurrency
        48
    """

    max_concurrency: int = field(default=48, validator=_check.integer(1))
    requests_per_minute: float | Literal["auto"] | None = field(default=DEFAULT_RATE, validator=_requests_per_minute)
    burst: int = field(validator=_check.integer(1))
    tokens_per_minute: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    max_pending: int | None = field(default=None, validator=_check.integer(0, optional=True))
    adaptive: Literal["auto", "discover", "correct", "off"] = field(default="auto", validator=_adaptive)
    probe_every: int = field(default=300, validator=_check.integer(1))

    @burst.default
    def _default_burst(self) -> int:
        rate: object = self.requests_per_minute  # not validated yet
        if isinstance(rate, int | float) and 0 < rate < DEFAULT_BURST:
            return max(1, int(rate))
        return DEFAULT_BURST

    def __attrs_post_init__(self) -> None:
        if self.requests_per_minute is None and self.adaptive != "auto":
            rule = "requests_per_minute is None, so there is no rate to adapt; use requests_per_minute='auto'"
            raise _check.error("adaptive", self.adaptive, rule)
        if self.requests_per_minute == AUTO and self.adaptive in {"correct", "off"}:
            rule = "that needs a declared rate, and requests_per_minute is 'auto'"
            raise _check.error("adaptive", self.adaptive, rule)

    @property
    def declared_rate(self) -> float | None:
        """`requests_per_minute` if it is a number; None if the rate is discovered or not limited."""
        rate = self.requests_per_minute
        return None if rate is None or isinstance(rate, str) else rate

    @property
    def mode(self) -> Mode:
        """The resolved `adaptive`: ``"discover"``, ``"correct"`` or ``"off"``; ``"unlimited"`` without a rate limit."""
        if self.requests_per_minute is None:
            return "unlimited"
        if self.adaptive != "auto":
            return self.adaptive
        return "discover" if self.requests_per_minute == AUTO else "correct"

    @classmethod
    def unlimited(cls, max_concurrency: int = 1000) -> "Limits":
        """Returns limits without a rate limit: only `max_concurrency` requests in flight.

        There is no rate to correct, so a 429 is followed by exponential backoff.

        Args:
            max_concurrency: Maximum number of requests in flight.
        """
        return cls(max_concurrency=max_concurrency, requests_per_minute=None)
