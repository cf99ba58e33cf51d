"""Scenarios with services of every kind: the best makespan, what counts, and what changes."""

import pytest

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Limits
from onellm_async.server import (
    BucketLimit,
    ClosedTimes,
    ConcurrencyLimit,
    Faults,
    RandomLimit,
    ServiceLimit,
    WindowLimit,
)
from onellm_async.simulation import LimitChange, Scenario, best_makespan, simulate

FAST = Limits(max_concurrency=48, requests_per_minute=1200, burst=40)


def scenario_with(*limits: ServiceLimit, prompts: int = 100, latency: float = 0.5, **more) -> Scenario:
    faults = more.pop("faults", Faults(latency=latency))
    return Scenario(
        prompts=prompts,
        service_limits=limits,
        limits=more.pop("limits", FAST),
        faults=faults,
        network_delay=0.0,
        network_jitter=0.0,
        **more,
    )


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ([WindowLimit(40, 60, sliding=True)], 120.5),
        ([WindowLimit(40, 60)], 120.5),
        ([WindowLimit(40, 60, phase=0.5)], 90.5),
        ([ConcurrencyLimit(8)], 6.5),
        ([BucketLimit(60, 40)], 60.5),
        ([BucketLimit(60, 40, initial_level=0)], 100.5),
        ([WindowLimit(10, 1, sliding=True), WindowLimit(60, 60)], 63.5),
        ([BucketLimit(600, 20), ConcurrencyLimit(4)], 12.5),
        ([ClosedTimes(seconds=30)], 30.5),
        ([RandomLimit(0.9)], 0.5),
        ([], 0.5),
    ],
    ids=str,
)
def test_the_best_makespan_is_that_of_a_client_that_knows_the_limits(limits, seconds):
    assert best_makespan(scenario_with(*limits)) == pytest.approx(seconds, abs=1e-6)


def test_the_best_makespan_of_one_bucket_is_the_same_in_both_forms():
    scenario = Scenario(
        prompts=200, requests_per_minute=60, burst=10, changes=[LimitChange(30, 20), LimitChange(90, 80)]
    )
    changes = [LimitChange(30, limits=[BucketLimit(20, 10)]), LimitChange(90, limits=[BucketLimit(80, 10)])]
    other = Scenario(prompts=200, service_limits=[BucketLimit(60, 10)], changes=changes)
    assert best_makespan(other) == pytest.approx(best_makespan(scenario), abs=1e-3)


def test_the_best_makespan_follows_a_limit_that_changes_its_kind():
    change = LimitChange(10, limits=[WindowLimit(20, 10)])
    scenario = scenario_with(BucketLimit(60, 20), prompts=70, changes=[change])
    assert best_makespan(scenario) == pytest.approx(30.5, abs=1e-6)


def test_requests_are_counted_when_they_arrive_at_the_service():
    run = simulate(scenario_with(WindowLimit(40, 60), prompts=50))
    assert run.answered == 50
    assert len(run.accepted_at) == 50
    assert run.accepted_at == sorted(run.accepted_at)
    assert len(run.rate_limited_at) == run.rate_limited > 0
    assert sum(at < 60 for at in run.accepted_at) == 40


def test_a_limit_of_concurrency_is_never_passed():
    run = simulate(scenario_with(ConcurrencyLimit(5), prompts=60, latency=2.0))
    assert run.answered == 60
    in_flight = [sum(at - 1.999 < other <= at for other in run.accepted_at) for at in run.accepted_at]
    assert max(in_flight) <= 5


def test_other_clients_slow_a_run_down_and_are_not_counted():
    alone = simulate(scenario_with(BucketLimit(120, 10), prompts=100))
    shared = simulate(scenario_with(BucketLimit(120, 10), prompts=100, background_rate=1.0))
    assert shared.answered == len(shared.accepted_at) == 100
    assert shared.makespan > 1.4 * alone.makespan
    assert shared.best_makespan == alone.best_makespan


def test_a_closed_service_answers_when_it_opens():
    run = simulate(scenario_with(ClosedTimes(seconds=40), prompts=5, faults=Faults(retry_after="seconds")))
    assert run.answered == 5
    assert 40 <= run.accepted_at[0] < 42


def test_an_overloaded_service_says_so_and_answers_everything_in_the_end():
    faults = Faults(latency=0.5, database_places=4, database_wait=1.0, overload_status=529)
    run = simulate(scenario_with(faults=faults, limits=Limits.unlimited(48), prompts=60))
    assert run.answered == 60
    assert run.rate_limited == 0


def test_the_same_seed_gives_the_same_run_with_limits_of_chance():
    def run(seed):
        limits = [RandomLimit(0.2), BucketLimit(600, 10)]
        return simulate(scenario_with(*limits, background_rate=3.0, rate_headers="openai", seed=seed))

    assert run(1) == run(1)
    assert run(1).rate_limited_at != run(2).rate_limited_at


@pytest.mark.parametrize("how", [{}, {"requests_per_minute": 5, "limits": [WindowLimit(5, 60)]}])
def test_a_change_says_either_the_refill_or_the_limits(how):
    with pytest.raises(ConfigurationError, match="requests_per_minute or limits, and not both"):
        LimitChange(5, **how)


def share(*limits: ServiceLimit, prompts: int, latency: float, seed: int, sigma: float = 0.0, delay: float = 0.001):
    scenario = Scenario(
        prompts=prompts,
        service_limits=limits,
        faults=Faults(latency=latency, latency_sigma=sigma),
        network_delay=delay,
        network_jitter=0.003,
        seed=seed,
    )
    run = simulate(scenario)
    assert run.answered == prompts
    return run.goodput


@pytest.mark.parametrize("sliding", [True, False])
def test_a_window_is_found_over_a_fast_network_with_even_latencies(sliding):
    limit = WindowLimit(40, 4, sliding=sliding)
    assert min(share(limit, prompts=240, latency=0.3, seed=seed) for seed in range(3)) >= 0.9


@pytest.mark.parametrize("count", [4, 8])
def test_a_limit_of_concurrency_is_kept_although_the_service_frees_a_place_before_the_client_knows(count):
    limit = ConcurrencyLimit(count)
    found = [share(limit, prompts=400, latency=0.3, seed=seed, sigma=0.2, delay=0.009) for seed in range(3)]
    assert min(found) >= 0.85
