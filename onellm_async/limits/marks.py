"""What a rate must be, from the moments at which the service refused. Pure.

A refusal is a *mark*: at that moment the service's bucket held less than one token. Between two marks, with A requests
let through in T seconds, the refill rate therefore lies between (A - 1) / T and (A + 1) / T. Every pair of marks gives
such bounds; the tightest ones stand. A bucket that is full is not refilled, so the time in which it may have been full
does not count for the upper one.
"""

from collections.abc import Sequence

from attrs import frozen

__all__ = ["Bounds", "Mark", "bounds_of"]

UNKNOWN = float("inf")


class Mark:
    """A moment, and how many requests the service had let through before.

    Attributes:
        at: When the request that tells it was sent.
        passed: Requests let through until then.
        idle: Seconds until then in which the service's bucket may have been full.
        below: Requests per second that the rate is below, by what came through shortly before.
        empty: Whether the service's bucket certainly was empty; if not, only an upper bound follows from the mark.
    """

    __slots__ = ("at", "below", "empty", "idle", "passed")

    def __init__(
        self, at: float, passed: int, idle: float = 0.0, below: float = UNKNOWN, *, empty: bool = True
    ) -> None:
        self.at: float = at
        self.passed: int = passed
        self.idle: float = idle
        self.below: float = below
        self.empty: bool = empty


@frozen
class Bounds:
    """Between what the rate lies.

    Attributes:
        low: Requests per second, at least.
        high: Requests per second, at most.
        agreeing: How many of the newest marks these bounds are true of.
    """

    low: float = 0.0
    high: float = UNKNOWN
    agreeing: int = 0

    TIGHT = 3.0

    @property
    def known(self) -> bool:
        """Whether there is an upper one."""
        return self.high < UNKNOWN

    @property
    def tight(self) -> bool:
        """Whether `low` is worth being relied on."""
        return self.high < self.TIGHT * self.low

    @property
    def confidence(self) -> float:
        """How narrow they are: 1 - (high - low) / (high + low)."""
        return 1 - (self.high - self.low) / (self.high + self.low) if self.known and self.high > 0 else 0.0


def bounds_of(marks: Sequence[Mark], jitter: float) -> Bounds:
    """The tightest bounds that the newest marks agree on.

    Args:
        marks: In order of time.
        jitter: Seconds by which the moments of sending and of arriving may differ between two requests.
    """
    low, high = 0.0, marks[-1].below if marks else UNKNOWN
    for count, earlier in enumerate(reversed(marks[:-1]), 1):
        tighter_low, tighter_high = low, min(high, earlier.below)
        for later in marks[len(marks) - count :]:
            passed, elapsed = later.passed - earlier.passed, later.at - earlier.at
            if earlier.empty:
                tighter_low = max(tighter_low, (passed - 1) / (elapsed + jitter))
            refilled = elapsed - (later.idle - earlier.idle) - jitter
            if later.empty and refilled > 0:
                tighter_high = min(tighter_high, (passed + 1) / refilled)
        if tighter_low > tighter_high:
            return Bounds(low, high, count)
        low, high = tighter_low, tighter_high
    return Bounds(low, high, len(marks))
