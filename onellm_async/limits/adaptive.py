"""Finds out a rate that nobody declared. Pure.

**Start.** Eight requests per second (more where answers come fast), and as many more per second as are answered per
second, until the first refusal.
It tells that the service's bucket is empty, but not how fast it is refilled: the first guess is what came through,
per minute (or less, if the refusal came early). While nothing comes through, the guess is halved.

**Cruise.** Marks give bounds (see `marks`). The client cruises at the lower one, which the service certainly allows.
What it leaves unused is not lost: the service's bucket saves it up. Nothing is concluded from times in which the bucket
may have been full, such as silences (see `overflow`).

**Sprint.** After a while, each request leaves a little sooner after the one before, until the next refusal: that uses
up the savings and tells the rate anew, for the price of one refusal, which is not billed. The more is known, the longer
are the cruises and the gentler the sprints. Once more has come through than the bounds allow, the limit has risen (or
the bucket is too small to save anything up): the old marks are forgotten, and the sprint's pace becomes the rate.

**Company.** Alone, a client is never refused while it cruises, and its marks never disagree. If that happens, or if at
the start of a small burst nothing comes through time after time, somebody else uses the key: the rate then only gives
way and comes back, with random gaps (see `sharing`), until the newest marks agree on one rate again.
"""

from bisect import bisect_right
from collections import deque
from random import Random

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.marks import UNKNOWN, Bounds, Mark, bounds_of
from onellm_async.limits.overflow import Overflow
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.sharing import SharedRate

__all__ = ["LearnedRate"]


class LearnedRate:
    """Finds out a hidden bucket and holds it.

    Args:
        now: The current time.
        state: What an earlier control knew, or what somebody declared; it is held until the service disagrees. None
            starts blind. What the service's bucket holds is not known: an early sprint finds out.
        random: Where the gaps between requests come from while the key is shared; None: even gaps.
        probe_every: Requests of the longest cruise, 1 or more. One refusal in so many is what staying informed costs;
            a limit that rises is noticed after so many at the latest.
    """

    START_PACE = 8.0
    START_UNDER_WAY = 4
    """Requests per second of the start; and requests under way at least, once the first answer tells how fast the
    service is."""
    LEAST_JITTER = 0.005
    MOST_JITTER = 0.15
    """Seconds by which the moments of sending and of arriving may differ between two requests: between these bounds,
    one and a half times the round trip of a refusal."""
    SHORTEST_PERIOD = 10.0
    LONGEST_PERIOD = 60.0
    """Seconds in which the bucket is guessed to be refilled once; in between, twelve times as long as it lasted."""
    LEAST = 1 / 45
    """Requests per second below which nothing is guessed; only a measurement says less."""
    FIRST_CRUISE = 4
    CRUISE_GROWTH = 3
    """Requests of a cruise for each request that the bounds rest on."""
    DOUBLING = 1.0
    HASTE = 0.1
    TINY_HASTE = 0.02
    LEAST_HASTE = 0.01
    """How much sooner each request of a sprint leaves: before anything is known; at first, after a burst of four or
    more and after a smaller one; at last."""
    RISE_HASTE = 0.2
    OVERSHOOT = 2.0
    """Requests that may be on their way when a refusal comes back: the fastest sprint, times a refusal's round trip."""
    MOST_MARKS = 24
    CONTESTED = 2.0
    """Suspicions that make company certain: a refused cruise, or nothing let through again and again, counts two;
    marks that disagree, one. Marks that agree take back a quarter."""
    FASTER = 3.0
    """How many times the first guess the rate may be, for what is made of the silences before anything is known."""
    SMALL_BURST = 24
    """Requests; who found that many at the start has hardly been robbed by others, however long nothing follows."""
    ALONE, APART = 6, 8
    CLOSE = 1.1
    """Alone again: so many marks agree, with so many requests between them on average, on bounds that close."""

    def __init__(
        self, now: float, state: RateState | None = None, *, random: Random | None = None, probe_every: int = 300
    ) -> None:
        self._random = random
        self._probe_every = probe_every
        self._started = now
        self._sent: deque[float] = deque(maxlen=4096)
        self._total = self._refused = 0
        self._marks: deque[Mark] = deque(maxlen=self.MOST_MARKS)
        self._bounds = Bounds()
        self._cruise = 1
        self._sprinting = False
        self._haste = self.DOUBLING
        self._first_haste = self.HASTE
        self._round_trip = 0.0
        self._jitter = self.LEAST_JITTER
        self._suspicion = 0.0
        self._in_vain = 0
        self._fallen_from: float | None = None
        self._shared: SharedRate | None = None
        self._bucket: TokenBucket | None = None
        self._pace = TokenBucket(self.START_PACE, 1.0, updated_at=now)
        self._overflow = Overflow(now)
        self._first: Mark | None = None
        self._wanted = 1.0
        self._given = state
        if state is not None:
            self._bucket = TokenBucket(state.rate, max(1.0, state.burst), level=1.0, updated_at=now)
            self._bounds = Bounds(state.low, UNKNOWN if state.high is None else state.high)
            self._marks.append(Mark(now, 0, empty=False))
            self._haste = self.HASTE

    @property
    def rate(self) -> float:
        return self._pace.rate if self._bucket is None else self._bucket.rate

    @property
    def state(self) -> RateState | None:
        """What is known now; None before the first refusal."""
        if self._bucket is None:
            return None
        bounds = Bounds() if self._shared is not None else self._bounds
        return RateState(self._bucket.rate, self._bucket.capacity, bounds.low, bounds.high if bounds.known else None)

    @property
    def confidence(self) -> float:
        """0 while nothing is known or the key is shared, then 1 - (high - low) / (high + low) of the bounds."""
        return 0.0 if self._shared is not None else self._bounds.confidence

    def time_until(self, requests: float, now: float, keep: float = 0.0, *, paced: bool = False) -> float:
        requests += self._wanted - 1
        wait = (requests - self._pace.level_at(now)) / self._pace.rate
        if self._bucket is not None:
            if keep:
                requests += min(keep, self._bucket.capacity - self._wanted)
            steady = (requests - self._bucket.level_at(now)) / self._bucket.rate
            wait = min(wait, steady) if self._sprinting else steady
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._total += 1
        self._sent.append(now)
        if self._bucket is None:
            self._pace.take(1, now)
            return
        self._bucket.take(1, now)
        self._overflow.take(now)
        if self._shared is not None:
            if self._random is not None:
                self._wanted = self._random.uniform(0.5, min(1.5, self._bucket.capacity))
        elif self._sprinting:
            self._pace.take(1, now)
            self._hurry(now)
        elif self._marks and self._passed() >= self._cruise:
            self._sprinting = True
            self._pace = TokenBucket(self._bucket.rate * (1 + self._haste), 1.0, level=0.0, updated_at=now)

    def give_back(self, now: float) -> None:
        self._total -= 1
        if self._bucket is not None:
            self._bucket.give_back(1, now)
            self._overflow.give_back()

    def answered(self, sent_at: float, now: float) -> None:
        if self._bucket is None:  # the pace doubles with every round trip
            latency = max(now - sent_at, self.LEAST_JITTER)
            self._pace.retune(now, rate=max(self._pace.rate + 1 / latency, self.START_UNDER_WAY / latency))
        elif self._shared is not None and (not self._marks or sent_at > self._marks[-1].at):
            self._shared.grow()
            self._bucket.retune(now, rate=self._shared.value)

    def refused(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        after = len(self._sent) - bisect_right(self._sent, sent_at)
        passed = max(0, self._total - after - 1 - self._refused)
        self._refused += 1
        self._round_trip = max(0.9 * self._round_trip, now - sent_at)
        self._jitter = min(self.MOST_JITTER, max(self.LEAST_JITTER, 1.5 * self._round_trip))
        if self._marks and self._marks[-1].empty and sent_at <= self._marks[-1].at + self._jitter:
            for mark in self._marks:  # of the same moment as the last mark, which took it for let through
                if mark.at >= sent_at:
                    mark.passed -= 1
            return
        sprinting, self._sprinting = self._sprinting, False
        below = self._overflow.refused(sent_at, after, self._jitter)
        self._marks.append(Mark(sent_at, passed, self._overflow.seconds, below))
        if self._bucket is None:
            self._first = self._marks[-1]
            rate = self._first_guess()
        elif self._given is not None:
            rate = self._recall(self._given)
        elif self._shared is not None:
            rate = self._give_way(self._shared)
        else:
            rate = self._learn(self._bucket, sprinting=sprinting)
        burst = self._burst(self._bucket)
        # While nothing certain is known, what a silence brings is left to the sprints.
        silence = 0.0 if retry_after is None or self._bounds.tight else retry_after
        self._bucket = TokenBucket(rate, burst, level=0.0, updated_at=now + silence)
        self._overflow.restart(now, self._bounds.high if self._bounds.known else self.FASTER * rate, burst)

    def rebase(self, now: float) -> None:
        self._marks.clear()
        self._sent.clear()
        self._overflow.rebase(now)
        self._sprinting = False
        self._pace.rebase(now)
        if self._bucket is not None:
            self._bucket.rebase(now)

    def _burst(self, bucket: TokenBucket | None) -> float:
        """What the service's bucket holds: what came through at first, less what may have been refilled meanwhile."""
        if self._first is None:
            return 1.0 if bucket is None else bucket.capacity
        passed, lasted = self._first.passed, self._first.at - self._started
        return max(1.0, passed - self._bounds.high * lasted if self._bounds.tight else passed / 2)

    def _passed(self) -> int:
        return self._total - self._refused - self._marks[-1].passed

    def _first_guess(self) -> float:
        mark = self._marks[-1]
        lasted = max(mark.at - self._started, self._jitter)
        self._first_haste = self.HASTE if mark.passed >= self.FIRST_CRUISE else self.TINY_HASTE
        return (mark.passed + 1) / min(self.LONGEST_PERIOD, max(self.SHORTEST_PERIOD, 12 * lasted))

    def _recall(self, given: RateState) -> float:
        """The first mark after a start from `given` only tells that the service's bucket is empty from now on."""
        self._given = None
        while len(self._marks) > 1:
            self._marks.popleft()
        if self._bounds.tight:
            self._study(2 * given.low / max(self._bounds.high - given.low, 1e-9))
        return given.rate

    def _study(self, evidence: float) -> None:
        """How long the next cruise and how gentle the next sprint is, after so many requests that agree."""
        self._cruise = max(1, int(min(self.CRUISE_GROWTH * evidence, self._probe_every)))
        self._haste = min(self._first_haste, max(self.LEAST_HASTE, 1 / max(1, evidence)))

    def _learn(self, bucket: TokenBucket, *, sprinting: bool) -> float:
        marks = self._marks
        if not sprinting and self._bounds.tight:
            self._suspicion += 2
        in_vain = len(marks) > 1 and marks[-1].passed <= marks[-2].passed
        bounds = self._bounds = bounds_of(list(marks), self._jitter)
        if bounds.agreeing < len(marks):
            self._suspicion += 1
            while len(marks) > bounds.agreeing:
                marks.popleft()
        elif not in_vain:
            self._suspicion = max(0.0, self._suspicion - 0.25)
            self._in_vain = 0
        if len(marks) > 1:
            self._study(marks[-1].passed - next(mark.passed for mark in marks if mark.empty))
            if bounds.low > 0:
                self._cruise = max(self._cruise, min(self.FIRST_CRUISE, self._probe_every))
        rate = self._estimate(bucket, in_vain=in_vain, sprinting=sprinting)
        if self._suspicion >= self.CONTESTED:
            self._shared = SharedRate(
                rate,
                floor=min(rate, self.LEAST / 2),
                ceiling=UNKNOWN,
                in_vain=self._in_vain,
                fallen_from=self._fallen_from,
            )
        return rate

    def _estimate(self, bucket: TokenBucket, *, in_vain: bool, sprinting: bool) -> float:
        bounds = self._bounds
        if in_vain:
            rate = max(self.LEAST, bucket.rate / 2)
            if not self._in_vain:
                self._fallen_from = bounds.low or None
            self._in_vain += 1
            found = bucket.capacity if self._first is None else self._first.passed
            if rate <= self.LEAST or (self._in_vain >= 2 and found < self.SMALL_BURST):
                self._suspicion += 2
            return rate
        if not bounds.known:
            return bucket.rate
        if bounds.tight:
            return bounds.low
        if bounds.low > 0:
            return max(self.LEAST, (bounds.low + bounds.high) / 2)
        if sprinting and not self._marks[0].empty:  # the limit had risen: the pace of the last request but one
            return max(self.LEAST, min(bounds.high, self._pace.rate / (1 + self._haste) ** 2))
        return max(self.LEAST, bounds.high / 2)

    def _give_way(self, shared: SharedRate) -> float:
        shared.shrink()
        self._wanted = 1.0
        marks = self._marks
        bounds = bounds_of(list(marks), self._jitter)
        enough = bounds.agreeing >= self.ALONE and bounds.high < self.CLOSE * bounds.low
        if not enough or marks[-1].passed - marks[-bounds.agreeing].passed <= self.APART * bounds.agreeing:
            return shared.value
        while len(marks) > bounds.agreeing:
            marks.popleft()
        self._shared = None
        self._suspicion = 0.0
        self._bounds = bounds
        self._cruise = min(self.FIRST_CRUISE, self._probe_every)
        return (bounds.low + bounds.high) / 2

    def _hurry(self, now: float) -> None:
        """Each request of a sprint leaves a little sooner than the one before."""
        assert self._bucket is not None  # noqa: S101  # nobody sprints before the first guess
        fastest = 4 * self._bucket.rate if self._given is not None else self.OVERSHOOT / self._jitter
        pace = max(self._pace.rate, min(self._pace.rate * (1 + self._haste), fastest))
        self._pace.retune(now, rate=pace)
        passed = self._passed() - 1 - pace * self._round_trip
        if self._given is None and passed > self._bounds.high * (now - self._marks[-1].at + self._jitter):
            self._bucket.retune(now, rate=pace)
            self._haste = min(self.RISE_HASTE, 2 * self._haste)
            mark = Mark(now, self._total - self._refused, self._overflow.seconds, empty=False)
            self._marks = deque([mark], maxlen=self.MOST_MARKS)
            self._bounds = Bounds()
