"""What was found is asked again: windows that explain no 429, lengths that became shorter, priors that are far off."""

import statistics

import pytest

from benchmarks.limits_lab import (
    AllOf,
    BucketService,
    Changing,
    ConcurrencyLimit,
    FixedWindow,
    SlidingWindow,
    drive,
)
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.send_log import SendLog
from onellm_async.limits.slots import Slots
from onellm_async.limits.windows import Window, Windows

PRIOR = RateState(rate=40 / 60, burst=40, low=0.66, high=0.67)


def windows_with(times, window):
    log = SendLog()
    for at in times:
        log.sent(at)
    windows = Windows(log)
    windows.all = [window]
    return windows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("service", "prompts", "most"),
    [
        (lambda: AllOf(BucketService(5, 1), BucketService(1, 60)), 400, 0.15),  # was 1.6
        (lambda: AllOf(BucketService(5, 1), BucketService(1, 10)), 300, 0.15),  # was 2.0
        (lambda: AllOf(SlidingWindow(1, 0.2), BucketService(1, 3)), 300, 0.1),  # was 1.2
        (lambda: BucketService(30, 1), 6000, 0.02),  # was 0.99 for half of the seeds
    ],
    ids=["60 per minute after 60", "60 per minute after 10", "window", "evenly spaced"],
)
def test_a_window_of_one_request_is_not_blamed_for_the_429s_of_another_limit(service, prompts, most, seed):
    run = drive(service(), prompts, seed=seed)
    assert len(run.refused_at) <= most * prompts


@pytest.mark.parametrize(("at", "is_full"), [(0.21, True), (0.3, False)])
def test_a_window_of_few_requests_explains_a_429_if_it_is_full_or_a_little_longer(at, is_full):
    window = Window(1, 0.1, 0.2)
    assert windows_with([0.0], window).is_full(window, at) == is_full


@pytest.mark.parametrize(
    ("first", "then", "best"),
    [
        (SlidingWindow(40, 60), SlidingWindow(40, 10), 4),  # was 0.17
        (FixedWindow(40, 60), FixedWindow(40, 10), 4),  # was 0.17
        (SlidingWindow(40, 60), SlidingWindow(80, 60), 80 / 60),  # was 0.58
        (SlidingWindow(300, 60), SlidingWindow(300, 30), 10),  # was 0.50
        (BucketService(5, 1), BucketService(8, 1), 8),  # was 0.62
        (SlidingWindow(1, 1), SlidingWindow(1, 0.2), 5),
    ],
    ids=["shorter", "shorter, fixed", "twice as many", "half as long", "small bucket", "one a second"],
)
def test_a_window_that_opens_sooner_is_used_within_five_minutes(first, then, best):
    run = drive(Changing(first, then, 600), int(900 * best) + 1000, seed=1, horizon=1500)
    assert run.rate_between(900, 1200) >= 0.9 * best
    assert len(run.refused_at) <= 0.04 * len(run.accepted_at)


@pytest.mark.parametrize(("count", "seconds", "least"), [(7, 11, 0.9), (20, 11, 0.9), (20, 7, 0.85), (60, 23, 0.95)])
def test_a_window_of_an_odd_length_is_found(count, seconds, least):
    run = drive(SlidingWindow(count, seconds), 40 * count, seed=2)
    assert run.rate_between(10 * seconds, 35 * seconds) >= least * count / seconds


def test_what_could_have_been_sent_before_a_trial_was_planned_waits_for_the_whole_length():
    window, log = Window(2, 0.0, 60.0), SendLog()
    for at in (0.0, 1.0):
        log.sent(at)
    window.trial, window._planned_at = 48.0, 50.0
    assert window.earliest(log, 0.1) == 60.0
    log.sent(60.0)
    assert window.earliest(log, 0.1) == 61.0, "1 s and 48 s are before 50 s, too"
    log.sent(61.0)
    assert window.earliest(log, 0.1) == 108.0


@pytest.mark.parametrize(("at", "seconds"), [(48.5, 60.0), (60.5, 60.0)])
def test_a_429_refutes_a_trial_only_if_its_request_would_have_been_sent_later(at, seconds):
    window = Window(2, 10.0, 60.0)
    window.trial = 48.0
    windows = windows_with([0.0, 1.0], window)
    assert windows.refute_trials(at) == (at < seconds)
    assert window.shortest == (at if at < seconds else 10.0)
    assert (window.trial is None) == (at < seconds)


def test_a_shorter_length_that_a_fixed_window_accepted_by_chance_is_taken_back():
    window = Window(2, 50.0, 60.0)
    window.rounds, window.trial, window._tried_at = 3, 48.0, 100.0
    window.advance(100.2, 0.1)
    assert window.seconds == 48.0
    window.fall_back(30.0)
    assert window.seconds == 48.0, "it was sent under another length"
    window.fall_back(48.0)
    assert (window.seconds, window.shortest) == (60.0, 48.0)


@pytest.mark.parametrize(
    ("service", "best", "prompts"),
    [
        (lambda: BucketService(400 / 60, 40), 400 / 60, 6000),  # was 0.40 for ever
        (lambda: BucketService(100 / 60, 40), 100 / 60, 1200),  # was 0.83
        (lambda: ConcurrencyLimit(8), 8 / 0.32, 6000),  # was 0.11
        (lambda: BucketService(1e9, 1e9), 48 / 0.33, 20_000),  # was 0.02
    ],
    ids=["ten times", "2.5 times", "in flight", "no limit"],
)
def test_a_saved_rate_that_is_far_too_low_is_given_up_within_minutes(service, best, prompts):
    run = drive(service(), prompts, seed=3, state=PRIOR, horizon=2000)
    assert run.rate_between(120, run.seconds - 1) >= 0.9 * best
    assert len(run.refused_at) <= 0.03 * len(run.accepted_at)


def test_a_saved_rate_that_is_true_is_kept():
    run = drive(BucketService(40 / 60, 40), 400, seed=3, state=PRIOR)
    assert 360 / (40 / 60) / run.seconds >= 0.98
    assert len(run.refused_at) <= 4


def test_two_limits_of_which_the_longer_one_stops_everything_are_both_found():
    refused = []
    for seed in (70, 71, 72, 73):
        run = drive(AllOf(SlidingWindow(1, 1), SlidingWindow(40, 60)), 200, seed=seed)
        assert run.seconds <= 1.15 * (4 * 60 + 39), "was 1.8 times and more"
        refused.append(len(run.refused_at) / 200)
    assert statistics.median(refused) <= 0.08


@pytest.mark.parametrize(("rate", "told"), [(0.5, None), (5.0, "1 request at once")])
def test_requests_that_go_one_after_the_other_are_no_limit_of_concurrency(rate, told):
    slots = Slots()
    slots.limit = 1
    for number in range(5):
        slots.sent(float(number))
        slots.answered(float(number), number + 0.3)
    assert slots.describe(rate) == told
