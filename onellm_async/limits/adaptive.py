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

`phases` has a class for each phase, which owns its pacing. All of them judge by one `RateEvidence`.
"""

from random import Random

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.phases import Phase, Restored, Startup
from onellm_async.limits.rate_samples import RateEvidence
from onellm_async.limits.rate_state import RateState


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

    def __init__(
        self, now: float, state: RateState | None = None, *, random: Random | None = None, probe_every: int = 300
    ) -> None:
        self._random = random
        self._evidence = RateEvidence(now, probe_every, state)
        self._phase: Phase = Startup(now)
        if state is not None:
            bucket = TokenBucket(state.rate, max(1.0, state.burst), level=1.0, updated_at=now)
            self._phase = Restored(bucket, state)

    @property
    def rate(self) -> float:
        return self._phase.rate

    @property
    def state(self) -> RateState | None:
        """What is known now; None before the first 429."""
        return self._phase.state(self._evidence)

    @property
    def confidence(self) -> float:
        """How narrow the bounds are; 0 without bounds or in contention."""
        return self._phase.confidence(self._evidence)

    @property
    def phase(self) -> str:
        """Name of the phase, as in the theory of operation."""
        return type(self._phase).__name__

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        wait = self._phase.time_until(requests, now, reserve)
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._evidence.sent(now)
        self._phase = self._phase.take(now, self._evidence)

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        self._evidence.give_back()
        self._phase.give_back(now, self._evidence)

    def answered(self, sent_at: float, now: float) -> None:
        self._phase.answered(sent_at, now, self._evidence)

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        if self._evidence.rate_limited(sent_at, now):
            self._phase = self._phase.rate_limited(now, retry_after, self._evidence, self._random)

    def advise(
        self, now: float, *, limit: float | None, remaining: float | None, reset: float | None, window: float | None
    ) -> None:
        """Changes nothing yet."""

    def move_clock(self, now: float) -> None:
        self._evidence.move_clock(now)
        self._phase = self._phase.move_clock(now)
