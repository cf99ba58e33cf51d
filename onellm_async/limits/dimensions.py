"""The dimensions of a limit: what a request takes from each when it is sent. Pure.

A request is sent when every dimension allows it, and takes from all of them at once. `DIMENSIONS` lists them. Another
limit is another class here and a field of `Limits` that it reads. A dimension without a limit is left out of the loop.
"""

from collections import defaultdict
from typing import ClassVar, TypeVar

from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.overload import Overload
from onellm_async.limits.policy import AUTO, Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import RateControl
from onellm_async.limits.slots import Slots

_NEVER = float("inf")


class Dimension:
    """One thing that is limited. The ticket of a request is its cost.

    Args:
        limits: As declared.
        now: The current time in seconds, on the clock that all later calls use.

    Attributes:
        name: The bottleneck, if this dimension keeps a request from being sent.
        is_limited: Whether there is a limit, so that the dimension takes part.
    """

    __slots__ = ("is_limited", "name")

    NAME: ClassVar[Bottleneck]

    def __init__(self, limits: Limits, now: float) -> None:
        self.name: Bottleneck = self.NAME
        self.is_limited: bool = True
        self.reconfigure(limits, now)

    def time_until(self, ticket: Ticket, now: float) -> float:
        """Seconds until the request may be sent; infinite while only an event can help."""
        raise NotImplementedError

    def take(self, ticket: Ticket, now: float) -> None:
        """Takes what the request needs."""

    def give_back(self, ticket: Ticket, now: float) -> None:
        """Returns everything, because the request never reached the service."""
        self.settle(ticket, 0.0, now)

    def settle(self, ticket: Ticket, used: float | None, now: float) -> None:
        """Ends the use of what a request took.

        Args:
            ticket: The ticket of the request.
            used: Tokens that it used; None if not known, and the estimate stands.
            now: The current time.
        """

    def reconfigure(self, limits: Limits, now: float) -> None:
        """Continues with other limits. Requests in flight keep what they took."""

    def level(self, now: float) -> float | None:
        """What is available at once; None without a limit."""
        return None


class Concurrency(Dimension):
    """Requests in flight, at most `Limits.max_concurrency`, or fewer while the service is overloaded.

    Attributes:
        size: Maximum number of requests in flight now.
        declared: Maximum number of requests in flight, whatever the service accepts.
        grows: Whether that is found out, because `Limits.max_concurrency` is ``"auto"``.
        in_flight: Number of requests in flight.
        of_model: Of these, the number for each model.
        overload: What the service allows while it is overloaded.
        control: The rate control, which may have found a limit of concurrency; None: nothing is found.
        found: What 429s say of a limit of concurrency, where the rate control does not ask; None before the first one.
    """

    __slots__ = ("_last", "_round_trip", "control", "declared", "found", "grows", "in_flight", "of_model", "overload",
                 "size")  # fmt: skip

    NAME: ClassVar[Bottleneck] = "concurrency"
    ACK_FACTOR = 1.5
    """A 429 that is to come has come after so many round trips."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.in_flight: int = 0
        self.of_model: defaultdict[str | None, int] = defaultdict(int)
        self.overload: Overload = Overload(grows=limits.max_concurrency == AUTO)
        self.control: RateControl | None = None
        self.found: Slots | None = None
        self._last = self._round_trip = 0.0
        self.size: int
        self.declared: int
        self.grows: bool = limits.max_concurrency == AUTO
        super().__init__(limits, now)

    def time_until(self, ticket: Ticket, now: float) -> float:
        if self.in_flight >= self.size or (self.control is not None and self.in_flight >= self.control.max_in_flight):
            return _NEVER
        found = self.found
        if found is None or found.in_flight < found.limit:
            return 0.0
        if not found.is_trial_due or found.in_flight > found.limit:
            return _NEVER
        return max(0.0, self._last + found.trial_gap - now)

    @property
    def allowed(self) -> int:
        """Maximum number of requests in flight now, as far as 429s have shown a limit."""
        found = _NEVER if self.found is None else self.found.limit
        return int(min(self.size, found, _NEVER if self.control is None else self.control.max_in_flight))

    def limit_found(self, rate: float) -> str | None:
        """The limit of concurrency in words; None if nothing is certain, or if `rate` per second does not reach it."""
        return None if self.found is None else self.found.describe(rate)

    def take(self, ticket: Ticket, now: float) -> None:
        self.in_flight += 1
        self.of_model[ticket.model] += 1
        if self.found is not None:
            self.found.sent(now)
            self._last = now

    def answered(self, ticket: Ticket, now: float) -> None:
        """Records that a request was accepted."""
        if self.found is not None:
            self.found.answered(ticket.since, now, self.ACK_FACTOR * self._round_trip)

    def ended(self, ticket: Ticket) -> None:
        """Records that a request is over without a result that tells of a limit."""
        if self.found is not None:
            self.found.ended(ticket.since)

    def rate_limited(self, ticket: Ticket, now: float, *, is_rate_known: bool) -> bool:
        """Records a 429.

        Args:
            ticket: The ticket of the request.
            now: The current time.
            is_rate_known: Whether a declared rate may explain the 429. What was in flight before the first one was not
                noted, so that 429 then suggests nothing.

        Returns:
            Whether the 429 was expected, so that it says nothing of a rate.
        """
        if self.found is None:
            self.found, self._last = Slots(self.in_flight), now
        found = self.found
        self._round_trip = max(0.9 * self._round_trip, now - ticket.since)
        before = found.refused(ticket.since)
        if before is None and not is_rate_known:
            before = found.in_flight
        if before == 0:  # also the last of requests sent at once that all got a 429: none of them was in flight
            found.refute()
        return found.rate_limited(before)

    def settle(self, ticket: Ticket, used: float | None, now: float) -> None:
        self.in_flight -= 1
        self.of_model[ticket.model] -= 1
        if not self.of_model[ticket.model]:
            del self.of_model[ticket.model]

    def reconfigure(self, limits: Limits, now: float) -> None:
        grows = limits.max_concurrency == AUTO
        if grows != self.grows:
            self.overload = Overload(grows=grows)
        if limits.mode in {"off", "discover"}:
            self.found = None
        self.grows = grows
        self.declared = limits.max_in_flight
        self.resize()

    def level(self, now: float) -> float:
        return max(0, self.allowed - self.in_flight)

    def resize(self) -> None:
        """Applies a change of `overload`."""
        ceiling = self.overload.ceiling
        self.size = self.declared if ceiling is None else min(self.declared, ceiling)


class Requests(Dimension):
    """Requests over time, as a rate control allows.

    Attributes:
        rate: The rate control. `control` changes it.
        counted_from: The rate control does not know of requests that were sent before this time.
    """

    __slots__ = ("counted_from", "rate")

    NAME: ClassVar[Bottleneck] = "rate"

    def __init__(self, limits: Limits, now: float) -> None:
        self.rate: RateControl
        self.counted_from: float = -_NEVER
        super().__init__(limits, now)

    def control(self, rate: RateControl, now: float = -_NEVER) -> None:
        """Continues with another rate control, which does not count the requests that are already in flight."""
        self.rate, self.counted_from = rate, now

    def time_until(self, ticket: Ticket, now: float) -> float:
        return self.rate.time_until(1, now, ticket.reserve, paced=ticket.paced)

    def take(self, ticket: Ticket, now: float) -> None:
        self.rate.take(now)

    def give_back(self, ticket: Ticket, now: float) -> None:
        if ticket.since >= self.counted_from:
            self.rate.give_back(now)

    def reconfigure(self, limits: Limits, now: float) -> None:
        # Without a rate to correct, what delays a request after a 429 is backoff.
        self.name: Bottleneck = "backoff" if limits.mode == "unlimited" else "rate"


class Tokens(Dimension):
    """Input and output tokens per minute: estimated when a request is sent, settled to the usage of its reply.

    Attributes:
        bucket: The tokens; None without a limit.
        taken_from: Requests that were sent before this time have taken nothing from the bucket.
    """

    __slots__ = ("bucket", "taken_from")

    NAME: ClassVar[Bottleneck] = "tokens"

    def __init__(self, limits: Limits, now: float) -> None:
        self.bucket: TokenBucket | None = None
        self.taken_from: float = -_NEVER
        super().__init__(limits, now)
        self.taken_from = -_NEVER

    def use(self, bucket: TokenBucket | None, taken_from: float) -> None:
        """Continues with another bucket, see the attributes."""
        self.bucket, self.taken_from = bucket, taken_from
        self.is_limited: bool = bucket is not None

    def time_until(self, ticket: Ticket, now: float) -> float:
        bucket = self.bucket
        if bucket is None:
            return 0.0
        # A request larger than the bucket waits until it is full, then overdraws it.
        return bucket.time_until(min(ticket.tokens, bucket.capacity), now)

    def take(self, ticket: Ticket, now: float) -> None:
        if self.bucket is not None:
            self.bucket.take(ticket.tokens, now)

    def settle(self, ticket: Ticket, used: float | None, now: float) -> None:
        if self.bucket is not None and used is not None:
            taken = ticket.tokens if ticket.since >= self.taken_from else 0.0
            self.bucket.give_back(taken - used, now)

    def reconfigure(self, limits: Limits, now: float) -> None:
        per_minute = limits.tokens_per_minute
        if per_minute is None:
            self.use(None, now)
        elif self.bucket is None:
            self.use(TokenBucket(per_minute / 60, per_minute, updated_at=now), now)
        else:
            self.bucket.retune(now, rate=per_minute / 60, capacity=per_minute)

    def level(self, now: float) -> float | None:
        return None if self.bucket is None else self.bucket.level_at(now)


DIMENSIONS: tuple[type[Dimension], ...] = (Concurrency, Requests, Tokens)
"""Every dimension, in the order in which a bottleneck is named if several delay a request equally."""

_Kind = TypeVar("_Kind", bound=Dimension)


def dimension_of(dimensions: tuple[Dimension, ...], kind: type[_Kind]) -> _Kind:
    """Returns the dimension of that class."""
    return next(dimension for dimension in dimensions if isinstance(dimension, kind))
