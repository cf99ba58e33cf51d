"""How many requests a service takes at once, found from its own words that it is overloaded. Pure.

A database without a free connection, or a model server whose queue is full, says so with an error and not with a 429.
Such a fault says nothing about a rate: too much is in flight. So concurrency is taken away and comes back slowly.

An *episode* begins with a fault of a request that was sent after the last cut. Faults of requests that were sent before
it belong to the old concurrency: they cut nothing and are no attempt of their request. The first cut is to what was
answered while the failed request was in flight, which is about what the service can hold; each later one is to 0.7 of
what there was. One place comes back after as many answers as there are places.
"""

__all__ = ["Overload"]

_LATER_CUT = 0.7
"""Share of the concurrency that a later episode leaves; gentler than one half, as the first cut was measured."""


class Overload:
    """The concurrency that an overloaded service leaves.

    Attributes:
        ceiling: Requests that may be in flight at once; None until the service was overloaded, and again when it has
            given everything back.
    """

    __slots__ = ("_answers", "_cut_at", "ceiling")

    def __init__(self) -> None:
        self.ceiling: int | None = None
        self._cut_at = -float("inf")
        self._answers = 0

    def record_fault(self, sent_at: float, now: float, *, in_flight: int, answered: int) -> bool:
        """The service said that it is overloaded.

        Args:
            sent_at: When the failed request was sent, in seconds.
            now: The current time in seconds.
            in_flight: Requests in flight, the failed one included.
            answered: Requests that were answered while it was in flight.

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
        """Goes on in another event loop, whose clock may be another one."""
        self._cut_at = -float("inf")

    def record_answer(self, max_concurrency: int) -> None:
        """A request was answered, which may give a place back.

        Args:
            max_concurrency: As declared; the ceiling goes when it gets there.
        """
        if self.ceiling is None:
            return
        self._answers += 1
        if self._answers >= self.ceiling:
            self._answers = 0
            self.ceiling += 1
            if self.ceiling >= max_concurrency:
                self.ceiling = None
