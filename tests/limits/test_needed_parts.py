"""Parts of the discovered rate that were found to be needed: each test fails when its part is gone."""

import pytest

from benchmarks.needed_parts import WITHOUT_SATURATION, WITHOUT_SHARING, Part, figure
from onellm_async.limits.rate_samples import RateEvidence
from onellm_async.limits.send_log import SendLog


def test_the_time_in_which_a_bucket_may_have_been_full_is_left_out():
    waves = "4 waves of 200, s"
    assert figure(waves, Part("as it is"), [0]) < 2960 < figure(waves, WITHOUT_SATURATION, [0])


def test_clients_that_know_nothing_of_each_other_share_a_limit():
    run = "4 clients, 40/min b1"
    assert figure(run, Part("as it is"), [0, 2, 3]) > 0.2 > figure(run, WITHOUT_SHARING, [0, 2, 3])


@pytest.mark.parametrize(
    ("burst", "gain"), [(2, RateEvidence.SMALL_BURST_GAIN), (RateEvidence.FIRST_CRUISE, RateEvidence.FIRST_GAIN)]
)
def test_a_bucket_that_saves_little_is_probed_in_small_steps(burst, gain):
    log = SendLog()
    line = RateEvidence(0.0, log, 300)
    for number in range(burst):
        log.sent(0.1 * number)
    line.add_sample(1.0)
    rate = line.first_estimate()
    log.sent(20.0)
    line.add_sample(21.0)
    line.estimate(rate, 1.0, None)
    assert line.gain == gain
    assert RateEvidence.SMALL_BURST_GAIN < RateEvidence.FIRST_GAIN
