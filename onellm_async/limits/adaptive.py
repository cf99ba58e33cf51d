"""What refusals teach about a rate that nobody declared. Pure.

A refusal is a *mark*: at that moment the service's bucket held less than one token. Between two marks, with A requests
let through in T seconds, the refill rate therefore lies between (A - 1) / T and (A + 1) / T. Every pair of marks gives
such bounds; the tightest ones stand.

Between marks the client *cruises* at the lower bound, which the service certainly allows. What it leaves unused is not
lost: the service's bucket saves it up. After a while it *sprints*, faster than the service refills, until the next
mark: that uses up the savings and tells the rate anew, for the price of about one refused request, which is not
billed. Cruises get longer as the bounds get tighter.
"""

from bisect import bisect_right
from collections import deque

from attrs import frozen

from onellm_async.limits.bucket import TokenBucket

__all__ = ["LearnedRate", "RateState"]


@frozen
class RateState:
    """What has been learned, to be given to another limiter.

    Attributes:
        rate: Requests per second that the service certainly allows.
        burst: Requests that it lets through at once after a pause.
    """

    rate: float
    burst: float


@frozen
class _Mark:
    at: float
    passed: int
    """Requests let through before it."""


class LearnedRate:
    """Finds out a hidden bucket and holds it.

    Args:
        now: The current time.
        state: What an earlier limiter learned; None starts blind.
    """

    START_PACE = 8.0
    """Requests per second before anything is known; each answer adds two, so that fast services are found fast."""
    TRAVEL_JITTER = 0.15
    """Seconds by which the moments of sending and of arriving may differ between two requests."""
    FIRST_CRUISE = 4
    LONGEST_CRUISE = 300
    """Requests; one refusal in 300 is what staying informed costs."""
    CRUISE_GROWTH = 4
    SPRINT = 1.5
    """Times the rate, at first."""
    MOST_MARKS = 32
    PATIENCE = 8
    """Requests of a sprint without a mark after which it gets faster and faster: the limit must have risen."""

    def __init__(self, now: float, state: RateState | None = None) -> None:
        self._started = now
        self._sent: deque[float] = deque(maxlen=4096)
        self._total = self._refused = 0
        self._marks: deque[_Mark] = deque(maxlen=self.MOST_MARKS)
        self._low, self._high = 0.0, float("inf")
        self._cruise = self.FIRST_CRUISE
        self._sprinted = 0
        self._bucket: TokenBucket | None = None
        self._pace = TokenBucket(self.START_PACE, 1.0, updated_at=now)
        self._extra = 0.0
        if state is not None:
            self._bucket = TokenBucket(state.rate, max(1.0, state.burst), level=0.0, updated_at=now)

    @property
    def rate(self) -> float:
        return self._pace.rate if self._bucket is None else self._bucket.rate

    @property
    def state(self) -> RateState | None:
        """What has been learned so far; None before the first refusal."""
        return None if self._bucket is None else RateState(self._bucket.rate, self._bucket.capacity)

    def time_until(self, requests: float, now: float) -> float:
        pace_wait = (requests - self._pace.level_at(now)) / self._pace.rate
        if self._bucket is None:
            return 0.0 if self._extra >= requests else max(0.0, pace_wait)
        wait = max(0.0, requests - self._bucket.level_at(now)) / self._bucket.rate
        if self._sprinting:
            wait = min(wait, max(0.0, pace_wait))
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._total += 1
        self._sent.append(now)
        if self._bucket is None:
            if self._pace.level_at(now) < 1 and self._extra >= 1:
                self._extra -= 1
            else:
                self._pace.take(1, now)
            return
        self._bucket.take(1, now)
        if self._sprinting:
            self._sprinted += 1
            self._pace.take(1, now)
            self._speed_up(now)
        elif self._marks and self._passed() - self._marks[-1].passed >= self._cruise:
            self._sprinted = 1
            self._pace = TokenBucket(self.SPRINT * self._bucket.rate, 1.0, level=0.0, updated_at=now)

    def give_back(self, now: float) -> None:
        self._total -= 1
        if self._bucket is not None:
            self._bucket.give_back(1, now)

    def answered(self, sent_at: float, now: float) -> None:
        if self._bucket is None:
            self._extra = min(self._extra + 2, 64)

    def refused(self, sent_at: float, now: float) -> None:
        after = len(self._sent) - bisect_right(self._sent, sent_at)
        passed = self._total - after - 1 - self._refused
        self._refused += 1
        if self._marks and sent_at <= self._marks[-1].at + self.TRAVEL_JITTER:
            return  # of the same moment as the last mark
        mark = _Mark(sent_at, passed)
        if not self._marks and self._bucket is None:
            self._first_mark(mark, now)
        else:
            self._another_mark(mark, now)
        self._sprinted = 0

    def rebase(self, now: float) -> None:
        self._marks.clear()
        self._sent.clear()
        self._pace.rebase(now)
        if self._bucket is not None:
            self._bucket.rebase(now)

    @property
    def _sprinting(self) -> bool:
        return self._sprinted > 0

    def _passed(self) -> int:
        return self._total - self._refused

    def _first_mark(self, mark: _Mark, now: float) -> None:
        """Little is known yet: at most what was let through since the start, per second; at least, per minute."""
        elapsed = max(mark.at - self._started, self.TRAVEL_JITTER)
        guess = min((mark.passed + 1) / 60, (mark.passed + 1) / elapsed)
        self._bucket = TokenBucket(guess, max(1.0, float(mark.passed)), level=0.0, updated_at=now)
        self._marks.append(mark)
        self._cruise = 1

    def _another_mark(self, mark: _Mark, now: float) -> None:
        assert self._bucket is not None  # noqa: S101  # made by the first mark, or given
        low, high = self._low, self._high
        for earlier in self._marks:
            passed, elapsed = mark.passed - earlier.passed, mark.at - earlier.at
            low = max(low, (passed - 1) / (elapsed + self.TRAVEL_JITTER))
            if elapsed > self.TRAVEL_JITTER:
                high = min(high, (passed + 1) / (elapsed - self.TRAVEL_JITTER))
        if low <= high:
            self._low, self._high = low, high
            self._cruise = min(max(self.FIRST_CRUISE, self._cruise * self.CRUISE_GROWTH), self.LONGEST_CRUISE)
            rate = max(low, high / 2) if high < float("inf") else self._bucket.rate
        else:
            # The bounds exclude each other: the limit has changed, or somebody else uses the key. Begin anew from here.
            latest = self._marks[-1] if self._marks else None
            self._marks.clear()
            self._low, self._high = 0.0, float("inf")
            self._cruise = self.FIRST_CRUISE
            rate = self._bucket.rate * 0.7
            if latest is not None and mark.at - latest.at > self.TRAVEL_JITTER:
                recent = (mark.passed - latest.passed) / (mark.at - latest.at)
                rate = max(0.5 * rate, min(recent, 4 * rate))
        self._marks.append(mark)
        self._bucket.retune(now, rate=rate)
        self._bucket.drain(now)

    def _speed_up(self, now: float) -> None:
        assert self._bucket is not None  # noqa: S101  # sprints come after the first mark
        patience = self.PATIENCE if self._high < float("inf") else 1
        if self._sprinted > patience:
            self._pace.retune(now, rate=self._pace.rate * (1.15 if patience > 1 else 2.0))
