"""A share of a limit that others use: knocks while nothing is accepted, and no belief far beyond what was accepted."""

from random import Random

import pytest

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.evidence import Evidence
from onellm_async.limits.phases import Contended
from onellm_async.limits.rate_samples import RateBounds

RATE = 100.0


def contended(rate=RATE, accepted=600, seconds=60.0, capacity=1.0):
    """A share after so many accepted requests, at even distances, between tight bounds."""
    evidence = Evidence(0.0, 300)
    evidence.line.observe_round_trip(0.02)
    for number in range(accepted):
        evidence.log.sent(number * seconds / accepted)
    evidence.line.bounds = RateBounds(rate, 1.1 * rate, 4)
    evidence.line.add_sample(seconds)
    bucket = TokenBucket(rate, capacity, level=0.0, updated_at=seconds)
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


@pytest.mark.parametrize(("capacity", "accepted", "after"), [(40.0, 40, 1.4), (40.0, 10, 70.0), (2.0, 40, 70.0)])
def test_a_rate_that_spent_savings_falls_below_what_the_others_leave(capacity, accepted, after):
    evidence, phase = contended(capacity=capacity)
    for number in range(accepted):
        evidence.log.sent(60.0 + number / 2)
    evidence.line.add_sample(80.0)
    assert phase.rate_limited(80.02, None, evidence, None) is phase
    assert phase.rate == pytest.approx(after)


def test_other_clients_are_looked_for_less_often_after_each_time_in_vain():
    evidence, phase = contended(rate=0.5)
    now = 60.0
    for minutes in (15, 30, 60, 60):
        evidence.line.add_sample(now + 60 * minutes - 1)
        assert phase.rate_limited(now + 60 * minutes - 1, None, evidence, None) is phase
        evidence.line.add_sample(now + 60 * minutes + 1)
        assert phase.rate_limited(now + 60 * minutes + 1, None, evidence, None).name == "Cruise"
        now += 60 * minutes + 1
        evidence.line.add_sample(now)
        phase = Contended(TokenBucket(0.5, 1.0, level=0.0, updated_at=now), evidence, Random(1), now)
    evidence.line.restart()
    assert evidence.line.identified == 0, "another limit is another search"
