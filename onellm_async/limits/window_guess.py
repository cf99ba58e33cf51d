"""Whether a service that was declared as a token bucket counts in windows. Pure."""

from collections import deque
from collections.abc import Iterable


class WindowGuess:
    """Windows that a declaration may have meant, and what was sent lately.

    A bucket that was declared as 40 requests per minute may be a window of 40 requests in 60 s. The two differ after a
    429: a bucket accepts again after one refill, a window only when it has room. So a window explains two 429s in a row
    if as many requests as it holds were accepted within its length.

    Args:
        windows: Requests and seconds of each possible window.
    """

    __slots__ = ("_windows", "sent")

    MAX_COUNT = 4096
    """Windows of more requests are not looked for: the times of so many are remembered."""
    SPARE = 64
    """Further times that are remembered, in place of those of requests that get a 429."""

    def __init__(self, windows: Iterable[tuple[int, float]]) -> None:
        possible = {(count, per) for count, per in windows if 2 <= count <= self.MAX_COUNT}
        self._windows = sorted(possible, reverse=True)  # a steady rate also fills the smaller one
        largest = self._windows[0][0] if self._windows else 0
        self.sent: deque[float] = deque(maxlen=largest + self.SPARE)
        """When requests were sent that got no 429."""

    @property
    def is_possible(self) -> bool:
        """Whether there is a window to look for."""
        return bool(self._windows)

    def forget(self, sent_at: float) -> None:
        """Records that a request was not accepted."""
        if sent_at in self.sent:
            self.sent.remove(sent_at)

    def explain(self, now: float) -> tuple[int, float] | None:
        """Requests and seconds of the window that is full now; None if none is."""
        for count, per in self._windows:
            if len(self.sent) >= count and self.sent[-count] > now - per:
                return count, per
        return None
