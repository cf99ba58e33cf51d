"""The search for the rate, where long times without requests lie between: they prove nothing."""

from random import Random

import pytest

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.windows import Windows
from onellm_async.server import Faults
from onellm_async.simulation import Scenario, simulate
from tests.limits.test_windows import log_of

ROUND_TRIP = 0.02


class Sender:
    """Sends single requests as soon as they may be sent, and answers them as `accepts` says."""

    def __init__(self, accepts, now=0.0):
        self.control, self.accepts, self.now = AdaptiveRate(now, random=Random(1)), accepts, now
        self.refused = 0

    def send(self, number=1, *, not_before=0.0, until=float("inf")):
        """Returns the longest wait for one of the next `number` accepted requests."""
        longest, self.now = 0.0, max(self.now, not_before)
        for _ in range(number):
            asked_at = self.now
            while self.now < until:
                self.now += self.control.time_until(1, self.now)
                sent_at = self.now
                self.control.take(sent_at)
                self.now += ROUND_TRIP
                if self.accepts(sent_at):
                    self.control.answered(sent_at, self.now)
                    break
                self.control.rate_limited(sent_at, self.now)
                self.refused += 1
            longest = max(longest, self.now - asked_at)
        return longest


def test_a_refusal_after_an_hour_of_silence_does_not_make_the_next_hour_one_of_waiting():
    rate = AdaptiveRate(0.0, random=Random(1))
    rate.take(0.0)
    rate.rate_limited(0.0, 0.03, retry_after=7)
    for sent_at in (17.0, 22.0):
        rate.take(sent_at)
        rate.answered(sent_at, sent_at + 0.2)
    rate.take(3234.0)
    rate.rate_limited(3234.0, 3234.03, retry_after=7)  # somebody else was quicker
    assert rate.time_until(1, 3234.03) <= 300


def test_a_silence_without_requests_is_not_taken_for_a_window():
    refused = iter([True, True, False, True])
    sender = Sender(lambda at: not next(refused, False))
    sender.control.take(0.0)
    sender.control.rate_limited(0.0, ROUND_TRIP)
    next(refused)
    assert sender.send(60, not_before=14_000.0) < 60
    assert not sender.control._evidence.windows


def test_single_requests_after_a_long_rest_keep_their_distance():
    sender = Sender(lambda at: at > 14_010.0)
    sender.control.take(0.0)
    sender.control.rate_limited(0.0, ROUND_TRIP)
    sender.send(not_before=14_000.0, until=14_001.0)
    assert sender.refused <= 2


def test_a_first_request_that_is_accepted_after_hours_does_not_make_the_next_one_wait_for_hours():
    sender = Sender(lambda at: at > 1.0)
    sender.control.take(0.0)
    sender.control.rate_limited(0.0, ROUND_TRIP)
    assert sender.send(20, not_before=14_000.0) < 5


@pytest.mark.parametrize("outage", [0.0, 60.0], ids=["an opening", "no line known"])
def test_bursts_with_hours_between_do_not_make_the_rate_one_request_in_an_hour(outage):
    bucket = TokenBucket(0.5, 5)
    sender = Sender(lambda at: at >= outage and bucket.try_take(1, at))
    waits = [sender.send(7, not_before=5000.0 * wave) for wave in range(6)]
    assert max(waits[1:]) <= 30
    assert sender.control.rate >= 0.05


def test_a_service_that_was_closed_for_ten_minutes_is_not_taken_for_a_window():
    sender = Sender(lambda at: at < 0.2 or at > 595.0)
    sender.send(3)
    assert sender.send(30) < 620
    assert sender.send(300) <= 1, "more at once than ever before: it was no window"


def test_a_window_that_one_silence_suggests_is_doubted_in_its_first_wait():
    sender = Sender(lambda at: at < 2.0 or at > 595.0)
    sender.send(200, until=2.0)
    sender.send(30, not_before=2.0)
    assert sender.send(400) <= 61, "a single request after a minute shows that the service was closed"
    assert sender.send(400) <= 1


def test_a_true_window_of_ten_minutes_is_asked_little_more_often():
    accepted = []

    def accepts(at):
        accepted[:] = [other for other in accepted if other > at - 600.0]
        if len(accepted) >= 40:
            return False
        accepted.append(at)
        return True

    sender = Sender(accepts)
    sender.send(80)
    before = sender.refused
    sender.send(200)
    assert sender.refused - before <= 12
    assert sender.now <= 6.2 * 600


def test_what_is_tried_in_the_first_wait_of_a_window_refutes_it_if_it_is_accepted():
    log = log_of([number / 100 for number in range(40)] + [600.1])
    windows = Windows(log)
    windows.add(start=0.4, shortest_at=540.0, end=600.1, burst_at=0.0)
    for number in range(39):
        windows.sent(600.2 + number / 100)
        log.sent(600.2 + number / 100)
    knock_at = windows.earliest(0.03)
    assert 660 < knock_at < 661
    windows.sent(knock_at)
    log.sent(knock_at)
    windows.advance(knock_at + 0.03, 0.03)
    assert not windows


@pytest.mark.parametrize(("per_second", "burst", "prompts"), [(60, 10, 40), (60, 10, 100), (20, 20, 100), (10, 5, 40)])
def test_a_short_run_finds_the_limit_of_a_service_that_answers_at_once(per_second, burst, prompts):
    latency = Faults(latency=0.002, latency_sigma=0.3)
    network = {"network_delay": 0.001, "network_jitter": 0.001}
    for seed in range(3):
        service = {"requests_per_minute": 60 * per_second, "burst": burst, "faults": latency, "seed": seed}
        result = simulate(Scenario(prompts=prompts, **service, **network))
        assert result.makespan < 1.2 * (prompts - burst) / per_second
        assert result.rate_limited <= 8
