"""A declared window: so many requests in so many seconds, never more. Pure."""

from collections import deque
from collections.abc import Sequence
from math import ceil

from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.bucket import TokenBucket

_NEVER = float("inf")


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
