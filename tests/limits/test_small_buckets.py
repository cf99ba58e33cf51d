"""Buckets that save little, full or empty at the start: what a slow pace loses, no probe finds again."""

import pytest

from benchmarks.limits_lab import BucketService, drive
from onellm_async.limits.rate_samples import RateBounds, RateEvidence, RateLimitSample
from onellm_async.limits.saturation import SaturationClock
from onellm_async.limits.send_log import SendLog

PROMPTS = 1000


@pytest.mark.parametrize(
    ("rate", "burst", "level", "least"),
    [
        (5, 2, 2, 0.97),  # was 0.90
        (5, 3, 3, 0.97),  # was 0.93
        (20, 2, 2, 0.88),  # was 0.84
        (50, 1, 1, 0.6),  # was 0.55
        (2, 1, 0, 0.9),  # was 0.64
        (2, 5, 0, 0.97),  # 8 % were refused while a bold pace was taken for other clients
        (5, 1, 0, 0.8),  # was 0.62
        (10, 3, 0, 0.9),  # was 0.74
        (20, 10, 0, 0.85),  # was 0.73
        (50, 3, 0, 0.7),  # was 0.51
    ],
)
def test_a_small_or_empty_bucket_is_used(rate, burst, level, least):
    for seed in (1001, 1002):
        run = drive(BucketService(rate, burst, level), PROMPTS, latency=0.3, max_concurrency=48, seed=seed)
        best = (PROMPTS - level) / rate + 0.3
        assert best / run.seconds >= least
        assert len(run.refused_at) <= 0.026 * PROMPTS


def test_after_a_rise_the_service_may_have_lost_refill_at_up_to_three_times_the_pace():
    log = SendLog()
    line = RateEvidence(0.0, log, 300)
    line.samples.append(RateLimitSample(0.0, 0))
    line.saturation.restart(0.0, 1.0, 2.0)
    for number in range(20):
        log.sent(number / 2)
    line.bounds = RateBounds(0.5, 1.0, 2)
    assert line.limit_rose(2.0, 9.5)
    before = line.saturation.seconds
    line.saturation.take(11.5)  # six tokens a second fill a bucket of two in a third of a second
    assert line.saturation.seconds == before + 2.0


def test_another_rate_counts_from_now_on_and_the_bucket_may_be_full():
    clock = SaturationClock(0.0)
    clock.restart(0.0, rate=1.0, capacity=10.0)
    clock.take(1.0)
    assert clock.seconds == 0
    clock.assume(5.0, 1.0)
    clock.take(2.0)
    assert clock.seconds == 1.0


def bold_line():
    """A line whose bounds are wide, as the service's bucket may have been full for half of the time."""
    log = SendLog()
    line = RateEvidence(0.0, log, 300)
    line.samples.append(RateLimitSample(0.0, 0))
    for number in range(100):
        log.sent(number / 4)
    line.samples.append(RateLimitSample(25.0, 100, saturated=12.5))
    return line, log


def test_where_refill_may_have_been_lost_the_rate_is_between_the_bounds():
    line, _ = bold_line()
    rate = line.estimate(4.0, 2.0, 4.1)
    assert line.is_bold
    assert rate == pytest.approx((line.bounds.low + line.bounds.high) / 2)


def test_a_429_of_a_bold_cruise_halves_the_step_and_is_no_sign_of_other_clients():
    line, log = bold_line()
    bold = line.estimate(4.0, 2.0, 4.1)
    log.sent(25.2)
    line.samples.append(RateLimitSample(25.4, 101, saturated=12.55))
    rate = line.estimate(bold, 2.0, None)
    assert line.contention == 0
    assert rate == pytest.approx(line.bounds.low + (line.bounds.high - line.bounds.low) / 4)


def test_a_429_of_a_bold_cruise_never_raises_the_rate():
    line, log = bold_line()
    line.samples[-1].saturated = 24.9  # hardly anything is known from above
    bold = line.estimate(4.0, 2.0, 4.1)
    log.sent(25.0)
    line.samples.append(RateLimitSample(25.1, 101, saturated=24.95))
    assert line.bounds.low < line.estimate(bold / 10, 2.0, None) < bold / 10


def test_where_nothing_was_lost_the_rate_is_the_lower_bound():
    line, _ = bold_line()
    line.samples[-1].saturated = 0.0
    assert line.estimate(4.0, 2.0, 4.1) == line.bounds.low
    assert not line.is_bold
