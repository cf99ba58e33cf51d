"""A declared token bucket, which is kept to and corrected by 429s. Pure."""

from collections import deque
from random import Random

from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.binomial import BinomialRate
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.declared_window import DeclaredWindow
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.window_guess import WindowGuess

_NEVER = float("inf")


class DeclaredRate:
    """Keeps to a declared token bucket, and decreases the rate if 429s persist.

    The client does not know three things about the service's bucket: its level at the start, how long each request
    travels, and whether the declaration is true. Hence:

    - A margin of a few tokens is never used. A request that overtakes another one then still finds a token. If the
      burst is too small for a margin, the rate is slightly lower.
    - The first burst of a batch is paced until one refill period has passed. Other lanes use it at once: a 429 costs
      them nothing, and a pace would let users wait beside a full bucket.
    - A 429 means that the service's bucket is empty, so this one is emptied, too. Only 429s that persist although the
      level is known decrease the rate. It then recovers gradually. What is saved during a Retry-After may not be there,
      so a batch is paced after it.
    - The service may space requests evenly, whatever burst was declared. If 429s come only for requests that were sent
      sooner after an accepted one than the rate refills, the client spaces its own, at the full rate.
    - The service may count the declared rate in windows. If a second 429 follows, or a Retry-After is too long for a
      bucket, and a full window explains it, the client keeps to that window instead, and does not decrease the rate.

    Args:
        per_second: Declared refill rate.
        burst: Declared capacity.
        now: The current time.
        state: State of an earlier control; its rate is kept if it is below the declared one.
        random: Source of the random gaps between requests while the rate is below the declared one, so that clients of
            one key do not synchronize; None: even gaps.
        strict: Whether the rate never changes. A 429 then only empties the bucket.
        per: Seconds over which the rate was declared, to find it again when limits change.
    """

    max_in_flight: float = float("inf")
    """A declared rate says nothing of concurrency."""
    TRAVEL_JITTER = 0.05
    """Seconds by which one request may travel faster than another. The margin is what is refilled in this time."""
    START_PACE = 10.0
    """Minimum pace of a batch's unconfirmed first burst, in requests per second; four times the declared rate if that
    is more."""
    MAX_CLIENTS = 64
    """The rate never falls below the declared one divided by this many clients."""
    MANY_CLIENTS = 16
    """A share of so many clients may fall to one request per `MAX_GAP`, no lower. A service that was down is then soon
    found to be up."""
    MAX_GAP = 30.0
    """Seconds between two requests, at most, for a share of `MANY_CLIENTS`."""
    NO_BUCKET = 3.0
    """Tokens that are refilled in the time of a Retry-After, from which it is not of a bucket: that has one sooner."""
    EARLY_429S = 4
    """429s in a row for requests that were sent sooner than the rate refills, from which it spaces them evenly. None
    may have come for a later one meanwhile, and no such request may have been accepted."""
    SOON = 0.95
    """A request is sooner than the rate refills after so much of the time that takes."""
    REMEMBERED = 64
    """Sends that are remembered for that."""
    USUAL_STEP_TO = 40 / 60
    """Requests per second up to which the rate increases by the usual steps. With the same ones, 12,000 per minute came
    back after hundreds of answers."""
    STEP_GROWTH = 0.25
    """Power of the declared rate with which the steps grow from there on. With a half, any rate comes back after as
    many answers, but one that is declared four times too high has .16 429s for each answer; with none it has .05."""
    COINCIDENCE = 100
    """A 429 within the time of this many requests after another 429 is no coincidence."""

    def __init__(
        self,
        per_second: float,
        burst: float,
        now: float,
        state: RateState | None = None,
        *,
        random: Random | None = None,
        strict: bool = False,
        per: float = 60.0,
    ) -> None:
        self.per: float = per
        self.found: str | None = None
        self._guess: WindowGuess | None = None
        self._window: DeclaredWindow | None = None
        self._random = random
        self._strict = strict
        self._next_cost = 1.0
        self._last_429: float | None = None
        self._consecutive_429s = 0
        self._counted = 0  # answers to requests that were sent since the last 429
        self._sends: deque[float] = deque(maxlen=self.REMEMBERED)
        self._bucket: TokenBucket
        self._declare(per_second, burst)
        self._bucket = TokenBucket(self._rate.value, burst - self._margin, updated_at=now)
        self._pacer = TokenBucket(max(self.START_PACE, 4 * per_second), 1.0, updated_at=now)
        self._confirmed_at = now + burst / per_second
        if not strict and state is not None and state.rate < self._rate.value:
            self._rate.value = max(self._rate.floor, state.rate)
            self._bucket.retune(now, rate=self._rate.value)

    def _declare(self, per_second: float, burst: float) -> None:
        margin = min(burst / 4, 1 + per_second * self.TRAVEL_JITTER) if burst >= 2 else 0.0
        if burst < 2:
            per_second /= 1 + per_second * self.TRAVEL_JITTER
        self._burst, self._margin = burst, margin
        self._early_429s = 0
        self._empty_level = -min(1.0, margin)
        floor = max(per_second / self.MAX_CLIENTS, min(per_second / self.MANY_CLIENTS, 1 / self.MAX_GAP))
        step = BinomialRate.STEP * max(1.0, per_second / self.USUAL_STEP_TO) ** self.STEP_GROWTH
        self._rate = BinomialRate(per_second, floor=floor, ceiling=per_second, step=step)
        self._guess = self._window = self.found = None
        if not self._strict:
            guess = WindowGuess([(int(burst), burst / per_second), (round(per_second * self.per), self.per)])
            self._guess = guess if guess.is_possible else None

    def retune(self, per_second: float, burst: float, now: float, *, strict: bool = False, per: float = 60.0) -> None:
        """Keeps to another declared bucket from `now` on. The level stays, cut to the new capacity.

        A correction by 429s is dropped: it applied to the old limit.

        Args:
            per_second: New refill rate.
            burst: New capacity.
            now: The current time.
            strict: Whether the rate never changes.
            per: Seconds over which it was declared.
        """
        self._strict, self.per = strict, per
        self._declare(per_second, burst)
        self._bucket.retune(now, rate=self._rate.value, capacity=burst - self._margin)
        self._pacer.retune(now, rate=max(self.START_PACE, 4 * per_second))
        self._confirmed_at = min(self._confirmed_at, now + burst / per_second)
        self._next_cost = 1.0

    @property
    def rate(self) -> float:
        return self._bucket.rate

    @property
    def state(self) -> RateState:
        """The rate in use, corrections included."""
        low = self._rate.value if self._rate.at_ceiling else 0.0
        return RateState(self._rate.value, self._burst, low, self._rate.ceiling)

    @property
    def confidence(self) -> float:
        """The rate in use as a share of the declared one."""
        return self._rate.value / self._rate.ceiling

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        bucket = self._bucket
        reserved = min(reserve, bucket.capacity - self._next_cost) if reserve else 0.0
        wait = (requests + reserved + self._next_cost - 1 - bucket.level_at(now)) / bucket.rate
        if paced and now < self._confirmed_at:
            pace_wait = (requests - self._pacer.level_at(now)) / self._pacer.rate
            wait = max(wait, min(pace_wait, self._confirmed_at - now))
        if self._window is not None:
            room_in = self._window.time_until(requests, now, reserve)
            wait = room_in if self._rate.at_ceiling else max(wait, room_in)
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._sends.append(now)
        if self._guess is not None:
            self._guess.sent.append(now)
        elif self._window is not None:
            self._window.take(now)
            if self._rate.at_ceiling:
                return
        self._bucket.take(1, now)
        if self._consecutive_429s > 1:  # one request at a time until one is accepted
            self._bucket.drain(now, 0.0)
        self._next_cost = 1.0
        if self._random is not None and self._rate.value < self._rate.ceiling:
            self._next_cost = self._random.uniform(0.5, min(1.5, self._bucket.capacity))
        if now < self._confirmed_at:
            self._pacer.try_take(1, now)  # requests that other lanes send at once do not delay a batch

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        self._bucket.give_back(1, now)
        last = self._sends[-1] if self._sends else now
        self._forget(last if sent_at is None else sent_at, now)

    def _forget(self, sent_at: float, now: float, *, refused: bool = False) -> None:
        """Records that a request did not use a window."""
        if sent_at in self._sends:
            self._sends.remove(sent_at)
        if self._guess is not None:
            self._guess.forget(sent_at)
        elif self._window is not None and refused:
            self._window.rate_limited(sent_at, now)
        elif self._window is not None:
            self._window.give_back(now, sent_at)

    def _is_spaced(self, sent_at: float) -> bool:
        """Whether a 429 is one more for a request that was sent too soon, of so many that the service has no burst."""
        self._early_429s = self._early_429s + 1 if self._is_early(sent_at) else 0
        return self._early_429s >= self.EARLY_429S and self._burst > 1 and self._window is None and not self._strict

    def _is_early(self, sent_at: float) -> bool:
        """Whether a request was sent sooner after one without a 429 than the rate refills."""
        before = next((at for at in reversed(self._sends) if at < sent_at), -_NEVER)
        return (sent_at - before) * self._rate.ceiling < self.SOON

    def _space_evenly(self, now: float) -> None:
        """Keeps to the rate without a burst."""
        rate = self._rate.ceiling
        self._declare(rate, 1.0)
        self._bucket.retune(now, rate=self._rate.value, capacity=1.0)
        self._bucket.drain(now, self._empty_level)
        self._next_cost = 1.0
        self.found = f"1 request in any {1 / rate:.3g} s"

    def answered(self, sent_at: float, now: float) -> None:
        if self._early_429s and self._is_early(sent_at):
            self._early_429s = 0
        if self._last_429 is None or sent_at > self._last_429:
            self._rate.increase()
            self._counted += 1
            self._consecutive_429s = 0
        if self._window is not None:
            self._window.answered(sent_at, now)
        if self._bucket.rate < self._rate.value:
            self._bucket.retune(now, rate=self._rate.value)

    def released(self, sent_at: float, now: float) -> None:
        if sent_at in self._sends:  # as far as is known, it was not accepted
            self._sends.remove(sent_at)

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        self._forget(sent_at, now, refused=True)
        if self._last_429 is not None and sent_at <= self._last_429:
            return  # sent before the last 429 was known, so it tells nothing new
        if self._is_spaced(sent_at):
            self._last_429, self._counted = now, 0
            self._space_evenly(now)
            return
        if retry_after:  # what is saved meanwhile may not be there, so it is paced like the first burst
            self._confirmed_at = max(self._confirmed_at, now + retry_after + self._burst / self._rate.ceiling)
        previous, self._last_429 = self._last_429, now
        counted, self._counted = self._counted, 0
        self._consecutive_429s += 1
        is_certain = self._consecutive_429s == 2 or (retry_after or 0.0) * self._rate.value > self.NO_BUCKET
        if is_certain and self._guess is not None and (full := self._guess.explain(now)) is not None:
            self._keep_window(*full, self._guess, now)
            return
        if self._window is not None:
            if previous is None or now - previous > 2 * self._window.per:
                return
            self._window = self.found = None  # two 429s that it does not explain: it was none
        if retry_after and self._consecutive_429s > 1:
            pass  # nothing is accepted, and the service says for how long: the rate is not the cause
        elif not self._strict and previous is not None and (now - previous) * self._rate.value < self.COINCIDENCE:
            self._count_accepted(previous, sent_at, counted)
            self._rate.decrease()
            self._bucket.retune(now, rate=self._rate.value)
        self._bucket.drain(now, self._empty_level)

    def _count_accepted(self, after: float, until: float, answered: int) -> None:
        """Increases the rate for requests that were sent between two 429s and got none, but have no answer yet.

        Where an answer takes longer than the time between two 429s, nothing else would increase it.

        Args:
            after: When the first of the two 429s was known.
            until: When the request of the second one was sent.
            answered: Requests among those between that have an answer.
        """
        for _ in range(sum(after < at < until for at in self._sends) - answered):
            self._rate.increase()

    def _keep_window(self, count: int, per: float, guess: WindowGuess, now: float) -> None:
        self._window, self._guess = DeclaredWindow(count, per, now), None
        self._window.count_earlier(guess.sent, now)
        self._consecutive_429s = 0
        self.found = f"{count:,} requests in any {per:g} s"

    def drain(self, now: float) -> None:
        """Empties the bucket, because the service's bucket is empty."""
        self._bucket.drain(now)

    def advise(self, now: float, said: AdvertisedReply) -> None:
        """Changes nothing: the rate is declared."""

    def move_clock(self, now: float) -> None:
        self._bucket.move_clock(now)
        self._pacer.move_clock(now)
        if self._guess is not None:
            self._guess.sent.clear()
        if self._window is not None:
            self._window.move_clock(now)
        if self._last_429 is not None:
            self._last_429 = min(self._last_429, now)
