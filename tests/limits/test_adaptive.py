import statistics
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.rate_samples import RateBounds, RateLimitSample, rate_bounds
from onellm_async.limits.rate_state import RateState

RATE, BURST = 40 / 60, 40
SAVED = RateState(rate=0.66, burst=40, low=0.66, high=0.672)


def drive(control, requests, *, rate=RATE, burst=BURST, level=None, change=None, round_trip=0.05, waves=None):
    """Sends through a bucket without latency; returns when each was let through, and how many were refused.

    With `waves`, so many requests come at once, and nothing is asked until as many seconds after the last wave began.
    """
    bucket = TokenBucket(rate, burst, level=burst if level is None else level)
    now, through, refused = 0.0, [], 0
    while len(through) < requests:
        if waves is not None:
            wave = len(through) // waves[0] * waves[1]
            now = max(now, float(wave))
        now += control.time_until(1, now)
        if change is not None and now >= change[0]:
            bucket.retune(now, rate=change[1])
            change = None
        control.take(now)
        sent_at, allowed = now, bucket.try_take(1, now)
        now += round_trip
        if allowed:
            through.append(sent_at)
            control.answered(sent_at, now)
        else:
            refused += 1
            control.rate_limited(sent_at, now)
    return through, refused


def goodput(through, level, rate=RATE):
    return (len(through) - level) / rate / through[-1]


def test_nothing_is_known_before_the_first_refusal():
    control = AdaptiveRate(0.0)
    assert control.state is None
    assert control.confidence == 0


def test_confidence_grows_with_the_marks_that_agree():
    control = AdaptiveRate(0.0)
    drive(control, 60)
    early = control.confidence
    through, refused = drive(AdaptiveRate(0.0), 400)
    assert refused <= 6
    assert goodput(through, BURST) >= 0.97
    control = AdaptiveRate(0.0)
    drive(control, 400)
    assert early < control.confidence
    assert control.confidence >= 0.98
    assert control.state.low <= RATE <= control.state.high


@pytest.mark.parametrize("level", [0, 20, 40])
def test_a_saved_state_is_gone_on_with_whatever_the_bucket_holds(level):
    through, refused = drive(AdaptiveRate(0.0, SAVED), 400, level=level)
    assert refused <= 2
    assert goodput(through, level) >= 0.97


@pytest.mark.parametrize("factor", [0.5, 1, 2])
@pytest.mark.parametrize("level", [0, 40])
def test_a_declaration_is_a_prior_that_may_be_wrong(factor, level):
    through, refused = drive(AdaptiveRate(0.0, RateState(factor * RATE, 40)), 400, level=level)
    assert refused <= 8
    assert goodput(through, level) >= 0.95


def test_a_bucket_that_is_empty_at_the_start_is_found_out():
    through, refused = drive(AdaptiveRate(0.0), 400, level=0)
    assert refused <= 8
    assert goodput(through, 0) >= 0.95


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_a_slow_refill_after_a_large_burst_is_not_taken_for_company(rate):
    through, refused = drive(AdaptiveRate(0.0), 360, rate=rate)
    assert refused <= 9 + 0.025 * 360, "the initial silence, and a probe each 40 requests"
    assert goodput(through, BURST, rate) >= 0.97


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_limit_that_rises_is_met_soon_after_the_next_test(factor):
    control = AdaptiveRate(0.0, probe_every=40)
    through, refused = drive(control, 900, change=(300.0, factor * RATE))
    assert refused <= 0.03 * 900
    later = [at for at in through if at >= 300 + 40 / RATE + 30]
    assert len(later) / (later[-1] - later[0]) >= 0.9 * factor * RATE


def test_a_limit_that_halves_is_noticed_at_once():
    through, refused = drive(AdaptiveRate(0.0), 600, change=(300.0, RATE / 2))
    assert refused <= 0.06 * 600
    later = [at for at in through if at >= 300 + 40 / RATE]
    assert len(later) / (later[-1] - later[0]) >= 0.9 * RATE / 2


@pytest.mark.parametrize(("number", "every"), [(60, 600), (200, 900), (30, 60), (100, 200)])
def test_the_rate_is_not_underestimated_for_the_time_in_which_nothing_was_asked(number, every):
    control = AdaptiveRate(0.0)
    through, refused = drive(control, 30 * number, waves=(number, every))
    waited = [last - wave * every for wave, last in enumerate(through[number - 1 :: number])][1:]
    best = (number - BURST) / RATE if number > BURST else 0
    assert statistics.median(waited) <= best + 40
    assert refused <= 0.02 * len(through)
    assert control.rate >= 0.4 * RATE


@pytest.mark.parametrize(("burst", "share"), [(1, 0.6), (2, 0.65), (5, 0.85)])
def test_a_burst_that_saves_little_up_is_used_all_the_same(burst, share):
    through, refused = drive(AdaptiveRate(0.0), 400, burst=burst, level=1)
    assert goodput(through, burst) >= share
    assert refused <= 14


def test_rarer_tests_cost_fewer_refusals():
    refusals = [drive(AdaptiveRate(0.0, probe_every=every), 1500)[1] for every in (20, 80, 300)]
    assert refusals[0] > refusals[1] > refusals[2]


def test_gaps_are_random_only_while_the_key_is_shared():
    alone = AdaptiveRate(0.0, random=Random(1))
    through, _ = drive(alone, 300)
    gaps = [late - early for early, late in pairwise(through[150:250])]
    assert statistics.median(gaps) == pytest.approx(1 / RATE, rel=0.1)
    contested = AdaptiveRate(0.0, SAVED, random=Random(1))
    now = 0.0
    for request in range(30):  # others take every other token
        now += contested.time_until(1, now)
        contested.take(now)
        (contested.answered if request % 2 else contested.rate_limited)(now, now + 0.05)
        now += 0.05
    assert contested.confidence == 0
    assert contested.state.high is None
    waits = set()
    for _ in range(5):
        wait = contested.time_until(1, now)
        waits.add(round(wait * contested.rate, 3))
        now += wait
        contested.take(now)
    assert len(waits) == 5


def test_a_clock_set_back_forgets_the_marks_and_keeps_the_rate():
    control = AdaptiveRate(0.0, random=Random(0))
    drive(control, 300)
    rate = control.rate
    control.move_clock(0.0)
    assert control.rate == rate
    control.take(1.0)
    control.answered(1.0, 2.0)
    control.rate_limited(1.0, 2.0)
    assert control.time_until(1, 2.0) <= 2 / rate


def test_a_limit_that_rose_meanwhile_is_found_with_another_clock_too():
    control = AdaptiveRate(0.0, random=Random(0))
    drive(control, 300)
    control.move_clock(0.0)
    drive(control, 600, rate=2 * RATE)
    assert control.rate >= 1.9 * RATE


@given(
    st.floats(0.02, 50),
    st.integers(1, 200),
    st.floats(0, 1),
    st.sampled_from([None, SAVED, RateState(5.0, 3)]),
)
def test_it_always_gets_through_whatever_the_bucket(rate, burst, full, state):
    control = AdaptiveRate(0.0, state, random=Random(0))
    through, refused = drive(control, 80, rate=rate, burst=burst, level=full * burst)
    assert len(through) == 80
    assert refused <= 100, "whatever was believed before, no storm"
    assert 0 <= control.confidence <= 1


def test_marks_bound_the_rate_from_both_sides():
    marks = [RateLimitSample(0.0, 0), RateLimitSample(10.0, 20)]
    bounds = rate_bounds(marks, 0.0)
    assert (bounds.low, bounds.high, bounds.agreeing) == (1.9, 2.1, 2)
    assert bounds.tight


def test_marks_that_disagree_are_not_counted():
    marks = [
        RateLimitSample(0.0, 0),
        RateLimitSample(10.0, 100),
        RateLimitSample(20.0, 120),
        RateLimitSample(30.0, 140),
    ]
    bounds = rate_bounds(marks, 0.0)
    assert bounds.agreeing == 3
    assert bounds.low <= 2 <= bounds.high


def test_a_mark_that_may_not_have_been_empty_bounds_from_above_only():
    bounds = rate_bounds([RateLimitSample(0.0, 0, empty=False), RateLimitSample(10.0, 20)], 0.0)
    assert bounds.low == 0
    assert bounds.high == 2.1


def test_no_bounds_give_no_confidence():
    assert RateBounds().confidence == 0
    assert RateBounds(1.0, 1.0).confidence == 1


def test_a_random_gap_never_waits_for_more_than_the_bucket_can_hold():
    control, now = AdaptiveRate(0.0, RateState(0.66, 1, 0.66, 0.67), random=Random(0)), 0.0
    for turn in range(60):
        now += control.time_until(1, now)
        assert control.time_until(1, now) == 0
        control.take(now)
        (control.answered if turn % 4 else control.rate_limited)(now, now + 0.05)
        now += 0.05
    assert control.confidence == 0, "it is shared"


def phase_after_429s_without_an_answer(burst, requests=12):
    """A bucket of that size is hardly known; then nothing is accepted any more until three more requests got 429s."""
    control = AdaptiveRate(0.0, random=Random(0))
    through, _ = drive(control, burst + requests, rate=2.0, burst=burst)
    now, refused = through[-1] + 0.05, 0
    while refused < 4:
        now += control.time_until(1, now)
        control.take(now)
        control.rate_limited(now, now + 0.05)
        now += 0.05
        refused += 1
    return control.phase


def test_a_large_initial_burst_rules_out_contention():
    assert phase_after_429s_without_an_answer(10) == "Contended"
    assert phase_after_429s_without_an_answer(40) == "Silence", "no other client took those tokens: it is an outage"


def test_a_rate_that_is_certain_rules_out_contention():
    assert phase_after_429s_without_an_answer(10, requests=90) == "Silence", "it was kept to for long: another limit"
