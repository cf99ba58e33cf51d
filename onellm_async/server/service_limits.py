"""The limits of a service: as values, and as arithmetic on times. Pure; simulation and local server share them.

An `AccountLimits` holds all limits of one key. A request is admitted if every limit has room for it, and then takes
from all of them. A request that is not admitted takes from none.
"""

import re
from collections import deque
from collections.abc import Callable, Sequence
from math import floor, inf
from random import Random
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.limits.bucket import TokenBucket
from onellm_async.validation import Checks, truncated_repr

_MAX_BACKGROUND = 100_000
"""Requests of other clients that are made up for one silence of the key: a bound on the time that takes."""
_MIN_WAIT = 1e-9
"""Seconds. A wait that rounding makes 0 is still a wait."""
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_WINDOW = re.compile(
    r"(?:(?P<kind>fixed|sliding):)?(?P<count>\d{1,15})/(?P<size>\d{1,15}(?:\.\d{1,9})?)?(?P<unit>ms|s|min|m|h|d)?",
    re.ASCII,
)

Unit: TypeAlias = Literal["requests", "tokens"]
"""What a limit counts. The tokens of a request are those of its prompt and its ``max_tokens``."""


def _check_unit(limit: object, attribute: Any, value: object) -> None:
    if value not in ("requests", "tokens"):
        checks = Checks(ConfigurationError, f"{type(limit).__name__}.")
        raise checks.error(attribute.name, value, "it must be 'requests' or 'tokens'")


_bucket = Checks(ConfigurationError, "BucketLimit.")
_window = Checks(ConfigurationError, "WindowLimit.")
_concurrency = Checks(ConfigurationError, "ConcurrencyLimit.")
_closed = Checks(ConfigurationError, "ClosedTimes.")
_random = Checks(ConfigurationError, "RandomLimit.")


@frozen
class BucketLimit:
    """A token bucket, refilled steadily.

    Attributes:
        per_minute: Refill per minute.
        burst: Capacity.
        initial_level: Level at the start; None means full. Where the limit of a running service becomes this one, None
            keeps the level of the bucket before.
        unit: What is counted: requests or tokens.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    per_minute: float = field(validator=_bucket.number(0))
    burst: float = field(validator=_bucket.number(1))
    initial_level: float | None = field(default=None, kw_only=True, validator=_bucket.number(0, optional=True))
    unit: Unit = field(default="requests", kw_only=True, validator=_check_unit)


@frozen
class WindowLimit:
    """At most `count` in any window of `seconds`.

    Attributes:
        count: Requests or tokens in a window.
        seconds: Length of the window.
        sliding: Whether every window of that length counts. Otherwise windows follow one another, and each starts
            from zero.
        phase: Share of a window that has passed when the service sees the key for the first time, from 0 up to 1. It
            concerns windows that do not slide.
        unit: What is counted: requests or tokens.

    Raises:
        ConfigurationError: If a value is out of range.

    Example:
        >>> WindowLimit.parse("sliding:40/60s")
        WindowLimit(count=40, seconds=60.0, sliding=True, phase=0.0, unit='requests')
    """

    count: int = field(validator=_window.integer(1))
    seconds: float = field(validator=_window.number(0, above=True))
    sliding: bool = field(default=False, kw_only=True, validator=_window.kind(bool, "it must be True or False"))
    phase: float = field(default=0.0, kw_only=True, validator=_window.number(0, 1))
    unit: Unit = field(default="requests", kw_only=True, validator=_check_unit)

    @classmethod
    def parse(cls, text: str) -> "WindowLimit":
        """Reads ``COUNT/DURATION``, with ``sliding:`` or ``fixed:`` before it, or neither for a fixed window.

        A duration is a number of ms, s, m (or min), h or d; without a unit, of seconds.

        Raises:
            ConfigurationError: If the text is anything else.
        """
        found = _WINDOW.fullmatch(text.strip())
        if found is None or not (found["size"] or found["unit"]):
            raise ConfigurationError(
                f"A window is {truncated_repr(text)}; it must be COUNT/DURATION, for example 40/60s or sliding:300/1m."
            )
        seconds = float(found["size"] or 1) * _UNIT_SECONDS[found["unit"] or "s"]
        return cls(int(found["count"]), seconds, sliding=found["kind"] == "sliding")


@frozen
class ConcurrencyLimit:
    """At most `count` requests in flight. A further one gets a 429.

    Attributes:
        count: Requests in flight.

    Raises:
        ConfigurationError: If the count is below 1.
    """

    count: int = field(validator=_concurrency.integer(1))


@frozen(kw_only=True)
class ClosedTimes:
    """Times in which every request gets a 429.

    Attributes:
        after: Seconds from the moment in which the service sees the key for the first time until it closes.
        seconds: Seconds until it opens again.
        every: Seconds from one closing to the next; None for a single one.

    Raises:
        ConfigurationError: If a value is out of range, or `every` leaves no time between.
    """

    after: float = field(default=0.0, validator=_closed.number(0))
    seconds: float = field(validator=_closed.number(0))
    every: float | None = field(default=None, validator=_closed.number(0, above=True, optional=True))

    def __attrs_post_init__(self) -> None:
        if self.every is not None and self.every <= self.seconds:
            raise _closed.error("every", self.every, f"it must be above the {self.seconds:g} s that are closed")


@frozen
class RandomLimit:
    """A share of the requests gets a 429, whatever was sent before.

    Attributes:
        share: Share of the requests, 0 to 1.

    Raises:
        ConfigurationError: If the share is out of range.
    """

    share: float = field(validator=_random.number(0, 1))


ServiceLimit: TypeAlias = BucketLimit | WindowLimit | ConcurrencyLimit | ClosedTimes | RandomLimit
"""One limit of a key."""


@frozen
class Quota:
    """What is left of one limit.

    Attributes:
        limit: Capacity of the bucket or the window.
        remaining: What is left of it.
        reset: Seconds until it is complete again, if nothing more is sent.
        unit: What is counted.
    """

    limit: int
    remaining: int
    reset: float
    unit: Unit


@frozen
class Rejection:
    """A request that a limit did not admit.

    Attributes:
        wait: Seconds after which it would be admitted; None if that is not known.
    """

    wait: float | None


class LimitState(Protocol):
    """What a limit remembers of the requests of one key."""

    def wait(self, tokens: int, in_flight: int, now: float) -> float:
        """Seconds until there is room; 0 if there is, infinite if that is not known."""

    def take(self, tokens: int, now: float) -> None:
        """Counts an admitted request."""

    def give_back(self, tokens: int, taken_at: float) -> None:
        """Forgets a request that was admitted at `taken_at`."""

    def quota(self, now: float) -> Quota | None:
        """What is left; None where that cannot be said."""


class _BucketState:
    def __init__(self, limit: BucketLimit, now: float) -> None:
        self._limit = limit
        self._bucket = TokenBucket(limit.per_minute / 60, limit.burst, limit.initial_level, now)

    def change(self, limit: BucketLimit, now: float) -> None:
        self._limit = limit
        self._bucket.retune(now, rate=limit.per_minute / 60, capacity=limit.burst)
        if limit.initial_level is not None:
            self._bucket.take(self._bucket.level_at(now) - limit.initial_level, now)

    def wait(self, tokens: int, in_flight: int, now: float) -> float:
        return self._bucket.time_until(self._amount(tokens), now)

    def take(self, tokens: int, now: float) -> None:
        self._bucket.take(self._amount(tokens), now)

    def give_back(self, tokens: int, taken_at: float) -> None:
        self._bucket.give_back(self._amount(tokens), taken_at)

    def quota(self, now: float) -> Quota | None:
        bucket = self._bucket
        level = max(0.0, bucket.level_at(now))
        missing = bucket.capacity - bucket.level_at(now)
        reset = missing / bucket.rate if bucket.rate else (inf if missing else 0.0)
        return Quota(floor(bucket.capacity), floor(level + 1e-9), reset, self._limit.unit)

    def _amount(self, tokens: int) -> int:
        return tokens if self._limit.unit == "tokens" else 1


class _SlidingState:
    def __init__(self, limit: WindowLimit) -> None:
        self._limit = limit
        self._taken: deque[tuple[float, int]] = deque()
        self._used = 0

    def change(self, limit: WindowLimit) -> None:
        self._limit = limit

    def wait(self, tokens: int, in_flight: int, now: float) -> float:
        self._expire(now)
        missing = self._used + self._amount(tokens) - self._limit.count
        if missing <= 0:
            return 0.0
        for taken_at, amount in self._taken:
            missing -= amount
            if missing <= 0:
                return max(taken_at + self._limit.seconds - now, _MIN_WAIT)
        return inf

    def take(self, tokens: int, now: float) -> None:
        self._taken.append((now, self._amount(tokens)))
        self._used += self._amount(tokens)

    def give_back(self, tokens: int, taken_at: float) -> None:
        taken = (taken_at, self._amount(tokens))
        if taken in self._taken:  # otherwise it has expired
            self._taken.remove(taken)
            self._used -= taken[1]

    def quota(self, now: float) -> Quota | None:
        self._expire(now)
        reset = self._taken[-1][0] + self._limit.seconds - now if self._taken else 0.0
        return Quota(self._limit.count, max(0, self._limit.count - self._used), reset, self._limit.unit)

    def _expire(self, now: float) -> None:
        while self._taken and self._taken[0][0] <= now - self._limit.seconds:
            self._used -= self._taken.popleft()[1]

    def _amount(self, tokens: int) -> int:
        return tokens if self._limit.unit == "tokens" else 1


class _FixedState:
    def __init__(self, limit: WindowLimit, now: float) -> None:
        self._limit = limit
        self._origin = now - limit.phase * limit.seconds
        self._window, self._used = 0, 0

    def change(self, limit: WindowLimit, now: float) -> None:
        before, self._limit = self._limit, limit
        if limit.seconds != before.seconds:
            self._origin = now - limit.phase * limit.seconds
            self._window, self._used = 0, 0

    def wait(self, tokens: int, in_flight: int, now: float) -> float:
        self._move_to(now)
        amount = self._amount(tokens)
        if self._used + amount <= self._limit.count:
            return 0.0
        return max(self._end(now), _MIN_WAIT) if amount <= self._limit.count else inf

    def take(self, tokens: int, now: float) -> None:
        self._move_to(now)
        self._used += self._amount(tokens)

    def give_back(self, tokens: int, taken_at: float) -> None:
        if self._number(taken_at) == self._window:
            self._used -= self._amount(tokens)

    def quota(self, now: float) -> Quota | None:
        self._move_to(now)
        return Quota(self._limit.count, max(0, self._limit.count - self._used), self._end(now), self._limit.unit)

    def _number(self, now: float) -> int:
        return floor((now - self._origin) / self._limit.seconds + 1e-9)

    def _move_to(self, now: float) -> None:
        number = self._number(now)
        if number > self._window:
            self._window, self._used = number, 0

    def _end(self, now: float) -> float:
        return max(0.0, self._origin + (self._window + 1) * self._limit.seconds - now)

    def _amount(self, tokens: int) -> int:
        return tokens if self._limit.unit == "tokens" else 1


class _Stateless:
    """A limit that remembers nothing of earlier requests."""

    def take(self, tokens: int, now: float) -> None:
        """Counts nothing."""

    def give_back(self, tokens: int, taken_at: float) -> None:
        """Forgets nothing."""

    def quota(self, now: float) -> Quota | None:
        """Nothing is counted, so nothing is left."""
        return None


class _ConcurrencyState(_Stateless):
    def __init__(self, limit: ConcurrencyLimit) -> None:
        self._count = limit.count

    def wait(self, tokens: int, in_flight: int, now: float) -> float:
        return 0.0 if in_flight < self._count else inf


class _ClosedState(_Stateless):
    def __init__(self, limit: ClosedTimes, now: float) -> None:
        self._limit = limit
        self._closes_at = now + limit.after

    def wait(self, tokens: int, in_flight: int, now: float) -> float:
        since = now - self._closes_at
        if since >= 0 and self._limit.every is not None:
            since %= self._limit.every
        return max(self._limit.seconds - since, _MIN_WAIT) if 0 <= since < self._limit.seconds else 0.0


class _RandomState(_Stateless):
    def __init__(self, limit: RandomLimit, draw: Callable[[], float]) -> None:
        self._share = limit.share
        self._draw = draw

    def wait(self, tokens: int, in_flight: int, now: float) -> float:
        return inf if self._draw() < self._share else 0.0


class AccountLimits:
    """All limits of one key, and the requests that count in them.

    Args:
        limits: The limits. Without any, every request is admitted.
        now: Seconds on the service's clock.
        background_rate: Requests per second that other clients of the key send, at random times.
        random: Draws those times, and the requests that a `RandomLimit` does not admit.

    Example:
        >>> limits = AccountLimits([WindowLimit(2, 60.0), ConcurrencyLimit(8)], now=0.0)
        >>> [limits.admit(now=float(second)) for second in range(3)]
        [None, None, Rejection(wait=58.0)]
    """

    def __init__(
        self,
        limits: Sequence[ServiceLimit],
        now: float,
        *,
        background_rate: float = 0.0,
        random: Random | None = None,
    ) -> None:
        self._random = random if random is not None else Random(0)
        self._background_rate = background_rate
        self._next_background = now + self._gap() if background_rate else inf
        self._states: list[LimitState] = []
        self.current: tuple[ServiceLimit, ...] = ()
        """The limits in force."""
        self.in_flight: int = 0
        """Admitted requests that have not ended."""
        self.change(limits, now)

    def admit(self, now: float, tokens: int = 0) -> Rejection | None:
        """Admits a request, which then is in flight; otherwise returns the rejection.

        Args:
            now: Seconds on the service's clock.
            tokens: Tokens of the request, for limits that count them.
        """
        self._add_background(now)
        rejection = self._take(now, tokens)
        if rejection is None:
            self.in_flight += 1
        return rejection

    def end(self) -> None:
        """Ends a request in flight."""
        self.in_flight -= 1

    def give_back(self, taken_at: float, tokens: int = 0) -> None:
        """Forgets a request admitted at `taken_at`, because it turned out to cost nothing. It stays in flight."""
        for state in self._states:
            state.give_back(tokens, taken_at)

    def change(self, limits: Sequence[ServiceLimit], now: float) -> None:
        """Replaces all limits from `now` on.

        A limit of the same kind as one before remembers what that one did: the level of a bucket, the requests of a
        sliding window, those of a fixed window of the same length. Requests in flight count on.
        """
        old = list(zip(self.current, self._states, strict=True))
        states = [self._state_of(limit, now, old) for limit in limits]
        self.current, self._states = tuple(limits), states

    def quotas(self, now: float) -> list[Quota]:
        """What is left of each limit that counts, the scarcest first."""
        self._add_background(now)
        found = [quota for state in self._states if (quota := state.quota(now)) is not None]
        return sorted(found, key=lambda quota: quota.remaining / quota.limit)

    def _take(self, now: float, tokens: int) -> Rejection | None:
        waits = [state.wait(tokens, self.in_flight, now) for state in self._states]
        longest = max(waits, default=0.0)
        if longest > 0:
            return Rejection(longest if longest < inf else None)
        for state in self._states:
            state.take(tokens, now)
        return None

    def _add_background(self, now: float) -> None:
        if self._next_background > now:
            return
        self._next_background = max(self._next_background, now - _MAX_BACKGROUND / self._background_rate)
        while self._next_background <= now:
            self._take(self._next_background, 0)
            self._next_background += self._gap()

    def _gap(self) -> float:
        return self._random.expovariate(self._background_rate)

    def _state_of(self, limit: ServiceLimit, now: float, old: list[tuple[ServiceLimit, LimitState]]) -> LimitState:
        match limit:
            case BucketLimit() | WindowLimit():
                return _counting_state(limit, now, old)
            case ConcurrencyLimit():
                return _ConcurrencyState(limit)
            case ClosedTimes():
                return _ClosedState(limit, now)
            case RandomLimit():
                return _RandomState(limit, self._random.random)


def _counting_state(
    limit: BucketLimit | WindowLimit, now: float, old: list[tuple[ServiceLimit, LimitState]]
) -> LimitState:
    """The state of a limit of that kind in `old`, changed and removed from it; a new one if there is none."""
    match limit:
        case BucketLimit():
            if (bucket := _pop_like(limit, old, _BucketState)) is None:
                return _BucketState(limit, now)
            bucket.change(limit, now)
            return bucket
        case WindowLimit(sliding=True):
            if (sliding := _pop_like(limit, old, _SlidingState)) is None:
                return _SlidingState(limit)
            sliding.change(limit)
            return sliding
        case WindowLimit():
            if (fixed := _pop_like(limit, old, _FixedState)) is None:
                return _FixedState(limit, now)
            fixed.change(limit, now)
            return fixed


_StateT = TypeVar("_StateT")


def _pop_like(
    limit: BucketLimit | WindowLimit, old: list[tuple[ServiceLimit, LimitState]], kind: type[_StateT]
) -> _StateT | None:
    """Removes and returns the state of the first limit of that kind and unit; None if there is none."""
    for index, (before, state) in enumerate(old):
        if isinstance(state, kind) and getattr(before, "unit", None) == limit.unit:
            del old[index]
            return state
    return None
