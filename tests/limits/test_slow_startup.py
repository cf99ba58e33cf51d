"""What slow requests say of the bucket, and of the refill that was lost while it was full."""

import pytest

from onellm_async.limits.rate_samples import RateBounds, RateEvidence, rate_bounds
from onellm_async.limits.saturation import SaturationClock
from onellm_async.limits.send_log import SendLog

RATE, BURST = 200.0, 40.0


class Bucket:
    """The service's bucket, full at first, and the evidence of what is sent to it."""

    def __init__(self) -> None:
        self.log = SendLog()
        self.line = RateEvidence(0.0, self.log, 300)
        self.line.lateness = 0.05
        self.line.observe_round_trip(0.01)
        self.now = 0.0
        self.level, self._filled_at = BURST, 0.0

    def sends_until_429(self, pace: float, growth: float, most: float) -> None:
        """Sends at a pace that grows with each request; the 429 that ends it is the next sample."""
        while True:
            self.now += 1 / pace
            pace = min(most, growth * pace)
            self.level = min(BURST, self.level + (self.now - self._filled_at) * RATE)
            self._filled_at = self.now
            if self.level < 1:
                break
            self.level -= 1
            self.log.sent(self.now)
            if self.line.samples:
                self.line.saturation.take(self.now)
        self.line.add_sample(self.now)


@pytest.mark.parametrize("growth", [1.05, 1.1, 1.3])
def test_refill_that_was_lost_before_the_second_429_is_no_proof_of_a_lower_rate(growth):
    bucket = Bucket()
    line = bucket.line
    bucket.sends_until_429(400.0, 1.0, 400.0)
    line.empty_bucket(line.first_estimate(), 1.0, bucket.now, None)
    bucket.sends_until_429(12.0, growth, 500.0)
    bounds = rate_bounds(list(line.samples), line.jitter)
    assert bounds.low <= RATE
    assert bounds.high >= 0.98 * RATE


def test_the_bucket_is_known_although_it_was_full_for_most_of_the_startup():
    bucket = Bucket()
    line = bucket.line
    bucket.sends_until_429(4.0, 1.1, 400.0)
    line.first_estimate()
    line.bounds = RateBounds(0.98 * RATE, 1.02 * RATE, 2)
    assert line.burst(1.0) == pytest.approx(BURST, abs=4)


def test_on_a_board_no_pace_follows_from_a_loose_upper_bound():
    line = RateEvidence(0.0, SendLog(), 300)
    line.bounds = RateBounds(90.0, 35_000.0, 3)
    assert line.believed_high == 35_000.0, "in one process the storm bound limits what that costs"
    line.lateness = 0.05
    assert line.believed_high == 720.0
    line.bounds = RateBounds(0.0, 35_000.0, 3)
    assert line.believed_high == 35_000.0, "nothing is known that it could be a multiple of"


def test_a_clock_that_is_replayed_has_seen_the_same_requests():
    sent = [0.1 * number for number in range(1, 40)]
    seen = SaturationClock(0.0)
    seen.restart(0.0, 30.0, 5.0)
    for at in sent:
        seen.take(at)
    again = SaturationClock.replayed(sent, 0.0, 30.0, 5.0)
    assert again.seconds == seen.seconds > 0
    assert again.rate_limited(4.0, 0, 0.005) == seen.rate_limited(4.0, 0, 0.005)
