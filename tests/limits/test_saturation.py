from hypothesis import given
from hypothesis import strategies as st

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.saturation import SaturationClock

INFINITE = float("inf")


def test_a_bucket_in_steady_use_is_never_full():
    overflow = SaturationClock(0.0)
    overflow.restart(0.0, rate=1.0, capacity=10)
    for second in range(1, 100):
        overflow.take(float(second))
    assert overflow.seconds == 0


def test_what_a_silence_cannot_have_filled_is_lost():
    overflow = SaturationClock(0.0)
    overflow.restart(0.0, rate=2.0, capacity=11)  # the first token may be all but there
    overflow.take(600.0)
    assert overflow.seconds == 600 - 5


def test_a_refused_request_tells_that_the_bucket_was_not_full():
    overflow = SaturationClock(0.0)
    overflow.restart(0.0, rate=1.0, capacity=1)
    overflow.take(10.0)
    before = overflow.seconds
    overflow.take(14.0)
    assert overflow.seconds > before
    assert overflow.rate_limited(14.0, 0, jitter=0.0) == 1 / 4  # nothing came in four seconds
    assert overflow.seconds == before


def test_a_refusal_known_late_bounds_what_came_through_before_it():
    overflow = SaturationClock(0.0)
    overflow.restart(0.0, rate=1.0, capacity=2)
    for at in (10.0, 10.5, 11.0, 11.5):
        overflow.take(at)
    assert overflow.rate_limited(11.0, 1, jitter=0.0) == 2 / 1  # the second came through, the third was refused


def test_nothing_is_said_of_requests_that_may_have_overtaken_each_other():
    overflow = SaturationClock(0.0)
    overflow.restart(0.0, rate=1.0, capacity=1)
    overflow.take(10.0)
    overflow.take(10.1)
    assert overflow.rate_limited(10.1, 0, jitter=0.15) == INFINITE


def test_a_request_given_back_took_nothing():
    overflow, other = SaturationClock(0.0), SaturationClock(0.0)
    for each in (overflow, other):
        each.restart(0.0, rate=1.0, capacity=3)
    overflow.take(1.0)
    overflow.give_back()
    overflow.take(5.0)
    other.take(5.0)
    assert overflow.seconds == other.seconds


def test_a_clock_that_was_set_back_says_nothing_of_before():
    overflow = SaturationClock(1000.0)
    overflow.restart(1000.0, rate=1.0, capacity=1)
    overflow.take(1010.0)
    overflow.move_clock(0.0)
    overflow.take(0.5)
    assert overflow.rate_limited(0.5, 0, jitter=0.0) == INFINITE


@given(
    st.floats(0.05, 20),
    st.integers(1, 30),
    st.floats(1, 4),
    st.lists(st.floats(0.0, 60), min_size=1, max_size=60),
)
def test_no_refill_that_was_lost_goes_unseen_and_every_bound_is_true(rate, capacity, believed, gaps):
    """Against a real bucket, with requests as fast as they want, and a belief that is no less than the truth."""
    bucket, overflow, now = TokenBucket(rate, capacity, level=0.0), SaturationClock(0.0), 0.0
    overflow.restart(0.0, rate * believed, capacity)
    lost, level, last = 0.0, 0.0, 0.0
    for gap in gaps:
        now += gap / rate / 10
        lost += max(0.0, level + (now - last) * rate - capacity)
        overflow.take(now)
        if not bucket.try_take(1, now):
            assert overflow.rate_limited(now, 0, jitter=0.0) >= rate * (1 - 1e-6)
            assert overflow.seconds * rate >= lost - 1e-6
            overflow.restart(now, rate * believed, capacity)
        level, last = bucket.level_at(now), now
    assert overflow.seconds * rate >= lost - 1e-6 * (1 + lost)


def test_requests_that_were_not_sent_before_any_429_are_no_refill():
    clock = SaturationClock(0.0)
    clock.take(1.0)
    clock.give_back()
    clock.give_back()  # of two attempts that never reached the service
    clock.take(2.0)
    assert clock.seconds == 0


def test_a_restored_rate_survives_attempts_that_never_reach_the_service():
    rate = AdaptiveRate(0.0, RateState(5.0, 10.0))
    for number in range(3):
        rate.take(float(number))
        rate.take(number + 0.1)
        rate.give_back(number + 0.2)
        rate.give_back(number + 0.3)
    assert rate.time_until(1, 4.0) >= 0
