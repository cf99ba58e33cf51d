from random import Random

import pytest

from onellm_async.limits.backoff_only import BackoffOnly
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.rate_state import RateState


def refuse(control, now):
    control.take(now)
    control.rate_limited(now, now + 0.05)


def test_a_declaration_is_certain_until_refusals_correct_it():
    control = DeclaredRate(1.0, 40, 0.0)
    assert control.confidence == 1
    assert control.state == RateState(1.0, 40, 1.0, 1.0)
    refuse(control, 0.0)
    assert control.confidence == 1, "a first refusal only tells that the bucket was not full"
    refuse(control, 5.0)
    assert control.confidence == pytest.approx(0.7)
    assert control.state == RateState(control.rate, 40, 0.0, 1.0)


def test_a_corrected_rate_is_gone_on_with_and_comes_back():
    control = DeclaredRate(1.0, 40, 0.0, RateState(0.5, 40))
    assert control.rate == 0.5
    for second in range(200):
        control.take(float(second))
        control.answered(float(second), second + 1.0)
    assert control.rate == 1.0


@pytest.mark.parametrize(("rate", "held"), [(3.0, 1.0), (1e-9, 1 / 30)])
def test_a_state_never_exceeds_the_declaration_nor_ends_everything(rate, held):
    assert DeclaredRate(1.0, 40, 0.0, RateState(rate, 40)).rate == held


def test_retuning_keeps_the_level_and_cuts_it_to_the_new_capacity():
    control = DeclaredRate(1.0, 40, 0.0)
    control.retune(2.0, 10, 100.0)
    assert control.rate == 2.0
    assert control.time_until(8, 100.0) == 0
    assert control.time_until(10, 100.0) > 0
    for _ in range(8):
        control.take(100.0)
    control.retune(1.0, 40, 100.0)
    assert control.time_until(30, 100.0) == pytest.approx(29, abs=2), "nothing is made up for"


def test_retuning_forgets_the_correction():
    control = DeclaredRate(1.0, 40, 0.0)
    refuse(control, 0.0)
    refuse(control, 5.0)
    control.retune(3.0, 40, 6.0)
    assert control.confidence == 1
    assert control.rate == 3.0


def test_gaps_are_random_only_while_the_rate_is_corrected():
    def gaps(control, now):
        seen = []
        for _ in range(6):
            wait = control.time_until(1, now)
            seen.append(round(wait * control.rate, 3))
            now += wait
            control.take(now)
        return seen[1:]

    control = DeclaredRate(1.0, 4, 0.0, random=Random(0))
    refuse(control, 100.0)
    assert set(gaps(control, 100.05)) == {1.0}
    refuse(control, 110.0)
    assert len(set(gaps(control, 110.05))) == 5


@pytest.mark.parametrize(("retry_after", "lowered"), [(None, True), (0, True), (30, False)])
def test_a_retry_after_of_zero_is_no_reason_to_keep_the_rate(retry_after, lowered):
    control = DeclaredRate(14.0, 22, 0.0)
    for number in range(6):
        control.take(float(number))
        control.rate_limited(float(number), number + 0.05, retry_after=retry_after)
    assert (control.rate < 0.5 * 14) == lowered


def test_backing_off_knows_nothing():
    control = BackoffOnly(Random(0))
    assert control.state is None
    assert control.confidence == 0


def test_a_random_gap_never_waits_for_more_than_the_bucket_can_hold():
    control = DeclaredRate(1.0, 1, 0.0, RateState(0.5, 1), random=Random(0))
    now = 0.0
    for _ in range(50):
        now += control.time_until(1, now)
        assert control.time_until(1, now) == 0
        control.take(now)
    assert now <= 2.5 * 50
