"""What a rate control is to the admission core, and those that need little learning. Pure."""

from random import Random
from typing import Protocol

from onellm_async.limits.bucket import TokenBucket

__all__ = ["BackOffOnly", "DeclaredRate", "RateControl", "SharedRate"]


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


class SharedRate:
    """A rate that gives way and comes back, for a limit that others use, too, or that is not what it was said to be.

    It shrinks with each refusal, but not below nine tenths of what was let through since the last one: that much is
    certainly there. It grows with each answer, by a share of itself and by the same small step for everybody, which in
    the long run makes the clients of a key equals.

    Args:
        rate: Requests per second, at first.
        floor: The least it ever becomes.
        ceiling: The most it ever becomes.
    """

    __slots__ = ("_answers", "_base", "_ceiling", "floor", "value")

    DECREASE = 0.7
    CERTAIN = 0.9
    GROWTH = 0.01
    STEP = 0.002
    EAGER = 10
    """Answers without a refusal after which it grows twice as fast, and so on: the others may have gone."""

    def __init__(self, rate: float, *, floor: float, ceiling: float) -> None:
        self._base = rate
        self.floor: float = floor
        self._ceiling = ceiling
        self._answers = 0
        self.value: float = rate

    def grow(self) -> None:
        """Takes note of an answer."""
        self._answers += 1
        growth = self.GROWTH * (1 + self._answers / self.EAGER)
        self.value = min(self._ceiling, self.value * (1 + growth) + self.STEP * self._base)

    def shrink(self, passed: int, elapsed: float) -> None:
        """Takes note of a refusal, `passed` requests and `elapsed` seconds after the last one."""
        self._answers = 0
        certain = self.CERTAIN * passed / elapsed if elapsed > 0 else 0.0
        self.value = max(self.floor, min(self.value, max(self.DECREASE * self.value, certain)))


class DeclaredRate:
    """Holds a declared bucket exactly, and yields when the service disagrees.

    The client cannot know three things about the server's bucket: what it held before (another process may have used
    the key), how long each request travels, and whether the declaration is true. Hence, in this order:

    - A margin of a few tokens is never used, so that a request that travels faster than the one before it still finds a
      token. Where the burst is too small for that, requests leave a little further apart.
    - The first burst leaves at a brisk pace instead of at once, until one refill period has passed without a refusal.
    - A refusal means that the server's bucket is empty, so ours is emptied, too. Only when refusals go on although
      nothing was left to misjudge is the rate itself lowered, and it comes back slowly.

    Args:
        per_second: The declared refill rate.
        burst: The declared capacity.
        now: The current time.
    """

    TRAVEL_JITTER = 0.05
    """Seconds by which one request may travel faster than another; at `rate` per second that many tokens are kept."""
    START_PACE = 10.0
    """Requests per second of an unconfirmed first burst, at least; or four times the declared rate."""
    MOST_CLIENTS = 64
    """The rate never falls below the declared one shared by so many."""
    TRUST = 30
    """Tokens' worth of time after a refusal in which another one is no coincidence."""

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        margin = min(burst / 4, 1 + per_second * self.TRAVEL_JITTER) if burst >= 2 else 0.0
        if burst < 2:
            per_second /= 1 + per_second * self.TRAVEL_JITTER
        self._bucket = TokenBucket(per_second, burst - margin, updated_at=now)
        self._empty_level = -min(1.0, margin)
        self._pace = TokenBucket(max(self.START_PACE, 4 * per_second), 1.0, updated_at=now)
        self._confirmed_at = now + burst / per_second
        self._rate = SharedRate(per_second, floor=per_second / self.MOST_CLIENTS, ceiling=per_second)
        self._trusted_after = self.TRUST / per_second
        self._mark: float | None = None
        self._passed = 0

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
        self._passed += 1
        self._bucket.take(1, now)
        if now < self._confirmed_at:
            self._pace.take(1, now)

    def give_back(self, now: float) -> None:
        self._passed -= 1
        self._bucket.give_back(1, now)

    def answered(self, sent_at: float, now: float) -> None:
        self._rate.grow()
        if self._bucket.rate < self._rate.value:
            self._bucket.retune(now, rate=self._rate.value)

    def refused(self, sent_at: float, now: float) -> None:
        self._passed -= 1
        if self._mark is not None and sent_at <= self._mark:
            return  # sent before the last refusal was known: it says nothing new
        previous, self._mark = self._mark, now
        if previous is not None and now - previous < self._trusted_after:
            self._rate.shrink(self._passed, now - previous)
            self._bucket.retune(now, rate=self._rate.value)
        self._passed = 0
        self._bucket.drain(now, self._empty_level)

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
