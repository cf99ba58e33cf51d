"""The phases of the adaptive rate. Pure. The theory of operation and the transition table are in `adaptive`.

A phase owns its pacing. It judges by the evidence that it is given, and returns the phase to continue with.
"""

from abc import ABC, abstractmethod
from random import Random

from onellm_async.limits.binomial import BinomialRate
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.rate_samples import UNBOUNDED, RateEvidence
from onellm_async.limits.rate_state import RateState


class Phase(ABC):
    """What all phases have in common."""

    __slots__ = ()

    @property
    @abstractmethod
    def rate(self) -> float:
        """Requests per second that it keeps up."""

    @abstractmethod
    def state(self, evidence: RateEvidence) -> RateState | None:
        """What another control can start from; None if nothing is known."""

    def confidence(self, evidence: RateEvidence) -> float:
        """How narrow the bounds are, from 0 to 1."""
        return evidence.bounds.confidence

    @abstractmethod
    def time_until(self, requests: float, now: float, reserve: float) -> float:
        """Seconds until `requests` more may be sent beside `reserve` tokens; 0 or less if they may be sent now."""

    @abstractmethod
    def take(self, now: float, evidence: RateEvidence) -> "Phase":
        """Records that a request is sent."""

    @abstractmethod
    def give_back(self, now: float, evidence: RateEvidence) -> None:
        """Records that a request was not sent after all."""

    def answered(self, sent_at: float, now: float, evidence: RateEvidence) -> None:  # noqa: B027  # most learn nothing
        """Records an accepted request."""

    @abstractmethod
    def rate_limited(
        self, now: float, retry_after: float | None, evidence: RateEvidence, random: Random | None
    ) -> "Phase":
        """Records a 429 that is a new sample."""

    @abstractmethod
    def move_clock(self, now: float) -> "Phase":
        """Continues with a clock that may have been set back."""


class Startup(Phase):
    """Nothing is known yet: the pace grows until the first 429.

    Args:
        now: The current time in seconds.
    """

    START_PACE = 8.0
    """Requests per second at startup."""
    MIN_IN_FLIGHT = 4
    """Minimum number of requests in flight, once the first answer shows the round trip."""
    MIN_LATENCY = 0.005
    """Shorter latencies count as so many seconds."""

    __slots__ = ("_pacer",)

    def __init__(self, now: float) -> None:
        self._pacer = TokenBucket(self.START_PACE, 1.0, updated_at=now)

    @property
    def rate(self) -> float:
        return self._pacer.rate

    def state(self, evidence: RateEvidence) -> RateState | None:
        return None

    def time_until(self, requests: float, now: float, reserve: float) -> float:
        return (requests - self._pacer.level_at(now)) / self._pacer.rate

    def take(self, now: float, evidence: RateEvidence) -> Phase:
        self._pacer.take(1, now)
        return self

    def give_back(self, now: float, evidence: RateEvidence) -> None:
        """A pace has nothing to give back."""

    def answered(self, sent_at: float, now: float, evidence: RateEvidence) -> None:
        """One more request per round trip doubles the pace with each round trip."""
        latency = max(now - sent_at, self.MIN_LATENCY)
        self._pacer.retune(now, rate=max(self._pacer.rate + 1 / latency, self.MIN_IN_FLIGHT / latency))

    def rate_limited(
        self, now: float, retry_after: float | None, evidence: RateEvidence, random: Random | None
    ) -> Phase:
        rate = evidence.first_estimate()
        return Cruise(evidence.empty_bucket(rate, 1.0, now, retry_after))

    def move_clock(self, now: float) -> Phase:
        self._pacer.move_clock(now)
        return self


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

    def state(self, evidence: RateEvidence) -> RateState | None:
        bounds = evidence.bounds
        high = bounds.high if bounds.known else None
        return RateState(self._bucket.rate, self._bucket.capacity, bounds.low, high)

    def time_until(self, requests: float, now: float, reserve: float) -> float:
        bucket = self._bucket
        if reserve:
            requests += min(reserve, bucket.capacity - 1)
        return (requests - bucket.level_at(now)) / bucket.rate

    def take(self, now: float, evidence: RateEvidence) -> Phase:
        self._bucket.take(1, now)
        evidence.saturation.take(now)
        return self._probe(now, evidence) if evidence.cruise_is_over else self

    def _probe(self, now: float, evidence: RateEvidence) -> Phase:
        return Probe(self._bucket, evidence.gain, now)

    def give_back(self, now: float, evidence: RateEvidence) -> None:
        self._bucket.give_back(1, now)
        evidence.saturation.give_back()

    def rate_limited(
        self, now: float, retry_after: float | None, evidence: RateEvidence, random: Random | None
    ) -> Phase:
        return self._next(None, now, retry_after, evidence, random)

    def _next(
        self,
        probe_pace: float | None,
        now: float,
        retry_after: float | None,
        evidence: RateEvidence,
        random: Random | None,
    ) -> Phase:
        """The phase that follows from a new sample."""
        capacity = self._bucket.capacity
        rate = evidence.estimate(self._bucket.rate, capacity, probe_pace)
        bucket = evidence.empty_bucket(rate, capacity, now, retry_after)
        return Contended(bucket, evidence, random) if evidence.is_contended else Cruise(bucket)

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

    def _probe(self, now: float, evidence: RateEvidence) -> Phase:
        return Probe(self._bucket, evidence.gain, now, self._prior)

    def rate_limited(
        self, now: float, retry_after: float | None, evidence: RateEvidence, random: Random | None
    ) -> Phase:
        rate = evidence.confirm_prior(self._prior)
        return Cruise(evidence.empty_bucket(rate, self._bucket.capacity, now, retry_after))


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
    MAX_RESTORED_PACE = 4
    """Maximum pace of the early probe, as a multiple of the prior."""

    __slots__ = ("_pacer", "_prior")

    def __init__(self, bucket: TokenBucket, gain: float, now: float, prior: RateState | None = None) -> None:
        super().__init__(bucket)
        self._pacer = TokenBucket(bucket.rate * (1 + gain), 1.0, level=0.0, updated_at=now)
        self._prior = prior

    def time_until(self, requests: float, now: float, reserve: float) -> float:
        pacer = self._pacer
        return min((requests - pacer.level_at(now)) / pacer.rate, super().time_until(requests, now, reserve))

    def take(self, now: float, evidence: RateEvidence) -> Phase:
        """Raises the pace by the gain, and notices a limit that has risen."""
        bucket, pacer = self._bucket, self._pacer
        bucket.take(1, now)
        evidence.saturation.take(now)
        pacer.take(1, now)
        max_pace = self.MAX_IN_FLIGHT / evidence.jitter
        if self._prior is not None:
            max_pace = self.MAX_RESTORED_PACE * bucket.rate
        pace = max(pacer.rate, min(pacer.rate * (1 + evidence.gain), max_pace))
        pacer.retune(now, rate=pace)
        if self._prior is None and evidence.limit_rose(pace, now):
            bucket.retune(now, rate=pace)
        return self

    def rate_limited(
        self, now: float, retry_after: float | None, evidence: RateEvidence, random: Random | None
    ) -> Phase:
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

    __slots__ = ("_bucket", "_next_cost", "_random", "_share")

    def __init__(self, bucket: TokenBucket, evidence: RateEvidence, random: Random | None) -> None:
        self._bucket = bucket
        self._random = random
        self._next_cost = 1.0
        self._share = BinomialRate(
            bucket.rate,
            floor=min(bucket.rate, evidence.MIN_RATE / 2),
            ceiling=UNBOUNDED,
            consecutive_429s=evidence.consecutive_429s,
            rate_before_drop=evidence.rate_before_drop,
        )

    @property
    def rate(self) -> float:
        return self._bucket.rate

    def state(self, evidence: RateEvidence) -> RateState | None:
        """Without bounds: those of a share say nothing about the limit."""
        return RateState(self._bucket.rate, self._bucket.capacity)

    def confidence(self, evidence: RateEvidence) -> float:
        """None: the share may change at any time."""
        return 0.0

    def time_until(self, requests: float, now: float, reserve: float) -> float:
        bucket = self._bucket
        requests += self._next_cost - 1
        if reserve:
            requests += min(reserve, bucket.capacity - self._next_cost)
        return (requests - bucket.level_at(now)) / bucket.rate

    def take(self, now: float, evidence: RateEvidence) -> Phase:
        self._bucket.take(1, now)
        evidence.saturation.take(now)
        if self._random is not None:
            self._next_cost = self._random.uniform(0.5, min(1.5, self._bucket.capacity))
        return self

    def give_back(self, now: float, evidence: RateEvidence) -> None:
        self._bucket.give_back(1, now)
        evidence.saturation.give_back()

    def answered(self, sent_at: float, now: float, evidence: RateEvidence) -> None:
        """Raises the rate. An answer to a request that was sent before the last 429 says nothing new."""
        if not evidence.samples or sent_at > evidence.samples[-1].at:
            self._share.increase()
            self._bucket.retune(now, rate=self._share.value)

    def rate_limited(
        self, now: float, retry_after: float | None, evidence: RateEvidence, random: Random | None
    ) -> Phase:
        """Lowers the rate. Samples that agree closely end the contention."""
        self._share.decrease()
        self._next_cost = 1.0
        rate, capacity = evidence.end_contention(), self._bucket.capacity
        if rate is not None:
            return Cruise(evidence.empty_bucket(rate, capacity, now, retry_after))
        self._bucket = evidence.empty_bucket(self._share.value, capacity, now, retry_after)
        return self

    def move_clock(self, now: float) -> Phase:
        self._bucket.move_clock(now)
        return self
