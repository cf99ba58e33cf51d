"""Uncoordinated clients that share one key, over all sizes of limits, in virtual time.

Goodput is the makespan of one omniscient client divided by the real one.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from statistics import median

from benchmarks.report import Section
from onellm_async.limits.policy import Limits
from onellm_async.server.settings import Faults
from onellm_async.simulation import Scenario, SimulationResult, simulate

RATES = (0.1, 0.67, 5.0, 20.0)
BURSTS = (1, 40, 600)
CLIENTS = (1, 4, 16)
SEEDS = 3
PROMPTS = 320
"""Prompts of all clients together, beyond the burst."""


def scenario(rate: float, burst: int, clients: int, *, declared: bool, seed: int, prompts: int = PROMPTS) -> Scenario:
    """One cell of the table. Answers take 6 s, or less at rates at which 6 s would need too many slots."""
    return Scenario(
        prompts=-(-(prompts + burst) // clients),
        clients=clients,
        limits=Limits(max_concurrency=200, requests_per_minute=rate * 60, burst=burst)
        if declared
        else Limits(max_concurrency=200, requests_per_minute="auto"),
        requests_per_minute=rate * 60,
        burst=burst,
        faults=Faults(latency=min(6.0, 40 / rate), latency_sigma=0.3),
        seed=seed,
    )


def run(*, seeds: int = SEEDS, prompts: int = PROMPTS) -> Section:
    """Simulates every cell, in one process per processor."""
    with ProcessPoolExecutor() as processes:
        row = partial(_row, seeds=seeds, prompts=prompts)
        rows = list(processes.map(row, *zip(*product(RATES, BURSTS, CLIENTS), strict=True)))
    return Section(
        "Clients without coordination on one key",
        f"Simulated: {prompts} prompts and one burst, shared by K clients that start at the same moment without "
        "coordination, against a token bucket of b, full at the start and refilled at r per second. Goodput "
        "is the time that one omniscient client would need divided by the time until the last answer; 429s "
        "per prompt; Jain's index of the clients' rates is 1 if all are equal and 1/K if one has everything. "
        f"Median of {seeds}.",
        ("r, b, K", *(f"{declaration}: {figure}" for declaration in ("declared", "not") for figure in _FIGURES)),
        rows,
    )


_FIGURES = ("goodput", "rate-limited", "Jain")


def _row(rate: float, burst: int, clients: int, seeds: int, prompts: int) -> Sequence[str]:
    cells = [f"{rate:g}/s, {burst}, {clients}"]
    for declared in (True, False):
        runs = [
            simulate(scenario(rate, burst, clients, declared=declared, seed=seed, prompts=prompts))
            for seed in range(seeds)
        ]
        cells += _cells(runs)
    return cells


def _cells(runs: Sequence[SimulationResult]) -> Sequence[str]:
    expected = runs[0].scenario.prompts * runs[0].scenario.clients
    missing = max(expected - each.answered for each in runs)
    goodput = f"{median(each.goodput for each in runs):.3f}"
    return (
        f"{missing} unanswered" if missing else goodput,
        f"{median(each.rate_limited_share for each in runs):.1%}",
        f"{median(each.fairness for each in runs):.2f}",
    )
