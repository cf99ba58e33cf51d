"""A few tokens are kept for those who will come in a hurry."""

from random import Random

import pytest

from onellm_async.limits.admission import Admission
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for

RATE = 40 / 60


def saturated(limits, *, visitors_from, until=600.0):
    """A batch that takes whatever it may, and one interactive request now and then; returns when each came through."""
    core = Admission(limits, control_for(limits, 0.0, Random(0)), 0.0)
    service = TokenBucket(RATE, limits.burst)
    batch, interactive, now, next_visitor = [], [], 0.0, visitors_from
    for _ in range(2000):
        core.enqueue(Ticket("batch"), now)
    while (now := min(core.next_wake(now), next_visitor)) < until:
        if now >= next_visitor:
            core.enqueue(Ticket("interactive"), now)
            next_visitor += 20
        for ticket in core.dispatch(now):
            if service.try_take(1, now):
                (interactive if ticket.lane == "interactive" else batch).append(now)
                core.answered(ticket, now)
            else:
                core.rate_limited(ticket, now, None)
                core.enqueue(ticket, now)
    return core, batch, interactive


def at_once(core, now, number):
    """How many of that many interactive requests leave the moment they come."""
    for _ in range(number):
        core.enqueue(Ticket("interactive"), now)
    return len(core.dispatch(now))


@pytest.mark.parametrize("limits", [Limits(), Limits(requests_per_minute="auto")], ids=["declared", "found out"])
def test_a_few_interactive_requests_leave_at_once_although_a_batch_takes_all_it_may(limits):
    core, _, _ = saturated(limits, visitors_from=100.0)
    assert at_once(core, 600.0, 5) >= 3


def test_a_batch_that_is_never_visited_uses_every_token():
    core, batch, _ = saturated(Limits(), visitors_from=float("inf"))
    assert len(batch) >= 40 + 600 * RATE - 2
    assert at_once(core, 600.0, 5) <= 1


def test_keeping_tokens_costs_a_batch_no_more_than_those():
    _, batch, interactive = saturated(Limits(), visitors_from=100.0)
    assert len(interactive) == 25
    assert len(batch) + len(interactive) >= 40 + 600 * RATE - 5


@pytest.mark.parametrize("burst", [1, 2, 3, 40])
def test_the_others_are_never_shut_out_however_small_the_burst(burst):
    _, batch, _ = saturated(Limits(burst=burst), visitors_from=10.0)
    assert len(batch) >= 0.8 * 600 * RATE - 30


def test_the_first_burst_goes_on_at_its_pace_while_tokens_are_kept():
    rate = DeclaredRate(4 / 60, 980, 0.0)
    rate.take(0.0)
    assert rate.time_until(1, 60.0, 3.0) == 0, "hundreds of tokens are there, and a minute has passed"
