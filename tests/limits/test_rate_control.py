"""What refusals teach, as the limits say, in the pure core."""

from random import Random

import pytest
from attrs import evolve

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_control import control_for, reconfigured


def control(limits, now=0.0):
    return control_for(limits, now, Random(0))


def disappoint(rate, now=0.0, times=50):
    """Everything that leaves is refused."""
    for _ in range(times):
        now += rate.time_until(1, now)
        rate.take(now)
        rate.rate_limited(now, now + 0.1)
        now += 0.1
    return now


@pytest.mark.parametrize(
    ("limits", "mode"),
    [
        (Limits(), "correct"),
        (Limits(requests_per_minute="auto"), "discover"),
        (Limits(adaptive="discover"), "discover"),
        (Limits(adaptive="correct"), "correct"),
        (Limits(adaptive="off"), "off"),
        (Limits.unlimited(), "unlimited"),
        (Limits(requests_per_minute=None), "unlimited"),
    ],
    ids=str,
)
def test_auto_discovers_what_is_not_declared_and_corrects_what_is(limits, mode):
    assert limits.mode == mode


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaptive": "on"}, "Limits.adaptive is 'on'; it must be 'auto', 'discover', 'correct' or 'off'"),
        ({"adaptive": None}, "Limits.adaptive is None"),
        ({"adaptive": "correct", "requests_per_minute": "auto"}, "Limits.adaptive is 'correct'; that needs a declared"),
        ({"adaptive": "off", "requests_per_minute": "auto"}, "Limits.adaptive is 'off'; that needs a declared rate"),
        (
            {"requests_per_minute": None, "adaptive": "discover"},
            "Limits.adaptive is 'discover'; requests_per_minute is None, so there is no rate to adapt",
        ),
        ({"requests_per_minute": None, "adaptive": "correct"}, "so there is no rate to adapt"),
        (
            {"requests_per_minute": "fast"},
            "Limits.requests_per_minute is 'fast'; it must be a finite number above 0, 'auto'",
        ),
        ({"requests_per_minute": 0}, "Limits.requests_per_minute is 0; it must be a finite number above 0"),
        ({"probe_every": 0}, "Limits.probe_every is 0; it must be an integer of at least 1"),
        ({"probe_every": 2.5}, "Limits.probe_every is 2.5"),
    ],
    ids=str,
)
def test_contradictions_are_refused_by_value(settings, message):
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(")):
        Limits(**settings)


def test_a_declared_rate_is_lowered_by_refusals_that_go_on():
    rate = control(Limits(requests_per_minute=600, burst=10))
    disappoint(rate)
    assert rate.rate < 5


def test_with_adaptation_off_refusals_empty_the_bucket_and_leave_the_rate_alone():
    rate = control(Limits(requests_per_minute=600, burst=10, adaptive="off"))
    declared = rate.rate
    now = disappoint(rate)
    assert rate.rate == declared
    assert 0.09 <= rate.time_until(1, now - 0.1) <= 0.25, "one refill, and the margin"


def test_a_declared_rate_is_where_discovery_starts():
    rate = control(Limits(requests_per_minute=600, adaptive="discover"))
    assert rate.rate == pytest.approx(10)
    now = disappoint(rate)
    assert now > 600, "single requests, less and less often"
    assert rate.rate == pytest.approx(10), "a silence says nothing about the rate"


def test_limits_that_change_nothing_for_the_rate_keep_what_it_knows():
    limits = Limits(requests_per_minute=600)
    rate = control(limits)
    other = evolve(limits, max_concurrency=7, max_pending=3, tokens_per_minute=1000, probe_every=9, adaptive="correct")
    assert reconfigured(rate, limits, other, 0.0, Random(0)) is rate


def test_another_declaration_is_another_rate():
    limits = Limits(requests_per_minute=600)
    rate = reconfigured(control(limits), limits, Limits(requests_per_minute=60), 5.0, Random(0))
    assert rate.rate == pytest.approx(1)
    assert reconfigured(rate, Limits(requests_per_minute=60), Limits.unlimited(), 5.0, Random(0)).rate == float("inf")
