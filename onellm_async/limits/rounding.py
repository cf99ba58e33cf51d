"""Whether a Retry-After of one second means a second. Pure.

The header counts in whole seconds, so a service whose next token is there in 5 ms can only say 0, which asks for
nothing, or 1. Who looks for the rate of such a service provokes refusals, and at 200 requests a second would waste 200
of them for each, up to what the bucket saves up. So where the rate found so far would not have waited as long, 1 is
taken for rounded up, once: if what is sent then comes through, it was; if it is refused, the service means it, and is
believed for the next refusals, for twice as many each time.
"""

__all__ = ["Rounding"]

_NEVER = float("-inf")


class Rounding:
    """Tells which Retry-After has to be waited for."""

    __slots__ = ("_believe", "_first_by", "_from", "_left", "_until")

    LONGEST = 1.0
    """Seconds that may have been rounded up from next to nothing."""
    FIRST = 2.0
    """Gaps, at the rate, within which the request leaves that decides; what is refused later came too fast."""
    MOST = 64
    """Refusals in a row that are believed before it is tried again."""

    def __init__(self) -> None:
        self._from = self._first_by = self._until = _NEVER
        self._believe = self._left = 0

    def is_meant(self, sent_at: float, now: float, retry_after: float, rate: float) -> bool:
        """Whether to wait as long as a refusal asks for.

        Args:
            sent_at: When the refused request was sent.
            now: The current time.
            retry_after: Seconds that the service asked for.
            rate: Requests per second that would leave otherwise.
        """
        if retry_after > self.LONGEST or rate * retry_after <= 1:
            return True
        if self._left:
            self._left -= 1
            return True
        if sent_at <= self._from:
            return False  # it was on its way when the one before was refused
        if sent_at < self._first_by:
            self._believe = self._left = min(self.MOST, 2 * self._believe or 1)
            return True
        self._from, self._until = now, now + retry_after
        self._first_by = now + self.FIRST / rate
        return False

    def answered(self, sent_at: float) -> None:
        """A request came through."""
        if self._from < sent_at < self._until:
            self._believe = 0
