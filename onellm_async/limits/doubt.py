"""The phase that finds out whether a 429 was the sign of a limit, or came at random. Pure.

The theory of operation and the transition table are in `adaptive`.
"""

from math import log

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.evidence import Evidence
from onellm_async.limits.phases import Phase, Probe
from onellm_async.limits.rate_state import RateState


class Doubt(Phase):
    """After a 429: sends `PACE` times as fast as before, and counts. A sequential test of two hypotheses.

    A service whose bucket was empty at the 429 refuses at least `LIMITED` of the requests, and one that answers with
    429 at random no more than `RANDOM`. Each answer moves the score by the logarithm of how much more likely the second
    one makes it.

    Args:
        inner: The phase to continue with.
        now: The current time in seconds.
        evidence: What is known.
        is_first: Whether no trial has shown yet that 429s come at random. Then more requests are needed, and if they
            are accepted, the limit that `inner` believes in does not exist.
    """

    PACE = 3.0
    """Pace as a multiple of the rate before the 429."""
    LIMITED = 0.4
    """Share of requests that a limit refuses at that pace, at least. It would be two thirds, less where others use the
    key as well."""
    RANDOM = 0.1
    """Share of requests that get a 429 at random, at most."""
    ACCEPTED = log((1 - RANDOM) / (1 - LIMITED))
    """What an accepted request adds to the score."""
    REFUSED = log(RANDOM / LIMITED)
    """What a 429 adds to the score."""
    FIRST_SCORE = 10 * ACCEPTED
    """Score that shows for the first time that 429s come at random."""
    NEXT_SCORE = 5 * ACCEPTED
    """Score that shows so again."""
    FIRST_REFUTED = REFUSED
    """Score that shows a limit in the first trial: a 429, unless a request was accepted before."""
    NEXT_REFUTED = 1.5 * REFUSED
    """Score that shows a limit later: two 429s, unless two requests were accepted before the second one."""
    MAX_LATE = 2.0
    """Time that a trial may take as a multiple of what its pace needs. After that there was too little to send, or too
    little may be in flight, and it does not support that 429s come at random: slower requests are accepted anyway."""
    MEAN_OF = 60.0
    """Seconds whose mean rate counts as the rate before the 429, if that is higher. In contention the present one may
    be far below what a limit allows, and no 429s at three times as much would show nothing."""

    __slots__ = ("_accepted_before", "_last", "_pace", "_refused", "_started", "inner", "is_first")

    def __init__(self, inner: Phase, rate: float, now: float, evidence: Evidence, *, is_first: bool) -> None:
        self.inner: Phase = inner
        self.is_first: bool = is_first
        mean = evidence.log.count(now, self.MEAN_OF) / min(self.MEAN_OF, max(1.0, now - evidence.line.started))
        self._pace = self.PACE * max(rate, mean)
        self._started = self._last = now
        self._accepted_before = evidence.log.total
        self._refused = 0

    @property
    def rate(self) -> float:
        return self.inner.rate

    @property
    def burst(self) -> float:
        return self.inner.burst

    @property
    def shares(self) -> bool:
        return self.inner.shares

    def state(self, evidence: Evidence) -> RateState | None:
        return self.inner.state(evidence)

    def confidence(self, evidence: Evidence) -> float:
        return self.inner.confidence(evidence)

    def _accepted(self, now: float, evidence: Evidence) -> int:
        return max(0, evidence.log.accepted_until(now - evidence.ack) - self._accepted_before)

    def _score(self, now: float, evidence: Evidence) -> float:
        return self.ACCEPTED * self._accepted(now, evidence) + self.REFUSED * self._refused

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        return self._last + requests / self._pace - now

    def take(self, now: float, evidence: Evidence) -> Phase:
        needed = self.FIRST_SCORE if self.is_first else self.NEXT_SCORE
        if self._score(now, evidence) >= needed:
            return self._shown(now, evidence)
        if now - self._started > self.MAX_LATE * needed / self.ACCEPTED / self._pace + evidence.ack:
            return self.refuted(evidence).take(now, evidence)
        self._last = now
        self.inner = self.inner.take(now, evidence)
        return self

    def _shown(self, now: float, evidence: Evidence) -> Phase:
        """The phase that follows if 429s come at random."""
        evidence.sporadic.shown()
        if not self.is_first:
            return self.inner.take(now, evidence)
        seconds = max(now - evidence.ack - self._started, evidence.line.jitter)
        rate = min(self._pace, self._accepted(now, evidence) / seconds)
        evidence.line.rise(self._pace, now)
        return Probe(TokenBucket(rate, self.inner.burst, level=1.0, updated_at=now), evidence.line.gain, now).take(
            now, evidence
        )

    def refuted(self, evidence: Evidence) -> Phase:
        """The phase that follows if there is a limit, or too little was sent to know."""
        evidence.sporadic.refuted()
        return self.inner

    def give_back(self, now: float, evidence: Evidence) -> None:
        self.inner.give_back(now, evidence)

    def answered(self, sent_at: float, now: float, evidence: Evidence) -> None:
        self.inner.answered(sent_at, now, evidence)

    def is_refuted(self, now: float, evidence: Evidence) -> bool:
        """Whether a 429, which it records, shows a limit."""
        self._refused += 1
        return self._score(now, evidence) <= (self.FIRST_REFUTED if self.is_first else self.NEXT_REFUTED) + 1e-9

    def move_clock(self, now: float) -> Phase:
        return self.inner.move_clock(now)
