"""What a rate control is to the admission core, and the two that need no learning."""

from random import Random
from typing import Protocol

from onellm_async.limits.bucket import TokenBucket

__all__ = ["BackOffOnly", "DeclaredRate", "RateControl"]


class RateControl(Protocol):
    """Decides when the next request may leave. Pure: every method takes the time."""

    @property
    def rate(self) -> float:
        """Requests per second it would keep up; infinite without a limit."""
        ...

    def time_until(self, requests: float, now: float) -> float:
        """Seconds until that many requests may have left, 0 if they may leave now."""
        ...

    def take(self, now: float) -> None:
        """Takes note that a request leaves."""
        ...

    def give_back(self, now: float) -> None:
        """Takes note that a request did not leave after all."""
        ...

    def answered(self, sent_at: float, now: float) -> None:
        """Takes note that the service let a request through."""
        ...

    def refused(self, sent_at: float, now: float) -> None:
        """Takes note that the service refused a request by rate limit."""
        ...

    def rebase(self, now: float) -> None:
        """Goes on with a clock that may have been set back."""
        ...


class DeclaredRate:
    """Holds a declared bucket exactly, and yields when the service disagrees.

    The client cannot know three things about the server's bucket: what it held before (another process may have used
    the key), how long each request travels, and whether the declaration is true. Hence, in this order:

    - A margin of a few tokens is never used, so that a request that travels faster than the one before it still finds a
      token.
    - The first burst leaves at a brisk pace instead of at once, until one refill period has passed without a refusal.
    - A refusal means that the server's bucket is empty, so ours is emptied, too. Only when refusals go on although
      nothing was left to misjudge is the rate itself lowered, and it recovers slowly.

    Args:
        per_second: The declared refill rate.
        burst: The declared capacity.
        now: The current time.
    """

    __slots__ = ("_bucket", "_confirmed_at", "_declared", "_empty_level", "_episode", "_factor", "_mark", "_pace")

    TRAVEL_JITTER = 0.05
    """Seconds by which one request may travel faster than another; at `rate` per second that many tokens are kept."""
    START_PACE = 20.0
    """Requests per second of an unconfirmed first burst, at least; or four times the declared rate."""
    DECREASE = 0.7
    SLOWEST = 0.05
    RECOVERY = 0.002
    """Share of the declared rate won back per refilled token."""

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        margin = min(burst / 4, 1 + per_second * self.TRAVEL_JITTER) if burst > 1 else 0.0
        self._declared = per_second
        self._bucket = TokenBucket(per_second, burst - margin, updated_at=now)
        self._empty_level = -min(1.0, margin)
        self._pace = TokenBucket(max(self.START_PACE, 4 * per_second), 1.0, updated_at=now)
        self._confirmed_at = now + burst / per_second
        self._episode = min(5.0, 3.3 / per_second)
        self._factor = 1.0
        self._mark: float | None = None

    @property
    def rate(self) -> float:
        return self._bucket.rate

    def time_until(self, requests: float, now: float) -> float:
        level = self._bucket.level_at(now)
        wait = max(0.0, requests - level) / self._bucket.rate
        if now < self._confirmed_at:
            wait = max(wait, (requests - self._pace.level_at(now)) / self._pace.rate)
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._bucket.take(1, now)
        if now < self._confirmed_at:
            self._pace.take(1, now)

    def give_back(self, now: float) -> None:
        self._bucket.give_back(1, now)

    def answered(self, sent_at: float, now: float) -> None:
        if self._factor < 1.0:
            self._factor = min(1.0, self._factor + self.RECOVERY)
            self._bucket.retune(now, rate=self._declared * self._factor)

    def refused(self, sent_at: float, now: float) -> None:
        if self._mark is not None and sent_at <= self._mark:
            return  # sent before the last refusal was known: it says nothing new
        previous, self._mark = self._mark, now
        self._bucket.drain(now, self._empty_level)
        self._confirmed_at = max(self._confirmed_at, now)
        if previous is not None and now - previous < 10 * self._episode:
            self._factor = max(self.SLOWEST, self._factor * self.DECREASE)
            self._bucket.retune(now, rate=self._declared * self._factor)

    def rebase(self, now: float) -> None:
        self._bucket.rebase(now)
        self._pace.rebase(now)
        if self._mark is not None:
            self._mark = min(self._mark, now)


class BackOffOnly:
    """No rate at all; after refusals everybody waits, exponentially longer with full jitter, until one gets through."""

    __slots__ = ("_closed_until", "_mark", "_random", "_refusals")

    BASE = 0.5
    CAP = 30.0

    def __init__(self, random: Random) -> None:
        self._random = random
        self._closed_until = float("-inf")
        self._mark = float("-inf")
        self._refusals = 0

    @property
    def rate(self) -> float:
        return float("inf")

    def time_until(self, requests: float, now: float) -> float:
        return max(0.0, self._closed_until - now)

    def take(self, now: float) -> None:
        """Nothing is counted."""

    def give_back(self, now: float) -> None:
        """Nothing was counted."""

    def answered(self, sent_at: float, now: float) -> None:
        if self._refusals and sent_at > self._mark:
            self._refusals = 0

    def refused(self, sent_at: float, now: float) -> None:
        if sent_at <= self._mark:
            return
        self._mark = now
        self._refusals += 1
        self._closed_until = now + self._random.uniform(0, min(self.CAP, self.BASE * 2.0 ** min(self._refusals, 60)))

    def rebase(self, now: float) -> None:
        self._closed_until = min(self._closed_until, now)
        self._mark = min(self._mark, now)
