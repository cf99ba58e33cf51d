"""What the user knows about the limits of the service, as a value."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks

__all__ = ["LANES", "Limits", "Mode"]

Mode: TypeAlias = Literal["discover", "correct", "off", "unlimited"]
"""What a refusal by rate limit teaches; see `Limits.adaptive`."""

LANES: Mapping[str, int] = {"interactive": 16, "default": 4, "batch": 1}
"""The lanes and their shares: while all three wait, of 21 requests 16 are interactive, 4 default and 1 batch."""
FIRST_LANE = "interactive"
"""For which a few tokens are kept, once it has been used."""
PACED_LANE = "batch"
"""Whose declared first burst is paced until it is confirmed."""

AUTO: Final = "auto"
"""As `Limits.requests_per_minute`: nothing is declared, the client discovers the rate."""

_check = Checks(ConfigurationError, "Limits.")


def _requests_per_minute(_: object, attribute: object, value: object) -> None:
    if value is None or value == AUTO:
        return
    if isinstance(value, str):
        rule = "it must be a finite number above 0, 'auto' to discover the rate, or None for no limit"
        raise _check.refusal("requests_per_minute", value, rule)
    _check.check_number("requests_per_minute", value, 0, above=True)


def _adaptive(_: object, attribute: object, value: object) -> None:
    if not isinstance(value, str) or value not in {"auto", "discover", "correct", "off"}:
        raise _check.refusal("adaptive", value, "it must be 'auto', 'discover', 'correct' or 'off'")


@frozen
class Limits:
    """How much may be asked of the service at once and per minute.

    The defaults are the limits that OneLLM publishes: a token bucket of 40 requests, refilled at 40 a minute, for each
    key.

    Attributes:
        max_concurrency: Requests under way at once. Default 48, which keeps 40 a minute busy up to a latency of 72 s.
        requests_per_minute: The service's refill rate. ``"auto"``: the client discovers it. None: no limit, see
            `unlimited`.
        burst: Requests that the service lets through at once after a pause. Default 40.
        tokens_per_minute: Input and output tokens per minute, None when there is no such limit. A request is
            admitted on an estimate and settled to what its reply says.
        max_pending: Requests that may wait for their first attempt; the next fails at once with `QueueFullError`. Those
            of fan-outs and runs do not count and are never turned away, and neither are retries. None: any number.
        adaptive: What refusals by rate limit teach.

            - ``"discover"``: the rate is found out. A declared one is only where the search starts.
            - ``"correct"``: the declared rate is held; it is lowered when the server disagrees, and recovers.
            - ``"off"``: the declared rate is held, whatever the server says. A refusal still means that the server's
              bucket is empty, and ours is emptied, too.
            - ``"auto"``, the default: ``"discover"`` when `requests_per_minute` is ``"auto"``, else ``"correct"``.
        probe_every: While discovering, requests between two tests of whether the limit has risen. Each test costs one
            refused request, which is not billed. Default 300: a limit that doubles is noticed 300 requests later.

    Raises:
        ConfigurationError: If a value is out of range, or contradicts another; the message names it.

    Example:
        >>> Limits(requests_per_minute=600, burst=100, max_pending=1000).max_concurrency
        48
    """

    max_concurrency: int = field(default=48, validator=_check.integer(1))
    requests_per_minute: float | Literal["auto"] | None = field(default=40.0, validator=_requests_per_minute)
    burst: int = field(default=40, validator=_check.integer(1))
    tokens_per_minute: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    max_pending: int | None = field(default=None, validator=_check.integer(0, optional=True))
    adaptive: Literal["auto", "discover", "correct", "off"] = field(default="auto", kw_only=True, validator=_adaptive)
    probe_every: int = field(default=300, kw_only=True, validator=_check.integer(1))

    def __attrs_post_init__(self) -> None:
        if self.requests_per_minute is None and self.adaptive != "auto":
            rule = "requests_per_minute is None, so there is no rate to adapt; use requests_per_minute='auto'"
            raise _check.refusal("adaptive", self.adaptive, rule)
        if self.requests_per_minute == AUTO and self.adaptive in {"correct", "off"}:
            rule = "that needs a declared rate, and requests_per_minute is 'auto'"
            raise _check.refusal("adaptive", self.adaptive, rule)

    @property
    def declared_rate(self) -> float | None:
        """`requests_per_minute` if it is a number; None if the rate is discovered or not limited."""
        rate = self.requests_per_minute
        return None if rate is None or isinstance(rate, str) else rate

    @property
    def mode(self) -> Mode:
        """What `adaptive` comes to: ``"discover"``, ``"correct"`` or ``"off"``; ``"unlimited"`` without a rate."""
        if self.requests_per_minute is None:
            return "unlimited"
        if self.adaptive != "auto":
            return self.adaptive
        return "discover" if self.requests_per_minute == AUTO else "correct"

    @classmethod
    def unlimited(cls, max_concurrency: int = 1000) -> "Limits":
        """No admission by rate at all, for a service that has no limit: only `max_concurrency` slots.

        Refusals are then answered by backing off, as there is no rate to correct.
        """
        return cls(max_concurrency=max_concurrency, requests_per_minute=None)
