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
from onellm_async.limits.rate import SharedRate

__all__ = ["LearnedRate", "RateState"]

_UNKNOWN = float("inf")


@frozen
class RateState:
    """What has been learned, to be given to another limiter.

    Attributes:
        rate: Requests per second that the service certainly allows.
        burst: Requests that it lets through at once after a pause.
    """

    rate: float
    burst: float


class _Mark:
    """A moment at which the service's bucket was empty, and how many requests it had let through before."""

    __slots__ = ("at", "passed")

    def __init__(self, at: float, passed: int) -> None:
        self.at = at
        self.passed = passed


class LearnedRate:
    """Finds out a hidden bucket and holds it.

    Args:
        now: The current time.
        state: What an earlier limiter learned; None starts blind.
    """

    START_PACE = 8.0
    """Requests per second before anything is known; each answer adds two, so that fast services are found fast."""
    LEAST_JITTER = 0.005
    MOST_JITTER = 0.15
    """Seconds by which the moments of sending and of arriving may differ between two requests: between these bounds,
    one and a half times the round trip of a refusal."""
    FIRST_CRUISE = 4
    LONGEST_CRUISE = 300
    """Requests; one refusal in 300 is what staying informed costs."""
    CRUISE_GROWTH = 4
    SPRINT = 1.5
    """Times the rate, at first."""
    PATIENCE = 8
    """Requests of a sprint without a mark after which it gets faster and faster: the limit must have risen."""
    OVERSHOOT = 2.0
    """Requests that may be on their way when a refusal comes back: the fastest sprint, times a refusal's round trip."""
    LEAST_SHARE = 1 / 16
    MOST_MARKS = 24
    CONTESTED = 2.0
    """Times that the marks have disagreed lately, each agreement taking back a quarter: somebody else uses the key."""
    SHARED_FOR = 900.0
    """Seconds for which the rate then only gives way and comes back, before it is identified anew."""

    def __init__(self, now: float, state: RateState | None = None) -> None:
        self._started = now
        self._sent: deque[float] = deque(maxlen=4096)
        self._total = self._refused = 0
        self._marks: deque[_Mark] = deque(maxlen=self.MOST_MARKS)
        self._identified = False
        self._cruise = self.FIRST_CRUISE
        self._sprinted = 0
        self._round_trip = 0.0
        self._jitter = self.LEAST_JITTER
        self._disagreements = 0.0
        self._shared: SharedRate | None = None
        self._shared_until = now
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
        if self._sprinted:
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
        if self._sprinted:
            self._sprinted += 1
            self._pace.take(1, now)
            self._speed_up(now)
        elif (
            self._shared is None
            and self._marks
            and self._total - self._refused - self._marks[-1].passed >= self._cruise
        ):
            self._sprinted = 1
            self._pace = TokenBucket(self.SPRINT * self._bucket.rate, 1.0, level=0.0, updated_at=now)

    def give_back(self, now: float) -> None:
        self._total -= 1
        if self._bucket is not None:
            self._bucket.give_back(1, now)

    def answered(self, sent_at: float, now: float) -> None:
        if self._bucket is None:
            self._extra = min(self._extra + 2, 64)
        elif self._shared is not None:
            self._shared.grow()
            self._bucket.retune(now, rate=self._shared.value)

    def refused(self, sent_at: float, now: float) -> None:
        after = len(self._sent) - bisect_right(self._sent, sent_at)
        passed = self._total - after - 1 - self._refused
        self._refused += 1
        self._round_trip = max(0.9 * self._round_trip, now - sent_at)
        self._jitter = min(self.MOST_JITTER, max(self.LEAST_JITTER, 1.5 * self._round_trip))
        if self._marks and sent_at <= self._marks[-1].at + self._jitter:
            for mark in self._marks:  # of the same moment as the last mark, which took it for let through
                if mark.at >= sent_at:
                    mark.passed -= 1
            return
        self._marks.append(_Mark(sent_at, passed))
        self._sprinted = 0
        if self._bucket is None:
            self._first_guess(now)
        else:
            self._learn(now)

    def rebase(self, now: float) -> None:
        self._marks.clear()
        self._sent.clear()
        self._pace.rebase(now)
        if self._bucket is not None:
            self._bucket.rebase(now)

    def _first_guess(self, now: float) -> None:
        """Little is known yet: at most what was let through since the start, per second; at least, per minute."""
        mark = self._marks[-1]
        elapsed = max(mark.at - self._started, self._jitter)
        guess = min((mark.passed + 1) / 60, (mark.passed + 1) / elapsed)
        self._bucket = TokenBucket(guess, max(1.0, float(mark.passed)), level=0.0, updated_at=now)
        self._cruise = 1

    def _learn(self, now: float) -> None:
        bucket = self._bucket
        assert bucket is not None  # noqa: S101  # made by the first mark, or given
        if self._shared is not None:
            self._give_way(now)
            return
        low, high, agreeing = self._bounds()
        if agreeing < len(self._marks):
            # Older marks exclude the newer ones: the limit has changed, or somebody else uses the key.
            for _ in range(len(self._marks) - agreeing):
                self._marks.popleft()
            self._cruise = self.FIRST_CRUISE
            self._disagreements += 1
        else:
            self._disagreements = max(0.0, self._disagreements - 0.25)
            self._cruise = min(max(self.FIRST_CRUISE, self._cruise * self.CRUISE_GROWTH), self.LONGEST_CRUISE)
        self._identified = high < _UNKNOWN
        rate = (low + high) / 2 if self._identified else bucket.rate
        if len(self._marks) > 1 and self._marks[-1].passed <= self._marks[-2].passed:
            rate = min(rate, bucket.rate / 2)  # not one was let through: bounds this short after a mark say little
        rate = max(rate, self._least(now))
        self._bucket = TokenBucket(rate, bucket.capacity, level=0.0, updated_at=now)
        if self._disagreements >= self.CONTESTED:
            self._shared = SharedRate(rate, floor=self._least(now), ceiling=_UNKNOWN)
            self._shared_until = now + self.SHARED_FOR

    def _least(self, now: float) -> float:
        """A share of what has been let through on average since the start: less would be despair."""
        return self.LEAST_SHARE * (self._total - self._refused) / max(now - self._started, self._jitter)

    def _give_way(self, now: float) -> None:
        assert self._bucket is not None  # noqa: S101  # only an identified rate can be contested
        assert self._shared is not None  # noqa: S101  # see _learn
        if len(self._marks) > 1:
            last, previous = self._marks[-1], self._marks[-2]
            self._shared.floor = self._least(now)
            self._shared.shrink(last.passed - previous.passed, last.at - previous.at)
        self._bucket = TokenBucket(self._shared.value, self._bucket.capacity, level=0.0, updated_at=now)
        if now >= self._shared_until:
            self._shared = None
            self._disagreements = 0.0
            self._cruise = self.FIRST_CRUISE
            self._marks = deque([self._marks[-1]], maxlen=self.MOST_MARKS)

    def _bounds(self) -> tuple[float, float, int]:
        """The tightest bounds that the newest marks agree on, and how many marks these are."""
        low, high = 0.0, _UNKNOWN
        marks = list(self._marks)
        jitter = self._jitter
        for count, earlier in enumerate(reversed(marks[:-1]), 1):
            tighter_low, tighter_high = low, high
            for later in marks[len(marks) - count :]:
                passed, elapsed = later.passed - earlier.passed, later.at - earlier.at
                tighter_low = max(tighter_low, (passed - 1) / (elapsed + jitter))
                if elapsed > jitter:
                    tighter_high = min(tighter_high, (passed + 1) / (elapsed - jitter))
            if tighter_low > tighter_high:
                return low, high, count
            low, high = tighter_low, tighter_high
        return low, high, len(marks)

    def _speed_up(self, now: float) -> None:
        if self._sprinted > (self.PATIENCE if self._identified else 1):
            fastest = self.OVERSHOOT / self._jitter
            factor = 1.3 if self._identified else 2.0
            self._pace.retune(now, rate=max(self._pace.rate, min(self._pace.rate * factor, fastest)))
