"""What each part of the discovered rate is worth: the same runs without it; in virtual time.

``python -m benchmarks.needed_parts`` prints the figure of each run with the part and without it, or with other values
of its constant: the medians of a few seeds. `tests/limits/test_needed_parts.py` fails when one of them is gone.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from attrs import frozen

from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_samples import RateEvidence
from onellm_async.limits.saturation import SaturationClock
from onellm_async.server.settings import Faults
from onellm_async.simulation import Scenario, SourceGap, simulate

_AUTO = Limits(requests_per_minute="auto", max_concurrency=200)


def shared_goodput(clients: int, rate: float, burst: int, seed: int) -> float:
    """Goodput of clients that share a bucket without knowing of each other."""
    scenario = Scenario(
        prompts=-(-(320 + burst) // clients),
        clients=clients,
        limits=_AUTO,
        requests_per_minute=rate * 60,
        burst=burst,
        faults=Faults(latency=min(6.0, 40 / rate), latency_sigma=0.3),
        seed=seed,
    )
    return simulate(scenario).goodput


def wave_seconds(size: int, every: float, waves: int, seed: int) -> float:
    """Seconds until the last of several waves of prompts is answered, after it came."""
    gaps = [SourceGap(before=size * number, seconds=every) for number in range(1, waves)]
    scenario = Scenario(prompts=size * waves, limits=_AUTO, source_gaps=gaps, faults=Faults(latency=2.0), seed=seed)
    return simulate(scenario).makespan


@contextmanager
def replaced(owner: type, values: Mapping[str, Any]) -> Iterator[None]:
    """Replaces attributes of a class for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _nothing(*_: object) -> None:
    """In place of a method whose part is taken out."""


@frozen
class Part:
    """A part, or other values of its constant.

    Attributes:
        name: What is changed.
        owner: The class that has it.
        values: What is there in its place.
    """

    name: str
    owner: type = RateEvidence
    values: Mapping[str, Any] = {}


WITHOUT_SATURATION = Part(
    "without the saturation clock",
    SaturationClock,
    {"take": _nothing, "rest": _nothing, "rate_limited": lambda *_: float("inf")},
)
WITHOUT_SHARING = Part("without contention", values={"CONTENTION_THRESHOLD": float("inf")})
PARTS = (
    Part("as it is"),
    WITHOUT_SATURATION,
    WITHOUT_SHARING,
    *(Part(f"CONTENTION_THRESHOLD = {value}", values={"CONTENTION_THRESHOLD": value}) for value in (1.0, 4.0)),
    *(Part(f"SMALL_BURST_GAIN = {value}", values={"SMALL_BURST_GAIN": value}) for value in (0.01, 0.05, 0.1)),
    *(Part(f"LARGE_BURST = {value}", values={"LARGE_BURST": value}) for value in (1, 12, 48)),
)
RUNS: Mapping[str, Callable[[int], float]] = {
    "4 waves of 200, s": lambda seed: wave_seconds(200, 900.0, 4, seed),
    "2 clients, 40/min b2": lambda seed: shared_goodput(2, 40 / 60, 2, seed),
    "4 clients, 40/min b1": lambda seed: shared_goodput(4, 40 / 60, 1, seed),
    "4 clients, 40/min b40": lambda seed: shared_goodput(4, 40 / 60, 40, seed),
    "8 clients, 10/s b1": lambda seed: shared_goodput(8, 10.0, 1, seed),
    "8 clients, 10/s b40": lambda seed: shared_goodput(8, 10.0, 40, seed),
}
"""The figure is a goodput, or where it says so the seconds of the whole run."""


def figure(run: str, part: Part, seeds: Iterable[int]) -> float:
    """The median of a run over the seeds, with the part in its place."""
    with replaced(part.owner, part.values):
        return median(RUNS[run](seed) for seed in seeds)


def main() -> None:
    """Prints a row for each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.needed_parts", description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = range(parser.parse_args().seeds)
    print(f"{'':30s}", *(f"{run:>22s}" for run in RUNS))
    for part in PARTS:
        print(f"{part.name:30s}", *(f"{figure(run, part, seeds):22.4g}" for run in RUNS), flush=True)


if __name__ == "__main__":
    main()
