"""For how long the service's bucket may have been full, so that its refill was lost. Pure."""

from collections.abc import Sequence


class SaturationClock:
    """Follows the highest level that the service's bucket can have.

    Args:
        now: The current time in seconds.

    Attributes:
        rate: Tokens per second, at most, for which it counts.
        seconds: Total time in which the bucket may have been full.
    """

    MAX_GAP = 4.0
    """Tokens that may be refilled between two requests of which the second gets a 429. If there were more, another
    client uses the key, or the service was down."""

    __slots__ = ("_accepted", "_at", "_before", "_capacity", "_full_at", "_level", "rate", "seconds")

    def __init__(self, now: float) -> None:
        self.seconds: float = 0.0
        self.restart(now, 0.0, 1.0)

    def restart(self, now: float, rate: float, capacity: float) -> None:
        """Starts from a bucket with less than one token.

        Args:
            now: The current time.
            rate: Tokens per second, at most.
            capacity: Tokens that the bucket holds, at least.
        """
        self._at, self._level = now, 1.0
        self.rate: float = rate
        self._capacity = capacity
        self._full_at: float | None = None
        self._accepted = 0
        self._before: tuple[float, float | None, int] | None = None

    @classmethod
    def replayed(cls, sent: Sequence[float], empty_at: float, rate: float, capacity: float) -> "SaturationClock":
        """A clock that has seen so many requests.

        Args:
            sent: When they were sent, in order.
            empty_at: When the bucket had less than one token.
            rate: Tokens per second, at most.
            capacity: Tokens that the bucket holds, at least.
        """
        clock = cls(empty_at)
        clock.restart(empty_at, rate, capacity)
        for at in sent:
            clock.take(at)
        return clock

    def take(self, now: float) -> None:
        """Records that a request is sent, which takes a token."""
        refilled = max(0.0, now - self._at) * self.rate
        self._before = (self.seconds, self._full_at, self._accepted) if refilled <= self.MAX_GAP else None
        level = self._level + refilled
        if level > self._capacity:
            if self.rate:  # else tokens that were given back, before anything is known of the refill
                self.seconds += (level - self._capacity) / self.rate
            self._full_at, self._accepted = now, 0
            level = self._capacity
        else:
            self._accepted += 1
        self._at, self._level = now, level - 1

    def assume(self, rate: float, now: float) -> None:
        """Counts from now on with another rate, in tokens per second, at most. The bucket may be full."""
        self.rate = rate
        self._at, self._level = now, self._capacity
        self._full_at, self._before = None, None

    def rest(self, seconds: float, now: float) -> None:
        """Records that for `seconds` until now there was nothing to send: the bucket may have been full."""
        self.seconds += seconds
        self._at, self._level = now, self._capacity
        self._full_at, self._before = None, None

    def give_back(self) -> None:
        """Records that the last request was not sent after all."""
        self._level += 1

    def rate_limited(self, sent_at: float, later: int, jitter: float) -> float:
        """Records a 429: the bucket was not full when that request arrived, nor since the request before it.

        Args:
            sent_at: When the request was sent.
            later: Requests sent since.
            jitter: Seconds by which the delay from sending to arriving may differ between two requests.

        Returns:
            Upper bound on the refill rate in tokens per second since the bucket was last possibly full; infinite if
            unbounded.
        """
        accepted = self._accepted - later - 1
        if not later and self._before is not None:
            self.seconds, self._full_at, accepted = self._before
        if self._full_at is None or sent_at - self._full_at <= jitter or accepted < 0:
            return float("inf")
        return (accepted + 1) / (sent_at - self._full_at - jitter)

    def move_clock(self, now: float) -> None:
        """Continues with a clock that may have been set back. Earlier counts do not apply to it."""
        self._at, self._full_at = now, None
        self._before = None
