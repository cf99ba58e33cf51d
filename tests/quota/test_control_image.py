"""A discovered rate as a value: what is stored and loaded goes on as if it had never been stored."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_control import control_for
from onellm_async.quota.control_image import ControlImageError, dump_control, load_control
from onellm_async.wire import dump_json, parse_json

MODES = [
    Limits(requests_per_minute="auto"),
    Limits(requests_per_minute=60, adaptive="discover"),
    Limits(requests_per_minute=60),
]


def stored(control, random):
    return load_control(parse_json(dump_json(dump_control(control))), random)


@given(st.integers(0, 10**9), st.sampled_from(MODES))
def test_a_control_that_is_stored_after_each_step_decides_alike(seed, limits):
    dice = Random(seed)
    kept = control_for(limits, 0.0, Random(1))
    other = stored(control_for(limits, 0.0, Random(1)), Random(1))
    now, sent = 0.0, []
    for _ in range(80):
        now += dice.choice([0.01, 0.1, 1.0, 5.0])
        assert kept.time_until(1, now) == other.time_until(1, now)
        step = dice.random()
        for control in (kept, other):
            if step < 0.6:
                control.take(now)
            elif step < 0.8 and sent:
                control.answered(sent[-1], now)
            elif sent:
                control.rate_limited(sent[-1], now, retry_after=None)
        if step < 0.6:
            sent.append(now)
        random = other._random
        other = stored(other, random)
        assert (kept.rate, kept.state, kept.confidence) == (other.rate, other.state, other.confidence)


@pytest.mark.parametrize(
    "image",
    [
        {"~": "limiter:Nothing", "has": {}},
        {"~": "nothing:Nothing", "has": {}},
        {"~": "declared:TokenBucket", "has": {}},
        {"~": "declared:DeclaredRate", "has": {"invented": 1}},
        {"~": "bucket:TokenBucket", "has": {"invented": 1}},
        {"~": "../files:Path", "has": {}},
        {"~": "seen", "number": 3},
        [],
        None,
        {"has": {}},
    ],
)
def test_what_does_not_fit_is_refused(image):
    with pytest.raises(ControlImageError):
        load_control(image, Random(0))


def test_the_times_of_the_last_sends_are_bounded():
    control = control_for(Limits(requests_per_minute="auto"), 0.0, Random(0), is_shared=True)
    for number in range(5000):
        control.take(number / 100)
    assert len(dump_json(dump_control(control))) < 8000


def test_something_foreign_in_a_control_is_not_written():
    control = control_for(Limits(requests_per_minute="auto"), 0.0, Random(0))
    control._hidden = object()
    with pytest.raises(TypeError, match="cannot be written"):
        dump_control(control)
