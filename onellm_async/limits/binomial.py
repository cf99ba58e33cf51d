"""A share of a rate limit that other clients use, too. Pure."""

from math import sqrt


class BinomialRate:
    """A rate that decreases with each 429 and increases with each answer.

    It is for a limit that is shared with other clients, or lower than declared. A 429 reduces the rate by a fixed
    share. An answer increases the *square root* of the rate by a fixed step, which is a binomial law: halfway between
    multiplicative and additive increase. A client with a larger share gets more 429s and grows by a smaller share. So
    the clients of one key converge to equal shares, whatever the limit is. The steps grow with the time since the last
    429, because the other clients may have stopped.

    429s in a row without an answer are no sign of other clients, but of an outage. The first answer then restores the
    rate from before the outage, reduced once.

    Args:
        rate: Initial rate in requests per second.
        floor: Minimum rate.
        ceiling: Maximum rate.
        consecutive_429s: 429s since the last answer, if they began before this object was made.
        rate_before_drop: Rate before these 429s.
        step: Increase of the square root of the rate after an answer.
    """

    __slots__ = ("_answers", "_consecutive_429s", "_rate_before_drop", "_step", "ceiling", "floor", "value")

    DECREASE = 0.7
    """Factor of the rate after a 429."""
    STEP = 0.01
    """Increase of the square root of the rate (1/s) after an answer. In balance, each of four clients that share 40
    requests per minute gets a 429 for one request in eight, and each of sixteen for one in five."""
    ACCELERATE_AFTER = 10
    """Answers without a 429 after which a step is twice as large; after twice as many it is five times as large."""
    OUTAGE_AFTER = 6
    """429s in a row that mean an outage. One of sixteen clients that share a limit sees so many once in thousands of
    requests."""

    def __init__(
        self,
        rate: float,
        *,
        floor: float,
        ceiling: float,
        consecutive_429s: int = 0,
        rate_before_drop: float | None = None,
        step: float = STEP,
    ) -> None:
        self.floor: float = floor
        self.value: float = rate
        self._step = step
        self.ceiling: float = ceiling
        self._answers = 0
        self._consecutive_429s = consecutive_429s
        self._rate_before_drop = rate if rate_before_drop is None else rate_before_drop

    @property
    def at_ceiling(self) -> bool:
        """Whether the rate has its maximum."""
        return self.value >= self.ceiling

    def increase(self) -> None:
        """Records an answer."""
        if not self._consecutive_429s and self.value >= self.ceiling:
            return
        if self._consecutive_429s >= self.OUTAGE_AFTER:
            self.value = max(self.value, self.DECREASE * self._rate_before_drop)
        self._consecutive_429s = 0
        self._answers += 1
        step = self._step * (1 + (self._answers / self.ACCELERATE_AFTER) ** 2)
        self.value = min(self.ceiling, (sqrt(self.value) + step) ** 2)

    def decrease(self, mean: float | None = None) -> None:
        """Records a 429.

        Args:
            mean: Requests per second that were accepted lately, in the mean, if that bounds the rate. One that grew
                while the service's bucket had savings is far above what the others leave; it would take three more
                429s to come down.
        """
        if not self._consecutive_429s:
            self._rate_before_drop = self.value
        self._consecutive_429s += 1
        self._answers = 0
        self.value = max(self.floor, self.DECREASE * (self.value if mean is None else min(self.value, mean)))
