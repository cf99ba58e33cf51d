"""How a discovered limit uses what the service advertises: as a prior, and never against the evidence. Pure.

A claim counts where there is no evidence yet:

- *Before the first 429*, a bucket that it says is empty is kept to at its rate, and a window of which half is used is
  kept to. The limit is then found without a 429.
- *After the first 429*, it explains that 429 if that said that nothing was left, in place of the first estimate.
- *Later*, a claim that changes is a limit that changes, if the one before it was used.

It is dropped for good if more was accepted than it allows, if a 429 says that something is left, or if the bounds of
the line contradict it. What rested on it alone is then found anew.
"""

from collections import deque

from onellm_async.limits.advertised import Advertised, AdvertisedBucket, AdvertisedReply, AdvertisedWindow
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.evidence import Evidence
from onellm_async.limits.phases import Cruise, Phase, Restored, Startup
from onellm_async.limits.rate_samples import RateBounds
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.send_log import most_within
from onellm_async.limits.silence import Opening, Silence, Windowed
from onellm_async.limits.windows import Window, just_after


class Claims:
    """What a service claims about its limit, and what became of it.

    Attributes:
        advertised: What its replies said.
        used: The claim that was used last; None before any was.
    """

    USED_SHARE = 0.5
    """Share of a window that is used when a control begins to keep to it. One of a day never matters to most."""
    SLACK = 2.0
    """Requests by which what was accepted may exceed a claim."""
    MIN_SAMPLES = 2
    """Samples from which tight bounds refute a claim, at least one more."""
    SAME = 0.1
    """Share by which two lengths of a window, or the rates of a claim and of the evidence, may differ."""
    UNCHANGED = 0.02
    """Share by which the rates of two claims of the same limit may differ."""
    SIZE = 256
    """The newest answers, which are compared with a claim."""
    JITTER = 0.1
    """Seconds by which one request may travel faster than another."""

    __slots__ = ("_accepted", "_is_refuted", "_refused_at", "_window", "advertised", "used")

    def __init__(self) -> None:
        self.advertised: Advertised = Advertised()
        self.used: AdvertisedBucket | AdvertisedWindow | None = None
        self._is_refuted = False
        self._window: Window | None = None
        self._refused_at: float | None = None
        self._accepted: deque[float] = deque(maxlen=self.SIZE)

    def record(self, said: AdvertisedReply, now: float) -> None:
        """Records a reply.

        Args:
            said: What it advertised.
            now: The current time.
        """
        if self._is_refuted:
            self.advertised.note_left(said, now)
            return
        if self.advertised.record(said, now):
            self._accepted.clear()
        if said.is_accepted:
            self._accepted.append(said.sent_at)
        elif said.remaining == 0:
            self._refused_at = said.sent_at
        elif said.remaining is not None:
            self._is_refuted = True  # what it speaks of is not what was refused

    def weigh(self, phase: Phase, evidence: Evidence, now: float) -> Phase:
        """Returns the phase that follows from the claim and the evidence.

        Args:
            phase: The phase so far.
            evidence: What is known.
            now: The current time.
        """
        if self._is_refuted:
            return self._give_up(phase, evidence, now)
        claim = self.advertised.claim
        if claim is None:
            return phase
        is_known = _agree(claim, self.used)
        if self.used is not None and not is_known:
            self._accepted.clear()  # under the limit before
        self._is_refuted = self._is_exceeded(claim, is_known=is_known)
        if self._is_refuted:
            return self._give_up(phase, evidence, now)
        if is_known or phase.shares:
            return phase
        if isinstance(claim, AdvertisedWindow):
            return self._use_window(claim, phase, evidence, now)
        return self._use_bucket(claim, phase, evidence, now)

    def _is_exceeded(self, claim: AdvertisedBucket | AdvertisedWindow, *, is_known: bool) -> bool:
        """Whether more was accepted than the claim allows; of one that was known, only the newest answers count."""
        accepted = self._accepted
        if not accepted:
            return False
        if isinstance(claim, AdvertisedBucket):
            seconds = max(accepted) - min(accepted) + self.JITTER
            return len(accepted) > claim.capacity + claim.high * seconds + self.SLACK
        if len(accepted) <= claim.count:
            return False
        seconds = (1 - self.SAME) * claim.seconds
        if is_known:
            since = max(accepted) - seconds
            return sum(at > since for at in accepted) > claim.count + self.SLACK
        return most_within(seconds, sorted(accepted)) > claim.count + self.SLACK

    def _give_up(self, phase: Phase, evidence: Evidence, now: float) -> Phase:
        """Returns the phase without the claim, as if there had been none, if it rests on that alone."""
        used, self.used = self.used, None
        line = evidence.line
        if isinstance(used, AdvertisedWindow):
            windows = evidence.windows
            windows.all = [each for each in windows.all if each is not self._window]
            if isinstance(phase, Silence) and phase.blamed is self._window:
                phase.blamed = None
        elif used is not None and len(line.samples) <= self.MIN_SAMPLES:
            line.restart()
            if not isinstance(phase, Silence):
                return Startup.again(evidence.peak, now)
            line.add_sample(phase.since)
            phase.explain(Cruise(line.empty_bucket(line.first_estimate(), 1.0, now, None)), None, now + evidence.ack)
        return phase

    def _use_window(self, claim: AdvertisedWindow, phase: Phase, evidence: Evidence, now: float) -> Phase:
        changed = self.used is not None
        if not changed and evidence.log.count(now, claim.seconds) < self.USED_SHARE * claim.count:
            return phase
        if isinstance(phase, Opening):
            return phase
        windows, line = evidence.windows, evidence.line
        same = [each for each in windows.all if abs(each.seconds - claim.seconds) < self.SAME * each.seconds]
        self.used = claim
        if same:
            if changed or same[0].rounds < 1:
                same[0].declare(claim.count)
            return phase
        if line.bounds.tight:
            if not changed:
                self._is_refuted = True
                return phase
            evidence.forget(now)
        self._window = Window(claim.count, 0.98 * claim.seconds, just_after(claim.seconds))
        windows.keep(self._window)
        if isinstance(phase, Startup | Windowed):
            return phase
        line.samples.clear()
        if isinstance(phase, Silence):
            phase.explain(Windowed(now), self._window, max(now, windows.earliest(evidence.ack)))
            return phase
        return Windowed(now)

    def _use_bucket(self, claim: AdvertisedBucket, phase: Phase, evidence: Evidence, now: float) -> Phase:
        line, changed = evidence.line, self.used is not None
        if not changed and line.bounds.tight:
            self.used, self._is_refuted = claim, not _overlap(claim, line.bounds, self.SAME)
            return phase
        if not changed and not (self._is_spent(claim, phase, evidence, now) or self._explains_429(evidence)):
            return phase
        if changed:
            evidence.forget(now)
        self.used = claim
        line.trust(claim.low, claim.high, now)
        if isinstance(phase, Silence):
            cruise = Cruise(line.empty_bucket(claim.low, claim.capacity, now, None))  # requests are still on their way
            phase.explain(cruise, None, phase.refused_at + 1 / claim.low, doubtful_after=Silence.LONG / claim.low)
            return phase
        bucket = TokenBucket(claim.low, claim.capacity, level=0.0, updated_at=now)
        return Restored(bucket, RateState(claim.low, claim.capacity, claim.low, claim.high))

    def _is_spent(self, claim: AdvertisedBucket, phase: Phase, evidence: Evidence, now: float) -> bool:
        """Whether the bucket that is claimed is empty now, before any 429."""
        if not isinstance(phase, Startup):
            return False
        said = self.advertised.newest
        if said is None or said.remaining is None:
            return False
        sent = evidence.log.total - evidence.log.accepted_until(said.sent_at)
        return said.remaining + claim.low * (now - said.sent_at) - sent < 1

    def _explains_429(self, evidence: Evidence) -> bool:
        """Whether the only 429 so far came when nothing was left, as the service said."""
        samples = evidence.line.samples
        at = self._refused_at
        return len(samples) == 1 and at is not None and at >= samples[0].at and not evidence.windows

    def check(self, sent_at: float, evidence: Evidence) -> None:
        """Drops the claim if a 429 refutes it.

        Args:
            sent_at: When the request was sent that got the 429.
            evidence: What is known, this 429 included.
        """
        claim = self.used
        if isinstance(claim, AdvertisedBucket):
            line = evidence.line
            is_known = line.bounds.tight and len(line.samples) > self.MIN_SAMPLES
            self._is_refuted = self._is_refuted or (is_known and not _overlap(claim, line.bounds, self.SAME))
        elif claim is not None and evidence.log.count(sent_at, claim.seconds) < (1 - self.SAME) * claim.count:
            self._is_refuted = True

    def move_clock(self) -> None:
        """Continues with a clock that may have been set back: times are dropped."""
        self.advertised.move_clock()
        self._refused_at = None
        self._accepted.clear()


def _agree(claim: AdvertisedBucket | AdvertisedWindow, other: AdvertisedBucket | AdvertisedWindow | None) -> bool:
    """Whether two claims are of the same limit."""
    if isinstance(claim, AdvertisedBucket):
        if not isinstance(other, AdvertisedBucket) or claim.capacity != other.capacity:
            return False
        return _overlap(claim, other, Claims.UNCHANGED)
    return isinstance(other, AdvertisedWindow) and claim.count == other.count


def _overlap(claim: AdvertisedBucket, other: AdvertisedBucket | RateBounds, share: float) -> bool:
    """Whether two intervals of a rate overlap, or miss each other by no more than that share."""
    return claim.low <= (1 + share) * other.high and other.low <= (1 + share) * claim.high
