"""What refusals teach about a rate that nobody declared. Pure."""

from onellm_async.limits.bucket import TokenBucket

__all__ = ["AdaptiveRate"]


class AdaptiveRate:
    """Additive increase, multiplicative decrease of the rate; the concurrency is left alone.

    Methods that watch latency get no signal from a bucket that refuses at once, and those that steer the concurrency
    keep nearly half of their requests refused, so it is the rate that is steered.

    Args:
        now: The current time.
    """

    __slots__ = ("_bucket", "_grown_at", "_mark")

    START = 8.0
    """Requests per second until the first refusal."""
    DECREASE = 0.7
    INCREASE = 0.006
    """Share of the rate added for each request that is let through."""

    def __init__(self, now: float) -> None:
        self._bucket = TokenBucket(self.START, 1.0, updated_at=now)
        self._mark: float | None = None

    @property
    def rate(self) -> float:
        return self._bucket.rate

    def time_until(self, requests: float, now: float) -> float:
        wait = (requests - self._bucket.level_at(now)) / self._bucket.rate
        return wait if wait > 1e-9 else 0.0

    def take(self, now: float) -> None:
        self._bucket.take(1, now)

    def give_back(self, now: float) -> None:
        self._bucket.give_back(1, now)

    def answered(self, sent_at: float, now: float) -> None:
        if self._mark is not None and sent_at > self._mark:
            self._bucket.retune(now, rate=self._bucket.rate * (1 + self.INCREASE))

    def refused(self, sent_at: float, now: float) -> None:
        if self._mark is None or sent_at > self._mark:
            self._mark = now
            self._bucket.retune(now, rate=self._bucket.rate * self.DECREASE)

    def rebase(self, now: float) -> None:
        self._bucket.rebase(now)
        if self._mark is not None:
            self._mark = min(self._mark, now)
