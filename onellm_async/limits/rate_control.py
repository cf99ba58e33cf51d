"""The interface of a rate control, and which one the limits ask for. Pure."""

from collections.abc import Sequence
from random import Random
from typing import Protocol

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.backoff_only import BackoffOnly
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.declared_window import DeclaredWindow
from onellm_async.limits.policy import AUTO, Limits, Rate
from onellm_async.limits.rate_state import RateState


class RateControl(Protocol):
    """Decides when the next request may be sent. Pure: every method takes the time in seconds."""

    @property
    def rate(self) -> float:
        """Requests per second that it keeps up; infinite without a limit."""
        ...

    @property
    def state(self) -> RateState | None:
        """What another control can start from; None if nothing is known."""
        ...

    @property
    def confidence(self) -> float:
        """How certain the rate is: from 0, nothing is known, to 1."""
        ...

    @property
    def found(self) -> str | None:
        """What 429s have shown of the limit, in words; None if nothing is certain."""
        ...

    @property
    def max_in_flight(self) -> float:
        """Maximum number of requests in flight, as far as 429s have shown a limit of concurrency; else infinite."""
        ...

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        """Seconds until `requests` more may be sent; 0 if they may be sent now.

        Args:
            requests: How many.
            now: The current time.
            reserve: Tokens to leave in the bucket, as far as it can hold them beside one request.
            paced: Whether they belong to a lane that paces a declared burst until it is confirmed.
        """
        ...

    def take(self, now: float) -> None:
        """Records that a request is sent."""
        ...

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        """Records that a request was not sent after all, as `take` had recorded at `sent_at`; None: just now."""
        ...

    def answered(self, sent_at: float, now: float) -> None:
        """Records that the service accepted a request."""
        ...

    def released(self, sent_at: float, now: float) -> None:
        """Records that a request is over with an unknown result."""
        ...

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        """Records a 429, with the seconds that the service asked to wait."""
        ...

    def advise(self, now: float, said: AdvertisedReply) -> None:
        """Records what a reply advertised in its headers. Any part may be missing, and any may be wrong.

        It may serve as a prior or as a check, but does not stand against what the service accepts and rejects. The
        headers of a 429 are recorded before `rate_limited`.

        Args:
            now: The current time.
            said: What it advertised.
        """
        ...

    def move_clock(self, now: float) -> None:
        """Continues with a clock that may have been set back."""
        ...


class SeveralRates:
    """Several rate controls at once: a request is sent when all of them allow it, and counts in all of them.

    A 429 does not say which limit it is from. It is taken as one of the rate that is discovered, if there is one. Else
    it is of the declared rate that would delay the next requests most, or of the shortest one if none would.

    Args:
        parts: The rate controls, the one whose rate is discovered first.
        is_discovered: Whether the first one discovers its rate.
    """

    def __init__(self, parts: Sequence[RateControl], *, is_discovered: bool) -> None:
        self.parts: tuple[RateControl, ...] = tuple(parts)
        self._is_discovered = is_discovered
        declared = [part for part in parts if isinstance(part, DeclaredRate | DeclaredWindow)]
        self._shortest = min(declared, key=lambda part: part.per)

    @property
    def rate(self) -> float:
        return min(part.rate for part in self.parts)

    @property
    def state(self) -> RateState | None:
        """The state of the first part that has one."""
        return next((part.state for part in self.parts if part.state is not None), None)

    @property
    def confidence(self) -> float:
        return min(part.confidence for part in self.parts)

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        wait = 0.0
        for part in self.parts:
            wait = max(wait, part.time_until(requests, now, reserve, paced=paced))
        return wait

    @property
    def found(self) -> str | None:
        return next((part.found for part in self.parts if part.found is not None), None)

    @property
    def max_in_flight(self) -> float:
        return min(part.max_in_flight for part in self.parts)

    def take(self, now: float) -> None:
        for part in self.parts:
            part.take(now)

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        for part in self.parts:
            part.give_back(now, sent_at)

    def answered(self, sent_at: float, now: float) -> None:
        for part in self.parts:
            part.answered(sent_at, now)

    def released(self, sent_at: float, now: float) -> None:
        for part in self.parts:
            part.released(sent_at, now)

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        cause = self.parts[0]
        if not self._is_discovered:
            cause = max(self.parts, key=lambda part: part.time_until(2, now))
            if cause.time_until(2, now) <= 0:
                cause = self._shortest
        cause.rate_limited(sent_at, now, retry_after=retry_after)
        for part in self.parts:
            if part is not cause and isinstance(part, DeclaredWindow):
                part.give_back(now, sent_at)

    def advise(self, now: float, said: AdvertisedReply) -> None:
        for part in self.parts:
            part.advise(now, said)

    def move_clock(self, now: float) -> None:
        for part in self.parts:
            part.move_clock(now)


def window_wait(control: RateControl, now: float) -> float:
    """Seconds until every declared window has room for a request; 0 if all have, or none is declared."""
    parts = control.parts if isinstance(control, SeveralRates) else (control,)
    return max((part.room_in(now) for part in parts if isinstance(part, DeclaredWindow)), default=0.0)


def count_earlier(control: RateControl, sent_at: Sequence[float], now: float) -> None:
    """Counts requests that an earlier process sent, in every declared window."""
    for part in control.parts if isinstance(control, SeveralRates) else (control,):
        if isinstance(part, DeclaredWindow):
            part.count_earlier(sent_at, now)


def control_for(
    limits: Limits, now: float, random: Random, state: RateState | None = None, *, is_shared: bool = False
) -> RateControl:
    """Returns the rate control for `limits`.

    Args:
        limits: As declared.
        now: The current time.
        random: Source of jitter.
        state: State of an earlier control; None starts from the declaration, or without any knowledge.
        is_shared: Whether several clients share the control through a board.
    """
    if limits.mode == "unlimited":
        return BackoffOnly(random)
    parts: list[RateControl] = []
    if limits.mode == "discover":
        parts.append(_discovery(limits, now, random, state, is_shared=is_shared))
        state = None
    for rate in limits.declared_rates:
        parts.append(_declared(rate, limits, now, random, state))
        state = None  # it is of the first rate
    return _together(parts, limits)


def _together(parts: Sequence[RateControl], limits: Limits) -> RateControl:
    return parts[0] if len(parts) == 1 else SeveralRates(parts, is_discovered=limits.mode == "discover")


def _discovery(limits: Limits, now: float, random: Random, state: RateState | None, *, is_shared: bool) -> AdaptiveRate:
    start = limits.requests_per_minute
    if state is None and isinstance(start, int | float):
        state = RateState(start / 60, limits.burst)
    return AdaptiveRate(now, state, random=random, probe_every=limits.probe_every, is_shared=is_shared)


def _declared(
    rate: Rate, limits: Limits, now: float, random: Random, state: RateState | None = None
) -> DeclaredRate | DeclaredWindow:
    if rate.is_window:
        return DeclaredWindow(rate.capacity, rate.per, now, strict=limits.mode == "off")
    return DeclaredRate(
        rate.count / rate.per, rate.capacity, now, state, random=random, strict=limits.mode == "off", per=rate.per
    )


def reconfigured(
    rate: RateControl, before: Limits, limits: Limits, now: float, random: Random, *, is_shared: bool = False
) -> RateControl:
    """Returns the control for changed limits: the same object if it can continue.

    The bucket of a declared rate keeps its level, and a window what was sent in it, if there is a rate over the same
    time, or another bucket or window that goes. Another declared rate starts empty if no token was available. A
    discovered rate stays known as long as its declaration does not change.

    Args:
        rate: The control so far.
        before: The limits it was made for.
        limits: The new limits.
        now: The current time.
        random: Source of jitter.
        is_shared: Whether several clients share the control through a board.
    """
    if _declaration(before) == _declaration(limits) and before.declared_rates == limits.declared_rates:
        return rate
    if limits.mode == "unlimited":
        return control_for(limits, now, random, is_shared=is_shared)
    blocked = rate.time_until(1, now) > 0
    earlier = list(rate.parts) if isinstance(rate, SeveralRates) else [rate]
    parts: list[RateControl] = []
    if limits.mode == "discover":
        if _declaration(before) == _declaration(limits):
            parts.append(earlier.pop(0))
        else:
            same_rate = before.requests_per_minute == limits.requests_per_minute
            parts.append(_discovery(limits, now, random, rate.state if same_rate else None, is_shared=is_shared))
    lengths = {declared.per for declared in limits.declared_rates}
    for declared in limits.declared_rates:
        kind = DeclaredWindow if declared.is_window else DeclaredRate
        found = next((part for part in earlier if isinstance(part, kind) and part.per == declared.per), None)
        if found is None:
            found = next((part for part in earlier if isinstance(part, kind) and part.per not in lengths), None)
        if found is None:
            control = _declared(declared, limits, now, random)
            if blocked:
                control.drain(now)
        else:
            earlier.remove(found)
            control = _retuned(found, declared, limits, now)
        parts.append(control)
    return _together(parts, limits)


def _retuned(
    control: DeclaredRate | DeclaredWindow, rate: Rate, limits: Limits, now: float
) -> DeclaredRate | DeclaredWindow:
    if isinstance(control, DeclaredWindow):
        control.retune(rate.capacity, rate.per, now, strict=limits.mode == "off")
    else:
        control.retune(rate.count / rate.per, rate.capacity, now, strict=limits.mode == "off", per=rate.per)
    return control


def _declaration(limits: Limits) -> tuple[object, ...]:
    """Everything beside the declared rates that a rate control is made from."""
    if limits.mode != "discover":
        return (limits.mode,)
    burst = limits.burst if limits.requests_per_minute != AUTO else None
    return limits.mode, limits.requests_per_minute, burst, limits.probe_every
