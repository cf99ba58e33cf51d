"""Evidence of a limit of concurrency: what accepted requests and 429s say of it."""

from onellm_async.limits.slots import NEVER, Slots


def slots_with_limit_of_two() -> Slots:
    """Two requests in flight, since 0 s and 1 s; a third one got a 429 at 2 s."""
    slots = Slots()
    for at in (0.0, 1.0, 2.0):
        slots.sent(at)
    assert not slots.rate_limited(slots.refused(2.0))
    assert slots.limit == 2
    return slots


def test_an_accepted_request_beyond_the_limit_refutes_it():
    slots = slots_with_limit_of_two()
    slots.sent(3.0)
    slots.answered(3.0, 4.0, round_trip=0.1)
    assert slots.limit == NEVER


def test_an_answer_within_a_round_trip_may_have_freed_the_place_that_a_request_got():
    slots = slots_with_limit_of_two()
    slots.sent(3.0)
    slots.answered(0.0, 3.05, round_trip=0.1)
    slots.answered(3.0, 4.0, round_trip=0.1)
    assert (slots.limit, slots.support) == (2, 1)


def test_an_answer_after_a_round_trip_has_not():
    slots = slots_with_limit_of_two()
    slots.sent(3.0)
    slots.answered(0.0, 3.2, round_trip=0.1)
    slots.answered(3.0, 4.0, round_trip=0.1)
    assert slots.limit == NEVER


def test_a_429_with_nothing_in_flight_refutes_a_limit_that_was_never_kept():
    slots = slots_with_limit_of_two()
    slots.refute()
    assert slots.limit == NEVER


def test_requests_that_were_in_flight_before_are_counted_until_they_end():
    slots = Slots(2)
    slots.sent(1.0)
    assert slots.ended(0.5) is None
    assert slots.in_flight == 2
    assert slots.ended(1.0) == 2
    assert slots.ended(0.7) is None
    assert slots.in_flight == 0
    assert slots.ended(0.8) is None
    assert slots.in_flight == 0
