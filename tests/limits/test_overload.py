"""What an overloaded service leaves of the concurrency, as arithmetic."""

from hypothesis import given
from hypothesis import strategies as st

from onellm_async.limits.overload import Overload


def test_the_first_fault_leaves_what_was_answered_while_the_failed_request_was_in_flight() -> None:
    overload = Overload()
    assert overload.record_fault(0.0, 1.0, in_flight=48, answered=13)
    assert overload.ceiling == 13


def test_faults_of_requests_from_before_the_cut_cut_nothing_and_are_no_attempts() -> None:
    overload = Overload()
    overload.record_fault(0.0, 1.0, in_flight=48, answered=13)
    assert not any(overload.record_fault(sent, 2.0, in_flight=30, answered=5) for sent in (0.0, 0.5, 1.0))
    assert overload.ceiling == 13


def test_a_later_episode_leaves_seven_tenths() -> None:
    overload = Overload()
    overload.record_fault(0.0, 1.0, in_flight=48, answered=20)
    assert overload.record_fault(1.5, 3.0, in_flight=20, answered=9)
    assert overload.ceiling == 14


def test_a_place_comes_back_after_as_many_answers_as_there_are_places_until_all_are_back() -> None:
    overload = Overload()
    overload.record_fault(0.0, 1.0, in_flight=6, answered=2)
    overload.record_fault(0.5, 1.0, in_flight=5, answered=2)  # the cut had a cause
    seen = []
    while overload.ceiling is not None:
        seen.append(overload.ceiling)
        overload.record_answer(max_concurrency=5)
    assert seen == [2, 2, 3, 3, 3, 4, 4, 4, 4]


def end_those_in_flight(overload: Overload, answers: int, faults: int = 0) -> None:
    for _ in range(answers):
        overload.record_answer(200, sent_at=0.5)
    for _ in range(faults):
        assert not overload.record_fault(0.5, 2.0, in_flight=1, answered=0)


def test_a_cut_is_taken_back_if_the_others_that_were_in_flight_had_no_fault() -> None:
    overload = Overload()
    overload.record_fault(0.0, 1.0, in_flight=48, answered=13)
    end_those_in_flight(overload, answers=43)
    assert overload.ceiling is None, "one of 48: the fault had another cause"
    overload.record_fault(1.5, 2.5, in_flight=48, answered=13)
    assert overload.ceiling == 34, "a later cut, also after full recovery"


def test_a_cut_stands_if_many_that_were_in_flight_had_a_fault() -> None:
    overload = Overload()
    overload.record_fault(0.0, 1.0, in_flight=48, answered=13)
    end_those_in_flight(overload, answers=40, faults=7)
    assert overload.ceiling is not None
    assert overload.ceiling <= 16


def test_of_few_requests_in_flight_one_fault_is_many_unless_there_was_none_for_long() -> None:
    for answers_before, fewest, most in ((10, 7, 8), (20, 10, 11)):
        overload = Overload()
        overload.record_fault(0.0, 1.0, in_flight=20, answered=10)
        end_those_in_flight(overload, answers=8, faults=11)
        assert overload.ceiling == 10
        for _ in range(answers_before):
            overload.record_answer(200, sent_at=1.5, in_flight=9)
        assert overload.record_fault(1.5, 3.0, in_flight=10, answered=9)
        assert overload.ceiling in {7, 8}
        for _ in range(9):
            overload.record_answer(200, sent_at=1.5, in_flight=6)
        assert fewest <= overload.ceiling <= most


def test_slots_that_were_not_used_are_not_given_back() -> None:
    overload = Overload()
    overload.record_fault(0.0, 1.0, in_flight=8, answered=4)
    for _ in range(20):
        overload.record_answer(48, sent_at=2.0, in_flight=1)
    assert overload.ceiling == 4


# Found out from the start.


def test_the_slots_double_with_each_full_round_of_answers() -> None:
    overload, sizes = Overload(grows=True), []
    while overload.ceiling is not None:
        sizes.append(overload.ceiling)
        for _ in range(overload.ceiling):
            overload.record_answer(512)
    assert sizes == [4, 8, 16, 32, 64, 128, 256]


def test_slots_that_were_not_used_do_not_double() -> None:
    overload = Overload(grows=True)
    for _ in range(100):
        overload.record_answer(512, sent_at=0.0, in_flight=1)
    assert overload.ceiling == 4


def test_the_first_fault_ends_the_doubling_and_leaves_what_was_accepted_before() -> None:
    overload = Overload(grows=True)
    for _ in range(4 + 8):
        overload.record_answer(512)
    assert overload.record_fault(1.0, 1.1, in_flight=16, answered=0)
    assert (overload.ceiling, overload.is_growing) == (8, False)
    for _ in range(8):
        overload.record_answer(512, sent_at=2.0)
    assert overload.ceiling == 9


def test_a_fault_without_cause_does_not_end_the_doubling() -> None:
    overload = Overload(grows=True)
    for _ in range(4 + 8 + 16):
        overload.record_answer(512)
    overload.record_fault(1.0, 1.1, in_flight=32, answered=20)
    assert overload.ceiling == 20
    for _ in range(31):
        overload.record_answer(512, sent_at=1.0)
    assert overload.is_growing
    assert overload.ceiling is not None
    assert overload.ceiling >= 32


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 10), st.integers(1, 200), st.integers(0, 200))),
    st.integers(1, 200),
    st.booleans(),
)
def test_there_is_always_a_place_and_never_more_than_declared(
    steps: list[tuple[bool, float, int, int]], declared: int, grows: bool
) -> None:
    overload, now = Overload(grows=grows), 0.0
    for fault, seconds, in_flight, answered in steps:
        now += seconds
        if fault:
            overload.record_fault(now - seconds / 2, now, in_flight=min(in_flight, declared), answered=answered)
        else:
            overload.record_answer(declared, sent_at=now - seconds / 2, in_flight=in_flight)
        assert overload.ceiling is None or 1 <= overload.ceiling <= max(4, declared)
