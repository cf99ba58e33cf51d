"""For how long a service's bucket may have been full, so that what would have been refilled was lost. Pure."""

__all__ = ["Overflow"]


class Overflow:
    """Follows the fullest that the service's bucket can be.

    Args:
        now: The current time.

    Attributes:
        seconds: For how long, in all, the bucket may have been full.
    """

    PATIENCE = 4.0
    """Tokens that may have come between two requests of which the second is refused; beyond that somebody else uses
    the key, or the service was shut."""

    __slots__ = ("_at", "_before", "_capacity", "_full_at", "_level", "_rate", "_taken", "seconds")

    def __init__(self, now: float) -> None:
        self.seconds: float = 0.0
        self.restart(now, 0.0, 1.0)

    def restart(self, now: float, rate: float, capacity: float) -> None:
        """The bucket holds less than one token now, and is refilled at `rate` at most, up to `capacity` at least."""
        self._at, self._level = now, 1.0
        self._rate, self._capacity = rate, capacity
        self._full_at: float | None = None
        self._taken = 0
        self._before: tuple[float, float | None, int] | None = None

    def take(self, now: float) -> None:
        """A request leaves that takes a token."""
        refilled = max(0.0, now - self._at) * self._rate
        self._before = (self.seconds, self._full_at, self._taken) if refilled <= self.PATIENCE else None
        level = self._level + refilled
        if level > self._capacity:
            self.seconds += (level - self._capacity) / self._rate
            self._full_at, self._taken = now, 0
            level = self._capacity
        else:
            self._taken += 1
        self._at, self._level = now, level - 1

    def give_back(self) -> None:
        """The last request did not leave after all."""
        self._level += 1

    def refused(self, sent_at: float, later: int, jitter: float) -> float:
        """One was refused, so the bucket was not full when it arrived, nor since the one before.

        Args:
            sent_at: When it was sent.
            later: How many have been sent since.
            jitter: Seconds by which the moments of sending and of arriving may differ between two requests.

        Returns:
            Tokens per second that are refilled at most: since the bucket may last have been full nothing was lost, and
            after a take it holds no less than nothing. Infinite where nothing follows.
        """
        passed = self._taken - later - 1
        if not later and self._before is not None:
            self.seconds, self._full_at, passed = self._before
        if self._full_at is None or sent_at - self._full_at <= jitter or passed < 0:
            return float("inf")
        return (passed + 1) / (sent_at - self._full_at - jitter)

    def rebase(self, now: float) -> None:
        """Goes on with a clock that may have been set back; what was counted before says nothing about it."""
        self._at, self._full_at = now, None
        self._before = None
