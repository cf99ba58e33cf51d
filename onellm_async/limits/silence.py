"""The phases of the adaptive rate around a silence: nothing is accepted, then something is again. Pure.

The theory of operation and the transition table are in `adaptive`.
"""

from random import Random

from onellm_async.limits.evidence import Evidence
from onellm_async.limits.phases import Cruise, Phase, Startup
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.windows import KNOCK_SECONDS, Window, just_after

_NEVER = float("inf")


class AroundSilence(Phase):
    """What `Silence`, `Opening` and `Windowed` have in common: they are the phases of which a control asks more.

    A control on a line, which is most of the time, passes by all of that with one question.
    """

    __slots__ = ()


class Silence(AroundSilence):
    """After a 429: one request at a time, a *knock*, until one is accepted. No belief is lowered meanwhile.

    Args:
        inner: The phase to continue with if the silence is no longer than it explains.
        since: When the first request was sent that got a 429.
        knock_at: When to send the first knock.
        on_answer: Whether an answer is a reason to knock at once.
        blamed: The window that explains the 429; None if none does.
        shrinks_to: The count of that window if the first knock is in vain; None if it stays.
        doubtful_after: A longer silence means that `inner` may be wrong; None: any silence in which a knock was vain.

    Attributes:
        since: When the first request was sent that got a 429.
        refused_at: When the last request was sent that got a 429.
        knocked_at: When the knock in flight was sent; None if none is.
        vain: Knocks that got a 429.
        told_until: Until when the service's Retry-After proves the silence.
        blamed: The window that explains the 429.
        shrinks_to: The count of that window if the next knock is in vain; None if it stays.
        is_believed: Whether it was asked, or decided without asking, that the 429 did not come at random.
    """

    LONG = 4.0
    """A silence is unexplained if it is longer than so many requests at the rate."""
    FIRST_GAP = 0.5
    """Seconds between two knocks, at least, after `MANY_429S`, a late knock or `HURRY`; twice as many after the first
    knock."""
    MANY_429S = 6
    """429s of the client after which knocks keep the distance of `FIRST_GAP`."""
    HURRY = 10.0
    """Seconds after the start in which two knocks may be closer."""
    LONG_GAP = 15.0
    """Seconds between two knocks, at most, or a tenth of the silence if that is more."""
    MAX_GAP = 60.0
    """Seconds between two knocks, at most."""
    MAX_LATE = 2.0
    """Factor of the wait for a knock, beside `FIRST_GAP`, after which it is late: there was nothing to send."""
    FAST_UNTIL = 2.0
    """A shorter silence doubles with each knock. A longer one grows by half."""

    __slots__ = ("_inner", "_knock_at", "_on_answer", "_was_late", "blamed", "doubtful_after", "is_believed",
                 "knocked_at", "refused_at", "shrinks_to", "since", "told_until", "vain")  # fmt: skip

    def __init__(
        self,
        inner: Phase,
        since: float,
        knock_at: float,
        *,
        on_answer: bool = False,
        blamed: Window | None = None,
        shrinks_to: int | None = None,
        doubtful_after: float | None = None,
    ) -> None:
        self._inner = inner
        self._knock_at = knock_at
        self._on_answer = on_answer
        self._was_late = False
        self.since: float = since
        self.refused_at: float = since
        self.knocked_at: float | None = None
        self.vain: int = 0
        self.told_until: float = -_NEVER
        self.blamed: Window | None = blamed
        self.shrinks_to: int | None = shrinks_to
        self.is_believed: bool = False
        self.doubtful_after: float | None = doubtful_after

    @property
    def inner(self) -> Phase:
        """The phase to continue with."""
        return self._inner

    @property
    def rate(self) -> float:
        return self._inner.rate

    @property
    def obeys_windows(self) -> bool:
        """The first knock waits for the windows that are known; after a vain one they are in doubt."""
        return not self.vain

    def state(self, evidence: Evidence) -> RateState | None:
        return self._inner.state(evidence)

    def confidence(self, evidence: Evidence) -> float:
        return self._inner.confidence(evidence)

    @property
    def proven(self) -> float:
        """Seconds after which the silence certainly was not over; 0 if no knock was in vain."""
        return max(0.0, max(self.told_until, self.refused_at if self.vain else 0.0) - self.since)

    def is_doubtful(self, at: float) -> bool:
        """Whether a silence that ends at `at` is longer than `inner` explains."""
        if self.doubtful_after is None:
            return self.vain > 0
        return (self.vain >= 2 or self.told_until > at - 1.1) and at - self.since > self.doubtful_after

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        if self.knocked_at is None:
            wait = self._knock_at - now
        else:
            wait = self.knocked_at + evidence.ack - now
            if self.doubtful_after is not None and not self.is_doubtful(self.knocked_at):
                wait = max(wait, self._inner.time_until(1, now, 0.0, evidence))
        if requests > 1:
            wait = max(wait, 0.0) + max(0.0, self._inner.time_until(requests, now, reserve, evidence))
        return wait

    def take(self, now: float, evidence: Evidence) -> Phase:
        if now - self.refused_at > self.MAX_LATE * max(0.0, self._knock_at - self.refused_at) + self.FIRST_GAP:
            # What was not sent proves nothing: as far as is known, the silence begins with this knock.
            evidence.line.saturation.rest(now - self.refused_at, now)
            self.since = self.refused_at = now
            self.vain, self.told_until, self._was_late = 0, -_NEVER, True
        self.knocked_at = now
        if not self.vain:
            self._inner = self._inner.take(now, evidence)
        return self

    def give_back(self, now: float, evidence: Evidence) -> None:
        self.knocked_at = None
        if not self.vain:
            self._inner.give_back(now, evidence)

    def answered(self, sent_at: float, now: float, evidence: Evidence) -> None:
        if self._on_answer and self.knocked_at is None:
            self._knock_at = min(self._knock_at, max(now, self.refused_at + evidence.ack))

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        """Records that the knock in flight was in vain."""
        assert self.knocked_at is not None  # noqa: S101  # it is the knock that got the 429
        self.refused_at, self.knocked_at = self.knocked_at, None
        self._on_answer = False
        if self.blamed is not None and self.blamed.knocks_at_once:  # it only asked whether the 429 came at random
            self.blamed.judge(was_random=False)
            self.is_believed = True
            if self.shrinks_to is not None:
                self.blamed.shrink(self.shrinks_to)
                self.shrinks_to = None
        else:
            self.vain += 1
        self.plan_knock(now, retry_after, evidence)
        return self

    def plan_knock(self, now: float, retry_after: float | None, evidence: Evidence) -> None:
        """Decides when to knock next: later and later, and rather just after a round number of seconds."""
        silence = now - self.since
        is_late = self._was_late or now - evidence.line.started > self.HURRY
        many = evidence.rate_limited > self.MANY_429S or is_late
        gap = max(evidence.ack, (self.FIRST_GAP * (2 if self.vain else 1)) if many else 0.0, 0.1 * silence)
        if not self.vain and self.blamed is not None:
            gap = evidence.ack if self.blamed.knocks_at_once else max(evidence.ack, min(1.0, 0.1 * self.blamed.seconds))
        first = evidence.line.first
        small = False  # after a small burst, others may use the key, unless a window is known
        if first is not None and first.accepted < evidence.line.LARGE_BURST and not evidence.windows:
            small = self.vain > (0 if self.doubtful_after is None else 2)
        wait = max(gap, (1.0 if silence < self.FAST_UNTIL or small else 0.5) * silence)
        wait = min(wait, self.MAX_GAP, max(self.LONG_GAP, 0.1 * silence))
        latest = now + 1.7 * wait
        at = min(
            (
                moment
                for start in (evidence.burst_at, evidence.origin)
                for seconds in KNOCK_SECONDS
                if now + (0.6 * wait if small else min(gap, 0.01 * seconds))
                <= (moment := start + just_after(seconds))
                < latest
            ),
            default=now + wait,
        )
        if now + gap <= evidence.reset_at < at:
            at = evidence.reset_at  # as the service advertises: a hint that may end the silence sooner, never later
        self._knock_at = at
        self.honor(now, retry_after)

    def explain(
        self, inner: Phase, window: Window | None, knock_at: float, *, doubtful_after: float | None = None
    ) -> None:
        """Continues with another explanation of the 429. The next knock may come sooner.

        Args:
            inner: The phase to continue with.
            window: The window that explains the 429; None if none does.
            knock_at: When the service accepts again, as that explains it.
            doubtful_after: A longer silence means that `inner` may be wrong.
        """
        self._inner, self.blamed, self.doubtful_after = inner, window, doubtful_after
        self.shrinks_to = None
        self._knock_at = max(self.told_until, min(self._knock_at, knock_at))
        self._on_answer = False

    def honor(self, now: float, retry_after: float | None) -> None:
        """Waits for a Retry-After. One of whole seconds was rounded up, so it proves a second less."""
        if retry_after is None:
            return
        is_whole = retry_after == int(retry_after)
        if is_whole and retry_after <= 1:
            return
        self.told_until = now + retry_after - is_whole
        self._knock_at = max(self._knock_at, now + retry_after) if not is_whole else now + retry_after
        self._on_answer = False

    def move_clock(self, now: float) -> Phase:
        return self._inner.move_clock(now)


class Opening(AroundSilence):
    """After a silence: how much is accepted at once? More than a token bucket can have saved means a window.

    Args:
        silence: The silence that is over.
        at: When the first request after it was sent.
        burst_at: When the burst began that the silence ended. Its pattern is repeated.
        mean_pace: Requests per second that were accepted at startup, in the mean.
        evidence: What is known.

    Attributes:
        inner: The phase to continue with if it was no window.
        since: When the first request was sent that got a 429.
        refused_at: Until when the silence is certain: the last such request, or the service's Retry-After.
        opened_at: When the first request was sent that was accepted again.
        burst_at: When the burst began that the silence ended.
        silence: Seconds of the silence.
        proven: Seconds after which the silence certainly was not over; 0 if no knock was in vain.
        blamed: The window that did not explain the silence; None if none was full.
    """

    MIN_PACE = 10.0
    """Requests per second that may be reached again, at least."""
    FIRST_PACE = 0.5
    """Pace after a silence that was certain, as a share of the highest one at startup; it grows by half as much with
    each request."""
    SURPLUS = 4
    """Requests that may be accepted beside twice what a bucket can have saved."""
    GROWTH = 1 / 16
    """Growth of the pace with each request, once more was accepted than in the first burst, whose pace it had until
    then. A bucket that was empty at the start would else be used at `MIN_PACE` for ever."""
    MAX_PATTERN_GAP = 0.25
    """Seconds between two requests, at most, in the repeated pattern."""
    MAX_REST = 10.0
    """Seconds without a request after which an opening is over: a bucket has saved more than the silence tells."""
    STARTUP_SAMPLES = 2
    """Samples of a line, at most, while an opening stands in for the startup that did not take place."""
    LONG = 10.0
    """Seconds of a certain silence after which a single accepted request means that other clients use the key."""
    DOUBT_FROM = 30.0
    """Seconds of a certain silence from which the first 429 after it is asked again. A shorter one is usual where
    others use the key."""

    __slots__ = ("_accepted", "_is_doubted", "_last", "_max_pace", "_pace", "_pattern", "blamed", "burst_at", "inner",
                 "opened_at", "proven", "refused_at", "silence", "since")  # fmt: skip

    def __init__(self, silence: Silence, at: float, burst_at: float, mean_pace: float, evidence: Evidence) -> None:
        self.inner: Phase = silence.inner
        self.since: float = silence.since
        self.refused_at: float = max(silence.refused_at, silence.told_until)
        self.opened_at: float = at
        self.burst_at: float = burst_at
        self.silence: float = at - silence.since
        self.proven: float = silence.proven
        self.blamed: Window | None = silence.blamed
        self._pattern = evidence.log.accepted_until(burst_at - 1e-9)
        self._max_pace = mean_pace
        self._pace = min(mean_pace, 1 / max(self.silence, 1e-3))
        if self.proven > 0:
            self._pace = self.FIRST_PACE * evidence.peak
        self._last = at
        self._accepted = 1
        self._is_doubted = False

    @property
    def rate(self) -> float:
        return self._pace if self.proven <= 0 else self.inner.rate

    def state(self, evidence: Evidence) -> RateState | None:
        return self.inner.state(evidence)

    def confidence(self, evidence: Evidence) -> float:
        return self.inner.confidence(evidence)

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        bounds, pace = evidence.line.bounds, self._pace
        if self.proven > 0:
            same_moment = self._same_moment(evidence)
            if bounds.tight:  # the line still holds: what stopped everything is another limit
                pace = min(pace, bounds.low)
            else:
                same_moment = min(same_moment, self._last + self.MAX_PATTERN_GAP)
            return max(self._last + 1 / pace, same_moment) - now + (requests - 1) / pace
        return self._last + requests / pace - now

    def _same_moment(self, evidence: Evidence) -> float:
        """When the next request is due if the burst before the silence is repeated."""
        log = evidence.log
        first = self._pattern - (log.total - len(log.times))
        index = first + self._accepted
        if first < 0 or index >= len(log.times) or log.times[index] >= self.opened_at:
            return -_NEVER
        return log.times[index] - log.times[first] + self.opened_at

    def take(self, now: float, evidence: Evidence) -> Phase:
        rest = now - self._last
        if rest > max(self.MAX_REST, 2 / self._pace):
            evidence.line.saturation.rest(rest, now)
            return self.inner.take(now, evidence)
        self._accepted += 1
        if self._is_startup(evidence):
            is_first = self._accepted == self.SURPLUS + 1
            evidence.line.saturation.rest(now - self.since if is_first else rest, now)
        self._last = now
        peak = evidence.peak
        if self.proven > 0:
            self._pace = min(peak, self.FIRST_PACE / 2 * peak * (1 + self._accepted))
        else:
            first = evidence.line.first
            if first is not None and self._accepted > max(self.SURPLUS, first.accepted):
                highest = peak if first.accepted else max(peak, Startup.MAX_PACE)  # there was no startup
                self._max_pace = min(highest, (1 + self.GROWTH) * self._max_pace)
            self._pace = min(self._max_pace if evidence.slots.limit == _NEVER else peak, 2 * self._pace)
        return self

    def give_back(self, now: float, evidence: Evidence) -> None:
        self._accepted -= 1

    def _is_startup(self, evidence: Evidence) -> bool:
        """Whether nothing was accepted before the silence, and more since than a few requests.

        Then the pace has just begun to grow, and nothing is known of the rate: it may lose refill all the while.
        """
        line = evidence.line
        return (
            self._accepted > self.SURPLUS
            and line.first is not None
            and not line.first.accepted
            and len(line.samples) <= self.STARTUP_SAMPLES
        )

    def accepted_until(self, until: float, evidence: Evidence) -> int:
        """Number of requests that were accepted since the silence."""
        return evidence.log.accepted_until(until) - evidence.log.accepted_until(self.opened_at - 1e-9)

    def is_window(self, until: float, evidence: Evidence) -> bool:
        """Whether more was accepted until `until` than a bucket can have saved that gave nothing for so long."""
        if self.proven <= 0:
            return False
        accepted = self.accepted_until(until, evidence)
        saved = (until - self.opened_at + self.silence - self.proven) / self.proven
        return self._accepted > self.SURPLUS and accepted > self.SURPLUS + 2 * saved

    def is_doubtful(self) -> bool:
        """Whether a 429 may have come at random. Only the first one after a long silence is asked again.

        Taken for the sign of a bucket, it would hide a window for hours.
        """
        was_doubted, self._is_doubted = self._is_doubted, True
        return not was_doubted and self.proven >= self.DOUBT_FROM

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        """It was no window: the new sample counts for the line."""
        line = evidence.line
        capacity = line.burst(1.0)
        rate = min(self.inner.rate, self._accepted / max(self.silence, 1e-3))
        if self._is_startup(evidence):
            rate = self._pace / 2
        rate = line.estimate(rate, capacity, self._pace)
        is_small = line.first is not None and line.first.accepted < line.LARGE_BURST
        if self.proven >= self.LONG and is_small and not line.was_calm:
            line.contention += 2
            rate = max(rate, 1 / self.LONG / 2)
        return Cruise.of(line.empty_bucket(rate, capacity, now, retry_after), evidence, random, now)

    def move_clock(self, now: float) -> Phase:
        return self.inner.move_clock(now)


class Windowed(AroundSilence):
    """Sends at the highest pace that was seen. Windows and slots limit it, and no line is known.

    Args:
        now: The current time in seconds.
    """

    __slots__ = ("_last",)

    def __init__(self, now: float) -> None:
        self._last = now

    @property
    def rate(self) -> float:
        return _NEVER

    def state(self, evidence: Evidence) -> RateState | None:
        return None

    def time_until(self, requests: float, now: float, reserve: float, evidence: Evidence) -> float:
        return self._last + requests / evidence.peak - now

    def take(self, now: float, evidence: Evidence) -> Phase:
        self._last = now
        return self

    def rest(self, allowed_at: float, now: float, evidence: Evidence) -> None:
        """Counts the time until a request for which no limit was the cause: the service's bucket may be full since.

        Args:
            allowed_at: When windows and slots allowed the request.
            now: The current time.
            evidence: What is known.
        """
        seconds = now - max(self._last, allowed_at)
        if seconds > Opening.MAX_REST:
            evidence.line.saturation.rest(seconds, now)

    def give_back(self, now: float, evidence: Evidence) -> None:
        """A pace has nothing to give back."""

    def rate_limited(self, now: float, retry_after: float | None, evidence: Evidence, random: Random | None) -> Phase:
        """No window explains the 429: there is a line, too."""
        line = evidence.line
        if len(line.samples) < 2:
            line.first_estimate()
            return self
        capacity = line.burst(1.0)
        start = line.samples[0]
        rate = (line.samples[-1].accepted - start.accepted) / max(1e-3, line.samples[-1].at - start.at)
        rate = line.estimate(max(line.MIN_RATE, rate), capacity, evidence.peak)
        return Cruise.of(line.empty_bucket(rate, capacity, now, retry_after), evidence, random, now)

    def move_clock(self, now: float) -> Phase:
        self._last = now
        return self
