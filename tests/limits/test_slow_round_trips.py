"""Limits are found although answers take long and 429s come from far away."""

import pytest

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_samples import RateEvidence, RateLimitSample
from onellm_async.limits.send_log import SendLog
from onellm_async.limits.windows import Window
from onellm_async.server import BucketLimit, Faults, WindowLimit
from onellm_async.simulation import Scenario, simulate


def goodput(limit, prompts, round_trip):
    """That of a client without a declared rate, to which an answer takes 0.3 s beyond the round trip."""
    found = simulate(
        Scenario(
            prompts=prompts,
            service_limits=[limit],
            limits=Limits(requests_per_minute="auto", max_concurrency=1024),
            faults=Faults(latency=0.3, latency_sigma=0.3),
            network_delay=round_trip / 2,
            network_jitter=round_trip / 10,
            seed=100,
        )
    )
    assert found.answered == prompts
    return found.goodput


@pytest.mark.parametrize(
    ("limit", "prompts", "round_trip", "least"),
    [
        (BucketLimit(50 * 60, 40), 1000, 0.02, 0.97),
        (BucketLimit(50 * 60, 40), 1000, 0.1, 0.95),  # was 0.66
        (BucketLimit(200 * 60, 40), 2400, 0.02, 0.85),  # was 0.77, at most 160 requests per second
        (WindowLimit(100, 1, sliding=True), 1500, 0.1, 0.55),  # was 0.29
    ],
    ids=str,
)
def test_a_hidden_limit_is_used_although_429s_come_from_far_away(limit, prompts, round_trip, least):
    assert goodput(limit, prompts, round_trip) >= least


def accepted_by(control, seconds, latency):
    """Sends as soon as the control allows, to a service that accepts everything; returns how many."""
    now, flight = 0.0, []
    while now < seconds:
        at = now + control.time_until(1, now)
        if flight and flight[0] + latency <= at:
            sent_at = flight.pop(0)
            now = max(now, sent_at + latency)
            control.answered(sent_at, now)
        else:
            now = at
            control.take(now)
            flight.append(now)
    return control._evidence.log.total


def test_a_service_without_a_limit_is_used_ever_faster():
    sent = [accepted_by(AdaptiveRate(0.0), seconds, latency=0.5) for seconds in (10, 16)]
    assert (sent[1] - sent[0]) / 6 > 600, "it was 160 requests per second for ever"


def test_a_rate_is_certain_beyond_what_the_bucket_had_saved():
    log = SendLog()
    evidence = RateEvidence(0.0, log, probe_every=300)
    evidence.samples.append(RateLimitSample(0.0, 0, empty=False))
    for number in range(100):
        log.sent(number / 10)
    assert evidence.certain_rate(10.0, capacity=40.0) == pytest.approx(6.0, rel=0.01)
    assert evidence.certain_rate(3.0, capacity=40.0) == 0


def test_a_window_with_little_to_send_is_still_doubted():
    window, log = Window(3, 90.0, 100.0), SendLog()
    for at in (0.0, 5000.0, 10_000.0):
        window.sent(at, log)
        log.sent(at)
    assert window.rounds == -1
    assert window.earliest(log, 0.1) == 100.0, "its length has passed since the first of three"
    for at in (10_001.0, 10_002.0):
        window.sent(at, log)
        log.sent(at)
    assert window.earliest(log, 0.1) == 10_062.0, "the first knock"


def test_a_window_that_was_filled_at_once_is_kept_to():
    window, log = Window(3, 90.0, 100.0), SendLog()
    for at in (0.0, 1.0, 2.0):
        window.sent(at, log)
        log.sent(at)
    assert window.rounds == 0
    assert window.earliest(log, 0.1) == 100.0
