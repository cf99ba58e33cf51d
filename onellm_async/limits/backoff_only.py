"""No rate limit at all: what is done after a 429 then. Pure."""

from random import Random

from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.evidence import Evidence
from onellm_async.limits.send_log import SendLog

_NEVER = float("inf")


class BackoffOnly:
    """No rate limit. After a 429 all requests wait: exponential backoff with full jitter, until one is accepted.

    The more requests were accepted since the last 429, the shorter is the first wait: where 429s come at random, a long
    one would use a hundredth of the service. After it one request goes alone, or one for each `CONFIRMED_PER_PLACE`
    that were accepted since the last 429, then twice as many, and so on. Else all that waited would be sent in one
    moment, again and again.

    If the headers of a 429 say when the limit is reset, nothing is sent before, but no longer than 30 s.

    Args:
        random: Source of jitter.
    """

    __slots__ = ("_429s", "_answered", "_closed_until", "_confirmed_from", "_first", "_is_open", "_last_429", "_log",
                 "_random", "_reset_at", "_round_trip")  # fmt: skip

    found: str | None = None
    """It discovers nothing."""
    max_in_flight: float = float("inf")
    """Nothing is known of concurrency."""
    BASE = 0.5
    """Half the longest wait after the first 429, in seconds; it doubles with each further one."""
    CAP = 30.0
    """Maximum wait in seconds."""
    START_ROUND_TRIP = 0.1
    """Seconds that a 429 takes, as far as is known before the first."""
    SMOOTHING = 0.3
    """Weight of a new round trip in the usual one."""
    CONFIRMED_PER_PLACE = 8
    """Requests accepted since the last 429 for each one that may be out after the next."""
    OPEN = 64
    """Requests accepted since a 429 from which as many as there are slots may be out."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._closed_until = self._last_429 = self._reset_at = float("-inf")
        self._429s = 0
        self._round_trip = self.START_ROUND_TRIP
        self._log = SendLog(4 * self.OPEN)
        self._confirmed_from = 0
        self._first = 1
        self._is_open = True
        self._answered = 0  # answers to requests that were sent since the last 429

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

    @property
    def _ack(self) -> float:
        return Evidence.ACK_FACTOR * self._round_trip

    def _confirmed(self, now: float) -> int:
        """Requests accepted since the last 429: those that have an answer, or would have their 429 by now."""
        return max(self._answered, self._confirmed_by_time(now))

    def _confirmed_by_time(self, now: float) -> int:
        return max(0, self._log.accepted_until(now - self._ack) - self._confirmed_from)

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        if now < self._closed_until:
            return self._closed_until - now
        if self._is_open:
            return 0.0
        confirmed = self._confirmed(now)
        answered_soon = confirmed - self._confirmed_by_time(now)  # not out any more, although they were sent lately
        last = self._log.last(self._first + confirmed + answered_soon)
        return 0.0 if last is None else max(0.0, last + self._ack - now)

    def take(self, now: float) -> None:
        self._is_open = self._is_open or self._confirmed(now) >= self.OPEN
        self._log.sent(now)

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        last = self._log.last(1) if sent_at is None else sent_at
        if last is not None:
            self._log.remove(last)

    def answered(self, sent_at: float, now: float) -> None:
        if sent_at > self._last_429:
            self._answered += 1

    def released(self, sent_at: float, now: float) -> None:
        """Learns nothing."""

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        is_first = self._last_429 == -_NEVER
        self._round_trip += (1.0 if is_first else self.SMOOTHING) * (now - sent_at - self._round_trip)
        was_sent = self._log.remove(sent_at)
        if sent_at <= self._last_429:  # it was sent before the last 429 was known, and counted as accepted then
            self._confirmed_from -= was_sent
            return
        confirmed = self._confirmed(now)
        self._429s = 1 if confirmed else self._429s + 1
        self._last_429, self._answered = now, 0
        self._confirmed_from = self._log.total
        self._is_open = False
        self._first = 1 + min(2 * self.OPEN, confirmed) // self.CONFIRMED_PER_PLACE
        longest = min(self.CAP, self.BASE * 2.0 ** min(self._429s, 60)) / (1 + confirmed)
        self._closed_until = max(now + self._random.uniform(0, longest), self._reset_at)

    def advise(self, now: float, said: AdvertisedReply) -> None:
        self._reset_at = now + min(reset, self.CAP) if (reset := said.reset_if_empty) is not None else -_NEVER

    def move_clock(self, now: float) -> None:
        self._closed_until, self._reset_at = min(self._closed_until, now), min(self._reset_at, now)
        self._last_429 = min(self._last_429, now)
        self._log.move_clock()
        self._confirmed_from = self._log.total
