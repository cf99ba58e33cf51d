"""A token bucket as pure arithmetic: every method takes the time, none reads a clock.

The level rises by `rate` per second up to `capacity`. Taking may overdraw the bucket. No token is then
available until the negative level is refilled.
"""

from onellm_async.errors import ConfigurationError

EPSILON = 1e-9
"""Slack in tokens for comparing levels, so that waiting exactly `time_until` seconds always suffices."""


class TokenBucket:
    """Tokens that are refilled at a steady rate up to a capacity.

    Args:
        rate: Tokens per second, 0 or more. At 0 nothing is refilled.
        capacity: Maximum number of tokens, above 0.
        level: Tokens at `updated_at`; None: a full bucket.
        updated_at: Seconds on the caller's clock.

    Raises:
        ConfigurationError: If the rate is negative or the capacity is not positive.

    Example:
        >>> bucket = TokenBucket(rate=2.0, capacity=3.0)
        >>> [bucket.try_take(1, now=0.0) for _ in range(4)]
        [True, True, True, False]
        >>> bucket.time_until(1, now=0.0)
        0.5
    """

    __slots__ = ("_level", "_updated_at", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, level: float | None = None, updated_at: float = 0.0) -> None:
        if not rate >= 0 or not capacity > 0:
            raise ConfigurationError(f"A bucket needs a rate ≥ 0 and a capacity > 0, not {rate!r} and {capacity!r}.")
        self.rate: float = rate
        self.capacity: float = capacity
        self._level = capacity if level is None else min(level, capacity)
        self._updated_at = updated_at

    def level_at(self, now: float) -> float:
        """Tokens in the bucket at `now`; negative if overdrawn. An earlier time counts as the last change."""
        elapsed = now - self._updated_at
        if elapsed <= 0:
            return self._level
        level = self._level + elapsed * self.rate
        if level > self.capacity:  # `min` takes as long as the rest, and this runs for each request
            return self.capacity
        return level

    def take(self, amount: float, now: float) -> None:
        """Takes `amount` (negative: gives it back), at any level."""
        level = self.level_at(now) - amount
        self._level = self.capacity if level > self.capacity else level  # noqa: FURB136  # see `level_at`
        self._updated_at = max(now, self._updated_at)

    def try_take(self, amount: float, now: float) -> bool:
        """Takes `amount` if it is available, and returns whether it was."""
        if self.level_at(now) + EPSILON < amount:
            return False
        self.take(amount, now)
        return True

    def give_back(self, amount: float, now: float) -> None:
        """Gives back tokens that were taken and not used. What exceeds the capacity is lost."""
        self.take(-amount, now)

    def time_until(self, amount: float, now: float) -> float:
        """Seconds from `now` until `amount` is available; infinite if it never will be."""
        missing = amount - self.level_at(now)
        if missing <= EPSILON:
            return 0.0
        if amount > self.capacity + EPSILON or self.rate == 0:
            return float("inf")
        return missing / self.rate

    def retune(self, now: float, *, rate: float | None = None, capacity: float | None = None) -> None:
        """Changes rate or capacity from `now` on. The level stays, cut to the new capacity."""
        self._level = self.level_at(now)
        self._updated_at = max(now, self._updated_at)
        if rate is not None:
            self.rate = rate
        if capacity is not None:
            self.capacity = capacity
            self._level = min(self._level, capacity)

    def drain(self, now: float, level: float = 0.0) -> None:
        """Lowers the level to `level` if it is higher, because another client has used the tokens."""
        self._level = min(self.level_at(now), level)
        self._updated_at = max(now, self._updated_at)

    def move_clock(self, now: float) -> None:
        """Continues with a clock that may have been set back."""
        self._updated_at = min(self._updated_at, now)

    def __repr__(self) -> str:
        return f"TokenBucket(rate={self.rate:g}/s, capacity={self.capacity:g}, level={self._level:g})"
