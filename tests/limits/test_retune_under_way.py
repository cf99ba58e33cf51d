"""Limits change while requests are under way: these end under limits that never counted them."""

from random import Random

import pytest

from onellm_async.limits.admission import Admission
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for, reconfigured


def admission(limits, now=0.0):
    return Admission(limits, control_for(limits, now, Random(1)), now)


def go_on_with(core, limits, now):
    core.retune(limits, reconfigured(core.rate, core.limits, limits, now, Random(1)), now)


def test_tokens_of_a_request_that_left_without_a_limit_of_tokens_are_not_given_back_to_a_later_one():
    core = admission(Limits())
    early, ticket = Ticket("batch", tokens=500.0), Ticket("batch", tokens=600.0)
    assert core.try_enter(early, 0.0)
    go_on_with(core, Limits(tokens_per_minute=600), 1.0)
    assert core.try_enter(ticket, 1.0)
    core.answered(early, 2.0, tokens=10)
    assert core.tokens.level_at(2.0) <= 10 - 10, "a second's refill, less what was used"


@pytest.mark.parametrize(
    "later",
    [
        Limits(requests_per_minute="auto"),
        Limits(adaptive="discover"),
    ],
)
def test_a_refusal_of_a_request_from_before_the_search_for_the_rate_does_not_stop_it(later):
    core = admission(Limits(requests_per_minute=100))
    early, ticket = Ticket("batch"), Ticket("batch")
    assert core.try_enter(early, 0.0)
    go_on_with(core, later, 1.0)
    core.rate_limited(early, 1.1, None)
    core.enqueue(ticket, 1.1)
    assert core.rate.rate > 0
    assert core.next_wake(1.1) <= 1.1 + 60
    core.give_back(early, 1.2)


def test_a_request_from_before_the_search_that_never_arrived_does_not_stop_it():
    core = admission(Limits(requests_per_minute=100))
    early, ticket = Ticket("batch"), Ticket("batch")
    assert core.try_enter(early, 0.0)
    go_on_with(core, Limits(requests_per_minute="auto"), 1.0)
    core.give_back(early, 1.1)
    assert core.try_enter(ticket, 1.2)
    core.rate_limited(ticket, 1.3, None)
    assert core.rate.rate > 0


@pytest.mark.parametrize(("before", "after"), [("correct", "off"), ("off", "correct")])
def test_another_mode_for_the_same_declared_bucket_does_not_fill_it(before, after):
    now, control = 1000.0, control_for(Limits(adaptive=before), 0.0, Random(1))
    assert isinstance(control, DeclaredRate)
    while control.time_until(1, now) == 0:
        control.take(now)
    control = reconfigured(control, Limits(adaptive=before), Limits(adaptive=after), now, Random(1))
    assert control.time_until(1, now) > 0
