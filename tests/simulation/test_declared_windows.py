"""Declared windows against services that count in windows, with a network that delays requests differently."""

import pytest

from onellm_async import Limits, Rate
from onellm_async.server import BucketLimit, Faults, WindowLimit
from onellm_async.simulation import Scenario, simulate

FAULTS = Faults(latency=1.0, latency_sigma=0.2)


@pytest.mark.parametrize("sliding", [True, False], ids=["sliding", "fixed"])
@pytest.mark.parametrize(("count", "seconds"), [(40, 60), (60, 4), (300, 10)])
def test_a_declared_window_is_used_after_the_first_one_and_not_exceeded(
    count: int, seconds: float, sliding: bool
) -> None:
    for seed in range(1 if count > 100 else 2):
        run = simulate(
            Scenario(
                prompts=5 * count,
                limits=Limits(max_concurrency=600, rates=[Rate(count, per=seconds, window=True)]),
                service_limits=[WindowLimit(count, seconds, sliding=sliding, phase=seed / 3)],
                faults=FAULTS,
                seed=seed,
            )
        )
        later = sum(at > seconds for at in run.accepted_at)
        best = (later / count - 1) * seconds
        assert best / (run.accepted_at[-1] - seconds) >= 0.95
        assert run.rate_limited <= 0.02 * 5 * count


def test_a_bucket_and_a_window_are_kept_together() -> None:
    run = simulate(
        Scenario(
            prompts=300,
            limits=Limits(max_concurrency=200, requests_per_second=5, rates=[Rate(100, per=60, window=True)]),
            service_limits=[BucketLimit(300, 5), WindowLimit(100, 60, sliding=True)],
            faults=FAULTS,
            seed=1,
        )
    )
    assert run.best_makespan / run.makespan >= 0.95
    assert run.rate_limited <= 0.02 * 300


def test_a_window_that_another_process_has_used_is_waited_for() -> None:
    run = simulate(
        Scenario(
            prompts=60,
            limits=Limits(rates=[Rate(40, per=60, window=True)]),
            service_limits=[WindowLimit(40, 60)],
            background_rate=1.0,
            faults=FAULTS,
            seed=1,
        )
    )
    assert run.answered == 60
    assert run.rate_limited <= 60
