"""Whether a Retry-After of one second was rounded up. Pure.

The header has whole seconds, so a service whose next token comes in 5 ms can only send 0, which means nothing, or 1.
Discovering the rate of such a service provokes 429s. At 200 requests per second, each of them would cost 200 requests,
up to what the bucket saves. So if the discovered rate would not have waited as long, a 1 counts as rounded up, once. If
the next request is accepted, it was. If that gets a 429, the service means it, and the next ones are honored: twice as
many each time.
"""

_NEVER = float("-inf")


class Rounding:
    """Decides which Retry-After is honored."""

    __slots__ = ("_from", "_honored", "_left", "_test_until", "_until")

    MAX_ROUNDED = 1.0
    """Seconds that may have been rounded up."""
    TEST_GAPS = 2.0
    """The request that decides is sent within so many gaps at the rate. A later 429 has another cause."""
    MAX_HONORED = 64
    """429s in a row whose Retry-After is honored before the next test, at most."""

    def __init__(self) -> None:
        self._from = self._test_until = self._until = _NEVER
        self._honored = self._left = 0

    def is_honored(self, sent_at: float, now: float, retry_after: float, rate: float) -> bool:
        """Records a 429 with Retry-After, and returns whether to wait that long.

        Args:
            sent_at: When the request was sent.
            now: The current time.
            retry_after: Seconds that the service asked to wait.
            rate: Requests per second that would be sent otherwise.
        """
        if retry_after > self.MAX_ROUNDED or rate * retry_after <= 1:
            return True
        if self._left:
            self._left -= 1
            return True
        if sent_at <= self._from:
            return False  # it was in flight when the 429 before it arrived
        if sent_at < self._test_until:
            self._honored = self._left = min(self.MAX_HONORED, 2 * self._honored or 1)
            return True
        self._from, self._until = now, now + retry_after
        self._test_until = now + self.TEST_GAPS / rate
        return False

    def answered(self, sent_at: float) -> None:
        """Records an answer."""
        if self._from < sent_at < self._until:
            self._honored = 0
