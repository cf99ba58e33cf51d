"""How many requests an overloaded service accepts at once. Pure.

A database without a free connection, or a model server whose queue is full, answers with an error and not with a 429.
Such a fault says nothing about a rate: too much is in flight. So concurrency is reduced, and recovers gradually.

A fault of a request that was sent after the last cut causes the next cut. Faults of requests that were sent before it
belong to the old concurrency: they cut nothing, and are no attempt of their request. The first cut is to the number of
requests answered while the failed one was in flight, which is about what the service can hold. Each later cut is to 0.7
of the concurrency. One slot comes back after as many answers as there are slots.
"""

_LATER_CUT = 0.7
"""Factor of the concurrency at a later cut. It is above one half because the first cut was measured."""


class Overload:
    """The concurrency that an overloaded service allows.

    Attributes:
        ceiling: Maximum number of requests in flight; None before an overload and after full recovery.
    """

    __slots__ = ("_answers", "_cut_at", "ceiling")

    def __init__(self) -> None:
        self.ceiling: int | None = None
        self._cut_at = -float("inf")
        self._answers = 0

    def record_fault(self, sent_at: float, now: float, *, in_flight: int, answered: int) -> bool:
        """Records an overload.

        Args:
            sent_at: When the failed request was sent, in seconds.
            now: The current time in seconds.
            in_flight: Requests in flight, the failed one included.
            answered: Requests answered while it was in flight.

        Returns:
            Whether the request was sent after the last cut, so that the fault is an attempt of it.
        """
        if sent_at <= self._cut_at:
            return False
        if self.ceiling is None:
            self.ceiling = max(1, min(answered, in_flight - 1))
        else:
            self.ceiling = max(1, int(min(self.ceiling, in_flight) * _LATER_CUT))
        self._cut_at, self._answers = now, 0
        return True

    def forget_times(self) -> None:
        """Continues in another event loop, whose clock may be another one."""
        self._cut_at = -float("inf")

    def record_answer(self, max_concurrency: int) -> None:
        """Records an answer, which may give a slot back.

        Args:
            max_concurrency: As declared. The ceiling ends when it reaches this number.
        """
        if self.ceiling is None:
            return
        self._answers += 1
        if self._answers >= self.ceiling:
            self._answers = 0
            self.ceiling += 1
            if self.ceiling >= max_concurrency:
                self.ceiling = None
