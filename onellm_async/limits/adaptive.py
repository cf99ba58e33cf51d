"""Discovers a rate limit that is not declared, and keeps to it. Pure.

Theory of operation
===================

What we know: the service has a token bucket. We know neither its size nor its refill rate r. Each request tells one
bit: accepted, or 429. Latency tells nothing about the bucket, because a bucket rejects without delay. So the client
controls the rate at which it sends, not its concurrency.

What a 429 tells: when that request arrived, the bucket held less than one token. We call this a *sample*. If A requests
were accepted between two samples T seconds apart, then

    (A - 1) / (T + J)  <=  r  <=  (A + 1) / (T - S - J)

J is the timing jitter between two requests. S is the time in which the bucket may have been full: a full bucket is not
refilled, so silence proves nothing (`saturation`). Every pair of samples gives bounds. The tightest bounds that the
newest samples agree on stand (`rate_samples`).

What the client does:

- *Startup.* It sends 8 requests per second, or more if answers are fast, and one more per round trip with each answer.
  The first 429 ends the startup: the bucket is empty, and what was accepted gives the first estimate.
- *Cruise.* It sends at the lower bound, which the service certainly allows. The unused rest is not lost, because the
  service's bucket saves it.
- *Probe.* After a number of requests, it sends each one slightly sooner than the one before, until a 429. That spends
  the savings and tightens the bounds, for one 429, which is not billed. The tighter the bounds are, the longer the
  cruise and the lower the gain.
- *Restored.* With a prior from an earlier client, it cruises at the prior and probes early, at most at four times that
  rate. The first 429 says only that the bucket is empty now.
- *Contended.* A client that has the key to itself gets no 429 while it cruises, and its samples never contradict each
  other. Each violation adds to the contention score; samples that agree lower it. From a score of 2 the client shares
  the limit: a binomial increase and decrease with random gaps (`binomial`), until the samples agree closely again.

=============== ================================================ ====================================================
from            event                                            to
=============== ================================================ ====================================================
Startup         answer                                           Startup, faster
Startup         429                                              Cruise at the first estimate
Restored        429                                              Cruise at the prior
Cruise          enough requests accepted since the last sample   Probe
Cruise          429                                              Cruise with new bounds; contention +2 if the bounds
                                                                 were tight
Cruise, Probe   429, nothing accepted since the last sample      Cruise at half the rate; from the second on
                                                                 contention +2, unless the initial burst was large
Probe           429                                              Cruise with tighter bounds; contention +1 if the
                                                                 samples contradict each other, -1/4 if they agree
Probe           more accepted than the bounds allow              Probe: the limit rose. The samples are dropped, this
                                                                 pace is the rate, the gain doubles
any             contention score of 2 or more                    Contended
Contended       answer, 429                                      Contended: increase, decrease
Contended       six samples agree within 10 %                    Cruise; score 0
any             the clock of another event loop                  the same without samples; Probe becomes Cruise
=============== ================================================ ====================================================
"""

from bisect import bisect_right
from collections import deque
from random import Random

from onellm_async.limits.binomial import BinomialRate
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.rate_samples import UNBOUNDED, RateBounds, RateLimitSample, rate_bounds
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.saturation import SaturationClock


class AdaptiveRate:
    """Discovers the rate of a hidden token bucket and keeps to it.

    Args:
        now: The current time in seconds.
        state: A prior: what an earlier control knew, or a declared rate. The control keeps to it until the service
            contradicts it. The level of the service's bucket is not known, so an early probe follows. None starts
            without any knowledge.
        random: Source of the gaps between requests in contention; None: even gaps.
        probe_every: Maximum number of requests in a cruise, 1 or more. A limit that rises is noticed after so many
            requests at the latest, and costs one 429 for each.
    """

    START_PACE = 8.0
    """Requests per second at startup."""
    STARTUP_IN_FLIGHT = 4
    """Minimum number of requests in flight at startup, once the first answer shows the round trip."""
    MIN_JITTER = 0.005
    """Minimum timing jitter in seconds. In between, it is one and a half times the round trip of a 429."""
    MAX_JITTER = 0.15
    """Maximum timing jitter in seconds."""
    MIN_PERIOD = 10.0
    """Minimum time in seconds in which the first estimate assumes one refill of the bucket. In between, it is twelve
    times the duration of the initial burst."""
    MAX_PERIOD = 60.0
    """Maximum time in seconds in which the first estimate assumes one refill."""
    MIN_RATE = 1 / 45
    """Minimum of every estimate in requests per second; only bounds may be lower."""
    FIRST_CRUISE = 4
    """Requests in a cruise once there is a lower bound, at least."""
    CRUISE_GROWTH = 3
    """Requests in a cruise for each accepted request that the bounds rest on."""
    UNBOUNDED_GAIN = 1.0
    """Relative step of a probe before there is any estimate."""
    FIRST_GAIN = 0.1
    """Relative step of the first probes, after an initial burst of four or more requests."""
    SMALL_BURST_GAIN = 0.02
    """Relative step of the first probes after a smaller initial burst, which saves less."""
    MIN_GAIN = 0.01
    """Relative step of a probe between tight bounds."""
    MAX_GAIN = 0.2
    """Relative step of a probe while the limit rises."""
    MAX_PROBE_IN_FLIGHT = 2.0
    """Requests in flight when the 429 of a probe arrives, at most. It bounds the pace of a probe."""
    MAX_RESTORED_PACE = 4
    """Maximum pace of the early probe, as a multiple of the prior."""
    MAX_SAMPLES = 24
    """Samples that are kept."""
    CONTENTION_THRESHOLD = 2.0
    """Contention score from which the limit counts as shared."""
    AGREEMENT = 0.25
    """What agreeing samples take from the contention score."""
    MAX_RATE_FACTOR = 3.0
    """Upper bound of the rate as a multiple of the first estimate, for the saturation clock."""
    LARGE_BURST = 24
    """An initial burst of so many requests rules out contention, however long nothing is accepted after it."""
    AGREEING_SAMPLES = 6
    """Samples that must agree to end contention."""
    MIN_GAP = 8
    """Accepted requests between them, at least, on average."""
    MAX_SPREAD = 1.1
    """Upper bound divided by lower bound, at most, to end contention."""

    def __init__(
        self, now: float, state: RateState | None = None, *, random: Random | None = None, probe_every: int = 300
    ) -> None:
        self._random = random
        self._probe_every = probe_every
        self._started = now
        self._sent: deque[float] = deque(maxlen=4096)
        self._total = self._429s = 0
        self._samples: deque[RateLimitSample] = deque(maxlen=self.MAX_SAMPLES)
        self._bounds = RateBounds()
        self._cruise_length = 1
        self._probing = False
        self._gain = self.UNBOUNDED_GAIN
        self._first_gain = self.FIRST_GAIN
        self._round_trip = 0.0
        self._jitter = self.MIN_JITTER
        self._contention = 0.0
        self._consecutive_429s = 0
        self._rate_before_drop: float | None = None
        self._share: BinomialRate | None = None
        self._bucket: TokenBucket | None = None
        self._pacer = TokenBucket(self.START_PACE, 1.0, updated_at=now)
        self._saturation = SaturationClock(now)
        self._first: RateLimitSample | None = None
        self._next_cost = 1.0
        self._prior = state
        if state is not None:
            self._bucket = TokenBucket(state.rate, max(1.0, state.burst), level=1.0, updated_at=now)
            self._bounds = RateBounds(state.low, UNBOUNDED if state.high is None else state.high)
            self._samples.append(RateLimitSample(now, 0, empty=False))
            self._gain = self.FIRST_GAIN

    @property
    def rate(self) -> float:
        return self._pacer.rate if self._bucket is None else self._bucket.rate

    @property
    def state(self) -> RateState | None:
        """What is known now; None before the first 429."""
        if self._bucket is None:
            return None
        bounds = RateBounds() if self._share is not None else self._bounds
        return RateState(self._bucket.rate, self._bucket.capacity, bounds.low, bounds.high if bounds.known else None)

    @property
    def confidence(self) -> float:
        """How narrow the bounds are; 0 without bounds or in contention."""
        return 0.0 if self._share is not None else self._bounds.confidence

    @property
    def phase(self) -> str:
        """Name of the phase, as in the theory of operation."""
        if self._bucket is None:
            return "Startup"
        if self._share is not None:
            return "Contended"
        if self._probing:
            return "Probe"
        return "Restored" if self._prior is not None else "Cruise"

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        requests += self._next_cost - 1
        wait = (requests - self._pacer.level_at(now)) / self._pacer.rate
        if self._bucket is not None:
            if reserve:
                requests += min(reserve, self._bucket.capacity - self._next_cost)
            steady = (requests - self._bucket.level_at(now)) / self._bucket.rate
            wait = min(wait, steady) if self._probing else steady
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._total += 1
        self._sent.append(now)
        if self._bucket is None:
            self._pacer.take(1, now)
            return
        self._bucket.take(1, now)
        self._saturation.take(now)
        if self._share is not None:
            if self._random is not None:
                self._next_cost = self._random.uniform(0.5, min(1.5, self._bucket.capacity))
        elif self._probing:
            self._pacer.take(1, now)
            self._ramp_up(now)
        elif self._samples and self._accepted_since_sample() >= self._cruise_length:
            self._probing = True
            self._pacer = TokenBucket(self._bucket.rate * (1 + self._gain), 1.0, level=0.0, updated_at=now)

    def give_back(self, now: float) -> None:
        self._total -= 1
        if self._bucket is not None:
            self._bucket.give_back(1, now)
            self._saturation.give_back()

    def answered(self, sent_at: float, now: float) -> None:
        if self._bucket is None:  # one more request per round trip doubles the pace with each round trip
            latency = max(now - sent_at, self.MIN_JITTER)
            self._pacer.retune(now, rate=max(self._pacer.rate + 1 / latency, self.STARTUP_IN_FLIGHT / latency))
        elif self._share is not None and (not self._samples or sent_at > self._samples[-1].at):
            self._share.increase()
            self._bucket.retune(now, rate=self._share.value)

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        later = len(self._sent) - bisect_right(self._sent, sent_at)
        accepted = max(0, self._total - later - 1 - self._429s)
        self._429s += 1
        self._round_trip = max(0.9 * self._round_trip, now - sent_at)
        self._jitter = min(self.MAX_JITTER, max(self.MIN_JITTER, 1.5 * self._round_trip))
        if self._samples and self._samples[-1].empty and sent_at <= self._samples[-1].at + self._jitter:
            for sample in self._samples:  # of the same moment as the last sample, which counts it as accepted
                if sample.at >= sent_at:
                    sample.accepted -= 1
            return
        probing, self._probing = self._probing, False
        max_rate = self._saturation.rate_limited(sent_at, later, self._jitter)
        self._samples.append(RateLimitSample(sent_at, accepted, self._saturation.seconds, max_rate))
        if self._bucket is None:
            self._first = self._samples[-1]
            rate = self._first_estimate()
        elif self._prior is not None:
            rate = self._apply_prior(self._prior)
        elif self._share is not None:
            rate = self._decrease(self._share)
        else:
            rate = self._update(self._bucket, probing=probing)
        burst = self._burst(self._bucket)
        # Until the bounds are tight, probes find out what is refilled in the time of a Retry-After.
        silence = 0.0 if retry_after is None or self._bounds.tight else retry_after
        self._bucket = TokenBucket(rate, burst, level=0.0, updated_at=now + silence)
        self._saturation.restart(now, self._bounds.high if self._bounds.known else self.MAX_RATE_FACTOR * rate, burst)

    def move_clock(self, now: float) -> None:
        self._samples.clear()
        self._sent.clear()
        self._saturation.move_clock(now)
        self._probing = False
        self._pacer.move_clock(now)
        if self._bucket is not None:
            self._bucket.move_clock(now)

    def _burst(self, bucket: TokenBucket | None) -> float:
        """Estimated capacity of the service's bucket: the initial burst, less what was refilled meanwhile."""
        if self._first is None:
            return 1.0 if bucket is None else bucket.capacity
        accepted, duration = self._first.accepted, self._first.at - self._started
        return max(1.0, accepted - self._bounds.high * duration if self._bounds.tight else accepted / 2)

    def _accepted_since_sample(self) -> int:
        return self._total - self._429s - self._samples[-1].accepted

    def _first_estimate(self) -> float:
        sample = self._samples[-1]
        duration = max(sample.at - self._started, self._jitter)
        self._first_gain = self.FIRST_GAIN if sample.accepted >= self.FIRST_CRUISE else self.SMALL_BURST_GAIN
        return (sample.accepted + 1) / min(self.MAX_PERIOD, max(self.MIN_PERIOD, 12 * duration))

    def _apply_prior(self, prior: RateState) -> float:
        """Keeps to the prior: the first sample only says that the service's bucket is empty now."""
        self._prior = None
        while len(self._samples) > 1:
            self._samples.popleft()
        if self._bounds.tight:
            self._plan_probe(2 * prior.low / max(self._bounds.high - prior.low, 1e-9))
        return prior.rate

    def _plan_probe(self, evidence: float) -> None:
        """Sets the length of the next cruise and the gain of the next probe.

        Args:
            evidence: Accepted requests that the bounds rest on.
        """
        self._cruise_length = max(1, int(min(self.CRUISE_GROWTH * evidence, self._probe_every)))
        self._gain = min(self._first_gain, max(self.MIN_GAIN, 1 / max(1, evidence)))

    def _update(self, bucket: TokenBucket, *, probing: bool) -> float:
        """Returns the rate that follows from a new sample."""
        samples = self._samples
        if not probing and self._bounds.tight:
            self._contention += 2
        nothing_accepted = len(samples) > 1 and samples[-1].accepted <= samples[-2].accepted
        bounds = self._bounds = rate_bounds(list(samples), self._jitter)
        if bounds.agreeing < len(samples):
            self._contention += 1
            while len(samples) > bounds.agreeing:
                samples.popleft()
        elif not nothing_accepted:
            self._contention = max(0.0, self._contention - self.AGREEMENT)
            self._consecutive_429s = 0
        if len(samples) > 1:
            self._plan_probe(samples[-1].accepted - next(sample.accepted for sample in samples if sample.empty))
            if bounds.low > 0:
                self._cruise_length = max(self._cruise_length, min(self.FIRST_CRUISE, self._probe_every))
        rate = self._estimate(bucket, nothing_accepted=nothing_accepted, probing=probing)
        if self._contention >= self.CONTENTION_THRESHOLD:
            self._share = BinomialRate(
                rate,
                floor=min(rate, self.MIN_RATE / 2),
                ceiling=UNBOUNDED,
                consecutive_429s=self._consecutive_429s,
                rate_before_drop=self._rate_before_drop,
            )
        return rate

    def _estimate(self, bucket: TokenBucket, *, nothing_accepted: bool, probing: bool) -> float:
        bounds = self._bounds
        if nothing_accepted:
            rate = max(self.MIN_RATE, bucket.rate / 2)
            if not self._consecutive_429s:
                self._rate_before_drop = bounds.low or None
            self._consecutive_429s += 1
            burst = bucket.capacity if self._first is None else self._first.accepted
            if rate <= self.MIN_RATE or (self._consecutive_429s >= 2 and burst < self.LARGE_BURST):
                self._contention += 2
            return rate
        if not bounds.known:
            return bucket.rate
        if bounds.tight:
            return bounds.low
        if bounds.low > 0:
            return max(self.MIN_RATE, (bounds.low + bounds.high) / 2)
        if probing and not self._samples[0].empty:  # the limit had risen: the pace of the last request but one
            return max(self.MIN_RATE, min(bounds.high, self._pacer.rate / (1 + self._gain) ** 2))
        return max(self.MIN_RATE, bounds.high / 2)

    def _decrease(self, share: BinomialRate) -> float:
        """Returns the rate after a 429 in contention, which ends if the samples agree closely."""
        share.decrease()
        self._next_cost = 1.0
        samples = self._samples
        bounds = rate_bounds(list(samples), self._jitter)
        agree = bounds.agreeing >= self.AGREEING_SAMPLES and bounds.high < self.MAX_SPREAD * bounds.low
        if not agree or samples[-1].accepted - samples[-bounds.agreeing].accepted <= self.MIN_GAP * bounds.agreeing:
            return share.value
        while len(samples) > bounds.agreeing:
            samples.popleft()
        self._share = None
        self._contention = 0.0
        self._bounds = bounds
        self._cruise_length = min(self.FIRST_CRUISE, self._probe_every)
        return (bounds.low + bounds.high) / 2

    def _ramp_up(self, now: float) -> None:
        """Raises the pace of a probe by the gain, and notices a limit that has risen."""
        assert self._bucket is not None  # noqa: S101  # a probe follows the first estimate
        restored = self._prior is not None
        max_pace = self.MAX_RESTORED_PACE * self._bucket.rate if restored else self.MAX_PROBE_IN_FLIGHT / self._jitter
        pace = max(self._pacer.rate, min(self._pacer.rate * (1 + self._gain), max_pace))
        self._pacer.retune(now, rate=pace)
        accepted = self._accepted_since_sample() - 1 - pace * self._round_trip
        if not restored and accepted > self._bounds.high * (now - self._samples[-1].at + self._jitter):
            self._bucket.retune(now, rate=pace)
            self._gain = min(self.MAX_GAIN, 2 * self._gain)
            sample = RateLimitSample(now, self._total - self._429s, self._saturation.seconds, empty=False)
            self._samples = deque([sample], maxlen=self.MAX_SAMPLES)
            self._bounds = RateBounds()
