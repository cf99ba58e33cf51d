"""How many requests a service accepts at once, as far as its faults tell. Pure.

A database without a free connection, or a model server whose queue is full, answers with an error and not with a 429.
Such a fault says nothing about a rate: too much is in flight. So concurrency is reduced, and recovers gradually.

=============== ============================================ ==========================================================
state           event                                        change
=============== ============================================ ==========================================================
unlimited       first fault                                  cut to the requests answered while the failed one was in
                                                             flight, about what the service can hold
unlimited, cut  later fault                                  cut to 0.7 of the requests in flight
cut             fault of a request sent before the cut       none: it belongs to the old concurrency, and is no attempt
cut             as many answers as slots, all slots in use   one slot more
cut             few faults among the requests that were in   the cut is taken back: they have another cause, which less
                flight when it was made                      concurrency does not help
growing         answers as many as slots, all slots in use   twice the slots (the start with ``max_concurrency="auto"``)
growing         first fault or 429                           cut, to no less than was accepted before
=============== ============================================ ==========================================================
"""

from math import ceil

_LATER_CUT = 0.7
"""Factor of the concurrency at a later cut. It is above one half because the first cut was measured."""
_RANDOM_SHARE = 0.05
"""Share of the requests in flight at a cut whose faults take it back if there are no more. One percent of faults that
do not depend on the load would otherwise cost two thirds of the throughput (``benchmarks/overload.py``)."""
_JUDGED_SHARE = 0.9
"""Share of the requests in flight at a cut that must have ended before it is judged."""
_MIN_ROUND = 8
"""Minimum number of answers before the next slot is tried with ``max_concurrency="auto"``. With one place, each trial
is a 429 for so many answers."""
FIRST_SIZE = 4
"""Slots at the start with ``max_concurrency="auto"``."""


class Overload:
    """The concurrency that an overloaded service allows.

    Args:
        grows: Whether it starts with few slots and finds out how many are accepted.

    Attributes:
        ceiling: Maximum number of requests in flight; None before an overload and after full recovery.
        is_growing: Whether the slots still double with each round of answers.
    """

    __slots__ = (
        "_allowed",
        "_answers",
        "_before",
        "_cut_at",
        "_ended",
        "_faults",
        "_in_flight",
        "_min_round",
        "_proven",
        "_since_fault",
        "_was_cut",
        "_was_full",
        "_was_growing",
        "ceiling",
        "is_growing",
    )

    def __init__(self, *, grows: bool = False) -> None:
        self.ceiling: int | None = FIRST_SIZE if grows else None
        self.is_growing: bool = grows
        self._cut_at = -float("inf")
        self._answers = self._since_fault = 0
        self._was_cut = self._was_full = self._was_growing = False
        self._proven = 1
        self._min_round = _MIN_ROUND if grows else 1
        # The cut that is not judged yet: slots before it, requests in flight, how many of them ended or failed so.
        self._before: int | None = None
        self._in_flight = self._ended = self._faults = 0
        self._allowed = 0.0

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
            self._faults += 1
            self._judge()
            return False
        before = self.ceiling
        if self.is_growing or not self._was_cut:
            self.ceiling = max(1, min(max(answered, self._proven), in_flight - 1))
        else:
            size = in_flight if before is None else min(before, in_flight)
            self.ceiling = max(1, min(ceil(size * _LATER_CUT), size - 1))
        if not self._in_flight:  # else the earlier cut, which is not judged yet, was from more slots
            self._before, self._was_growing = before, self.is_growing
        self._in_flight, self._ended, self._faults = in_flight, 0, 1
        rare = self._since_fault >= 1 / _RANDOM_SHARE
        self._allowed, self._since_fault = max(_RANDOM_SHARE * in_flight, float(rare)), 0
        self._was_cut, self.is_growing = True, False
        self._cut_at, self._answers = now, 0
        self._judge()
        return True

    def _judge(self) -> None:
        """Counts the end of a request that was in flight at the cut, and takes the cut back if it was without cause."""
        self._ended += 1
        if self._in_flight and self._ended >= _JUDGED_SHARE * self._in_flight:
            if self._faults <= self._allowed:
                self.ceiling = self._before if self._before is None else max(self._before, self.ceiling or 0)
                self.is_growing = self._was_growing
            self._in_flight = 0

    def forget_times(self) -> None:
        """Continues in another event loop, whose clock may be another one."""
        self._cut_at = -float("inf")
        self._in_flight = 0

    def is_before_cut(self, sent_at: float) -> bool:
        """Whether a request that was sent then belongs to the concurrency before the last cut."""
        return sent_at <= self._cut_at

    def record_answer(
        self, max_concurrency: int, *, sent_at: float = float("inf"), in_flight: int | None = None
    ) -> None:
        """Records an answer, which may give a slot back.

        Args:
            max_concurrency: As declared. The ceiling ends when it reaches this number.
            sent_at: When the request was sent, in seconds.
            in_flight: Requests in flight, this one included; None if all slots are in use.
        """
        if sent_at <= self._cut_at:
            self._judge()
        else:
            self._since_fault += 1
        if self.ceiling is None:
            return
        self._answers += 1
        self._was_full = self._was_full or in_flight is None or in_flight >= self.ceiling
        if self._answers < (self.ceiling if self.is_growing else max(self.ceiling, self._min_round)):
            return
        full, self._was_full, self._answers = self._was_full, False, 0
        if not full:
            return  # not all slots were tried
        if self.is_growing:
            self._proven, self.ceiling = self.ceiling, 2 * self.ceiling
        else:
            self.ceiling += 1
        if self.ceiling >= max_concurrency:
            self.ceiling = None
