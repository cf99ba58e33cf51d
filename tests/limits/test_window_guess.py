"""A rate that was declared as a bucket, and a service that counts in windows."""

from random import Random

import pytest

from onellm_async import Limits, Rate
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.window_guess import WindowGuess
from onellm_async.server import BucketLimit, Faults, WindowLimit
from onellm_async.simulation import Scenario, SimulationResult, simulate

FAULTS = Faults(latency=1.0, latency_sigma=0.2)


def sent(guess: WindowGuess, number: int, at: float) -> None:
    guess.sent.extend([at] * number)


def test_a_window_is_full_when_as_many_were_accepted_within_its_length() -> None:
    guess = WindowGuess([(40, 60.0)])
    sent(guess, 40, 0.0)
    assert guess.explain(59.0) == (40, 60.0)
    assert guess.explain(61.0) is None
    guess.forget(0.0)
    assert guess.explain(30.0) is None, "one of them got a 429"


def test_the_larger_window_is_looked_at_first_and_one_too_large_is_none() -> None:
    guess = WindowGuess([(20, 2.0), (60, 60.0), (1, 1.0), (10**9, 60.0)])
    sent(guess, 60, 0.0)
    assert guess.explain(1.0) == (60, 60.0)
    assert guess.explain(1.0) == (60, 60.0), "asking changes nothing"
    assert not WindowGuess([(1, 1.0), (10**9, 60.0)]).is_possible


def run_against(service: WindowLimit | BucketLimit, limits: Limits, prompts: int, seed: int) -> SimulationResult:
    return simulate(
        Scenario(prompts=prompts, limits=limits, service_limits=[service], faults=FAULTS, seed=seed),
    )


@pytest.mark.parametrize("sliding", [True, False], ids=["sliding", "fixed"])
def test_the_published_limit_is_kept_as_a_window_where_it_is_one(sliding: bool) -> None:
    for seed in range(2):
        run = run_against(WindowLimit(40, 60, sliding=sliding, phase=seed / 3), Limits(), 200, seed)
        later = sum(at > 60 for at in run.accepted_at)
        assert (later / 40 - 1) * 60 / (run.accepted_at[-1] - 60) >= 0.95, "after one window"
        assert run.rate_limited <= 0.02 * 200


@pytest.mark.parametrize("retry_after", ["seconds", "milliseconds"])
def test_what_is_saved_while_a_window_says_when_it_opens_is_not_sent_into_it_at_once(retry_after: str) -> None:
    for seed in range(2):
        faults = Faults(latency=2.0, latency_sigma=0.2, retry_after=retry_after)
        window = WindowLimit(40, 60, sliding=True)
        run = simulate(Scenario(prompts=200, limits=Limits(), service_limits=[window], faults=faults, seed=seed))
        assert run.rate_limited <= 4, "were 26 to 35 in one second"
        assert run.snapshots[0].limit_found == "40 requests in any 60 s"


def test_a_short_window_that_is_declared_by_its_burst_is_found() -> None:
    run = run_against(WindowLimit(20, 2, sliding=True), Limits(requests_per_minute=600, burst=20), 140, 1)
    assert run.best_makespan / run.makespan >= 0.85
    assert run.rate_limited <= 6


def test_a_bucket_that_is_slower_than_declared_is_not_taken_for_a_window() -> None:
    for seed in range(4):
        run = run_against(BucketLimit(40, 40), Limits(requests_per_minute=60), 300, seed)
        assert run.best_makespan / run.makespan >= 0.95
        assert run.rate_limited <= 0.1 * 300


def windowed() -> DeclaredRate:
    rate = DeclaredRate(40 / 60, 40, 0.0, random=Random(1))
    for _ in range(40):
        rate.take(1.0)
    for at in (2.0, 4.0):
        rate.take(at)
        rate.rate_limited(at, at + 0.1)
    return rate


def test_two_429s_after_as_many_requests_as_declared_are_a_window_and_lower_no_rate() -> None:
    rate = windowed()
    assert rate.found == "40 requests in any 60 s"
    assert rate.confidence == 1
    assert rate.time_until(1, 4.1) == pytest.approx(1 + 60.05 - 4.1)
    assert rate.time_until(40, 61.05) == 0


def test_two_429s_that_a_window_does_not_explain_end_it_for_good() -> None:
    rate = windowed()
    for at in (62.0, 63.0):
        rate.take(at)
        rate.rate_limited(at, at + 0.1)
    assert rate.found is None
    assert 0 < rate.time_until(1, 63.2) < 10


def test_a_strict_rate_looks_for_no_window_and_a_retune_looks_again() -> None:
    strict = DeclaredRate(40 / 60, 40, 0.0, strict=True)
    for _ in range(40):
        strict.take(1.0)
    for at in (2.0, 4.0):
        strict.take(at)
        strict.rate_limited(at, at + 0.1)
    assert strict.found is None
    rate = windowed()
    rate.retune(1.0, 40, 5.0)
    assert rate.found is None
    assert rate.time_until(1, 50.0) == 0


def test_a_rate_of_many_thousands_looks_for_no_window() -> None:
    rate = DeclaredRate(10_000.0, 10_000, 0.0)
    assert rate._guess is None
    assert Limits(rates=[Rate(5, 1)]).declared_rates


def test_a_service_that_spaces_requests_evenly_is_used_at_its_rate_whatever_burst_was_declared() -> None:
    shares = []
    for seed in range(4):
        run = run_against(BucketLimit(40, 1), Limits(), 300, seed)
        shares.append(run.accepted_at[-1] / (300 / 40 * 60))
        assert run.rate_limited <= 40, "were one for eight, for ever"
        assert run.snapshots[0].limit_found.startswith("1 request in any 1.5 s")
    assert sorted(shares)[1] <= 1.15, "took three times as long"


@pytest.mark.parametrize("burst", [2, 40])
def test_a_service_with_a_burst_is_not_taken_for_one_that_spaces_requests(burst: int) -> None:
    for seed in range(2):
        run = run_against(BucketLimit(40, burst), Limits(), 200, seed)
        assert run.snapshots[0].limit_found is None


def test_other_clients_of_the_key_are_not_taken_for_a_service_that_spaces_requests() -> None:
    for seed in range(4):
        service = [BucketLimit(40, 40)]
        scenario = Scenario(
            prompts=200, limits=Limits(), service_limits=service, faults=FAULTS, background_rate=1 / 3, seed=seed
        )
        assert simulate(scenario).snapshots[0].limit_found is None
