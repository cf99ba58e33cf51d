"""A declared window: never more than its count in any of its lengths, and single requests after a 429."""

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm_async.limits.declared_window import DeclaredWindow

STEPS = st.lists(
    st.tuples(
        st.floats(0, 5),
        st.integers(0, 8),
        st.sampled_from(["answered", "rate_limited", "give_back", "nothing"]),
        st.booleans(),
    ),
    max_size=60,
)


def busiest(times: list[float], per: float) -> int:
    """The most that was sent in any half-open window of `per` seconds."""
    ordered = sorted(times)
    return max((index - bisect_left(ordered, at - per + 1e-9) + 1 for index, at in enumerate(ordered)), default=0)


@settings(deadline=None, max_examples=150)
@given(count=st.integers(1, 12), per=st.floats(0.5, 20), steps=STEPS)
def test_never_are_more_than_count_sent_in_any_per_seconds(count: int, per: float, steps: list) -> None:
    window, now, sent = DeclaredWindow(count, per, 0.0), 0.0, []
    for wait, wanted, end, paced in steps:
        now += wait
        for _ in range(wanted):
            if window.time_until(1, now, paced=paced) > 0:
                break
            window.take(now)
            sent.append(now)
        if end == "answered" and sent:
            window.answered(sent[-1], now)
        elif end == "rate_limited" and sent:
            window.rate_limited(sent.pop(), now)
        elif end == "give_back" and sent:
            window.give_back(now, sent.pop(len(sent) // 2))
        assert busiest(sent, per) <= count
        assert 0 <= window.used(now) <= count


@settings(deadline=None, max_examples=100)
@given(count=st.integers(1, 12), per=st.floats(0.5, 20), used=st.integers(0, 12), requests=st.integers(1, 40))
def test_the_time_until_a_request_is_when_it_may_be_sent(count: int, per: float, used: int, requests: int) -> None:
    window = DeclaredWindow(count, per, 0.0)
    for number in range(min(used, count)):
        window.take(0.1 * number)
    now = 5.0
    expected = window.time_until(requests, now)
    assert window.time_until(requests, now) == expected, "asking changes nothing"
    at = now
    for _ in range(requests):
        at += window.time_until(1, at)
        assert window.time_until(1, at) == 0
        window.take(at)
    assert at - now == pytest.approx(expected, abs=per + 1e-6)


def test_all_of_the_count_may_be_sent_at_once() -> None:
    window = DeclaredWindow(300, 60.0, 0.0)
    for _ in range(300):
        assert window.time_until(1, 1.0) == 0
        window.take(1.0)
    assert window.time_until(1, 1.0) == pytest.approx(60.05)
    assert window.time_until(300, 61.05) == 0


def test_a_window_that_was_used_by_another_process_is_tried_by_single_requests() -> None:
    """It is closed until 60 s; the 300 prompts then are not sent before one of them was accepted."""
    window, now, refused, accepted = DeclaredWindow(300, 60.0, 0.0), 0.0, 0, 0
    while accepted < 10:
        now += window.time_until(1, now, paced=True)
        window.take(now)
        if now < 60:
            refused += 1
            window.rate_limited(now, now + 0.05)
        else:
            accepted += 1
            window.answered(now, now + 0.05)
        now += 0.05
    assert refused < 25
    assert now < 60 + 6 + 2


def test_requests_in_flight_when_a_429_arrives_are_one_event() -> None:
    window = DeclaredWindow(60, 60.0, 0.0)
    for _ in range(20):
        window.take(0.0)
    window.rate_limited(0.0, 0.1)
    wait = window.time_until(1, 0.1)
    for _ in range(19):
        window.rate_limited(0.0, 0.2)
    assert window.time_until(1, 0.1) == wait == pytest.approx(1.0)


def test_a_large_window_remembers_few_times_and_never_exceeds_its_count() -> None:
    window, sent = DeclaredWindow(20_000, 100.0, 0.0), []
    for number in range(30_000):
        at = number * 0.004
        if window.time_until(1, at) <= 0:
            window.take(at)
            sent.append(at)
    assert len(window._sent) <= DeclaredWindow.MAX_ENTRIES + 1
    assert busiest(sent, 100.0) <= 20_000
    assert len(sent) > 20_000


def test_the_reserve_for_interactive_requests_is_a_tenth_at_most() -> None:
    for count, left in ((100, 3), (20, 2), (5, 0)):
        window = DeclaredWindow(count, 60.0, 0.0)
        while window.time_until(1, 0.0, reserve=3) <= 0:
            window.take(0.0)
        assert count - window.used(0.0) == left


def test_a_clock_that_was_set_back_never_frees_the_window_early_nor_for_ever_late() -> None:
    window = DeclaredWindow(2, 10.0, 1000.0)
    window.take(1000.0)
    window.take(1001.0)
    window.move_clock(3.0)
    assert window.time_until(1, 3.0) == pytest.approx(10.05)


def test_what_an_earlier_process_has_sent_counts_and_its_own_sends_count_once() -> None:
    window = DeclaredWindow(5, 100.0, 1000.0)
    window.take(1001.0)
    window.count_earlier([1001.0, 950.0, 940.0, 800.0, 950.0], 1002.0)
    assert window.used(1002.0) == 4
    window.take(1002.0)
    assert window.time_until(1, 1002.0) == pytest.approx(940 + 100.05 - 1002)


def run_of_windows(window: DeclaredWindow, accepted: int, windows: int) -> list[int]:
    """429s in each of so many windows of a service that accepts so many in any `per` seconds."""
    now, sent, refused = 0.0, [], [0] * windows
    while now < windows * window.per:
        if (wait := window.time_until(1, now)) > 0:
            now += max(wait, 1e-3)
            continue
        window.take(now)
        if sum(at > now - window.per for at in sent) < accepted:
            sent.append(now)
            window.answered(now, now + 0.01)
        else:
            refused[int(now / window.per)] += 1
            window.rate_limited(now, now + 0.01)
        now += 0.02
    return refused


def test_a_window_that_is_smaller_than_declared_is_kept_to_from_the_second_one_on() -> None:
    window = DeclaredWindow(40, 60.0, 0.0)
    refused = run_of_windows(window, 20, 30)
    assert sum(refused[3:]) <= 8, "was one and a half for each that was accepted"
    assert window.found in {"20 requests in any 60 s", "21 requests in any 60 s"}
    assert window.rate <= 21 / 60


def test_a_window_that_became_larger_again_is_used() -> None:
    window = DeclaredWindow(40, 60.0, 0.0)
    run_of_windows(window, 20, 4)
    assert window.found is not None
    window.move_clock(0.0)
    run_of_windows(window, 40, 30)
    assert window.found is None


def test_a_strict_window_keeps_its_count_whatever_is_accepted() -> None:
    window = DeclaredWindow(40, 60.0, 0.0, strict=True)
    run_of_windows(window, 20, 6)
    assert (window.found, window.rate) == (None, 40 / 60)
