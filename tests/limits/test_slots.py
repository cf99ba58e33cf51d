"""Evidence of a limit of concurrency: what accepted requests and 429s say of it."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 5)), min_size=10, max_size=80))
def test_an_accepted_request_proves_those_before_it_less_the_answers_that_may_have_freed_a_place(steps):
    """Beside a plain count over all answers: a 429 suggests a limit only beyond the most that were proven."""
    slots, sent, answers, proven, now = Slots(), {}, [], 0, 0.0
    for is_sent, which, wait in steps:
        now += wait / 10 + 0.001
        if is_sent or not sent:
            sent[now] = len(sent), len(answers)
            slots.sent(now)
            continue
        at = list(sent)[which % len(sent)]
        before, earlier = sent.pop(at)
        proven = max(proven, before + 1 - sum(since < at for since in answers[earlier:]))
        slots.answered(at, now, round_trip=0.25)
        answers.append(max(at, now - 0.25))
    for extra in range(1, proven + 2):
        slots.sent(now + extra)
    suggested = [before for before in range(1, proven + 2) if not _refutes(slots, before)]
    assert suggested == list(range(max(1, proven), proven + 2))


def _refutes(slots: Slots, before: int) -> bool:
    """Whether a 429 with so many in flight before it would suggest no limit."""
    slots.limit = NEVER
    slots.rate_limited(before)
    return slots.limit == NEVER


def calls_of_an_answer(in_flight: int) -> int:
    """The calls, of C functions too, that an answer to the oldest of so many requests costs."""
    slots, calls = Slots(), 0
    for number in range(in_flight):
        slots.sent(number / 1000)

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        slots.answered(0.0, in_flight / 1000, round_trip=60.0)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("in_flight", [100, 5000])
def test_an_answer_costs_the_same_whatever_is_in_flight(in_flight):
    assert calls_of_an_answer(in_flight) == calls_of_an_answer(10)


def test_a_request_that_is_never_answered_does_not_keep_every_answer():
    slots = Slots()
    slots.sent(0.0)
    for number in range(1, 20_000):
        slots.sent(float(number))
        slots.answered(float(number), number + 0.5, round_trip=0.1)
    slots.answered(0.0, 20_000.0, round_trip=0.1)
    assert slots.in_flight == 0
    assert sys.getsizeof(slots._moments) < 100_000
