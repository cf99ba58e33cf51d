"""A limit of concurrency beside a declared rate, or without one: found by 429s, and refuted by them."""

from random import Random

import pytest

from onellm_async.limits.admission import Admission
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for
from onellm_async.limits.snapshot import snapshot_of

DECLARED = Limits(requests_per_minute=600, burst=20, max_concurrency=48)


def admission(limits=DECLARED):
    return Admission(limits, control_for(limits, 0.0, Random(0)), 0.0)


def send(core, number, at):
    """Sends so many requests, each a little later."""
    tickets = [Ticket("default") for _ in range(number)]
    assert all(core.try_enter(ticket, at + 0.001 * index) for index, ticket in enumerate(tickets))
    return tickets


def after_a_429(core):
    """A first 429, of a request that was alone, and an answer."""
    core.rate_limited(*send(core, 1, 0.0), 0.05, None)
    core.answered(*send(core, 1, 5.0), 6.0)
    return core


def test_the_first_429_beside_a_declared_rate_limits_nothing_in_flight():
    core = admission()
    first, *_ = send(core, 5, 0.0)
    core.rate_limited(first, 0.1, None)
    assert core.concurrency == 48


def test_a_429_at_a_record_of_requests_in_flight_limits_them_and_is_not_held_against_the_rate():
    core = after_a_429(admission())
    *accepted, refused = send(core, 5, 20.0)
    core.rate_limited(refused, 20.05, None)
    assert core.concurrency == 4
    rate = core.rate.rate
    for at in range(22, 41):
        for ticket in accepted:
            core.answered(ticket, at)
        accepted = send(core, 4, at)
        if core.try_enter(extra := Ticket("default"), at + 0.5):
            core.rate_limited(extra, at + 0.55, None)
    assert core.rate.rate == rate
    assert core.concurrency == 4
    assert "4 requests at once" in snapshot_of(core, 41.0, timer_set=False).limit_found


def test_one_request_more_that_is_accepted_ends_the_limit():
    core = after_a_429(admission())
    *accepted, refused = send(core, 3, 20.0)
    core.rate_limited(refused, 20.05, None)
    for at in range(22, 31):
        for ticket in accepted:
            core.answered(ticket, at)
        accepted = send(core, 2, at)
        if core.try_enter(extra := Ticket("default"), at + 0.9):
            accepted.append(extra)
        if core.concurrency == 48:
            return
    pytest.fail("the limit stays")


def test_requests_sent_at_once_that_all_get_a_429_limit_nothing():
    core = after_a_429(admission())
    tickets = [Ticket("default") for _ in range(8)]
    assert all(core.try_enter(ticket, 10.0) for ticket in tickets)
    for ticket in tickets:
        core.rate_limited(ticket, 10.05, None)
    assert core.concurrency == 48


def test_a_strict_rate_is_not_joined_by_a_limit_in_flight():
    core = after_a_429(admission(Limits(requests_per_minute=600, burst=20, max_concurrency=48, adaptive="off")))
    *_, refused = send(core, 5, 20.0)
    core.rate_limited(refused, 20.05, None)
    assert core.concurrency == 48


def test_without_a_rate_the_first_429_tells():
    core = admission(Limits.unlimited(48))
    *_, refused = send(core, 5, 0.0)
    core.rate_limited(refused, 0.1, None)
    assert core.concurrency == 4


def test_requests_that_end_without_a_result_are_not_counted_as_in_flight():
    core = after_a_429(admission())
    kept, released, cancelled, overloaded, refused = send(core, 5, 20.0)
    core.release(released, 20.01)
    core.cancel(cancelled, 20.01)
    core.rate_limited(refused, 20.05, None)
    found = core.slots.found
    core.overloaded(overloaded, 20.06)
    assert found.in_flight == core.in_flight == 1
    core.answered(kept, 21.0)
    assert found.in_flight == core.in_flight == 0
