import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.errors import ConfigurationError
from onellm_async.limits.bucket import TokenBucket

rates = st.floats(0.001, 1000)
capacities = st.floats(1, 1000)
steps = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=60)


def test_full_bucket_lets_exactly_its_capacity_through_at_once():
    bucket = TokenBucket(rate=1, capacity=5)
    assert [bucket.try_take(1, 0.0) for _ in range(6)] == [True] * 5 + [False]


@given(rates, capacities, steps)
def test_what_passes_in_any_window_is_at_most_capacity_plus_refill(rate, capacity, taken):
    bucket = TokenBucket(rate, capacity)
    now = passed = 0.0
    for elapsed, amount in taken:
        now += elapsed
        if bucket.try_take(amount, now):
            passed += amount
    assert passed <= (capacity + rate * now) * (1 + 1e-9) + 1e-6


@given(rates, capacities, steps, st.floats(0.1, 1))
def test_waiting_exactly_as_long_as_it_says_always_suffices(rate, capacity, taken, share):
    bucket = TokenBucket(rate, capacity)
    now = 0.0
    for elapsed, amount in taken:
        now += elapsed
        bucket.take(amount, now)
    wanted = share * capacity
    wait = bucket.time_until(wanted, now)
    assert math.isfinite(wait)
    assert bucket.level_at(now + wait) >= wanted - 1e-6 * capacity


def test_more_than_the_capacity_is_never_there():
    assert TokenBucket(rate=1, capacity=5).time_until(6, 0.0) == math.inf


def test_debt_is_refilled_before_anything_passes():
    bucket = TokenBucket(rate=2, capacity=4)
    bucket.take(10, 0.0)
    assert bucket.level_at(0.0) == -6
    assert bucket.time_until(1, 0.0) == 3.5


def test_given_back_tokens_beyond_the_capacity_are_lost():
    bucket = TokenBucket(rate=1, capacity=5)
    bucket.give_back(3, 0.0)
    assert bucket.level_at(0.0) == 5


def test_retuning_keeps_what_was_saved_and_changes_what_comes():
    bucket = TokenBucket(rate=1, capacity=10, level=0)
    bucket.retune(4.0, rate=2)
    assert bucket.level_at(5.0) == 6
    bucket.retune(5.0, capacity=3)
    assert bucket.level_at(5.0) == 3


def test_draining_never_raises_the_level():
    bucket = TokenBucket(rate=1, capacity=10, level=2)
    bucket.drain(0.0, level=5)
    assert bucket.level_at(0.0) == 2
    bucket.drain(0.0)
    assert bucket.level_at(0.0) == 0


def test_a_clock_set_back_neither_adds_tokens_nor_stops_the_refill():
    bucket = TokenBucket(rate=1, capacity=10, level=3, updated_at=1000.0)
    assert bucket.level_at(500.0) == 3
    bucket.move_clock(0.0)
    assert bucket.level_at(0.0) == 3
    assert bucket.level_at(2.0) == 5


def test_bucket_without_refill_only_holds_what_it_has():
    bucket = TokenBucket(rate=0, capacity=2)
    assert bucket.try_take(2, 0.0)
    assert bucket.time_until(1, 1e9) == math.inf


@pytest.mark.parametrize(("rate", "capacity"), [(-1, 1), (1, 0), (math.nan, 1), (1, math.nan)])
def test_impossible_bucket_is_refused(rate, capacity):
    with pytest.raises(ConfigurationError, match="rate"):
        TokenBucket(rate, capacity)


def test_repr_shows_rate_capacity_and_level():
    assert repr(TokenBucket(rate=2, capacity=3, level=1)) == "TokenBucket(rate=2/s, capacity=3, level=1)"
