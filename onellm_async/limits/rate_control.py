"""The interface of a rate control, and which one the limits ask for. Pure."""

from random import Random
from typing import Protocol

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.declared import BackoffOnly, DeclaredRate
from onellm_async.limits.policy import Limits
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

    def give_back(self, now: float) -> None:
        """Records that a request was not sent after all."""
        ...

    def answered(self, sent_at: float, now: float) -> None:
        """Records that the service accepted a request."""
        ...

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        """Records a 429, with the seconds that the service asked to wait."""
        ...

    def move_clock(self, now: float) -> None:
        """Continues with a clock that may have been set back."""
        ...


def control_for(limits: Limits, now: float, random: Random, state: RateState | None = None) -> RateControl:
    """Returns the rate control for `limits`.

    Args:
        limits: As declared.
        now: The current time.
        random: Source of jitter.
        state: State of an earlier control; None starts from the declaration, or without any knowledge.
    """
    declared = limits.declared_rate
    if limits.mode == "unlimited":
        return BackoffOnly(random)
    if limits.mode == "discover" or declared is None:
        if state is None and declared is not None:
            state = RateState(declared / 60, limits.burst)
        return AdaptiveRate(now, state, random=random, probe_every=limits.probe_every)
    return DeclaredRate(declared / 60, limits.burst, now, state, random=random, strict=limits.mode == "off")


def reconfigured(rate: RateControl, before: Limits, limits: Limits, now: float, random: Random) -> RateControl:
    """Returns the control for changed limits: the same object if it can continue.

    The bucket of a declared rate keeps its level. A declared rate that replaces a discovered one starts empty if no
    token was available. A discovered rate stays known as long as the declaration does not change.

    Args:
        rate: The control so far.
        before: The limits it was made for.
        limits: The new limits.
        now: The current time.
        random: Source of jitter.
    """
    if _declaration(before) == _declaration(limits):
        return rate
    declared = limits.declared_rate
    if isinstance(rate, DeclaredRate) and limits.mode in {"correct", "off"} and declared is not None:
        rate.retune(declared / 60, limits.burst, now, strict=limits.mode == "off")
        return rate
    same_rate = limits.mode == "discover" and before.requests_per_minute == limits.requests_per_minute
    control = control_for(limits, now, random, rate.state if same_rate else None)
    if isinstance(control, DeclaredRate) and rate.time_until(1, now) > 0:
        control.drain(now)
    return control


def _declaration(limits: Limits) -> tuple[object, ...]:
    """Everything that a rate control is made from."""
    probe_every = limits.probe_every if limits.mode == "discover" else None
    burst = limits.burst if limits.declared_rate is not None else None
    return limits.mode, limits.requests_per_minute, burst, probe_every
