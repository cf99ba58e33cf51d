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
    seen = []
    while overload.ceiling is not None:
        seen.append(overload.ceiling)
        overload.record_answer(max_concurrency=5)
    assert seen == [2, 2, 3, 3, 3, 4, 4, 4, 4]


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 10), st.integers(1, 200), st.integers(0, 200))),
    st.integers(1, 200),
)
def test_there_is_always_a_place_and_never_more_than_declared(
    steps: list[tuple[bool, float, int, int]], declared: int
) -> None:
    overload, now = Overload(), 0.0
    for fault, seconds, in_flight, answered in steps:
        now += seconds
        if fault:
            overload.record_fault(now - seconds / 2, now, in_flight=min(in_flight, declared), answered=answered)
        else:
            overload.record_answer(declared)
        assert overload.ceiling is None or 1 <= overload.ceiling <= max(1, declared)
