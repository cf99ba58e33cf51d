"""The real client against the pure service: hours of rate limit, seconds of test."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm_async.limits.policy import Limits
from onellm_async.server.settings import Faults
from onellm_async.simulation import LimitChange, Scenario, simulate

UNDECLARED = Limits(requests_per_minute="auto")
SEEDS = range(10)


def most_in_any_window(times, rate, burst):
    """The largest excess of sends over what a bucket allows, over all windows that begin and end with a send."""
    excess = level = 0.0
    last = None
    for time in times:
        level = max(0.0, level - (time - last) * rate) if last is not None else 0.0
        level += 1
        excess = max(excess, level - burst)
        last = time
    return excess


def check_invariants(result):
    scenario = result.scenario
    assert result.answered == scenario.prompts * scenario.clients
    assert result.failed == 0
    assert result.at_rest
    assert result.billed >= result.answered


def test_the_same_seed_gives_the_same_run_to_the_last_digit():
    scenario = Scenario(prompts=200, seed=5, faults=Faults(latency=3, latency_sigma=0.5, server_error_rate=0.05))
    assert simulate(scenario) == simulate(scenario)


def test_a_declared_limit_is_used_up_without_a_429():
    runs = [simulate(Scenario(prompts=400, limits=Limits(), seed=seed)) for seed in SEEDS]
    for run in runs:
        check_invariants(run)
        assert run.rate_limited == 0
        assert most_in_any_window(run.sent_at[0], 40 / 60, 40) <= 1
    assert statistics.median(run.goodput for run in runs) >= 0.985


def test_a_bucket_that_another_client_has_emptied_costs_two_429s_at_most():
    for seed in SEEDS:
        run = simulate(Scenario(prompts=400, limits=Limits(), initial_level=0, seed=seed))
        check_invariants(run)
        assert run.rate_limited <= 2


@pytest.mark.parametrize(("prompts", "goodput", "rate_limited"), [(400, 0.99, 0.015), (4000, 0.995, 0.005)])
def test_an_undeclared_limit_is_discovered_by_its_429s(prompts, goodput, rate_limited):
    runs = [simulate(Scenario(prompts=prompts, limits=UNDECLARED, seed=seed)) for seed in SEEDS]
    for run in runs:
        check_invariants(run)
    assert statistics.median(run.goodput for run in runs) >= goodput
    assert statistics.median(run.rate_limited_share for run in runs) <= rate_limited


@pytest.mark.parametrize(
    ("rate", "burst", "latency"), [(1, 40, 6.0), (5, 10, 2.0), (20, 40, 0.5), (20, 600, 0.5), (200, 40, 0.1)]
)
def test_undeclared_limits_of_any_size_are_found(rate, burst, latency):
    scenario = Scenario(
        prompts=2000,
        limits=Limits(requests_per_minute="auto", max_concurrency=300),
        requests_per_minute=rate * 60,
        burst=burst,
        faults=Faults(latency=latency, latency_sigma=0.3),
        network_delay=0.001,
        network_jitter=0.003,
    )
    run = simulate(scenario)
    check_invariants(run)
    assert run.goodput >= 0.85
    assert run.rate_limited_share <= 0.06


def test_a_limit_that_halves_is_noticed_at_once_and_one_that_doubles_in_the_end():
    halved = simulate(Scenario(prompts=1000, limits=UNDECLARED, changes=[LimitChange(300, 20)]))
    doubled = simulate(Scenario(prompts=1000, limits=UNDECLARED, changes=[LimitChange(300, 80)]))
    for run in (halved, doubled):
        check_invariants(run)
        assert run.rate_limited_share <= 0.05
    assert halved.goodput >= 0.97
    assert doubled.goodput >= 0.8


def test_a_declaration_that_is_too_high_is_corrected():
    run = simulate(Scenario(prompts=400, limits=Limits(requests_per_minute=80)))
    check_invariants(run)
    assert run.goodput >= 0.95
    assert run.rate_limited_share <= 0.15


@pytest.mark.parametrize("limits", [Limits(), UNDECLARED], ids=["declared", "undeclared"])
@pytest.mark.parametrize("clients", [4, 16])
def test_clients_that_know_nothing_of_each_other_all_come_through_on_one_key(clients, limits):
    run = simulate(Scenario(prompts=50, clients=clients, limits=limits))
    check_invariants(run)
    assert run.rate_limited_share <= 0.5, "no storm"


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(0.1, 20),
    burst=st.integers(1, 600),
    declared=st.booleans(),
    latency=st.floats(0.05, 20),
    errors=st.floats(0, 0.05),
    resets=st.floats(0, 0.03),
    retry_after=st.none() | st.integers(0, 20),
)
def test_every_prompt_is_answered_whatever_the_limit_and_its_faults(
    seed, rate, burst, declared, latency, errors, resets, retry_after
):
    scenario = Scenario(
        prompts=60,
        limits=Limits(requests_per_minute=rate * 60, burst=burst) if declared else UNDECLARED,
        requests_per_minute=rate * 60,
        burst=burst,
        faults=Faults(
            latency=latency,
            latency_sigma=0.5,
            server_error_rate=errors,
            reset_before_rate=resets / 2,
            reset_after_rate=resets / 2,
            retry_after=retry_after,
        ),
        seed=seed,
    )
    run = simulate(scenario)
    assert run.answered + run.failed == 60
    assert run.failed <= 1
    assert run.at_rest
    assert run.rate_limited <= 60
    if declared:
        assert most_in_any_window(run.sent_at[0], rate, burst) <= 1
