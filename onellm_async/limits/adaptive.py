"""Discovers a limit that is not declared, and keeps to it. Pure.

Theory of operation
===================

A limit is a curve: the most requests that the service accepts in any w seconds. Each request tells one bit, accepted or
429. What was accepted once is accepted again, so the accepted requests of the past are a lower bound of the curve
(`send_log`). Three kinds of evidence are held at once, each with its own refutation, and a request waits for all:

- *Line.* A token bucket of unknown size, refilled at an unknown rate r. A 429 is a *sample*: when that request arrived,
  the bucket held less than one token. If A requests were accepted between two samples T seconds apart, then

      (A - 1) / (T + J)  <=  r  <=  (A + 1) / (T - S - J)

  J is the timing jitter between two requests. S is the time in which the bucket may have been full: a full bucket is
  not refilled, so silence proves nothing (`saturation`). Every pair of samples gives bounds. The tightest bounds that
  the newest samples agree on stand (`rate_samples`).
- *Windows.* At most n requests in any w seconds, sliding or fixed. A silence gives the length, and what the service
  accepts at once after it tells a window from a bucket (`windows`).
- *Slots.* At most so many requests in flight. What separates 429s from accepted requests is then the number in flight
  (`slots`).

What a service advertises in headers stands in for evidence where there is none yet, and never against it (`claims`).

A fourth kind says that a 429 was no sign of a limit at all: some services refuse a share of all requests at random, at
any rate (`sporadic`). It holds only while trials support it.

A 429 is blamed on one of them: on a trial that it refutes, on a record of requests in flight, on a window that is
full, and else on the line. Where a window was blamed, and the silence is longer than it explains, the line gets the
sample. The 429 that suggests a limit of concurrency may be a sample of the line as well, so it counts as one until
others contradict it. 429s of requests that were sent before the last 429 was known tell nothing new.

What the client does:

- *Startup.* A growing pace until the first 429. Until the first answer, it pauses after round numbers of requests,
  because limits are round.
- *Silence.* After a 429, nothing is sent but single *knocks*, until one is accepted: the first when the line, the
  window or an answer says so, or after as long as the burst before took. Then later and later, and rather just after a
  round number of seconds. No belief is lowered meanwhile: a silence says nothing about the rate. Where there is nothing
  to send, there is no silence: a knock that comes late begins another one.
- *Opening.* After a silence that no evidence explains, the burst before it is repeated. If there was none, because the
  service's bucket was empty at the start, the opening is the startup. If more is accepted than a bucket can have saved
  that gave nothing for so long, there is a window, unless it is more than ever before: then the service was down. If
  not, the next 429 is a sample of the line. A rest ends the opening.
- *Windowed.* Windows and slots limit the requests, and no line is known.
- *Cruise.* It sends at the lower bound of the line, which the service certainly allows. The unused rest is not lost,
  because the service's bucket saves it. Where that bucket is small and may often have been full, the rest is lost, and
  no probe finds it: a *bold* cruise goes on between the bounds, half as far beyond the lower one after each 429.
- *Probe.* After a number of requests, it sends each one slightly sooner than the one before, until a 429. That spends
  the savings and tightens the bounds, for one 429, which is not billed.
- *Restored.* With a prior from an earlier client, it cruises at the prior and probes early, at most at four times that
  rate. The first 429 says only that the bucket is empty now. A prior is given up once twice its rate was accepted.
- *Contended.* A client that has the key to itself gets no 429 while it cruises, and its samples never contradict each
  other. Each violation adds to the contention score; samples that agree lower it. From a score of 2 the client shares
  the limit: a binomial increase and decrease with random gaps (`binomial`).
- *Doubt.* 429s at random contradict each other like those of a limit that others use. So after some of the 429s in
  contention, requests are sent three times as fast as before. Where a limit is the cause, the next ones get a 429. If
  ten are accepted at that pace, there is none up to it, and 429s may come at random. From then on each 429 begins a
  shorter trial, and only one in which two more come soon counts. A trial that does not reach its pace, because too
  little was to be sent or may be unconfirmed, speaks against chance. A window is asked by a knock at once. The first
  429 of an opening after a long silence is asked by the next request.

=================== ============================================ ====================================================
from                event                                        to
=================== ============================================ ====================================================
Startup             answer                                       Startup, faster
any but Contended   429                                          Silence, with the phase that follows from it inside
Silence             the knock gets a 429                         Silence; after a small burst that the line does not
                                                                 explain: Contended, unless many were accepted before
Silence             the knock is accepted                        the phase inside; Opening if the silence is unexplained
Opening             more accepted than a bucket can have saved   Windowed, or the phase inside if a line is known
Opening             more accepted than any window explains       Windowed, or the phase inside if a line is known
Opening             the silence fits a window that was kept to   the same, with what came after the last rest as count
Opening             a rest                                       the phase inside
Opening             429                                          Silence, inside it Cruise with bounds from this sample
Windowed            429, a window is full                        Silence; a longer silence than expected: Opening
Windowed            429, no window is full                       the fullest window becomes smaller; Silence
Restored            429                                          Cruise at the prior
Restored            twice the prior was accepted                 Probe without the prior
Cruise              enough requests accepted since the sample    Probe
Cruise              429                                          Cruise with new bounds; contention +2 if the bounds
                                                                 were tight and the cruise was not bold
Probe               429                                          Cruise with tighter bounds; contention +1 if the
                                                                 samples contradict each other, -1/4 if they agree
Probe               more accepted than the bounds allow          Probe: the limit rose. The samples are dropped, this
                                                                 pace is the rate, the gain doubles
any                 contention score of 2 or more                Contended
Contended           answer, 429                                  Contended: increase, decrease
Contended           429, a trial is due                          Doubt, with Contended inside
Cruise, Probe,      429, and 429s were shown to come at random   Doubt, with the phase inside
Contended
Doubt               429s as a limit would give                   the phase inside; Silence if it counts for the line
Doubt               too slow                                     the phase inside
Doubt               enough accepted                              the phase inside; Probe without samples if it was the
                                                                 first such trial
Contended           six samples agree within 10 %; or 15 min,    Cruise; score 0
                    30 or 60 after the first, second, third time
any                 the clock of another event loop              the same without samples; Probe becomes Cruise
=================== ============================================ ====================================================

The storm bound: a request counts as *unconfirmed* until it is answered, or until one and a half round trips of a 429
have passed. After a 429 at most four requests are unconfirmed, one if no bounds are tight, and at most two more for
each request confirmed since; never more than 32, or a sixteenth of those confirmed if that is more. While nothing is
accepted, only knocks are sent. So 429s are bounded by the accepted requests, the time, and the requests in flight,
whatever the service does.
In contention, a minute's highest rate is four times the present one or 1.2 times what any minute accepted.

`phases` and `silence` have a class for each phase, which owns its pacing. All of them judge by one `Evidence`.
"""

from random import Random

from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.claims import Claims
from onellm_async.limits.doubt import Doubt
from onellm_async.limits.evidence import Evidence
from onellm_async.limits.phases import Contended, Cruise, Phase, Restored, SharedStartup, Startup
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.silence import AroundSilence, Opening, Silence, Windowed
from onellm_async.limits.windows import FEW, Window

_NEVER = float("inf")


class AdaptiveRate:
    """Discovers a limit and keeps to it.

    Args:
        now: The current time in seconds.
        state: A prior: what an earlier control knew, or a declared rate. The control keeps to it until the service
            contradicts it. The level of the service's bucket is not known, so an early probe follows. None starts
            without any knowledge.
        random: Source of the gaps between requests in contention; None: even gaps.
        probe_every: Maximum number of requests in a cruise, 1 or more. A limit that rises is noticed after so many
            requests at the latest, and costs one 429 for each.
        is_shared: Whether several clients share this control through a board. It then does not know what is in flight,
            and ages arrive in place of times, so it discovers a line alone.

    Attributes:
        max_in_flight: Requests that may be in flight at once, as far as a limit of concurrency is known; else infinite.
    """

    START_UNCONFIRMED = 16
    """Unconfirmed requests at the start, at most, beside one more for each confirmed one."""
    TIGHT_UNCONFIRMED = 4
    """Unconfirmed requests after a 429 between tight bounds, beside two more for each confirmed one."""
    LOOSE_GROWTH = 0.9
    """Unconfirmed requests for each confirmed one, beside one, while no bounds are tight. With 1, the bounds of 200 per
    second come out less tight; with less, a rate is found more slowly where a 429 takes 0.1 s."""
    MAX_UNCONFIRMED = 32
    """Unconfirmed requests, at most, or `UNCONFIRMED_SHARE` of the confirmed ones if that is more. While a service that
    accepted everything closes, so many 429s may be on their way."""
    UNCONFIRMED_SHARE = 1 / 16
    """Unconfirmed requests as a share of those that were confirmed since the last 429. Without it, no more than 160
    requests per second are sent where an answer takes longer than `Evidence.START_ACK`."""
    SHARED_SIZE = 200
    """Accepted requests that a shared control remembers."""
    SHARED_LATENESS = 0.05
    """Seconds in which a board leaves a token to a participant that has not come yet."""
    SURE_SAMPLES = 4
    """Samples that agree, from which a silence is no sign of other clients."""
    SURE_ROUNDS = 3
    """Rounds of a window, from which a shorter silence that it does not explain means another limit."""
    WHOLE_HISTORY = 0.95
    """Share of all accepted requests from which a window explains nothing."""
    SINGLE_WITHIN = 1.0
    """Seconds within which a second accepted request means one request in any time, where the first 429 came after one.
    It is spaced most evenly as a window of one."""
    SINGLE_AFTER = 8
    """Requests, at most, that were accepted one after the other before, where the first 429 came after none."""
    FIRST_KNOCK = 2.0
    """Seconds until the first knock, at most, where neither a line nor a window nor an answer says when. Where answers
    have come, it comes as soon as the burst took: what is emptied so fast may be filled again as fast."""

    def __init__(
        self,
        now: float,
        state: RateState | None = None,
        *,
        random: Random | None = None,
        probe_every: int = 300,
        is_shared: bool = False,
    ) -> None:
        self.max_in_flight: float = _NEVER
        self._random = random
        self._is_shared = is_shared
        self._evidence = (
            Evidence(now, probe_every, state, self.SHARED_SIZE) if is_shared else Evidence(now, probe_every, state)
        )
        self._evidence.line.lateness = self.SHARED_LATENESS if is_shared else 0.0
        self._unconfirmed = self.START_UNCONFIRMED
        self._growth = 1.0
        self._confirmed_from = 0
        self._is_confirmed = False
        self._earliest = -_NEVER
        self._ack = self._evidence.ack
        self._trusted_from = -_NEVER
        self._phase: Phase = SharedStartup() if is_shared else Startup()
        self._claims: Claims | None = None
        if state is not None:
            self._restore(state, now)

    def _restore(self, state: RateState, now: float) -> None:
        windows = self._evidence.windows
        windows.all = [Window(count, 0.98 * seconds, seconds) for count, seconds in state.windows]
        self._trusted_from = now + max((window.seconds for window in windows.all), default=-_NEVER)
        if windows and not state.low:
            self._phase = Windowed(now)
        else:
            bucket = TokenBucket(state.rate, max(1.0, state.burst), level=1.0, updated_at=now)
            self._phase = Restored(bucket, state)

    @property
    def rate(self) -> float:
        """Requests per second, no more than windows and slots allow in the long run."""
        evidence = self._evidence
        slots = evidence.slots
        rate = min(self._phase.rate, evidence.windows.rate)
        if slots.support and slots.latency:
            rate = min(rate, slots.limit / slots.latency)
        return rate if rate < _NEVER else evidence.peak

    @property
    def state(self) -> RateState | None:
        """What is known now; None before the first 429."""
        evidence = self._evidence
        known = self._phase.state(evidence)
        windows = tuple((window.count, window.seconds) for window in evidence.windows.all)
        if not windows:
            return known
        if known is None or isinstance(self._phase, Windowed) or not evidence.line.bounds.known:
            return RateState(self.rate, max(count for count, _ in windows), windows=windows)
        return RateState(known.rate, known.burst, known.low, known.high, windows)

    @property
    def found(self) -> str | None:
        """What was found, in words; None if nothing is certain."""
        evidence = self._evidence
        parts = [window.describe() for window in evidence.windows.all]
        if (at_once := evidence.slots.describe(min(self._phase.rate, evidence.windows.rate))) is not None:
            parts.append(at_once)
        bounds = evidence.line.bounds
        if bounds.tight and not self._phase.shares:
            parts.append(f"{60 * self._phase.rate:.3g} requests per minute")
        if evidence.sporadic.share:
            parts.append(f"429s at random for {100 * evidence.sporadic.share:.2g} % of the requests")
        return ", ".join(parts) or None

    @property
    def confidence(self) -> float:
        """How narrow the bounds are; 0 without bounds or in contention."""
        return self._phase.confidence(self._evidence)

    @property
    def phase(self) -> str:
        """Name of the phase, as in the theory of operation."""
        return self._phase.name

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        phase = self._phase
        wait = phase.time_until(requests, now, reserve, self._evidence)
        if isinstance(phase, Silence) and phase.knocked_at is not None:
            # The request after a knock that is confirmed by time alone belongs to the next phase already.
            if self._is_opened_by(phase, phase.knocked_at):
                opening = Opening(phase, phase.knocked_at, self._evidence.burst_at, self._mean_pace(), self._evidence)
                wait = max(wait, opening.time_until(requests, now, reserve, self._evidence))
            wait = max(wait, self._evidence.windows.earliest(self._ack) - now)
        if self._earliest > now + wait:
            wait = self._earliest - now
        if (reserve or requests > 1) and self._evidence.windows.all and self._phase.obeys_windows:
            wait = max(wait, self._evidence.windows.expected(int(requests + reserve), now) - now)
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        evidence, phase = self._evidence, self._phase
        is_around_silence = isinstance(phase, AroundSilence)
        if is_around_silence:
            if isinstance(phase, Windowed):
                phase.rest(self._earliest, now, evidence)
            elif isinstance(phase, Silence):
                phase = self._after_knock(phase, now)
        if evidence.windows.all:
            evidence.windows.advance(now, self._ack)
            if not isinstance(phase, Silence):
                evidence.windows.sent(now)
        evidence.log.sent(now)
        if not self._is_shared:
            evidence.slots.sent(now)
        phase = self._phase = phase.take(now, evidence)
        if is_around_silence and isinstance(phase, Opening) and phase.is_window(now - self._ack, evidence):
            self._phase = self._after_window(phase, now)
        self._update(now)

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        evidence = self._evidence
        last = evidence.log.last(1) if sent_at is None else sent_at
        if last is not None:
            evidence.log.remove(last)
            evidence.slots.ended(last)
        self._phase.give_back(now, evidence)
        self._update(now)

    def released(self, sent_at: float, now: float) -> None:
        self._evidence.slots.ended(sent_at)
        self._update(now)

    def answered(self, sent_at: float, now: float) -> None:
        evidence, phase = self._evidence, self._phase
        evidence.slots.answered(sent_at, now, self._ack)
        phase.answered(sent_at, now, evidence)
        if isinstance(phase, Silence) and phase.knocked_at is not None and sent_at >= phase.knocked_at:
            self._phase = self._after_silence(phase, phase.knocked_at)
        if phase is not self._phase or evidence.slots.limit < _NEVER or evidence.ack != self._ack:
            self._update(now)

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        evidence, phase = self._evidence, self._phase
        if self._is_shared:
            sent_at = evidence.log.nearest(sent_at)  # it is told as an age, so never to the digit
        before = evidence.slots.refused(sent_at)
        if evidence.log.remove(sent_at) and sent_at <= evidence.known_at and not phase.shares:
            self._confirmed_from -= 1  # it was counted as accepted when the last 429 arrived
        evidence.line.observe_round_trip(now - sent_at)
        evidence.rate_limited += 1
        is_knock = isinstance(phase, Silence) and phase.knocked_at == sent_at  # perhaps sent when the last 429 arrived
        if sent_at <= evidence.known_at + evidence.line.lateness and not is_knock:
            evidence.line.correct_samples(sent_at)
            if isinstance(phase, Silence):
                phase.refused_at = max(phase.refused_at, sent_at)
        else:
            evidence.known_at = now
            self._confirmed_from = evidence.log.total
            self._is_confirmed = False
            is_tight = evidence.line.bounds.tight
            self._unconfirmed, self._growth = (self.TIGHT_UNCONFIRMED, 2.0) if is_tight else (1, self.LOOSE_GROWTH)
            evidence.sporadic.rate_limited(evidence.log.total)
            self._phase = self._after_429(phase, sent_at, now, before, retry_after)
            if self._claims is not None:
                if not isinstance(phase, Silence):
                    self._claims.check(sent_at, evidence)
                self._weigh_claims(self._claims, now)
        self._update(now)

    def _after_knock(self, silence: Silence, now: float) -> Phase:
        """Returns the phase in which a request is sent: the silence is over if no 429 has answered the knock by now."""
        if silence.knocked_at is None or now < silence.knocked_at + self._evidence.ack - 1e-9:
            return silence
        return self._after_silence(silence, silence.knocked_at)

    def _update(self, now: float) -> None:
        """Sets what the next request waits for beside its phase: windows, slots, and unconfirmed requests."""
        evidence, phase = self._evidence, self._phase
        ack = self._ack = evidence.ack
        if self._is_shared:
            return
        log, slots = evidence.log, evidence.slots
        earliest = -_NEVER
        if evidence.windows.all and phase.obeys_windows:
            earliest = evidence.windows.earliest(ack)
        allowed = self.MAX_UNCONFIRMED
        if not self._is_confirmed:
            allowed = min(allowed, int(self._unconfirmed + self._growth * max(0, self._confirmed(now))))
            self._is_confirmed = allowed == self.MAX_UNCONFIRMED
        last = log.last(allowed)
        if self._is_confirmed and last is not None and last + ack > max(earliest, now):
            last = log.last(max(allowed, int(self.UNCONFIRMED_SHARE * self._confirmed(now))))
        if last is not None:
            earliest = max(earliest, last + ack)
        self.max_in_flight = slots.limit
        if slots.limit < _NEVER:
            if isinstance(phase, Silence):
                self.max_in_flight += slots.support < slots.SURE and phase.knocked_at is None
            else:
                self.max_in_flight += slots.is_trial_due
                if slots.in_flight >= slots.limit and (last := log.last(1)) is not None:
                    earliest = max(earliest, last + slots.trial_gap)
        self._earliest = earliest

    def _confirmed(self, now: float) -> int:
        """Requests sent since the last 429, or before it and accepted, that are confirmed by now; negative at first."""
        return self._evidence.log.accepted_until(now - self._ack) - self._confirmed_from

    def _after_429(
        self, phase: Phase, sent_at: float, now: float, before: int | None, retry_after: float | None
    ) -> Phase:
        """Returns the phase after a 429 that says something new.

        Args:
            phase: The phase so far.
            sent_at: When its request was sent.
            now: The current time.
            before: Requests that were in flight before it; None if not known.
            retry_after: Seconds that the service asked to wait.
        """
        evidence = self._evidence
        if self._is_shared:  # what the others have in flight still arrives: let the service's bucket have some for it
            self._earliest = now + evidence.ack
            return self._add_sample(phase, sent_at, now, None, retry_after)
        if isinstance(phase, Silence):
            if phase.knocked_at == sent_at:
                phase.rate_limited(now, retry_after, evidence, self._random)
                return self._share_if_contended(phase, now, retry_after)
            return phase
        is_explained = evidence.windows.refute_extra(sent_at) or evidence.slots.rate_limited(before)
        if is_explained or (evidence.windows.refute_trials(sent_at) and not phase.shares):
            return phase
        if isinstance(phase, Doubt):
            if not phase.is_refuted(now, evidence):
                return phase
            doubt, phase = phase, phase.refuted(evidence)
            if doubt.is_first:
                evidence.line.add_sample(sent_at)
                return phase
        elif self._may_be_random(phase, sent_at, retry_after):
            return Doubt(phase, phase.rate, now, evidence, is_first=False)
        return self._after_sign(phase, sent_at, now, before, retry_after)

    def _after_sign(
        self, phase: Phase, sent_at: float, now: float, before: int | None, retry_after: float | None
    ) -> Phase:
        """Returns the phase after a 429 that is the sign of a limit. The arguments are those of `_after_429`."""
        evidence = self._evidence
        if isinstance(phase, Opening) and phase.is_window(sent_at, evidence):
            phase = self._after_window(phase, now)
        elif isinstance(phase, Opening) and retry_after is None and phase.is_doubtful():
            return phase
        else:
            if evidence.windows and not isinstance(phase, Opening | Contended):
                blamed = self._blame_window(phase, sent_at, now, retry_after)
                if blamed is not None:
                    return blamed
            phase = self._add_sample(phase, sent_at, now, before, retry_after)
        if not phase.shares:
            return self._silence(phase, sent_at, now, retry_after)
        if retry_after is None and evidence.sporadic.is_trial_due():
            return Doubt(phase, phase.rate, now, evidence, is_first=True)
        return phase

    def _may_be_random(self, phase: Phase, sent_at: float, retry_after: float | None) -> bool:
        """Whether a 429 may be one of those that come at random, and not the sign of a limit."""
        evidence = self._evidence
        if not evidence.sporadic.share or retry_after is not None or not isinstance(phase, Cruise | Contended):
            return False
        windows = evidence.windows
        return not windows or windows.share(windows.fullest(sent_at), sent_at) < windows.FULL

    def _add_sample(
        self, phase: Phase, sent_at: float, now: float, before: int | None, retry_after: float | None
    ) -> Phase:
        self._evidence.add_sample(sent_at, before)
        return phase.rate_limited(now, retry_after, self._evidence, self._random)

    def _share_if_contended(self, silence: Silence, now: float, retry_after: float | None) -> Phase:
        """After a small burst, a silence that the line does not explain means other clients."""
        evidence, line = self._evidence, self._evidence.line
        burst = silence.inner.burst if line.first is None else line.first.accepted
        if silence.doubtful_after is None or silence.vain < 2 or evidence.windows or burst >= line.LARGE_BURST:
            return silence
        if self._is_line_certain or (line.is_bold and not silence.is_doubtful(silence.refused_at)):
            return silence
        if line.was_calm:
            return silence
        line.contention += 2
        bucket = line.empty_bucket(max(line.MIN_RATE, silence.inner.rate / 2), burst, now, retry_after)
        return Contended(bucket, evidence, self._random, now)

    def _silence(self, phase: Phase, sent_at: float, now: float, retry_after: float | None) -> Silence:
        """The silence after a 429 that no window explains."""
        evidence = self._evidence
        is_line_known = len(evidence.line.samples) > 1 or evidence.line.bounds.known
        if is_line_known:
            knock_at = now + phase.time_until(1, now, 0.0, evidence)
        elif evidence.windows:
            knock_at = max(now + evidence.ack, evidence.windows.earliest(evidence.ack))
        else:
            knock_at = now + self._first_knock(sent_at)
            if now + evidence.ack < evidence.reset_at:
                knock_at = min(knock_at, evidence.reset_at)
        silence = Silence(
            phase,
            sent_at,
            knock_at,
            on_answer=not is_line_known and not evidence.windows,
            doubtful_after=self._doubtful_after(phase) if is_line_known else None,
        )
        silence.honor(now, retry_after)
        return silence

    def _doubtful_after(self, phase: Phase) -> float:
        """Seconds of silence that the line explains: with the rate that is certain, where the phase goes beyond it."""
        line = self._evidence.line
        return Silence.LONG / (line.bounds.low if line.is_bold else phase.rate)

    def _first_knock(self, sent_at: float) -> float:
        """Seconds until the first knock, where neither a line nor a window says when."""
        evidence = self._evidence
        burst, latency = sent_at - evidence.burst_at, evidence.slots.latency
        if latency is None or burst <= 0:  # as far as is known, answers take long, or the service is closed
            return self.FIRST_KNOCK
        return min(self.FIRST_KNOCK, max(evidence.ack, burst, latency))

    def _blame_window(self, phase: Phase, sent_at: float, now: float, retry_after: float | None) -> Phase | None:
        """Blames a 429 on the fullest window. Returns the phase that follows; None if it is not the cause."""
        evidence, windows = self._evidence, self._evidence.windows
        window = windows.fullest(sent_at)
        share = windows.share(window, sent_at)
        is_full = share >= windows.FULL
        first = evidence.log.last_until(sent_at, window.count)
        if is_full and first is not None:
            window.fall_back(sent_at - first)
        count, shrinks_to, is_believed = window.count, None, False
        missing = count * (1 - share)
        if not is_full and (not windows.is_full(window, sent_at) if count <= FEW else missing > 1):
            count = evidence.log.count(sent_at, window.seconds)
            if not isinstance(phase, Windowed) or count < 1:
                return None
            if sent_at >= self._trusted_from:
                window.doubt()
                if window.knocks_at_once:
                    shrinks_to = count
                else:
                    window.shrink(count)
                    is_believed = True
        evidence.burst_at = evidence.log.last(count) or evidence.burst_at
        doubtful_after = self._doubtful_after(phase) if evidence.line.bounds.known else None
        if sent_at < self._trusted_from:
            doubtful_after = _NEVER  # an earlier client may have used the window
        silence = Silence(phase, sent_at, now, blamed=window, shrinks_to=shrinks_to, doubtful_after=doubtful_after)
        silence.is_believed = is_believed
        silence.plan_knock(now, retry_after, evidence)
        return silence

    def _after_silence(self, silence: Silence, at: float) -> Phase:
        """Returns the phase after a silence that ended with a request that was sent at `at`."""
        evidence = self._evidence
        proven = silence.proven
        pattern_at = evidence.burst_at
        if silence.vain or proven > 0:
            evidence.burst_at = at
        if self._is_single(at) and evidence.windows.add_single(silence.refused_at, at):
            return Windowed(at)
        if silence.blamed is not None and evidence.windows.measure_single(silence.blamed, silence.refused_at, at):
            return silence.inner
        if self._is_opened_by(silence, at):
            return Opening(silence, at, pattern_at, self._mean_pace(), evidence)
        return silence.inner if silence.blamed is None else self._after_blame(silence, silence.blamed, at)

    def _after_blame(self, silence: Silence, window: Window, at: float) -> Phase:
        """Returns the phase after a silence for which a window was blamed."""
        is_sure = silence.vain > 0 or not window.knocks_at_once
        if not silence.vain and (not is_sure or not silence.is_believed):
            window.judge(was_random=True)
        if silence.shrinks_to is not None or self._evidence.windows.stretch(
            window, silence.refused_at, at, is_sure=is_sure
        ):
            return silence.inner
        return self._blame_line(silence, at) if silence.vain and self._evidence.line.bounds.known else silence.inner

    def _blame_line(self, silence: Silence, at: float) -> Phase:
        """The phase after a silence that the window that was blamed does not explain: the line is slower than known."""
        self._evidence.line.add_sample(silence.refused_at)
        return silence.inner.rate_limited(at, None, self._evidence, self._random)

    def _is_single(self, at: float) -> bool:
        """Whether a request that was accepted at `at` shows that the service accepts one at a time.

        It is the second one after a full bucket, or the one after the first 429s of a bucket that was empty.
        """
        line, before = self._evidence.line, self._evidence.log.last(2)
        if line.first is None or before is None or at - before >= self.SINGLE_WITHIN:
            return False
        if line.first.accepted:
            return line.first.accepted == 1 and len(line.samples) == 1
        return len(line.samples) == 2 and 2 <= line.samples[-1].accepted <= self.SINGLE_AFTER

    def _is_opened_by(self, silence: Silence, at: float) -> bool:
        """Whether a knock that was sent at `at` and accepted ends in an opening: nothing known explains the silence."""
        is_line_known = silence.doubtful_after is not None
        return silence.is_doubtful(at) or not (is_line_known or self._evidence.windows)

    def _mean_pace(self) -> float:
        """Requests per second that were accepted at startup, in the mean."""
        line = self._evidence.line
        if line.first is None:
            return self._evidence.peak
        return max(Opening.MIN_PACE, line.first.accepted / max(line.first.at - line.started, 1e-3))

    def _after_window(self, opening: Opening, now: float) -> Phase:
        """Returns the phase after an opening that shows a window, or that the service was down."""
        evidence = self._evidence
        if 2 * opening.silence > evidence.longest_silence:
            evidence.origin, evidence.longest_silence = opening.opened_at, opening.silence
        if not evidence.log.times or evidence.log.times[0] > opening.since:
            evidence.line.samples.clear()  # nothing was accepted before the silence: the service was down
            return Windowed(now)
        blamed = opening.blamed
        if blamed is not None and evidence.windows.reduce(blamed, opening.refused_at, opening.opened_at):
            return opening.inner if evidence.line.bounds.known else Windowed(now)
        earlier = evidence.log.accepted_until(opening.since) - evidence.log.dropped
        window = evidence.windows.add(opening.since, opening.refused_at, opening.opened_at, opening.burst_at)
        if opening.accepted_until(now - evidence.ack, evidence) > window.count:
            evidence.windows.all.remove(window)  # more at once than ever before: the service was down
            evidence.line.begin(now)
            return opening.inner if evidence.line.bounds.known else Windowed(now)
        was_kept = blamed is not None and blamed.rounds > self.SURE_ROUNDS and opening.silence < blamed.seconds
        if (was_kept or self._is_line_certain) and window.count >= self.WHOLE_HISTORY * earlier:
            # A limit was kept to for long, and no window explains the silence: it is another limit now.
            evidence.forget(opening.since)
            return Windowed(now)
        return opening.inner if evidence.line.bounds.known else Windowed(now)

    @property
    def _is_line_certain(self) -> bool:
        line = self._evidence.line
        return line.bounds.agreeing >= self.SURE_SAMPLES and line.bounds.high < line.MAX_SPREAD * line.bounds.low

    def advise(self, now: float, said: AdvertisedReply) -> None:
        if self._claims is None:
            self._claims = Claims()
        self._claims.record(said, now)
        self._evidence.reset_at = self._claims.advertised.reset_at
        self._weigh_claims(self._claims, now)

    def _weigh_claims(self, claims: Claims, now: float) -> None:
        """Uses what the service advertises, where there is no evidence."""
        before = claims.used
        self._phase = claims.weigh(self._phase, self._evidence, now)
        if claims.used is not before:
            self._update(now)

    def move_clock(self, now: float) -> None:
        self._evidence.move_clock(now)
        self._phase = self._phase.move_clock(now)
        if self._claims is not None:
            self._claims.move_clock()
        self._confirmed_from = self._evidence.log.total
        self._trusted_from = now + max((window.seconds for window in self._evidence.windows.all), default=-_NEVER)
        self._update(now)
