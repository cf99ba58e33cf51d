"""What a rate control is to the admission core, and those that need little learning. Pure."""

from random import Random
from typing import Protocol

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.sharing import SharedRate

__all__ = ["BackOffOnly", "DeclaredRate", "RateControl"]


class RateControl(Protocol):
    """Decides when the next request may leave. Pure: every method takes the time."""

    @property
    def rate(self) -> float:
        """Requests per second it would keep up; infinite without a limit."""
        ...

    @property
    def state(self) -> RateState | None:
        """What another control needs so as not to start blind; None when nothing is known."""
        ...

    @property
    def confidence(self) -> float:
        """How sure it is of its rate, between 0 (nothing is known) and 1."""
        ...

    def time_until(self, requests: float, now: float, keep: float = 0.0, *, paced: bool = False) -> float:
        """Seconds until that many requests may have left, 0 if they may leave now.

        Args:
            requests: How many.
            now: The current time.
            keep: Tokens that are not to be used up, as far as the bucket can hold them beside one request.
            paced: Whether they are of a lane that paces a declared burst until it is confirmed.
        """
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

    def refused(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        """Takes note that the service refused a request by rate limit, and in how many seconds it said to return."""
        ...

    def rebase(self, now: float) -> None:
        """Goes on with a clock that may have been set back."""
        ...


class DeclaredRate:
    """Holds a declared bucket exactly, and yields when the service disagrees.

    The client cannot know three things about the server's bucket: what it held before (another process may have used
    the key), how long each request travels, and whether the declaration is true. Hence, in this order:

    - A margin of a few tokens is never used, so that a request that travels faster than the one before it still finds a
      token. Where the burst is too small for that, requests leave a little further apart.
    - The first burst of a batch is sent at a brisk pace instead of at once, until one refill period has passed. Other
      lanes use it at once: a refusal costs them nothing, and a pace would let users wait beside a full bucket.
    - A refusal means that the server's bucket is empty, so ours is emptied, too. Only when refusals go on although
      nothing was left to misjudge is the rate itself lowered, and it comes back slowly.

    Args:
        per_second: The declared refill rate.
        burst: The declared capacity.
        now: The current time.
        state: What an earlier control held; its rate is gone on with if it is below the declared one.
        random: Where the gaps between requests come from while the rate is corrected, so that clients of one key do
            not fall into step; None: even gaps.
        strict: Whether the declared rate is held whatever the service says. A refusal then empties the bucket, and
            never changes the rate.
    """

    TRAVEL_JITTER = 0.05
    """Seconds by which one request may travel faster than another; at `rate` per second that many tokens are kept."""
    START_PACE = 10.0
    """Requests per second of a batch's unconfirmed first burst, at least; or four times the declared rate."""
    MOST_CLIENTS = 64
    MANY_CLIENTS = 16
    LONGEST_GAP = 30.0
    """The rate never falls below the declared one shared by the most; nor, where it is a share of many, below one
    request in so many seconds, so that a service that was shut is soon found open."""
    TRUST = 100
    """Tokens' worth of time, at the rate held, after a refusal in which another one is no coincidence."""

    def __init__(
        self,
        per_second: float,
        burst: float,
        now: float,
        state: RateState | None = None,
        *,
        random: Random | None = None,
        strict: bool = False,
    ) -> None:
        self._random = random
        self._strict = strict
        self._wanted = 1.0
        self._mark: float | None = None
        self._in_vain = 0
        self._bucket: TokenBucket
        self._declare(per_second, burst, now)
        self._bucket = TokenBucket(self._rate.value, burst - self._margin, updated_at=now)
        self._pace = TokenBucket(max(self.START_PACE, 4 * per_second), 1.0, updated_at=now)
        self._confirmed_at = now + burst / per_second
        if not strict and state is not None and state.rate < self._rate.value:
            self._rate.value = max(self._rate.floor, state.rate)
            self._bucket.retune(now, rate=self._rate.value)

    def _declare(self, per_second: float, burst: float, now: float) -> None:
        margin = min(burst / 4, 1 + per_second * self.TRAVEL_JITTER) if burst >= 2 else 0.0
        if burst < 2:
            per_second /= 1 + per_second * self.TRAVEL_JITTER
        self._burst, self._margin = burst, margin
        self._empty_level = -min(1.0, margin)
        floor = max(per_second / self.MOST_CLIENTS, min(per_second / self.MANY_CLIENTS, 1 / self.LONGEST_GAP))
        self._rate = SharedRate(per_second, floor=floor, ceiling=per_second)

    def retune(self, per_second: float, burst: float, now: float, *, strict: bool = False) -> None:
        """Holds another declared limit from `now` on. What is in the bucket stays, cut to the new capacity.

        A correction by refusals is forgotten: it was of the old limit.

        Args:
            per_second: The newly declared refill rate.
            burst: The newly declared capacity.
            now: The current time.
            strict: Whether it is held whatever the service says.
        """
        self._strict = strict
        self._declare(per_second, burst, now)
        self._bucket.retune(now, rate=self._rate.value, capacity=burst - self._margin)
        self._pace.retune(now, rate=max(self.START_PACE, 4 * per_second))
        self._confirmed_at = min(self._confirmed_at, now + burst / per_second)
        self._wanted = 1.0

    @property
    def rate(self) -> float:
        return self._bucket.rate

    @property
    def state(self) -> RateState:
        """What is held now, correction included."""
        low = self._rate.value if self._rate.at_ceiling else 0.0
        return RateState(self._rate.value, self._burst, low, self._rate.ceiling)

    @property
    def confidence(self) -> float:
        """1 until refusals have corrected the declaration, then the share of it that is left."""
        return self._rate.value / self._rate.ceiling

    def time_until(self, requests: float, now: float, keep: float = 0.0, *, paced: bool = False) -> float:
        bucket = self._bucket
        kept = min(keep, bucket.capacity - self._wanted) if keep else 0.0
        wait = (requests + kept + self._wanted - 1 - bucket.level_at(now)) / bucket.rate
        if paced and now < self._confirmed_at:
            pace_wait = (requests - self._pace.level_at(now)) / self._pace.rate
            wait = max(wait, min(pace_wait, self._confirmed_at - now))
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._bucket.take(1, now)
        if self._in_vain > 1:  # one at a time, until one gets through
            self._bucket.drain(now, 0.0)
        self._wanted = 1.0
        if self._random is not None and not self._rate.at_ceiling:
            self._wanted = self._random.uniform(0.5, min(1.5, self._bucket.capacity))
        if now < self._confirmed_at:
            self._pace.try_take(1, now)  # what other lanes send at once does not hold up a batch

    def give_back(self, now: float) -> None:
        self._bucket.give_back(1, now)

    def answered(self, sent_at: float, now: float) -> None:
        if self._mark is None or sent_at > self._mark:
            self._rate.grow()
            self._in_vain = 0
        if self._bucket.rate < self._rate.value:
            self._bucket.retune(now, rate=self._rate.value)

    def refused(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        if self._mark is not None and sent_at <= self._mark:
            return  # sent before the last refusal was known: it says nothing new
        previous, self._mark = self._mark, now
        self._in_vain += 1
        if retry_after is not None and self._in_vain > 1:
            pass  # nothing comes through, and the service says when to return: no rate is to blame
        elif not self._strict and previous is not None and (now - previous) * self._rate.value < self.TRUST:
            self._rate.shrink()
            self._bucket.retune(now, rate=self._rate.value)
        self._bucket.drain(now, self._empty_level)

    def drain(self, now: float) -> None:
        """There is nothing in the service's bucket now."""
        self._bucket.drain(now)

    def rebase(self, now: float) -> None:
        self._bucket.rebase(now)
        self._pace.rebase(now)
        if self._mark is not None:
            self._mark = min(self._mark, now)


class BackOffOnly:
    """No rate at all; after refusals everybody waits, exponentially longer with full jitter, until one gets through."""

    __slots__ = ("_closed_until", "_mark", "_random", "_rate_limited")

    BASE = 0.5
    CAP = 30.0

    def __init__(self, random: Random) -> None:
        self._random = random
        self._closed_until = float("-inf")
        self._mark = float("-inf")
        self._rate_limited = 0

    @property
    def rate(self) -> float:
        return float("inf")

    @property
    def state(self) -> None:
        """Nothing is known."""
        return None

    @property
    def confidence(self) -> float:
        return 0.0

    def time_until(self, requests: float, now: float, keep: float = 0.0, *, paced: bool = False) -> float:
        return max(0.0, self._closed_until - now)

    def take(self, now: float) -> None:
        """Nothing is counted."""

    def give_back(self, now: float) -> None:
        """Nothing was counted."""

    def answered(self, sent_at: float, now: float) -> None:
        if self._rate_limited and sent_at > self._mark:
            self._rate_limited = 0

    def refused(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        if sent_at <= self._mark:
            return
        self._mark = now
        self._rate_limited += 1
        self._closed_until = now + self._random.uniform(
            0, min(self.CAP, self.BASE * 2.0 ** min(self._rate_limited, 60))
        )

    def rebase(self, now: float) -> None:
        self._closed_until = min(self._closed_until, now)
        self._mark = min(self._mark, now)
