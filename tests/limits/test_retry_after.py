"""Which Retry-After is honored."""

from random import Random

import pytest

from onellm_async.limits.admission import Admission
from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for
from onellm_async.limits.rate_state import RateState

FAST = 100.0
"""Requests per second."""


def wait_after(limits: Limits, retry_after: float, rate: float = FAST) -> float:
    """Seconds from a 429 with that Retry-After until the next request."""
    core = Admission(limits, control_for(limits, 0.0, Random(1), RateState(rate, 40, rate, rate * 1.01)), 0.0)
    ticket, again = Ticket("default"), Ticket("default")
    core.enqueue(ticket, 0.0)
    assert core.dispatch(1.0) == [ticket]
    core.rate_limited(ticket, 1.001, retry_after)
    core.enqueue(again, 1.001)
    wake = core.next_wake(1.001)
    assert wake is not None
    return wake - 1.001


def test_a_second_counts_as_rounded_up_while_a_faster_rate_is_discovered() -> None:
    assert wait_after(Limits(requests_per_minute="auto"), 1.0) < 0.2


@pytest.mark.parametrize(("retry_after", "rate"), [(1.5, FAST), (2.0, FAST), (1.0, 1.0), (1.0, 0.5)])
def test_more_than_a_second_or_than_the_rate_would_wait_is_honored(retry_after: float, rate: float) -> None:
    assert wait_after(Limits(requests_per_minute="auto"), retry_after, rate) >= retry_after - 1e-9


@pytest.mark.parametrize("adaptive", ["correct", "off"])
def test_a_declared_rate_honors_every_second(adaptive: str) -> None:
    limits = Limits(requests_per_minute=FAST * 60, adaptive=adaptive)  # type: ignore[arg-type]
    assert wait_after(limits, 1.0) == pytest.approx(1.0)


def test_an_advertised_reset_may_end_a_silence_sooner_and_never_later() -> None:
    def knock_after(reset: float | None, remaining: float = 0.0) -> float:
        rate = control_for(Limits(requests_per_minute="auto"), 0.0, Random(1))
        for number in range(20):
            rate.take(number / 20)
        rate.take(1.0)
        rate.advise(1.02, AdvertisedReply(sent_at=1.0, is_accepted=False, limit=20.0, remaining=remaining, reset=reset))
        rate.rate_limited(1.0, 1.02)
        return rate.time_until(1, 1.02)

    usual = knock_after(None)
    assert knock_after(0.7) == pytest.approx(0.7)
    assert knock_after(0.7, remaining=3.0) == usual, "there is no reason to wait for it"
    assert knock_after(3600.0) == usual
    assert knock_after(0.0) == usual
