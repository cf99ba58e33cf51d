"""Rate controls that need no discovery: a declared bucket, a declared window, and backoff alone. Pure."""

from collections import deque
from collections.abc import Sequence
from math import ceil
from random import Random

from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.binomial import BinomialRate
from onellm_async.limits.bucket import TokenBucket
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
        self._rate = BinomialRate(per_second, floor=floor, ceiling=per_second)
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
        self._forget(now if sent_at is None else sent_at, now)

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
            self._consecutive_429s = 0
        if self._window is not None:
            self._window.answered(sent_at, now)
        if self._bucket.rate < self._rate.value:
            self._bucket.retune(now, rate=self._rate.value)

    def released(self, sent_at: float, now: float) -> None:
        """Learns nothing."""

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        self._forget(sent_at, now, refused=True)
        if self._last_429 is not None and sent_at <= self._last_429:
            return  # sent before the last 429 was known, so it tells nothing new
        if self._is_spaced(sent_at):
            self._last_429 = now
            self._space_evenly(now)
            return
        if retry_after:  # what is saved meanwhile may not be there, so it is paced like the first burst
            self._confirmed_at = max(self._confirmed_at, now + retry_after + self._burst / self._rate.ceiling)
        previous, self._last_429 = self._last_429, now
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
            self._rate.decrease()
            self._bucket.retune(now, rate=self._rate.value)
        self._bucket.drain(now, self._empty_level)

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


class DeclaredWindow:
    """Keeps to a declared window: never more than `count` requests in any `per` seconds.

    It remembers when requests were sent. The next one is sent when the `count`-th last one has left the window. A
    request that gets a 429 does not count, or it would make the last request of a day wait for the next day.

    A 429 says that another client uses the window, or an earlier process did. The count is then no help until the
    service accepts again, and single requests find out when it does: soon at first, then less often. If the headers of
    the 429 say when the window ends, none is sent before.

    If that happens in two windows in a row, fewer are accepted than declared, and the client keeps to what was
    accepted. One request more is tried in the next window, then two, four and so on; after a 429 it waits longer for
    that.

    Args:
        count: Requests in a window.
        per: Seconds of the window.
        now: The current time.
        strict: Whether the count never changes.
    """

    MAX_PATIENCE = 8
    """Windows between two trials of more requests, at most."""
    max_in_flight: float = float("inf")
    """A declared window says nothing of concurrency."""
    TRAVEL_JITTER = 0.05
    """Seconds by which one request may travel faster than another. The window is longer by so much."""
    MAX_JITTER_SHARE = 0.02
    """Share of a short window that is added to it at most."""
    START_PACE = 10.0
    """Minimum pace of a batch in the first window, in requests per second. An earlier process may have used it."""
    START_FACTOR = 20
    """Pace of a batch in the first window as a multiple of the declared rate, if that is more: a window that was not
    used costs a twentieth of its length."""
    GAP_GROWTH = 1.5
    """Factor of the gap between two single requests with each 429."""
    MAX_GAP = 60.0
    """Maximum gap between two single requests in seconds, and a tenth of a shorter window."""
    MAX_ENTRIES = 4096
    """Times that are remembered. In a window of more requests several share one time, the latest of them."""

    def __init__(self, count: int, per: float, now: float, *, strict: bool = False) -> None:
        self._strict = strict
        self._sent: deque[list[float]] = deque()  # [latest time, requests, first time]
        self._used = 0
        self._429s = 0
        self._last_429 = self._closed_until = self._reset_at = float("-inf")
        self._made_at = now
        self._confirmed_at = now + per
        self._declare(count, per)
        self._pacer = TokenBucket(max(self.START_PACE, self.START_FACTOR * count / per), 1.0, updated_at=now)

    def _declare(self, count: int, per: float) -> None:
        self.count: int = count
        self.per: float = per
        self._length = per + min(self.TRAVEL_JITTER, self.MAX_JITTER_SHARE * per)
        self._chunk = ceil(count / self.MAX_ENTRIES)
        self._allowed = count
        self._changed_at = self._short_at = -_NEVER
        self._short = 0  # requests that were in the window when a 429 came too early
        self._step = self._patience = 1

    def retune(self, count: int, per: float, now: float, *, strict: bool = False) -> None:
        """Keeps to another declared window from `now` on. It remembers what the old one did.

        Args:
            count: Requests in a window.
            per: Seconds of the window.
            now: The current time.
            strict: Whether the count never changes.
        """
        self._strict = strict
        self._declare(count, per)
        self._pacer.retune(now, rate=max(self.START_PACE, self.START_FACTOR * count / per))
        self._confirmed_at = min(self._confirmed_at, now + per)

    @property
    def rate(self) -> float:
        """Requests per second, as long as a window of more than a minute is not used up."""
        return self._allowed / min(self.per, 60.0)

    @property
    def state(self) -> None:
        """Always None: another control starts from the declaration."""
        return None

    @property
    def confidence(self) -> float:
        return 1.0

    def used(self, now: float) -> int:
        """Requests in the window that ends at `now`."""
        return self._used - sum(int(number) for time, number, _ in self._sent if time + self._length <= now)

    def count_earlier(self, sent_at: Sequence[float], now: float) -> None:
        """Counts requests that an earlier process sent.

        Args:
            sent_at: When they were sent. Only times before this object was made count: later ones are its own.
            now: The current time.
        """
        earlier = [at for at in sent_at if now - self._length < at < self._made_at]
        self._sent = deque(sorted([*self._sent, *([at, 1, at] for at in earlier)]))
        self._used += len(earlier)

    def room_in(self, now: float) -> float:
        """Seconds until the window has room for a request, whatever the service says."""
        return self._room_in(1, now)

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        wait = self._room_in(requests + min(reserve, self.count // 10), now)
        if self._closed_until > now + wait:
            wait = self._closed_until - now
        if paced and now < self._confirmed_at:
            pace_wait = (requests - self._pacer.level_at(now)) / self._pacer.rate
            wait = max(wait, min(pace_wait, self._confirmed_at - now))
        return wait if wait > 1e-9 else 0.0

    def _room_in(self, requests: float, now: float) -> float:
        missing = requests - (self._allowed - self._used)
        if missing <= 0:
            return 0.0
        at = now
        for time, number, _ in self._sent:
            at = max(at, time + self._length)
            missing -= number
            if missing <= 0:
                return at - now
        return at - now + ceil(missing / self._allowed) * self._length  # windows that are not begun yet

    def take(self, now: float) -> None:
        sent = self._sent
        while sent and sent[0][0] + self._length <= now:
            self._used -= int(sent.popleft()[1])
        if sent and sent[-1][1] < self._chunk:
            sent[-1][0] = max(now, sent[-1][0])
            sent[-1][1] += 1
        else:
            sent.append([now, 1, now])
        self._used += 1
        if self._allowed < self.count and now - self._changed_at >= self._patience * self._length:
            self._allowed, self._changed_at = min(self.count, self._allowed + self._step), now
            self._step *= 2
        if self._429s:  # one request at a time until one is accepted
            self._closed_until = now + self._gap()
        if now < self._confirmed_at:
            self._pacer.try_take(1, now)  # requests that other lanes send at once do not delay a batch

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        at = now if sent_at is None else sent_at
        for index, entry in enumerate(self._sent):
            if entry[2] <= at <= entry[0]:
                self._used -= 1
                entry[1] -= 1
                if not entry[1]:
                    del self._sent[index]
                return

    def answered(self, sent_at: float, now: float) -> None:
        if self._429s and sent_at > self._last_429:
            self._429s = 0
            self._closed_until = float("-inf")

    def released(self, sent_at: float, now: float) -> None:
        """Learns nothing."""

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        self.give_back(now, sent_at)
        if sent_at <= self._last_429:  # sent before the last 429 was known, and counted then
            if self._short_at >= self._last_429:
                self._short = min(self._short, self.used(now))
            if self._changed_at >= self._last_429:
                self._allowed = max(1, min(self._allowed, self.used(now)))
            return
        self._last_429 = now
        self._429s += 1
        self._closed_until = max(now + self._gap(), self._reset_at)
        if self._429s == 1 and not self._strict:  # else the window has not opened since
            self._learn(self.used(now), now)

    def _learn(self, used: int, now: float) -> None:
        """Records a 429 with `used` requests in the window."""
        if used >= self.count:
            return
        if self._allowed < self.count:  # more was tried than is accepted
            if used < self._allowed:
                self._patience = min(self.MAX_PATIENCE, 2 * self._patience)
                self._allowed, self._changed_at, self._step = max(1, used, self._allowed // 2), now, 1
        elif now - self._short_at > 2 * self._length:
            self._short, self._short_at = used, now
        elif now - self._short_at < self._length / 2:
            self._short = max(self._short, used)
        else:
            self._allowed, self._changed_at, self._step = max(1, used, self._short), now, 1

    @property
    def found(self) -> str | None:
        """The window in words, if fewer are accepted than declared; None if not."""
        return None if self._allowed == self.count else f"{self._allowed:,} requests in any {self.per:g} s"

    def _gap(self) -> float:
        gap = self.per / self.count * self.GAP_GROWTH ** min(self._429s - 1, 60)
        return min(gap, self.MAX_GAP, max(self.per / 10, self.per / self.count))

    def drain(self, now: float) -> None:
        """Changes nothing: only what was sent has used the window."""

    def advise(self, now: float, said: AdvertisedReply) -> None:
        self._reset_at = now + reset if (reset := said.reset_if_empty) is not None and reset <= self.per else -_NEVER

    def move_clock(self, now: float) -> None:
        for entry in self._sent:
            entry[0], entry[2] = min(entry[0], now), min(entry[2], now)
        self._pacer.move_clock(now)
        self._closed_until, self._reset_at = min(self._closed_until, now), min(self._reset_at, now)
        self._last_429 = min(self._last_429, now)


class BackoffOnly:
    """No rate limit. After a 429 all requests wait: exponential backoff with full jitter, until one is accepted.

    If the headers of a 429 say when the limit is reset, nothing is sent before, but no longer than 30 s.

    Args:
        random: Source of jitter.
    """

    __slots__ = ("_429s", "_closed_until", "_last_429", "_random", "_reset_at")

    found: str | None = None
    """It discovers nothing."""
    max_in_flight: float = float("inf")
    """Nothing is known of concurrency."""
    BASE = 0.5
    """Half the longest wait after the first 429, in seconds; it doubles with each further one."""
    CAP = 30.0
    """Maximum wait in seconds."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._closed_until = self._last_429 = self._reset_at = float("-inf")
        self._429s = 0

    @property
    def rate(self) -> float:
        return float("inf")

    @property
    def state(self) -> None:
        """Always None: nothing is known."""
        return None

    @property
    def confidence(self) -> float:
        return 0.0

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        return max(0.0, self._closed_until - now)

    def take(self, now: float) -> None:
        """Counts nothing."""

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        """Counts nothing."""

    def answered(self, sent_at: float, now: float) -> None:
        if self._429s and sent_at > self._last_429:
            self._429s = 0

    def released(self, sent_at: float, now: float) -> None:
        """Learns nothing."""

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        if sent_at <= self._last_429:
            return
        self._last_429 = now
        self._429s += 1
        backoff = self._random.uniform(0, min(self.CAP, self.BASE * 2.0 ** min(self._429s, 60)))
        self._closed_until = max(now + backoff, self._reset_at)

    def advise(self, now: float, said: AdvertisedReply) -> None:
        self._reset_at = now + min(reset, self.CAP) if (reset := said.reset_if_empty) is not None else -_NEVER

    def move_clock(self, now: float) -> None:
        self._closed_until, self._reset_at = min(self._closed_until, now), min(self._reset_at, now)
        self._last_429 = min(self._last_429, now)
