import pytest

from onellm_async.limits.admission import Admission
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.rounding import Rounding

FAST = 100.0
"""Requests per second."""


def test_a_second_is_taken_for_rounded_up_where_our_own_pace_is_faster():
    rounding = Rounding()
    assert not rounding.is_honored(0.0, 0.01, 1.0, FAST)


@pytest.mark.parametrize(("asked", "rate"), [(1.5, FAST), (300.0, FAST), (1.0, 1.0), (1.0, 0.5)])
def test_what_is_longer_or_no_longer_than_our_own_pace_is_honored(asked, rate):
    assert Rounding().is_honored(0.0, 0.01, asked, rate)


def test_requests_that_were_on_their_way_decide_nothing():
    rounding = Rounding()
    rounding.is_honored(0.0, 0.01, 1.0, FAST)
    assert not rounding.is_honored(0.005, 0.015, 1.0, FAST)


def test_a_service_that_refuses_the_next_one_means_it_and_is_believed_twice_as_often_each_time():
    rounding, now, believed = Rounding(), 0.0, []
    for _ in range(12):  # refused, every time
        meant = rounding.is_honored(now, now + 0.001, 1.0, FAST)
        believed.append(meant)
        now += 1.001 if meant else 0.011
    assert believed == [False, True, True, False, True, True, True, False, True, True, True, True]


def test_what_comes_through_earns_trust_again():
    rounding = Rounding()
    rounding.is_honored(0.0, 0.001, 1.0, FAST)
    assert rounding.is_honored(0.011, 0.012, 1.0, FAST)
    assert rounding.is_honored(1.1, 1.101, 1.0, FAST)
    assert not rounding.is_honored(2.2, 2.201, 1.0, FAST)
    rounding.answered(2.3)
    assert rounding.is_honored(2.21, 2.31, 1.0, FAST)  # the first after it; believed once again, not twice
    assert rounding.is_honored(3.4, 3.41, 1.0, FAST)
    assert not rounding.is_honored(4.5, 4.51, 1.0, FAST)


def test_what_is_refused_later_than_the_first_only_came_too_fast():
    rounding = Rounding()
    rounding.is_honored(0.0, 0.001, 1.0, FAST)
    assert not rounding.is_honored(0.5, 0.501, 1.0, FAST)


def refused_at_once(limits):
    """An admission whose request was refused with Retry-After: 1, and when the next may leave."""
    core = Admission(limits, control_for(limits, 0.0, None, RateState(FAST, 40, FAST, FAST * 1.01)), 0.0)
    for _ in range(2):
        core.enqueue(Ticket("default"), 0.0)
    ticket, *_ = core.dispatch(1.0)
    core.rate_limited(ticket, 1.001, 1.0)
    core.enqueue(ticket, 1.001)
    return core.next_wake(1.001)


def test_only_who_looks_for_a_rate_may_take_it_for_rounded():
    assert refused_at_once(Limits(requests_per_minute="auto")) < 1.1
    for adaptive in ("correct", "off"):
        assert refused_at_once(Limits(requests_per_minute=FAST * 60, adaptive=adaptive)) == pytest.approx(2.001)
