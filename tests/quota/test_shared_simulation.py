"""The real client with a shared quota, in virtual time: figures, invariants, deaths and outages over many seeds."""

import os
from random import Random

import pytest
from attrs import evolve

from onellm_async.limits.policy import Limits
from onellm_async.server.settings import Faults
from onellm_async.simulation.scenario import Scenario
from onellm_async.simulation.simulate import simulate
from tests.fuzzing.observed_run import observe
from tests.fuzzing.random_scenario import random_scenario

SEEDS = int(os.environ.get("ONELLM_QUOTA_SEEDS", "40"))
"""The gate plays 40 random scenarios; ``ONELLM_QUOTA_SEEDS=2000`` is the long run."""
CHUNK = 20
TOKENS = 12
"""The invariant on tokens: one client cannot know the level that several share."""


def scenario(rate, clients, *, declared=True, shared=True, burst=40, latency=6.0, **how):
    limits = (
        Limits(max_concurrency=200, requests_per_minute=rate * 60, burst=burst)
        if declared
        else Limits(max_concurrency=200, requests_per_minute="auto")
    )
    return Scenario(
        **{
            "prompts": 400 // clients,
            "clients": clients,
            "limits": limits,
            "requests_per_minute": rate * 60,
            "burst": burst,
            "faults": Faults(latency=min(latency, 40 / rate), latency_sigma=0.3),
            "shared_quota": shared,
            **how,
        }
    )


@pytest.mark.parametrize("visit", [0.0, 0.03])
@pytest.mark.parametrize("clients", [4, 16])
@pytest.mark.parametrize("rate", [0.67, 5, 20])
def test_a_declared_limit_is_used_as_by_one_client_without_a_429_and_equally(rate, clients, visit):
    alone = simulate(scenario(rate, 1, shared=False))
    together = simulate(scenario(rate, clients, quota_latency=visit))
    assert together.answered == 400
    assert together.rate_limited == 0
    assert together.fairness >= 0.99
    assert together.goodput >= alone.goodput - 0.015


@pytest.mark.parametrize("clients", [4, 16])
@pytest.mark.parametrize("rate", [0.67, 5])
def test_a_discovered_limit_is_learned_by_all_as_by_one(rate, clients):
    alone = simulate(scenario(rate, 1, declared=False, shared=False))
    together = simulate(scenario(rate, clients, declared=False))
    assert together.answered == 400
    assert together.rate_limited_share <= alone.rate_limited_share + 0.005
    assert together.goodput >= alone.goodput - 0.02


@pytest.mark.parametrize(
    ("rate", "network", "clients", "least"),
    [(20, 0.001, 16, 0.97), (20, 0.05, 16, 0.96), (100, 0.001, 16, 0.92), (100, 0.05, 4, 0.75)],
)
def test_a_high_limit_is_found_within_seconds_by_any_number_of_clients(rate, network, clients, least):
    how = {"prompts": 5 * max(rate, 80) // clients, "latency": 0.1, "network_delay": network / 3}
    result = simulate(scenario(rate, clients, declared=False, network_jitter=network, **how))
    assert result.goodput >= least
    assert result.rate_limited <= 40


@pytest.mark.parametrize(("rate", "prompts", "seed"), [(20, 400, 101), (200, 2400, 100)])
def test_sixteen_clients_use_what_one_client_does(rate, prompts, seed):
    """429s that one burst brings to several clients are one event; who comes late finds the tokens of that time."""
    how = {"faults": Faults(latency=0.1), "network_delay": 0.001, "network_jitter": 0.002, "quota_latency": 0.0005}
    result = simulate(scenario(rate, 16, declared=False, prompts=prompts // 16, seed=seed, **how))
    assert result.goodput >= 0.96  # were 0.775 and 0.934


def test_one_that_has_nearly_all_the_work_uses_nearly_all_of_the_rate():
    gaps = {"deaths": {1: 1.0, 2: 1.0, 3: 1.0}}
    alone = simulate(scenario(5, 1, shared=False, prompts=200))
    result = simulate(scenario(5, 4, prompts=200, **gaps))
    assert len(result.answered_at[0]) == 200
    assert result.answered_at[0][-1] <= alone.makespan + 10


def test_two_of_four_that_die_leave_their_share_to_the_others():
    result = simulate(scenario(5, 4, prompts=300, deaths={0: 20.0, 1: 20.0}))
    assert [len(times) for times in result.answered_at[2:]] == [300, 300]
    sent = sorted(at for times in result.sent_at[2:] for at in times if 26 <= at < 56)
    assert len(sent) >= 0.97 * 5 * 30
    assert result.rate_limited == 0


@pytest.mark.parametrize("rate", [0.67, 20])
def test_an_outage_of_the_board_costs_little_and_brings_no_429(rate):
    result = simulate(scenario(rate, 4, quota_outages=[(10, 30)], quota_latency=0.01))
    assert result.answered == 400
    assert result.rate_limited <= 2
    assert result.goodput >= 0.85 * simulate(scenario(rate, 4, quota_latency=0.01)).goodput


def shared(seed):
    """A random scenario, with a quota whose visits take a random time and which may be out of reach for a while."""
    random, found = Random(f"quota of {seed}"), random_scenario(seed)
    outages = random.choice([(), (), ((20.0, 50.0),)])
    latency = random.choice([0.0, 0.0, 0.005, 0.03, 0.3])
    return evolve(found, shared_quota=True, quota_latency=latency, quota_outages=outages)


def violations(seed):
    found = shared(seed)
    if any(limits.mode == "unlimited" for limits in found.all_limits):
        return []
    return [f"seed {seed}: {each}" for each in observe(found).violations if each.invariant != TOKENS][:1]


@pytest.mark.parametrize(
    ("seed", "what"),
    {
        469: "429s in an outage of the board slow a client down",
        515: "clients of a quota share the tokens",
        1866: "an open circuit empties the queue",
    }.items(),
)
def test_what_once_broke_an_invariant_with_a_quota_never_does_again(seed, what):
    assert not violations(seed), what


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_an_invariant_with_a_quota(first):
    wrong = [line for seed in range(first, first + CHUNK) for line in violations(seed)]
    assert not wrong, "\n".join(wrong)
