"""How a client shares a limit with others that it knows nothing of. Pure."""

from math import sqrt

__all__ = ["SharedRate"]


class SharedRate:
    """A rate that gives way and comes back, for a limit that others use, too, or that is not what it was said to be.

    A refusal makes it smaller by a share of itself. An answer makes its *square root* larger by a fixed step (a
    binomial law, halfway between growing by a share and growing by an amount). Who has more is refused more often and
    grows by a smaller share, so the clients of a key become equals, whatever the size of the limit, which none of them
    knows. The longer there is no refusal, the larger are the steps: the others may have gone.

    Refusals time after time with no answer in between are no sign of others: the service was shut. With the first
    answer the rate is then back where it fell from, less one refusal's share.

    Args:
        rate: Requests per second, at first.
        floor: The least it ever becomes.
        ceiling: The most it ever becomes.
        in_vain: Refusals since the last answer, when they began before this was made.
        fallen_from: The rate at which they began.
    """

    __slots__ = ("_answers", "_fallen_from", "_in_vain", "ceiling", "floor", "value")

    DECREASE = 0.7
    STEP = 0.01
    """Of the square root of the rate (1/s), for each answer. In balance that refuses one request in eight to each of
    four clients that share 40 a minute, and one in five to each of sixteen."""
    EAGER = 10
    """Answers without a refusal after which a step is twice as large, after twice as many five times, and so on."""
    SHUT = 6
    """Refusals without an answer in between after which the service must have been shut: to one of sixteen clients
    that share a limit this happens once in thousands of requests."""

    def __init__(
        self, rate: float, *, floor: float, ceiling: float, in_vain: int = 0, fallen_from: float | None = None
    ) -> None:
        self.floor: float = floor
        self.value: float = rate
        self.ceiling: float = ceiling
        self._answers = 0
        self._in_vain = in_vain
        self._fallen_from = rate if fallen_from is None else fallen_from

    @property
    def at_ceiling(self) -> bool:
        """Whether nothing is given way to any more."""
        return self.value >= self.ceiling

    def grow(self) -> None:
        """Takes note of an answer."""
        if not self._in_vain and self.value >= self.ceiling:
            return
        if self._in_vain >= self.SHUT:
            self.value = max(self.value, self.DECREASE * self._fallen_from)
        self._in_vain = 0
        self._answers += 1
        step = self.STEP * (1 + (self._answers / self.EAGER) ** 2)
        self.value = min(self.ceiling, (sqrt(self.value) + step) ** 2)

    def shrink(self) -> None:
        """Takes note of a refusal."""
        if not self._in_vain:
            self._fallen_from = self.value
        self._in_vain += 1
        self._answers = 0
        self.value = max(self.floor, self.DECREASE * self.value)
