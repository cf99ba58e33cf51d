"""Rate-limit samples, and the bounds of the rate that follow from them. Pure.

A 429 is a *sample*: when that request arrived, the service's bucket held less than one token. If A requests were
accepted between two samples T seconds apart, the refill rate lies between (A - 1) / T and (A + 1) / T. Every pair of
samples gives such bounds; the tightest bounds that the newest samples agree on stand. A full bucket is not refilled, so
the time in which it may have been full does not count for the upper bound (see `saturation`).

`RateEvidence` collects the samples of one limit, and what follows from them: the bounds, the plan of the next probe,
and the contention score.
"""

from collections import deque
from collections.abc import Sequence

from attrs import frozen

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.saturation import SaturationClock
from onellm_async.limits.send_log import SendLog

UNBOUNDED = float("inf")
"""An upper bound that is not known."""


class RateLimitSample:
    """One 429, or another moment from which requests are counted.

    Attributes:
        at: When the request was sent, in seconds.
        accepted: Requests that the service had accepted by then.
        saturated: Seconds until then in which the service's bucket may have been full.
        max_rate: Upper bound of the rate in requests per second, from the requests accepted shortly before.
        empty: Whether the service's bucket certainly was empty. If not, only an upper bound follows from the sample.
    """

    __slots__ = ("accepted", "at", "empty", "max_rate", "saturated")

    def __init__(
        self, at: float, accepted: int, saturated: float = 0.0, max_rate: float = UNBOUNDED, *, empty: bool = True
    ) -> None:
        self.at: float = at
        self.accepted: int = accepted
        self.saturated: float = saturated
        self.max_rate: float = max_rate
        self.empty: bool = empty


@frozen
class RateBounds:
    """The interval in which the rate lies.

    Attributes:
        low: Lower bound in requests per second.
        high: Upper bound in requests per second.
        agreeing: Number of the newest samples that agree with these bounds.
    """

    low: float = 0.0
    high: float = UNBOUNDED
    agreeing: int = 0

    TIGHT = 3.0
    """Bounds are tight if `high` is less than this many times `low`."""

    @property
    def known(self) -> bool:
        """Whether there is an upper bound."""
        return self.high < UNBOUNDED

    @property
    def tight(self) -> bool:
        """Whether `low` is close enough to the rate to cruise at it."""
        return self.high < self.TIGHT * self.low

    @property
    def confidence(self) -> float:
        """1 - (high - low) / (high + low); 0 without an upper bound."""
        return 1 - (self.high - self.low) / (self.high + self.low) if self.known and self.high > 0 else 0.0


def rate_bounds(samples: Sequence[RateLimitSample], jitter: float) -> RateBounds:
    """Returns the tightest bounds that the newest samples agree on.

    Args:
        samples: In order of time.
        jitter: Seconds by which the delay from sending to arriving may differ between two requests.
    """
    low, high = 0.0, samples[-1].max_rate if samples else UNBOUNDED
    for count, earlier in enumerate(reversed(samples[:-1]), 1):
        tighter_low, tighter_high = low, min(high, earlier.max_rate)
        for later in samples[len(samples) - count :]:
            accepted, elapsed = later.accepted - earlier.accepted, later.at - earlier.at
            if earlier.empty:
                tighter_low = max(tighter_low, (accepted - 1) / (elapsed + jitter))
            refilled = elapsed - (later.saturated - earlier.saturated) - jitter
            if later.empty and refilled > 0:
                tighter_high = min(tighter_high, (accepted + 1) / refilled)
        if tighter_low > tighter_high:
            return RateBounds(low, high, count)
        low, high = tighter_low, tighter_high
    return RateBounds(low, high, len(samples))


class RateEvidence:
    """What is known of the service's token bucket.

    Args:
        now: The current time in seconds.
        log: The accepted requests.
        probe_every: Maximum number of requests in a cruise, 1 or more.
        state: A prior, or None.

    Attributes:
        samples: The samples that agree, oldest first.
        bounds: What follows from them.
        cruise_length: Requests to accept before the next probe.
        gain: Relative step of the next probe.
        round_trip: Seconds from sending a request to its 429, a slowly falling maximum.
        jitter: Seconds by which the delay from sending to arriving may differ between two requests.
        contention: The contention score.
        is_bold: Whether the rate is above a lower bound that is known, so that a 429 is no violation.
        consecutive_429s: Samples without an accepted request between them.
        rate_before_drop: Rate before these, if it was certain.
        saturation: When the service's bucket may have been full.
        first: The sample that ended the startup.
        lateness: Seconds by which requests come later than they may, without losing their place; 0 in one process.
        identified: How often the limit was identified again because other clients may have gone.
        doubted: A sample whose 429 another limit explains as well. It shows an empty bucket until others contradict it.
    """

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
    """Minimum of every estimate in requests per second. The knocks of a silence find out about a lower rate."""
    FIRST_CRUISE = 4
    """Requests in a cruise once there is a lower bound, at least."""
    CRUISES = ((37, 40, 0.03), (55, 300, 0.01), (200, 50, 0.03), (320, 240, 0.02))
    """Below so many requests per minute, a cruise has so many requests at most, and a probe so large a step at least:
    a limit that rises is used within three minutes at 20 a minute and within one from 60 on, for at most one 429 in 40
    requests. Around 40 a minute, the limit that OneLLM publishes, probes are rarer."""
    CRUISE_GROWTH = 2
    """Requests in a cruise for each accepted request that the bounds rest on."""
    UNBOUNDED_GAIN = 1.0
    """Relative step of a probe before there is any estimate."""
    FIRST_GAIN = 0.1
    """Relative step of the first probes, after an initial burst of four or more requests, or of none at all: where the
    service's bucket was empty, the first estimate may be far too low."""
    SMALL_BURST_GAIN = 0.02
    """Relative step of the first probes after a smaller initial burst, which saves less."""
    MIN_GAIN = 0.01
    """Relative step of a probe between tight bounds."""
    MAX_PACE = 10_000.0
    """Requests per second that are believed, at most."""
    MAX_GAIN = 0.2
    """Relative step of a probe while the limit rises."""
    MAX_SAMPLES = 24
    """Samples that are kept."""
    CONTENTION_THRESHOLD = 2.0
    """Contention score from which the limit counts as shared."""
    AGREEMENT = 0.25
    """What agreeing samples take from the contention score."""
    MAX_RATE_FACTOR = 3.0
    """Upper bound of the rate as a multiple of the first estimate, or of the pace at which a rise was noticed, for the
    saturation clock."""
    MAX_BELIEVED = 8.0
    """Upper bound of the rate as a multiple of a lower bound that is known, for the pace on a board. After samples at
    almost the same moment the upper bound is loose: 35,000 per second at 200. In one process the storm bound limits
    what that costs; on a board, where 429s are known late, it cost up to 1,300 of them."""
    MAX_ROUNDS = 64
    """Steps, at most, in which a rate is looked for that agrees with the refill that was lost at it."""
    AGREES = 1.002
    """A rate agrees if what follows from it is no more than so many times as high."""
    SATURATED = 0.1
    """Share of the time between the samples in which the service's bucket may have been full, from which a cruise at
    the lower bound may lose refill that no probe can find again. Without bold cruises, 5 per second in a bucket of 3
    are used to .90 (.99)."""
    WIDE = 1.1
    """Upper bound divided by lower bound from which such a cruise is bold."""
    BOLDNESS = 0.5
    """Pace of a bold cruise: so far between the bounds, at first. It halves with each 429 of such a cruise."""
    LEAST_BOLD = 0.002
    """Boldness up to which a cruise is not bold any more: it goes on at the lower bound, so its 429s are violations."""
    MAX_PRIOR = 2.0
    """Rate that was accepted as a multiple of the prior, beyond its burst, from which the prior is given up."""
    LATE_SHARE = 0.6
    """Share of `lateness` for which the bucket of a cruise holds what comes late. With none, 16 clients use .91 of 200
    per second; with all of it, those that are 30 ms from their board get a 429 for every other prompt."""
    LARGE_BURST = 24
    """An initial burst of so many requests rules out contention, however long nothing is accepted after it."""
    CALM = 16
    """Requests accepted without a 429, from which a silence after them is no sign of other clients: what stops
    everything at once is a window, or the service is down."""
    AGREEING_SAMPLES = 6
    """Samples that must agree to end contention."""
    MIN_GAP = 8
    """Accepted requests between them, at least, on average."""
    MEAN_OF = 16
    """Requests, at least, of which the rate is the mean in contention."""
    MAX_SPREAD = 1.1
    """Upper bound divided by lower bound, at most, to end contention."""

    def __init__(self, now: float, log: SendLog, probe_every: int, state: RateState | None = None) -> None:
        self.started: float = now
        self._log = log
        self._probe_every = probe_every
        self._first_gain = self.FIRST_GAIN
        self.samples: deque[RateLimitSample] = deque(maxlen=self.MAX_SAMPLES)
        self.bounds: RateBounds = RateBounds()
        self.cruise_length: int = 1
        self.gain: float = self.UNBOUNDED_GAIN
        self.round_trip: float = 0.0
        self.jitter: float = self.MIN_JITTER
        self.contention: float = 0.0
        self.is_bold: bool = False
        self._boldness = self.BOLDNESS
        self.consecutive_429s: int = 0
        self.rate_before_drop: float | None = None
        self.saturation: SaturationClock = SaturationClock(now)
        self.first: RateLimitSample | None = None
        self._curve: list[tuple[int, float]] = []
        self.lateness: float = 0.0
        self.identified: int = 0
        self.doubted: RateLimitSample | None = None
        if state is not None:
            self.bounds = RateBounds(state.low, UNBOUNDED if state.high is None else state.high)
            self.samples.append(RateLimitSample(now, 0, empty=False))
            self.gain = self.FIRST_GAIN

    @property
    def is_contended(self) -> bool:
        """Whether the contention score says that other clients use the key."""
        return self.contention >= self.CONTENTION_THRESHOLD

    @property
    def cruise_is_over(self) -> bool:
        """Whether so many requests were accepted that a probe is due."""
        return bool(self.samples) and self.accepted_since_sample() >= self.cruise_length

    @property
    def believed_high(self) -> float:
        """The upper bound in requests per second; on a board, `MAX_BELIEVED` times a known lower bound at most."""
        low, high = self.bounds.low, self.bounds.high
        return min(high, self.MAX_BELIEVED * low) if self.lateness and low > 0 else high

    def accepted_since_sample(self) -> int:
        """Requests accepted since the last sample, those in flight included."""
        return self._log.total - self.samples[-1].accepted

    @property
    def was_calm(self) -> bool:
        """Whether `CALM` requests were accepted before the last sample, without a 429 and a sign of other clients."""
        samples = self.samples
        return not self.contention and len(samples) > 1 and samples[-1].accepted - samples[-2].accepted >= self.CALM

    def certain_rate(self, now: float, capacity: float) -> float:
        """Requests per second that the service certainly refilled since the last sample.

        Args:
            now: The current time.
            capacity: What its bucket had at the sample, at most, if it was not empty.
        """
        last = self.samples[-1]
        accepted = self._log.accepted_until(now - self.round_trip) - last.accepted
        saved = 1.0 if last.empty else capacity
        return max(0.0, (accepted - saved) / (now - last.at + self.jitter))

    def observe_round_trip(self, seconds: float) -> None:
        """Records how long a 429 took."""
        self.round_trip = max(0.9 * self.round_trip, seconds)
        self.jitter = min(self.MAX_JITTER, max(self.MIN_JITTER, 1.5 * self.round_trip))

    def correct_samples(self, sent_at: float) -> None:
        """Records a 429 that is of the same moment as the last sample, which counted its request as accepted."""
        for sample in self.samples:
            if sample.at >= sent_at:
                sample.accepted -= 1

    def add_sample(self, sent_at: float) -> None:
        """Records a 429 of a request that was sent at `sent_at`. The log does not contain it any more."""
        accepted = self._log.accepted_until(sent_at)
        max_rate = self.saturation.rate_limited(sent_at, self._log.total - accepted, self.jitter)
        sample = RateLimitSample(sent_at, accepted, self.saturation.seconds, max_rate)
        if not self.bounds.known and self.samples and self.samples[-1].empty:  # so the rate of the clock is assumed
            self._correct_saturation(self.samples[-1], sample, self.saturation.rate)
        self.samples.append(sample)

    def _correct_saturation(self, earlier: RateLimitSample, sample: RateLimitSample, assumed: float) -> None:
        """Counts again when the bucket may have been full, if more was accepted than the assumed rate refills.

        Refill that was lost at a higher rate would count as proof otherwise, and the upper bound would be too low. The
        rate decides how much was lost, and that decides on the rate. So a rate is looked for that agrees with itself,
        from below. If there is none that is believable, everything stays: the limit may have changed meanwhile.

        Args:
            earlier: The sample before, at which the bucket was empty.
            sample: The new sample, which is corrected.
            assumed: Tokens per second, at most, for which the saturation clock has counted.
        """
        accepted, elapsed = sample.accepted - earlier.accepted, sample.at - earlier.at
        certain = (accepted - 1) / (elapsed + self.jitter)
        if certain <= assumed or accepted < self.LARGE_BURST:
            return
        sent, burst, rate = self._log.between(earlier.at, sample.at), self.burst(1.0), assumed
        for _ in range(self.MAX_ROUNDS):
            clock = SaturationClock.replayed(sent, earlier.at, rate, burst)
            found = (accepted + 1) / max(elapsed - clock.seconds, 1e-9)
            if found > self.MAX_RATE_FACTOR * certain:
                return
            if found < self.AGREES * rate:
                sample.max_rate = clock.rate_limited(sample.at, 0, self.jitter)
                sample.saturated = earlier.saturated + clock.seconds
                return
            rate = found

    def first_estimate(self) -> float:
        """The rate after the sample that ends the startup."""
        sample = self.first = self.samples[-1]
        duration = max(sample.at - self.started, self.jitter)
        # Where several clients share the startup, it begins slowly: the service's bucket stays full for a while.
        self._curve = self._log.curve(sample.at) if self.lateness else [(sample.accepted, sample.at - self.started)]
        is_small = 0 < sample.accepted < self.FIRST_CRUISE
        self._first_gain = self.SMALL_BURST_GAIN if is_small else self.FIRST_GAIN
        return (sample.accepted + 1) / min(self.MAX_PERIOD, max(self.MIN_PERIOD, 12 * duration))

    def confirm_prior(self, prior: RateState) -> float:
        """Keeps to the prior: the first sample only says that the service's bucket is empty now."""
        while len(self.samples) > 1:
            self.samples.popleft()
        if self.bounds.tight:
            self._plan_probe(2 * prior.low / max(self.bounds.high - prior.low, 1e-9))
        return prior.rate

    def begin(self, now: float) -> None:
        """Drops the samples, and counts from now on: the level of the service's bucket is not known."""
        self.samples.clear()
        self.samples.append(RateLimitSample(now, self._log.total, self.saturation.seconds, empty=False))

    def trust(self, low: float, high: float, now: float) -> None:
        """Takes bounds from elsewhere, as from a prior. The last sample stays.

        Args:
            low: Lower bound in requests per second.
            high: Upper bound in requests per second.
            now: The current time.
        """
        self.bounds = RateBounds(low, high)
        self.is_bold = False
        while len(self.samples) > 1:
            self.samples.popleft()
        if not self.samples:
            self.begin(now)
        self._plan_probe(low / max(high - low, 1e-9))

    def _plan_probe(self, evidence: float) -> None:
        """Sets the length of the next cruise and the gain of the next probe.

        Args:
            evidence: Accepted requests that the bounds rest on.
        """
        longest, gain = self._probe_every, self.MIN_GAIN
        for per_minute, length, least_gain in self.CRUISES:
            if self.bounds.tight and 60 * self.bounds.low < per_minute:
                longest, gain = min(longest, length), least_gain
                break
        self.cruise_length = max(1, int(min(self.CRUISE_GROWTH * evidence, longest)))
        self.gain = min(self._first_gain, max(gain, 1 / max(1, evidence)))

    def estimate(self, rate: float, capacity: float, probe_pace: float | None) -> float:
        """Returns the rate that follows from the new sample.

        Args:
            rate: The rate so far.
            capacity: The capacity of the bucket so far.
            probe_pace: Pace of the probe that the sample ended; None if none was on.
        """
        samples = self.samples
        was_bold, self.is_bold = self.is_bold, False
        was_too_bold = probe_pace is None and was_bold
        is_violation = probe_pace is None and not was_bold and self.bounds.tight
        nothing_accepted = len(samples) > 1 and samples[-1].accepted <= samples[-2].accepted
        self.bounds = rate_bounds(list(samples), self.jitter)
        doubted = self.doubted
        if doubted is not None and doubted in samples and (is_violation or self.bounds.agreeing < len(samples)):
            # What the bucket had saved by then counted as refill, and looked like other clients of the key.
            doubted.empty, self.doubted, is_violation = False, None, False
            self.bounds = rate_bounds(list(samples), self.jitter)
        if was_too_bold:
            self._boldness /= 2
        elif is_violation:
            self.contention += 2
        self._judge_agreement(nothing_accepted=nothing_accepted)
        if len(samples) > 1:
            self._plan_probe(samples[-1].accepted - self._first_empty.accepted if self.bounds.known else 0)
            if self.bounds.low > 0:
                self.cruise_length = max(self.cruise_length, min(self.FIRST_CRUISE, self._probe_every))
        if nothing_accepted:
            return self._halve(rate, capacity)
        found = self._within_bounds(rate, probe_pace)
        if was_too_bold:  # the service refills less than the rate, whatever the upper bound is
            found = min(found, max(self.bounds.low, (self.bounds.low + rate) / 2))
        return found

    def _judge_agreement(self, *, nothing_accepted: bool) -> None:
        """Raises the contention score, and drops samples, if the samples contradict each other."""
        if self.bounds.agreeing < len(self.samples):
            self.contention += 1
            while len(self.samples) > self.bounds.agreeing:
                self.samples.popleft()
        elif not nothing_accepted:
            self.contention = max(0.0, self.contention - self.AGREEMENT)
            self.consecutive_429s = 0

    def _within_bounds(self, rate: float, probe_pace: float | None) -> float:
        bounds = self.bounds
        if not bounds.known:
            self.is_bold = rate > bounds.low > 0
            return rate
        if bounds.low > 0:
            may_lose = self._boldness > self.LEAST_BOLD and self._is_saturated
            self.is_bold = not bounds.tight or (may_lose and bounds.high > self.WIDE * bounds.low)
            beyond = self._boldness * (self.believed_high - bounds.low) if self.is_bold else 0.0
            return max(self.MIN_RATE, bounds.low + beyond)
        if probe_pace is not None and not self.samples[0].empty:  # it had risen: the pace of the last request but one
            return max(self.MIN_RATE, min(bounds.high, probe_pace / (1 + self.gain) ** 2))
        return max(self.MIN_RATE, bounds.high / 2)

    @property
    def _first_empty(self) -> RateLimitSample:
        """The first sample at which the service's bucket certainly was empty: the last one is a 429."""
        return next(sample for sample in self.samples if sample.empty)

    @property
    def _is_saturated(self) -> bool:
        """Whether the service's bucket may have been full for much of the time that the bounds rest on."""
        first, last = self._first_empty, self.samples[-1]
        return last.saturated - first.saturated > self.SATURATED * (last.at - first.at)

    def _halve(self, rate: float, capacity: float) -> float:
        rate = max(self.MIN_RATE, rate / 2)
        if not self.consecutive_429s:
            self.rate_before_drop = self.bounds.low or None
        self.consecutive_429s += 1
        burst = capacity if self.first is None else self.first.accepted
        if rate <= self.MIN_RATE or (self.consecutive_429s >= 2 and burst < self.LARGE_BURST):
            self.contention += 2
        return rate

    def mean_rate(self) -> float | None:
        """Requests per second that were accepted between the last sample and an earlier one, `MEAN_OF` at least.

        The service's bucket was empty at both, so it is what other clients left. None if there is no such sample.
        """
        last = self.samples[-1]
        for sample in reversed(self.samples):
            accepted = last.accepted - sample.accepted
            if accepted >= self.MEAN_OF:
                return accepted / max(last.at - sample.at, self.jitter)
        return None

    def end_contention(self) -> float | None:
        """Returns the rate to cruise at if the samples agree so closely that the key is not shared any more."""
        samples = self.samples
        bounds = rate_bounds(list(samples), self.jitter)
        agree = bounds.agreeing >= self.AGREEING_SAMPLES and bounds.high < self.MAX_SPREAD * bounds.low
        if not agree or samples[-1].accepted - samples[-bounds.agreeing].accepted <= self.MIN_GAP * bounds.agreeing:
            return None
        while len(samples) > bounds.agreeing:
            samples.popleft()
        self.contention, self.identified = 0.0, 0
        self.bounds = bounds
        self.is_bold = False
        self.cruise_length = min(self.FIRST_CRUISE, self._probe_every)
        return (bounds.low + bounds.high) / 2

    def restart(self) -> None:
        """Drops all samples, with what followed from them."""
        self.samples.clear()
        self.first = None
        self.identify_again()
        self.identified = 0

    def identify_again(self) -> None:
        """Drops all samples but the last, with what followed from them."""
        while len(self.samples) > 1:
            self.samples.popleft()
        self.bounds = RateBounds()
        self.identified += 1
        self.contention = 0.0
        self.is_bold, self._boldness = False, self.BOLDNESS
        self.consecutive_429s, self.rate_before_drop = 0, None
        self.cruise_length, self.gain = self.FIRST_CRUISE, self.FIRST_GAIN

    def limit_rose(self, pace: float, now: float, prior: RateState | None = None) -> bool:
        """Whether more was accepted since the last sample than the bounds allow, at a probe's `pace`.

        Then the samples are dropped, and the gain doubles.

        Args:
            pace: Requests per second.
            now: The current time.
            prior: The prior, as long as no 429 has confirmed it. It may be as far from the limit as it likes, so it is
                given up only for a multiple of it.
        """
        accepted, high = self.accepted_since_sample() - 1 - pace * self.round_trip, self.bounds.high
        if prior is not None:
            accepted, high = accepted - prior.burst, self.MAX_PRIOR * prior.rate
        if accepted <= high * (now - self.samples[-1].at + self.jitter):
            return False
        self.gain = min(self.MAX_GAIN, 2 * self.gain)
        self._forget_bounds(pace, now)
        return True

    def rise(self, pace: float, now: float) -> None:
        """Drops the samples, and that others use the key: requests at `pace` per second were accepted after a 429."""
        self.gain = self.MAX_GAIN
        self._forget_bounds(pace, now)
        self.contention, self.identified = 0.0, 0
        self.consecutive_429s, self.rate_before_drop = 0, None

    def _forget_bounds(self, pace: float, now: float) -> None:
        self.begin(now)
        self.bounds = RateBounds()
        self.saturation.assume(self.MAX_RATE_FACTOR * pace, now)
        self.is_bold, self._boldness = False, self.BOLDNESS

    def burst(self, capacity: float) -> float:
        """Estimated capacity of the service's bucket: the initial burst, less what was refilled meanwhile.

        Args:
            capacity: The capacity so far.
        """
        if self.first is None:
            return capacity
        return self._saved(self.bounds.high) if self.bounds.tight else max(1.0, self.first.accepted / 2)

    def _saved(self, rate: float) -> float:
        """Requests that the first burst took from the service's bucket, if that was refilled at `rate` meanwhile."""
        return max([1.0, *(number - rate * seconds for number, seconds in self._curve)])

    def empty_bucket(self, rate: float, capacity: float, now: float, retry_after: float | None) -> TokenBucket:
        """Returns the bucket to continue with after a 429, and restarts the saturation clock.

        Args:
            rate: The rate from now on.
            capacity: The capacity so far.
            now: The current time.
            retry_after: Seconds that the service asked to wait; None if it did not.
        """
        burst = self.burst(capacity)
        rate = min(rate, self.MAX_PACE)
        # Until the bounds are tight, probes find out what is refilled in the time of a Retry-After.
        silence = 0.0 if retry_after is None or self.bounds.tight else retry_after
        self.saturation.restart(now, self.bounds.high if self.bounds.known else self.MAX_RATE_FACTOR * rate, burst)
        late = 1 + self.LATE_SHARE * self.lateness * rate
        return TokenBucket(rate, max(burst, late), level=-silence * rate, updated_at=now)

    def move_clock(self, now: float) -> None:
        """Continues with a clock that may have been set back: the samples are dropped."""
        self.saturation.move_clock(now)
        self.started = min(self.started, now)
        if self.samples:
            self.begin(now)
