"""The limits that the caller declares, and the lanes."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

from attrs import evolve, field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks, truncated_repr

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
"""As `Limits.requests_per_minute` or `Limits.max_concurrency`: nothing is declared, the client finds it out."""

DEFAULT_RATE = 40.0
"""Requests per minute that OneLLM publishes for each key."""
DEFAULT_BURST = 40
"""Requests that OneLLM accepts at once after a pause, as published."""

MAX_AUTO_CONCURRENCY: Final = 512
"""Maximum number of requests in flight if ``max_concurrency="auto"``."""
DAY: Final = 86_400.0
"""Seconds from which on a rate is kept as a window: a bucket would let almost twice the count through in a day."""

_check = Checks(ConfigurationError, "Limits.")
_rate_check = Checks(ConfigurationError, "Rate.")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": DAY}
_RATE = re.compile(
    r"(?P<window>window:)?(?P<count>\d{1,15}(?:\.\d{1,9})?)/(?P<size>\d{1,15}(?:\.\d{1,9})?)?(?P<unit>ms|s|min|m|h|d)?",
    re.ASCII,
)


def _default_burst(count: object) -> int:
    """The burst of a bucket that is refilled with `count`, which need not be validated yet."""
    if isinstance(count, int | float) and 0 < count < DEFAULT_BURST:
        return max(1, int(count))
    return DEFAULT_BURST


@frozen
class Rate:
    """A declared limit of requests over time: `count` in `per` seconds.

    It is a token bucket, or a window if `window` is true, or if `per` is a day or longer and there is no `burst`.

    Attributes:
        count: Requests in `per` seconds. A whole number for a window.
        per: Seconds.
        burst: Requests that a bucket holds. Default 40, or `count` if that is less, but at least 1.
        window: Whether the service counts in windows. Never are more than `count` requests then sent in any `per`
            seconds, 429s aside: evenly spaced or at once.

    Raises:
        ConfigurationError: If a value is out of range or contradicts another one; the message names it.

    Example:
        >>> [Rate(40, per=60), Rate(1000, per=86_400)][1].is_window
        True
    """

    count: float = field(validator=_rate_check.number(0, above=True))
    per: float = field(validator=_rate_check.number(0, above=True))
    burst: int | None = field(default=None, kw_only=True, validator=_rate_check.integer(1, optional=True))
    window: bool = field(default=False, kw_only=True, validator=_rate_check.kind(bool, "it must be True or False"))

    def __attrs_post_init__(self) -> None:
        if self.window and self.burst is not None:
            raise _rate_check.error("burst", self.burst, "a window has none: all of its count may be sent at once")
        if self.is_window and (self.count < 1 or self.count != int(self.count)):
            kept = "" if self.window else f" (a rate over {self.per:g} s is kept as one)"
            raise _rate_check.error(
                "count", self.count, f"the count of a window{kept} must be an integer of at least 1"
            )

    @property
    def is_window(self) -> bool:
        """Whether it is kept as a window and not as a bucket."""
        return self.window or (self.per >= DAY and self.burst is None)

    @property
    def capacity(self) -> int:
        """Requests that may be sent at once after a pause."""
        if self.is_window:
            return int(self.count)
        return _default_burst(self.count) if self.burst is None else self.burst

    @property
    def per_minute(self) -> float:
        """Requests per minute that it allows, as long as a longer window is not used up."""
        return self.count * 60 / (min(self.per, 60.0) if self.is_window else self.per)

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Reads ``COUNT/DURATION``, with ``window:`` before it for a window.

        A duration is a number of ms, s, m (or min), h or d; without a unit, of seconds.

        Raises:
            ConfigurationError: If the text is anything else, or a value is out of range.

        Example:
            >>> Rate.parse("1000/1d").per
            86400.0
        """
        found = _RATE.fullmatch(str(text).strip())
        if found is None or not (found["size"] or found["unit"]):
            raise ConfigurationError(
                f"A rate is {truncated_repr(text)}; it must be COUNT/DURATION, for example 40/60s, 1000/1d or"
                " window:300/1m."
            )
        count, per = float(found["count"]), float(found["size"] or 1) * _UNIT_SECONDS[found["unit"] or "s"]
        return cls(int(count) if count.is_integer() else count, per, window=found["window"] is not None)


def _as_rates(value: Sequence[Rate]) -> tuple[Rate, ...]:
    return tuple(value) if isinstance(value, list | tuple) else value  # type: ignore[return-value]  # to be refused


def _rates(_: object, attribute: object, value: object) -> None:
    if not isinstance(value, tuple):
        raise _check.error("rates", value, "it must be a list of Rate, for example [Rate(40, per=60)]")
    for rate in value:
        if not isinstance(rate, Rate):
            raise _check.error("rates", value, "each of them must be a Rate, for example Rate(40, per=60)")


def _max_concurrency(_: object, attribute: object, value: object) -> None:
    if value == AUTO:
        return
    if isinstance(value, str):
        raise _check.error("max_concurrency", value, "it must be an integer of at least 1, or 'auto' to find it out")
    _check_slots(None, attribute, value)


def _requests_per_minute(_: object, attribute: object, value: object) -> None:
    if value is None or value == AUTO:
        return
    if isinstance(value, str):
        rule = "it must be a finite number above 0, 'auto' to discover the rate, or None for no limit"
        raise _check.error("requests_per_minute", value, rule)
    _check.check_number("requests_per_minute", value, 0, above=True)


_check_slots = _check.integer(1)


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
            latency of up to 72 s. ``"auto"``: the client finds out how many the service accepts. It starts with 4 and
            doubles them with each round of answers until the first 429 or overload; at most 512.
        requests_per_minute: The service's refill rate. ``"auto"``: the client discovers it. None: no such limit, see
            `unlimited`. Default 40, or None if another rate is named.
        burst: Requests that the service accepts at once after a pause, beside `requests_per_minute` or, without that,
            `requests_per_second`. Default 40, or the count of that rate if it is less, but at least 1.
        requests_per_second: Short form of a `Rate` per second; None: no such limit.
        requests_per_day: Short form of a `Rate` per day, which is kept as a window: never are more requests sent in any
            24 hours. None: no such limit.
        rates: Further limits. A request is sent when all of them allow it. What is named here or in a short form holds
            also while ``requests_per_minute="auto"`` discovers another limit.
        tokens_per_minute: Input and output tokens per minute; None: no limit. A request is admitted on an estimate,
            and settled to the usage of its reply.
        max_pending: Maximum number of requests that wait for their first attempt; the next one fails at once with
            `QueueFullError`. Requests of fan-outs and runs do not count and never fail so, nor do retries. None: no
            limit.
        adaptive: What 429s may change.

            - ``"discover"``: the rate is discovered. A declared rate is only the start.
            - ``"correct"``: the declared rate is used. If 429s persist, it is lowered, and recovers gradually. A window
              is not lowered: after a 429, single requests find out when the service accepts again.
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

    max_concurrency: int | Literal["auto"] = field(default=48, validator=_max_concurrency)
    requests_per_second: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    requests_per_day: int | None = field(default=None, validator=_check.integer(1, optional=True))
    rates: tuple[Rate, ...] = field(default=(), converter=_as_rates, validator=_rates)
    requests_per_minute: float | Literal["auto"] | None = field(validator=_requests_per_minute)
    burst: int = field(validator=_check.integer(1))
    tokens_per_minute: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    max_pending: int | None = field(default=None, validator=_check.integer(0, optional=True))
    adaptive: Literal["auto", "discover", "correct", "off"] = field(default="auto", validator=_adaptive)
    probe_every: int = field(default=300, validator=_check.integer(1))

    @requests_per_minute.default
    def _default_rate(self) -> float | None:
        named = self.rates or self.requests_per_second is not None or self.requests_per_day is not None
        return None if named else DEFAULT_RATE

    @burst.default
    def _default_burst(self) -> int:
        rate: object = self.requests_per_minute  # not validated yet
        return _default_burst(self.requests_per_second if rate is None else rate)

    def __attrs_post_init__(self) -> None:
        if self.requests_per_minute is None and self.adaptive != "auto":
            if not self.declared_rates:
                rule = "requests_per_minute is None, so there is no rate to adapt; use requests_per_minute='auto'"
                raise _check.error("adaptive", self.adaptive, rule)
            if self.adaptive == "discover":
                rule = "only requests_per_minute can be discovered, and it is None; set it to 'auto' or a number"
                raise _check.error("adaptive", self.adaptive, rule)
        if self.requests_per_minute == AUTO and self.adaptive in {"correct", "off"}:
            rule = "that needs a declared rate, and requests_per_minute is 'auto'"
            raise _check.error("adaptive", self.adaptive, rule)

    @property
    def max_in_flight(self) -> int:
        """Maximum number of requests in flight: `max_concurrency`, or 512 if that is ``"auto"``."""
        return MAX_AUTO_CONCURRENCY if self.max_concurrency == AUTO else self.max_concurrency

    @cached_property
    def declared_rates(self) -> tuple[Rate, ...]:
        """Every rate that the client keeps to, without one that is discovered."""
        rates: list[Rate] = []
        if self.requests_per_minute is not None and self.mode != "discover":
            rates.append(Rate(self.requests_per_minute, 60.0, burst=self.burst))  # type: ignore[arg-type]  # a number
        if self.requests_per_second is not None:
            own = self.burst if self.requests_per_minute is None else None
            rates.append(Rate(self.requests_per_second, 1.0, burst=own))
        if self.requests_per_day is not None:
            rates.append(Rate(self.requests_per_day, DAY, window=True))
        return (*rates, *self.rates)

    @property
    def declared_rate(self) -> float | None:
        """Requests per minute that all declared rates allow, as long as a longer window is not used up.

        None if the rate is discovered or not limited. With ``adaptive="discover"``, the declared start.
        """
        if self.requests_per_minute == AUTO:
            return None
        rates = [rate.per_minute for rate in self.declared_rates]
        if isinstance(self.requests_per_minute, int | float):
            rates.append(self.requests_per_minute)
        return min(rates, default=None)

    @property
    def mode(self) -> Mode:
        """The resolved `adaptive`: ``"discover"``, ``"correct"`` or ``"off"``; ``"unlimited"`` without a rate limit."""
        if self.adaptive != "auto":
            return self.adaptive
        if self.requests_per_minute == AUTO:
            return "discover"
        named = self.rates or self.requests_per_second is not None or self.requests_per_day is not None
        return "unlimited" if self.requests_per_minute is None and not named else "correct"

    @classmethod
    def unlimited(cls, max_concurrency: int = 1000) -> "Limits":
        """Returns limits without a rate limit: only `max_concurrency` requests in flight.

        There is no rate to correct, so a 429 is followed by exponential backoff.

        Args:
            max_concurrency: Maximum number of requests in flight.
        """
        return cls(max_concurrency=max_concurrency, requests_per_minute=None)


def change_limits(limits: Limits, changes: Mapping[str, Any]) -> Limits:
    """Returns limits with some fields changed, as a command to a running client names them.

    Args:
        limits: The limits so far.
        changes: Fields and their new values. ``"rates"`` are texts as `Rate.parse` reads them, and replace all rates.

    Raises:
        ConfigurationError: If a value is out of range.
    """
    if "rates" not in changes:
        return evolve(limits, **changes)
    no_others = {"requests_per_minute": None, "requests_per_second": None, "requests_per_day": None}
    rates = [Rate.parse(text) for text in changes["rates"]]
    return evolve(limits, **{**no_others, **changes, "rates": rates})
