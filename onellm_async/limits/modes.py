"""Which rate control the limits ask for, at the start and when they change under way. Pure."""

from random import Random

from onellm_async.limits.adaptive import LearnedRate
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate import BackOffOnly, DeclaredRate, RateControl
from onellm_async.limits.rate_state import RateState

__all__ = ["rate_control", "retuned"]


def rate_control(limits: Limits, now: float, random: Random, state: RateState | None = None) -> RateControl:
    """The control for `limits`.

    Args:
        limits: What the user declared.
        now: The current time.
        random: Where jitter comes from.
        state: What an earlier control learned; None starts from the declaration, or blind.
    """
    declared = limits.declared_rate
    if limits.mode == "unlimited":
        return BackOffOnly(random)
    if limits.mode == "discover" or declared is None:
        if state is None and declared is not None:
            state = RateState(declared / 60, limits.burst)
        return LearnedRate(now, state, random=random, probe_every=limits.probe_every)
    return DeclaredRate(declared / 60, limits.burst, now, state, random=random, strict=limits.mode == "off")


def retuned(rate: RateControl, before: Limits, limits: Limits, now: float, random: Random) -> RateControl:
    """The control to go on with when `before` becomes `limits`: the same one where it can.

    A declared bucket keeps its level, and one that is declared where another was found to be empty begins empty. What
    was found out about a rate stays known as long as the declaration does.

    Args:
        rate: The control so far.
        before: What it was made for.
        limits: What is declared now.
        now: The current time.
        random: Where jitter comes from.
    """
    if _declaration(before) == _declaration(limits):
        return rate
    declared = limits.declared_rate
    if isinstance(rate, DeclaredRate) and limits.mode in {"correct", "off"} and declared is not None:
        rate.retune(declared / 60, limits.burst, now, strict=limits.mode == "off")
        return rate
    stands = limits.mode == "discover" and before.requests_per_minute == limits.requests_per_minute
    control = rate_control(limits, now, random, rate.state if stands else None)
    if isinstance(control, DeclaredRate) and rate.time_until(1, now) > 0:
        control.drain(now)
    return control


def _declaration(limits: Limits) -> tuple[object, ...]:
    """All that a rate control is made from."""
    probe_every = limits.probe_every if limits.mode == "discover" else None
    burst = limits.burst if limits.declared_rate is not None else None
    return limits.mode, limits.requests_per_minute, burst, probe_every
