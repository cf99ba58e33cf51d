"""Windows, limits of concurrency, several at once, limits that change: found and used, with nothing declared."""

import statistics

import pytest

from benchmarks.limits_lab import BucketService, ConcurrencyLimit, FixedWindow, Refusing, SlidingWindow, cases, drive
from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.admission import Admission
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import snapshot_of

CASES = {case.name: case for case in cases()}
MET = [
    "bucket 40/min b40, N=400",
    "bucket 20/s b200",
    "bucket 40/min b40, empty",
    "bucket 200/s b40, empty",
    "bucket 20/s b200, empty",
    "sliding 40 in 60, N=5w, latency 0.3",
    "sliding 300 in 60, N=5w, latency 0.3",
    "sliding 60 in 4, N=5w, latency 0.3",
    "sliding 300 in 10, N=5w, latency 0.3",
    "fixed 40 in 60, N=5w, latency 0.3",
    "fixed 300 in 60, N=5w, latency 3",
    "fixed 60 in 4, N=5w, latency 0.3",
    "fixed 40 in 60, N=20w, latency 3",
    "concurrency 4, latency 2",
    "concurrency 8, latency 0.3",
    "concurrency 16, latency 0.3",
    "Retry-After, bucket 10/s b10",
    "Retry-After, bucket 200/s b40",
    "Retry-After, sliding 300 in 60",
    "Retry-After, fixed 40 in 60",
    "bucket 5/s b10 + concurrency 4, latency 0.3",
    "40/min -> 20/min",
    "20/min -> 80/min, after 180 s",
    "60/min -> 120/min, after 60 s",
    "240/min -> 600/min, after 60 s",
    "bucket 40/min -> sliding 40/60",
    "sliding 40/60 -> bucket 60/min",
    "bucket 60/min -> sliding 30/60",
    "bucket 5/s b1",
    "bucket 5/s b3",
    "bucket 10/s b20 + sliding 300/60",
    "sliding 10/1 + sliding 200/60",
    "sliding 300/60 -> 150/60",
    "sliding 40/60 -> 20/60",
    "fixed 40/60 -> 10/60",
    "fixed 300/60 -> 240/60",
    "fixed 60/4 -> 30/4",
    "sliding 150/60 -> 300/60, after 180 s",
    "declared 10/s b20 + concurrency 4, latency 0.3",
    "declared 10/s b20 + concurrency 4, latency 2",
    "declared 40/min + concurrency 4, latency 12",
    "no limit, concurrency 4",
    "declared 10/s b20, half taken by others",
    "shared bucket 10/s b20, half taken",
    "shared bucket 200/s, half taken",
    "Retry-After, sliding 60 in 4",
]
"""Cases of the laboratory that are met on unseen seeds, of each kind some."""
SEEDS = (1001, 1002, 1003)


@pytest.mark.parametrize("name", MET)
def test_a_limit_of_any_kind_is_found_and_used(name):
    case = CASES[name]
    shares, refused, dark = zip(*(case.run(seed) for seed in SEEDS), strict=True)
    assert statistics.median(shares) >= case.share - 0.015
    assert case.refused is None or statistics.median(refused) <= case.refused + 0.002
    assert max(dark) <= 3, "single knocks while nothing is accepted"


def test_an_outage_at_the_start_is_forgotten_when_it_is_over():
    share, _, dark = CASES["all refused for 10 min, then 60/min"].run(1)
    assert share >= 0.9
    assert dark <= 2


@pytest.mark.parametrize("begin", [300.9, 301.2, 310.0])
def test_an_outage_in_the_middle_of_a_window_is_forgotten_in_the_next_ones(begin):
    down = Refusing(SlidingWindow(40, 60), lambda now: begin <= now < begin + 65)
    run = drive(down, 700, seed=3)
    assert run.rate_between(begin + 245, begin + 605) >= 0.9 * 40 / 60


def test_a_limit_of_concurrency_beside_a_rate_is_not_taken_for_other_clients():
    case = CASES["bucket 5/s b10 + concurrency 4, latency 0.3"]
    refused = [case.run(seed)[1] for seed in range(1000, 1020)]
    assert statistics.median(refused) <= 0.03
    assert max(refused) <= 0.05, "a client that shares a limit gets a 429 for one request in twelve"


def test_no_rate_is_believed_that_never_came_through():
    for service in (SlidingWindow(500, 60), FixedWindow(300, 60), ConcurrencyLimit(8)):
        run = drive(service, 1500, max_concurrency=200, seed=1)
        fastest = max(run.rate_between(at, at + 1) for at in range(int(run.seconds)))
        assert max(rate for _, rate in run.rates) <= 2 * max(fastest, 100)


@pytest.mark.parametrize(
    ("service", "requests", "found"),
    [
        (SlidingWindow(40, 60), 200, "40 requests in any 60 s"),
        (FixedWindow(40, 60), 240, "40 requests in any 60 s"),
        (ConcurrencyLimit(8), 200, "8 requests at once"),
        (BucketService(40 / 60, 40), 300, "requests per minute"),
    ],
    ids=["sliding", "fixed", "concurrency", "bucket"],
)
def test_the_limit_that_was_found_is_told(service, requests, found):
    assert found in drive(service, requests, seed=3).found


def test_a_snapshot_tells_what_was_found():
    limits = Limits(requests_per_minute="auto")
    rate = AdaptiveRate(0.0, RateState(rate=2 / 3, burst=40, windows=((40, 60.0),)))
    assert "40 requests in any 60 s" in snapshot_of(Admission(limits, rate, 0.0), 0.0, timer_set=False).limit_found
    assert snapshot_of(Admission(limits, AdaptiveRate(0.0), 0.0), 0.0, timer_set=False).limit_found is None


def test_a_window_is_kept_by_the_next_client_with_the_saved_state():
    state = RateState(rate=2 / 3, burst=40, windows=((40, 60.0),))
    service, limits = SlidingWindow(40, 60), Limits(requests_per_minute="auto")
    run = drive(service, 200, seed=2, limits=limits, state=RateState.from_dict(state.to_dict()))
    assert len(run.refused_at) <= 2
    assert service.best(200, 0.3) / run.seconds >= 0.95
