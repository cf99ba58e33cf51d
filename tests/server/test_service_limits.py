"""The limits of a service as arithmetic: what they admit, and how long until they admit more."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.errors import ConfigurationError
from onellm_async.server import BucketLimit, ClosedTimes, ConcurrencyLimit, RandomLimit, WindowLimit
from onellm_async.server.service_limits import AccountLimits, Rejection

TIMES = st.lists(st.integers(0, 20_000), min_size=1, max_size=80).map(lambda times: [at / 1000 for at in sorted(times)])


def admitted(limits, times):
    account = AccountLimits(limits, 0.0)
    return [at for at in times if account.admit(at) is None]


@given(times=TIMES, count=st.integers(1, 8), seconds=st.floats(0.5, 8))
def test_a_sliding_window_admits_what_every_window_of_its_length_has_room_for(times, count, seconds):
    expected = []
    for at in times:
        if sum(at - seconds < other for other in expected) < count:
            expected.append(at)
    assert admitted([WindowLimit(count, seconds, sliding=True)], times) == expected


@given(times=TIMES, count=st.integers(1, 8), phase=st.sampled_from([0.0, 0.25, 0.5]))
def test_a_fixed_window_starts_from_zero_each_time(times, count, phase):
    account = AccountLimits([WindowLimit(count, 4.0, phase=phase)], 0.0)
    windows = {}
    for at in times:
        number = int((at + phase * 4) / 4 + 1e-9)
        is_room = windows.get(number, 0) < count
        assert (account.admit(at) is None) == is_room
        windows[number] = windows.get(number, 0) + is_room


@given(
    times=TIMES,
    limits=st.lists(
        st.builds(BucketLimit, st.floats(6, 600), st.integers(1, 9))
        | st.builds(WindowLimit, st.integers(1, 9), st.integers(1, 9), sliding=st.booleans()),
        min_size=1,
        max_size=4,
    ),
)
def test_a_request_is_admitted_after_the_wait_that_its_rejection_names_and_not_before(times, limits):
    account = AccountLimits(limits, 0.0)
    for at in times:
        rejection = account.admit(at)
        if rejection is not None:
            now = at
            while rejection is not None:
                assert rejection.wait is not None
                assert rejection.wait > 0
                if rejection.wait > 1e-6:  # rounding
                    assert account.admit(now + 0.9 * rejection.wait) is not None
                now += rejection.wait + 1e-9
                rejection = account.admit(now)
            break


def test_several_limits_admit_only_what_all_have_room_for_and_count_nothing_else():
    limits = [WindowLimit(2, 1.0, sliding=True), WindowLimit(3, 60.0)]
    account = AccountLimits(limits, 0.0)
    assert [account.admit(at) is None for at in (0.0, 0.1, 0.2, 1.05, 1.15, 2.1)] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert account.admit(2.2) == Rejection(pytest.approx(57.8))


def test_a_limit_of_concurrency_admits_again_when_a_request_has_ended():
    account = AccountLimits([ConcurrencyLimit(2)], 0.0)
    assert [account.admit(0.0) for _ in range(3)] == [None, None, Rejection(None)]
    account.end()
    assert account.admit(0.0) is None
    assert account.in_flight == 2


def test_tokens_are_counted_where_the_limit_counts_tokens():
    account = AccountLimits([BucketLimit(600, 1000, unit="tokens"), WindowLimit(5, 60.0)], 0.0)
    assert account.admit(0.0, 700) is None
    assert account.admit(0.0, 400) == Rejection(pytest.approx(10.0))
    assert account.admit(0.0, 300) is None
    assert account.admit(0.0, 5000) == Rejection(None)
    assert [(quota.unit, quota.remaining) for quota in account.quotas(0.0)] == [("tokens", 0), ("requests", 3)]


def test_a_request_given_back_makes_room_in_every_limit():
    limits = [BucketLimit(0, 1), WindowLimit(1, 60.0), WindowLimit(1, 60.0, sliding=True)]
    account = AccountLimits(limits, 0.0)
    assert account.admit(1.0) is None
    account.give_back(1.0)
    account.end()
    assert account.admit(2.0) is None
    account.give_back(-100.0)  # long expired in the windows
    assert account.admit(3.0) is not None


def test_times_of_closing_come_again():
    account = AccountLimits([ClosedTimes(after=5, seconds=5, every=10)], 100.0)
    assert [account.admit(at) for at in (100.0, 104.9, 110.0, 114.9, 120.0)] == [None] * 5
    assert [account.admit(at) for at in (105.0, 118.0)] == [Rejection(5.0), Rejection(pytest.approx(2.0))]
    assert AccountLimits([ClosedTimes(seconds=600)], 0.0).admit(0.0) == Rejection(600.0)


def test_a_random_limit_rejects_its_share():
    account = AccountLimits([RandomLimit(0.3)], 0.0, random=Random(1))
    assert 250 <= sum(account.admit(0.0) is not None for _ in range(1000)) <= 350


def test_other_clients_take_their_part_of_the_limit_and_nothing_else():
    account = AccountLimits([WindowLimit(50, 10.0)], 0.0, background_rate=3.0, random=Random(3))
    ends = [9.99 + 10 * window for window in range(100)]
    left = [sum(account.admit(end) is None for _ in range(50)) for end in ends]
    assert 19 <= sum(left) / len(left) <= 21
    assert account.in_flight == sum(left)


def test_a_key_that_was_silent_for_years_is_answered_at_once():
    account = AccountLimits([BucketLimit(600, 10)], 0.0, background_rate=1000.0)
    assert isinstance(account.admit(1e9), Rejection | None)


@pytest.mark.parametrize(
    ("before", "after", "room"),
    [
        (BucketLimit(60, 10), BucketLimit(30, 10), 0),
        (BucketLimit(60, 10), BucketLimit(30, 20, initial_level=7), 7),
        (WindowLimit(10, 60.0), WindowLimit(15, 60.0), 5),
        (WindowLimit(10, 60.0), WindowLimit(15, 30.0), 15),
        (WindowLimit(10, 60.0, sliding=True), WindowLimit(4, 60.0, sliding=True), 0),
        (WindowLimit(10, 60.0, sliding=True), BucketLimit(0, 3), 3),
        (BucketLimit(0, 10), ConcurrencyLimit(12), 2),
    ],
    ids=str,
)
def test_a_changed_limit_remembers_what_one_of_its_kind_has_counted(before, after, room):
    account = AccountLimits([before], 0.0)
    assert [account.admit(0.0) for _ in range(10)] == [None] * 10
    account.change([after], 0.0)
    assert sum(account.admit(0.0) is None for _ in range(30)) == room
    assert account.current == (after,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40/60s", WindowLimit(40, 60.0)),
        ("fixed:40/60", WindowLimit(40, 60.0)),
        ("sliding:300/1m", WindowLimit(300, 60.0, sliding=True)),
        (" 10/s ", WindowLimit(10, 1.0)),
        ("5/250ms", WindowLimit(5, 0.25)),
        ("1000/24h", WindowLimit(1000, 86400.0)),
        ("1000/d", WindowLimit(1000, 86400.0)),
        ("7/1.5min", WindowLimit(7, 90.0)),
    ],
)
def test_a_window_is_read_from_its_short_form(text, expected):
    assert WindowLimit.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "40", "40/", "/60s", "x/60s", "40/60y", "-4/60s", "4.5/60s", "x:4/60s", "4/-1s", "٤/60s", "4/1e3s"],
)
def test_what_is_no_window_is_rejected_with_an_example(text):
    with pytest.raises(ConfigurationError, match="for example 40/60s or sliding:300/1m"):
        WindowLimit.parse(text)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: WindowLimit(0, 60.0), "WindowLimit.count"),
        (lambda: WindowLimit(4, 0), "WindowLimit.seconds"),
        (lambda: WindowLimit(4, float("inf")), "WindowLimit.seconds"),
        (lambda: WindowLimit.parse("4/0s"), "WindowLimit.seconds"),
        (lambda: WindowLimit(4, 1, phase=2), "WindowLimit.phase"),
        (lambda: WindowLimit(4, 1, unit="bytes"), "WindowLimit.unit"),
        (lambda: BucketLimit(-1, 1), "BucketLimit.per_minute"),
        (lambda: BucketLimit(1, 0), "BucketLimit.burst"),
        (lambda: ConcurrencyLimit(0), "ConcurrencyLimit.count"),
        (lambda: ConcurrencyLimit(True), "ConcurrencyLimit.count"),
        (lambda: ClosedTimes(seconds=5, every=5), "ClosedTimes.every"),
        (lambda: RandomLimit(1.5), "RandomLimit.share"),
    ],
)
def test_a_limit_that_cannot_be_is_rejected_with_its_name(make, named):
    with pytest.raises(ConfigurationError, match=named):
        make()
