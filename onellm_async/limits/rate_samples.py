"""Rate-limit samples, and the bounds of the rate that follow from them. Pure.

A 429 is a *sample*: when that request arrived, the service's bucket held less than one token. If A requests were
accepted between two samples T seconds apart, the refill rate lies between (A - 1) / T and (A + 1) / T. Every pair of
samples gives such bounds; the tightest bounds that the newest samples agree on stand. A full bucket is not refilled, so
the time in which it may have been full does not count for the upper bound (see `saturation`).
"""

from collections.abc import Sequence

from attrs import frozen

UNBOUNDED = float("inf")
"""An upper bound that is not known."""


class RateLimitSample:
    """One 429, or another moment from which requests are counted.

    Attributes:
        at: When the request was sent, in seconds.
        accepted: Requests that the service had accepted by then.
        saturated: Seconds until then in which the service's bucket may have been full.
        max_rate: Upper bound of the rate in requests per second, from the requests accepted shortly before.
        empty: Whether the service's bucket certainly was empty. If not, only an upper bound follows from the sample.
    """

    __slots__ = ("accepted", "at", "empty", "max_rate", "saturated")

    def __init__(
        self, at: float, accepted: int, saturated: float = 0.0, max_rate: float = UNBOUNDED, *, empty: bool = True
    ) -> None:
        self.at: float = at
        self.accepted: int = accepted
        self.saturated: float = saturated
        self.max_rate: float = max_rate
        self.empty: bool = empty


@frozen
class RateBounds:
    """The interval in which the rate lies.

    Attributes:
        low: Lower bound in requests per second.
        high: Upper bound in requests per second.
        agreeing: Number of the newest samples that agree with these bounds.
    """

    low: float = 0.0
    high: float = UNBOUNDED
    agreeing: int = 0

    TIGHT = 3.0
    """Bounds are tight if `high` is less than this many times `low`."""

    @property
    def known(self) -> bool:
        """Whether there is an upper bound."""
        return self.high < UNBOUNDED

    @property
    def tight(self) -> bool:
        """Whether `low` is close enough to the rate to cruise at it."""
        return self.high < self.TIGHT * self.low

    @property
    def confidence(self) -> float:
        """1 - (high - low) / (high + low); 0 without an upper bound."""
        return 1 - (self.high - self.low) / (self.high + self.low) if self.known and self.high > 0 else 0.0


def rate_bounds(samples: Sequence[RateLimitSample], jitter: float) -> RateBounds:
    """Returns the tightest bounds that the newest samples agree on.

    Args:
        samples: In order of time.
        jitter: Seconds by which the delay from sending to arriving may differ between two requests.
    """
    low, high = 0.0, samples[-1].max_rate if samples else UNBOUNDED
    for count, earlier in enumerate(reversed(samples[:-1]), 1):
        tighter_low, tighter_high = low, min(high, earlier.max_rate)
        for later in samples[len(samples) - count :]:
            accepted, elapsed = later.accepted - earlier.accepted, later.at - earlier.at
            if earlier.empty:
                tighter_low = max(tighter_low, (accepted - 1) / (elapsed + jitter))
            refilled = elapsed - (later.saturated - earlier.saturated) - jitter
            if later.empty and refilled > 0:
                tighter_high = min(tighter_high, (accepted + 1) / refilled)
        if tighter_low > tighter_high:
            return RateBounds(low, high, count)
        low, high = tighter_low, tighter_high
    return RateBounds(low, high, len(samples))
