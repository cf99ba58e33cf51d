"""The phases of the adaptive rate. Pure. The theory of operation and the transition table are in `adaptive`.

A phase owns its pacing. It judges by the evidence that it is given, and returns the phase to continue with.
"""

from random import Random

from onellm_async.limits.binomial import BinomialRate
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.evidence import Evidence
from onellm_async.limits.rate_state import RateState


class Phase:
    """What all phases have in common."""

    __slots__ = ()

    @property
    def rate(self) -> float:
        """Requests per second that it keeps up."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Its name, as in the theory of operation."""
        return type(self).__name__

    @property
    def burst(self) -> float:
        """Requests that the service accepts at once after a pause, as far as that is known."""
        return 1.0

    @property
    def obeys_windows(self) -> bool:
        """Whether it waits for the windows that are known."""
        return True

    @property
    def shares(self) -> bool:
        """Whether it takes it that other clients use the key."""
        return False

    def state(self, evidence: Evidence) -> RateState | None:
        """What another control can start from; None if nothing is known."""
        raise NotImplementedError

    def confidence(self, evidence: Evidence) -> float:
        """How narrow the bounds are, from 0 to 1."""
        return evidence.line.bounds.confidence

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        """Seconds until `requests` more may be sent beside `reserve` tokens; 0 or less if they may be sent now."""
        raise NotImplementedError

    def take(self, now: float, evidence: Evidence) -> "Phase":
        """Records that a request is sent."""
        raise NotImplementedError

    def give_back(self, now: float, evidence: Evidence) -> None:
        """Records that a request was not sent after all."""
        raise NotImplementedError

    def answered(self, sent_at: float, now: float, evidence: Evidence) -> None:
        """Records an accepted request."""

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> "Phase":
        """Records a 429 that is a new sample."""
        raise NotImplementedError

    def move_clock(self, now: float) -> "Phase":
        """Continues with a clock that may have been set back."""
        raise NotImplementedError


class Startup(Phase):
    """Nothing is known yet: the pace grows until the first 429."""

    START_PACE = 30.0
    """Requests per second at the start."""
    CAREFUL_FOR = 0.04
    """Seconds in which `START_PACE` is kept, so that a 429 of the first request can come first."""
    UNANSWERED_PACE = 100.0
    """Requests per second after that, before the first answer. A slower start costs more than 1.5 % of 2,000 requests
    at 200 per second, a faster one more 429s: pace times round trip."""
    MAX_PACE = 300.0
    """Requests per second, at most, or what was accepted in `MIN_SECONDS` if that is more."""
    MIN_SECONDS = 4.0
    """Seconds in which a pace above `MAX_PACE` would have sent all that was accepted so far, at least."""
    GAIN = 3.0
    """Requests that each answer adds to those in flight."""
    MIN_LATENCY = 0.005
    """Shorter latencies count as so many seconds."""
    ROUND_COUNTS = frozenset((10, 20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 500))
    """Numbers of requests after which a limit is probable, so that the request after them goes alone."""
    ALONE_FOR = 0.12
    """Seconds for which it goes alone before the first answer: time for a 429."""

    __slots__ = ("_answered", "_last", "_pace", "_sent")

    def __init__(self) -> None:
        self._pace = self.START_PACE
        self._last = -float("inf")
        self._sent = 0
        self._answered = False

    @classmethod
    def again(cls, pace: float, now: float) -> "Startup":
        """A startup that goes on at a pace that was reached before."""
        startup = cls()
        startup._pace, startup._last, startup._answered = pace, now, True
        return startup

    @property
    def rate(self) -> float:
        return self._pace

    def state(self, evidence: Evidence) -> RateState | None:
        return None

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        gap = 1 / self._pace
        if not self._answered and self._sent - 1 in self.ROUND_COUNTS:
            gap = max(gap, self.ALONE_FOR)
        return self._last + gap + (requests - 1) / self._pace - now

    def take(self, now: float, evidence: Evidence) -> Phase:
        self._last = now
        self._sent += 1
        evidence.peak = max(evidence.peak, self._pace)
        if not self._answered and now >= evidence.line.started + self.CAREFUL_FOR:
            self._pace = max(self._pace, self.UNANSWERED_PACE)
        return self

    def give_back(self, now: float, evidence: Evidence) -> None:
        """A pace has nothing to give back."""

    def answered(self, sent_at: float, now: float, evidence: Evidence) -> None:
        """Raises the pace: each answer adds to the requests in flight."""
        latency = max(now - sent_at, self.MIN_LATENCY)
        self._answered = True
        max_pace = max(self.MAX_PACE, evidence.log.total / self.MIN_SECONDS)
        self._pace = max(self._pace, min(max_pace, self._pace + self.GAIN / latency))

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        rate = evidence.line.first_estimate()
        return Cruise(evidence.line.empty_bucket(rate, 1.0, now, retry_after))

    def move_clock(self, now: float) -> Phase:
        self._last = now
        return self


class SharedStartup(Startup):
    """The startup of a control that several clients share: 429s come through the board, so the pace is lower."""

    START_PACE = UNANSWERED_PACE = 8.0
    """Requests per second before the first answer."""
    GAIN = 1.0
    """Requests that each answer adds to those in flight."""
    MIN_IN_FLIGHT = 4
    """Minimum number of requests in flight, once the first answer shows the round trip."""

    __slots__ = ()

    def take(self, now: float, evidence: Evidence) -> Phase:
        due = self._last + 1 / self._pace
        super().take(now, evidence)
        self._last = max(min(now, due), now - evidence.line.lateness)
        return self

    def answered(self, sent_at: float, now: float, evidence: Evidence) -> None:
        """Raises the pace: each answer adds to the requests in flight."""
        super().answered(sent_at, now, evidence)
        self._pace = max(self._pace, min(self.MAX_PACE, self.MIN_IN_FLIGHT / max(now - sent_at, self.MIN_LATENCY)))


class Cruise(Phase):
    """Sends at a rate that the service certainly allows, as far as that is known.

    Args:
        bucket: What the service's bucket holds at least.
    """

    __slots__ = ("_bucket",)

    def __init__(self, bucket: TokenBucket) -> None:
        self._bucket = bucket

    @property
    def rate(self) -> float:
        return self._bucket.rate

    @property
    def burst(self) -> float:
        return self._bucket.capacity

    def state(self, evidence: Evidence) -> RateState | None:
        bounds = evidence.line.bounds
        high = bounds.high if bounds.known else None
        return RateState(self._bucket.rate, self._bucket.capacity, bounds.low, high)

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        bucket = self._bucket
        if reserve:
            requests += min(reserve, bucket.capacity - 1)
        return (requests - bucket.level_at(now)) / bucket.rate

    def take(self, now: float, evidence: Evidence) -> Phase:
        self._bucket.take(1, now)
        evidence.line.saturation.take(now)
        return self._probe(now, evidence) if evidence.line.cruise_is_over else self

    def _probe(self, now: float, evidence: Evidence) -> Phase:
        return Probe(self._bucket, evidence.line.gain, now)

    def give_back(self, now: float, evidence: Evidence) -> None:
        self._bucket.give_back(1, now)
        evidence.line.saturation.give_back()

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        return self._next(None, now, retry_after, evidence, random)

    def _next(
        self,
        probe_pace: float | None,
        now: float,
        retry_after: float | None,
        evidence: Evidence,
        random: Random | None,
    ) -> Phase:
        """The phase that follows from a new sample."""
        capacity = self._bucket.capacity
        rate = evidence.line.estimate(self._bucket.rate, capacity, probe_pace)
        return Cruise.of(evidence.line.empty_bucket(rate, capacity, now, retry_after), evidence, random, now)

    @staticmethod
    def of(bucket: TokenBucket, evidence: Evidence, random: Random | None, now: float) -> Phase:
        """The phase that follows from the evidence: a cruise, unless other clients use the key."""
        return Contended(bucket, evidence, random, now) if evidence.line.is_contended else Cruise(bucket)

    def move_clock(self, now: float) -> Phase:
        self._bucket.move_clock(now)
        return self


class Restored(Cruise):
    """Cruises at a prior, whose bucket may hold nothing now, and probes early.

    Args:
        bucket: The bucket of the prior.
        prior: What an earlier control knew, or a declaration.
    """

    __slots__ = ("_prior",)

    def __init__(self, bucket: TokenBucket, prior: RateState) -> None:
        super().__init__(bucket)
        self._prior = prior

    def _probe(self, now: float, evidence: Evidence) -> Phase:
        return Probe(self._bucket, evidence.line.gain, now, self._prior)

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        rate = evidence.line.confirm_prior(self._prior)
        return Cruise(evidence.line.empty_bucket(rate, self._bucket.capacity, now, retry_after))


class Probe(Cruise):
    """Sends each request slightly sooner than the one before, until a 429.

    Args:
        bucket: What the service's bucket holds at least.
        gain: Relative step.
        now: The current time in seconds.
        prior: The prior, if this is the early probe of `Restored`.
    """

    MAX_IN_FLIGHT = 2.0
    """Requests in flight when the 429 of a probe arrives, at most. It bounds the pace of a probe."""
    MAX_UNBOUNDED_PACE = 4
    """Maximum pace of a probe before an upper bound is known, as a multiple of the rate that is certain by then."""
    MAX_RESTORED_PACE = 4
    """Maximum pace of the early probe, as a multiple of the prior."""

    __slots__ = ("_pacer", "_prior")

    def __init__(self, bucket: TokenBucket, gain: float, now: float, prior: RateState | None = None) -> None:
        super().__init__(bucket)
        self._pacer = TokenBucket(bucket.rate * (1 + gain), 1.0, level=0.0, updated_at=now)
        self._prior = prior

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        pacer = self._pacer
        return min((requests - pacer.level_at(now)) / pacer.rate, super().time_until(requests, now, reserve, evidence))

    def take(self, now: float, evidence: Evidence) -> Phase:
        """Raises the pace by the gain, and notices a limit that has risen."""
        bucket, pacer = self._bucket, self._pacer
        bucket.take(1, now)
        evidence.line.saturation.take(now)
        pacer.take(1, now)
        line = evidence.line
        max_pace = self.MAX_IN_FLIGHT / line.jitter
        if line.bounds.known:
            max_pace = max(max_pace, 1.02 * line.believed_high + 0.25 / max(line.round_trip, 0.005))
        else:  # otherwise a faster service than that would never be found
            max_pace = max(
                max_pace, min(evidence.peak, self.MAX_UNBOUNDED_PACE * line.certain_rate(now, bucket.capacity))
            )
        if self._prior is not None:
            max_pace = self.MAX_RESTORED_PACE * bucket.rate
        pace = max(pacer.rate, min(pacer.rate * (1 + evidence.line.gain), max_pace))
        pacer.retune(now, rate=pace, capacity=1 + evidence.line.lateness * pace)
        if line.limit_rose(pace, now, self._prior):
            bucket.retune(now, rate=pace)
            self._prior = None
        elif not line.bounds.known and (certain := line.certain_rate(now, bucket.capacity)) > bucket.rate:
            bucket.retune(now, rate=certain)  # no 429 tells that it is over
        return self

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        if self._prior is not None:
            return Restored(self._bucket, self._prior).rate_limited(now, retry_after, evidence, random)
        return self._next(self._pacer.rate, now, retry_after, evidence, random)

    def move_clock(self, now: float) -> Phase:
        self._bucket.move_clock(now)
        return Cruise(self._bucket) if self._prior is None else Restored(self._bucket, self._prior)


class Contended(Phase):
    """Shares the limit with other clients: binomial increase and decrease, random gaps.

    Args:
        bucket: An empty bucket of the rate to begin with.
        evidence: What is known.
        random: Source of the gaps; None: even gaps.
    """

    MAX_GROWTH = 4.0
    """Factor by which the rate may grow in `BOUNDED_FOR` seconds, whatever was accepted."""
    MAX_BEYOND = 1.2
    """The highest rate as a multiple of what was accepted in any so many seconds, if that is more."""
    MIN_GAP = 0.5
    """Seconds between two requests, at least, while nothing is accepted."""
    BOUNDED_FOR = 60.0
    """Seconds for which the highest rate stays the same, and over which requests are counted for it. Without it, the
    rate in a window that others use grew to twenty times the share before the window was full."""

    IDENTIFY_AFTER = 900.0
    """Seconds after which the limit is identified again: other clients may have gone. They double each time,
    as it costs ten 429s or more."""
    MAX_DOUBLINGS = 2
    """How often they double, at most."""
    SAVES_FROM = 8.0
    """Requests that the service's bucket can save, from which the mean bounds the rate after a 429. A smaller one loses
    refill at a rate below what the others leave."""

    __slots__ = ("_bounded_at", "_bucket", "_is_knock_next", "_next_cost", "_random", "_share", "_since")

    def __init__(self, bucket: TokenBucket, evidence: Evidence, random: Random | None, now: float) -> None:
        self._bucket = bucket
        self._since = now
        self._random = random
        self._next_cost = 1.0
        self._is_knock_next = False
        self._share = BinomialRate(
            bucket.rate,
            floor=min(bucket.rate, evidence.line.MIN_RATE / 2),
            ceiling=self._ceiling(bucket.rate, evidence, now),
            consecutive_429s=evidence.line.consecutive_429s,
            rate_before_drop=evidence.line.rate_before_drop,
        )

    def _ceiling(self, rate: float, evidence: Evidence, now: float) -> float:
        """The highest rate: a multiple of the present one, and of what was accepted in any minute."""
        self._bounded_at = now
        seconds = min(self.BOUNDED_FOR, max(1.0, now - evidence.line.started))
        return max(self.MAX_GROWTH * rate, self.MAX_BEYOND * evidence.log.max_count(seconds, now) / seconds)

    @property
    def rate(self) -> float:
        return self._bucket.rate

    @property
    def shares(self) -> bool:
        return True

    def state(self, evidence: Evidence) -> RateState | None:
        """Without bounds: those of a share say nothing about the limit."""
        return RateState(self._bucket.rate, self._bucket.capacity)

    def confidence(self, evidence: Evidence) -> float:
        """None: the share may change at any time."""
        return 0.0

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        bucket = self._bucket
        requests += self._next_cost - 1
        if reserve:
            requests += min(reserve, bucket.capacity - self._next_cost)
        return (requests - bucket.level_at(now)) / bucket.rate

    def take(self, now: float, evidence: Evidence) -> Phase:
        self._bucket.take(1, now)
        evidence.line.saturation.take(now)
        if self._is_knock_next:  # alone, until its 429 would have come
            self._is_knock_next = False
            self._bucket.drain(now, 1 - evidence.ack * self._bucket.rate)
        if self._random is not None:
            self._next_cost = self._random.uniform(0.5, min(1.5, self._bucket.capacity))
        return self

    def give_back(self, now: float, evidence: Evidence) -> None:
        self._bucket.give_back(1, now)
        evidence.line.saturation.give_back()

    def answered(self, sent_at: float, now: float, evidence: Evidence) -> None:
        """Raises the rate. An answer to a request that was sent before the last 429 says nothing new."""
        if not evidence.line.samples or sent_at > evidence.line.samples[-1].at:
            share = self._share
            if share.at_ceiling and now - self._bounded_at > self.BOUNDED_FOR:
                share.ceiling = self._ceiling(share.value, evidence, now)
            share.increase()
            self._bucket.retune(now, rate=self._share.value)

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        """Lowers the rate. Samples that agree closely end the contention."""
        line = evidence.line
        saves = self._bucket.capacity >= self.SAVES_FROM
        self._share.decrease(line.mean_rate() if saves else None)
        self._next_cost = 1.0
        rate, capacity = line.end_contention(), self._bucket.capacity
        if rate is not None:
            return Cruise(line.empty_bucket(rate, capacity, now, retry_after))
        if now - self._since > self.IDENTIFY_AFTER * 2 ** min(self.MAX_DOUBLINGS, line.identified):
            line.identify_again()
            return Cruise(line.empty_bucket(self._share.value, capacity, now, retry_after))
        self._bucket = line.empty_bucket(self._share.value, capacity, now, retry_after)
        if len(line.samples) > 1 and line.samples[-1].accepted <= line.samples[-2].accepted:
            # Not left to the bucket of the line: it takes no notice of a wait while the bounds are tight.
            self._bucket.drain(now, 1 - max(retry_after or 0.0, self.MIN_GAP) * self._bucket.rate)
            self._is_knock_next = True
        return self

    def move_clock(self, now: float) -> Phase:
        self._bucket.move_clock(now)
        self._since = self._bounded_at = now
        return self
