"""A share of a limit that others use: knocks while nothing is accepted, and no belief far beyond what was accepted."""

from random import Random

import pytest

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.evidence import Evidence
from onellm_async.limits.phases import Contended
from onellm_async.limits.rate_samples import RateBounds

RATE = 100.0


def contended(rate=RATE, accepted=600, seconds=60.0):
    """A share after so many accepted requests, at even distances, between tight bounds."""
    evidence = Evidence(0.0, 300)
    evidence.line.observe_round_trip(0.02)
    for number in range(accepted):
        evidence.log.sent(number * seconds / accepted)
    evidence.line.bounds = RateBounds(rate, 1.1 * rate, 4)
    evidence.line.add_sample(seconds)
    bucket = TokenBucket(rate, 1.0, level=0.0, updated_at=seconds)
    return evidence, Contended(bucket, evidence, Random(1), seconds)


def refuse(phase, evidence, at):
    """Sends a request that gets a 429."""
    phase.take(at, evidence)
    evidence.line.add_sample(at)
    assert phase.rate_limited(at + 0.02, None, evidence, None) is phase
    return at + 0.02


def test_single_requests_half_a_second_apart_while_nothing_is_accepted():
    evidence, phase = contended()
    now = 60.0
    for _ in range(6):
        now = refuse(phase, evidence, now)
        wait = phase.time_until(1, now, 0.0, evidence)
        assert wait >= Contended.MIN_GAP - 1e-9
        now += wait
    phase.take(now, evidence)
    assert phase.time_until(1, now, 0.0, evidence) >= evidence.ack - 1e-9, "alone, until its 429 would have come"
    now += evidence.ack + 0.01
    phase.take(now, evidence)
    assert phase.time_until(1, now, 0.0, evidence) < 2 / phase.rate


@pytest.mark.parametrize("answers", [60, 600])
def test_the_rate_grows_no_further_in_a_minute_than_a_multiple_of_it_or_of_what_was_accepted(answers):
    evidence, phase = contended(rate=0.5, accepted=300)
    evidence.peak = 300.0
    for number in range(answers):
        phase.answered(60.5 + number / 100, 61.0 + number / 100, evidence)
    assert phase.rate <= max(Contended.MAX_GROWTH * 0.5, Contended.MAX_BEYOND * 5) + 1e-9


def test_the_bound_follows_after_a_minute():
    evidence, phase = contended(rate=0.5, accepted=300)
    for number in range(2000):
        phase.answered(61.0 + number, 62.0 + number, evidence)
    assert phase.rate > 50
