import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.batch.health import Health, HealthPolicy
from onellm_async.errors import BadRequestError, ConfigurationError, DeadlineExceededError, InternalServerError

DOWN = InternalServerError("down", status_code=500)
BAD = BadRequestError("bad", status_code=400)


def test_a_fifth_of_the_last_fifty_may_fail_alike_and_one_more_is_systemic():
    health = Health(HealthPolicy(), 0)
    for _ in range(40):
        health.answered(1)
    for _ in range(10):
        health.failed(DOWN, 2)
    assert health.systemic_failure() is None
    health.failed(DOWN, 3)
    assert health.systemic_failure() == "11 of the last 50 prompts failed with InternalServerError (500)"


def test_different_failures_are_not_systemic():
    health = Health(HealthPolicy(), 0)
    for _ in range(9):
        for error in (DOWN, BAD, DeadlineExceededError("late")):
            health.failed(error, 1)
    assert health.systemic_failure() is None


def test_old_failures_are_forgotten():
    health = Health(HealthPolicy(), 0)
    for _ in range(10):
        health.failed(DOWN, 1)
    for _ in range(50):
        health.answered(2)
    health.failed(DOWN, 3)
    assert health.systemic_failure() is None


def test_a_small_run_that_fails_in_everything_stops_at_the_eleventh_failure():
    health = Health(HealthPolicy(), 0)
    for _ in range(10):
        health.failed(DOWN, 1)
    assert health.systemic_failure() is None
    health.failed(DOWN, 1)
    assert health.systemic_failure() is not None


def test_whoever_allows_all_failures_is_never_stopped_by_them():
    health = Health(HealthPolicy(most_alike=1), 0)
    for _ in range(200):
        health.failed(DOWN, 1)
    assert health.systemic_failure() is None


@given(st.lists(st.sampled_from([None, DOWN, BAD]), max_size=200))
def test_the_counts_are_those_of_the_last_fifty(outcomes):
    health = Health(HealthPolicy(most_alike=0.1), 0)
    for outcome in outcomes:
        if outcome is None:
            health.answered(0)
        else:
            health.failed(outcome, 0)
    latest = outcomes[-50:]
    expected = bool(latest) and latest[-1] is not None and latest.count(latest[-1]) > 5
    assert (health.systemic_failure() is not None) == expected


def test_silence_is_told_every_quarter_of_an_hour_and_ends_the_run_after_an_hour():
    health = Health(HealthPolicy(), 0)
    health.answered(100)
    assert [health.quiet_for(at) for at in (999, 1000, 1001, 1899, 1900)] == [None, 900, None, None, 1800]
    assert not health.stalled(3699)
    assert health.stalled(3700)


def test_a_pause_is_no_stall():
    health = Health(HealthPolicy(), 0)
    health.waits(3599)
    assert not health.stalled(3601)
    assert health.quiet_for(3601) is None


@pytest.mark.parametrize(("name", "value"), [("most_alike", 1.1), ("quiet_after", 0), ("stalled_after", -1)])
def test_a_policy_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"HealthPolicy.{name} is"):
        HealthPolicy(**{name: value})
