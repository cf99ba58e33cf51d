"""Limits of every kind, nothing declared: buckets, windows, concurrency, several at once, changing, shared, hostile.

``python -m benchmarks.any_limit`` runs the real client against each service in virtual time, over many seeds.
``--sockets`` runs it beside its peers over real sockets, with windows of 4 seconds.

The share is the best possible time divided by the time taken, or for a limit that changes or is shared, the requests
accepted in a span divided by those that the limit had room for. A *dark second* is one in which the service accepts
nothing; the first ten seconds do not count.
"""

import argparse
import csv
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from attrs import evolve, field, frozen

from benchmarks import limit_sockets
from benchmarks.report import Section, markdown
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
from onellm_async.simulation import LimitChange, Scenario, SimulationResult, simulate

SEEDS = 50
PHASE = 0.37
"""Share of the first fixed window that has passed when a run starts."""
MAX_DARK = 2
"""Rate-limited requests that a dark second may have."""
_FIRST_SECONDS = 10.0
_MAX_SHARE_LOSS, _MAX_WASTE_GAIN = 0.01, 0.005
"""By how much a case may be worse than its reference."""

with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as _file:
    REFERENCE = {row["case"]: (float(row["share"]), float(row["wasted"])) for row in csv.DictReader(_file)}
"""Share and waste of each case that a prototype of the limiter reached in a laboratory of its own, medians of 10."""

Share = Callable[[SimulationResult], float]


def goodput(result: SimulationResult) -> float:
    """The best possible time divided by the time taken; 0 if a prompt has no answer."""
    return result.goodput if result.answered == result.scenario.prompts else 0.0


def rate_share(begin: float, end: float, rate: float) -> Share:
    """The rate at which the service accepts between two times, divided by `rate`."""

    def share(result: SimulationResult) -> float:
        stop = min(end, result.makespan - result.scenario.faults.latency)
        if stop <= begin:
            return 0.0
        return sum(begin <= at < stop for at in result.accepted_at) / (stop - begin) / rate

    return share


@frozen
class Case:
    """One service, what is asked of it, and what the client shall reach.

    Attributes:
        group: Number of its kind.
        name: Its name in the table.
        scenario: The scenario; each run gets its own seed.
        min_share: Target of the median share; None for no target.
        max_waste: Target of the median of 429s per accepted request; None for no target.
        share: How the share is computed.
        counted_from: Virtual time from which 429s count.
    """

    group: int
    name: str
    scenario: Scenario
    min_share: float | None
    max_waste: float | None
    share: Share = goodput
    counted_from: float = 0.0


@frozen
class Outcome:
    """The figures of one run."""

    share: float
    waste: float
    dark: int


@frozen
class Figures:
    """The figures of a case over its seeds."""

    case: Case
    outcomes: Sequence[Outcome] = field(repr=False)

    @property
    def share(self) -> float:
        """Median share."""
        return statistics.median(outcome.share for outcome in self.outcomes)

    @property
    def waste(self) -> float:
        """Median of 429s per accepted request."""
        return statistics.median(outcome.waste for outcome in self.outcomes)

    @property
    def dark(self) -> int:
        """Highest number of 429s in a dark second of any run."""
        return max(outcome.dark for outcome in self.outcomes)

    @property
    def meets_targets(self) -> bool:
        """Whether the medians meet the targets, and every run the bound on dark seconds."""
        case = self.case
        is_fast = case.min_share is None or round(self.share, 3) >= case.min_share
        is_frugal = case.max_waste is None or round(self.waste, 4) <= case.max_waste
        return is_fast and is_frugal and self.dark <= MAX_DARK

    @property
    def meets_reference(self) -> bool:
        """Whether the medians are no worse than those of the reference."""
        share, waste = REFERENCE.get(self.case.name, (0.0, 9.0))
        return self.share >= min(1.0, share) - _MAX_SHARE_LOSS and self.waste <= waste + _MAX_WASTE_GAIN

    def row(self) -> tuple[str, ...]:
        """The row of the table."""
        case, targets = self.case, []
        targets = ["-" if bound is None else f"{bound:g}" for bound in (case.min_share, case.max_waste)]
        share, waste = REFERENCE.get(case.name, (None, None))
        reference = "-" if share is None else f"{share:.3f} / {waste:.4f}"
        lowest = min(outcome.share for outcome in self.outcomes)
        highest = max(outcome.waste for outcome in self.outcomes)
        verdict = "met" if self.meets_targets else "not met"
        return (
            f"{case.group} {case.name}",
            " / ".join(targets),
            reference,
            f"{self.share:.3f} ({lowest:.3f})",
            f"{self.waste:.4f} ({highest:.3f})",
            str(self.dark),
            verdict if self.meets_reference else f"{verdict}, below the reference",
        )


def _scenario(
    prompts: int,
    limits: Sequence[ServiceLimit],
    *,
    latency: float = 0.3,
    concurrency: int = 48,
    retry_after: bool = False,
    **more: object,
) -> Scenario:
    return Scenario(
        prompts=prompts,
        limits=Limits(max_concurrency=concurrency, requests_per_minute="auto"),
        service_limits=limits,
        faults=Faults(latency=latency, latency_sigma=0.2, retry_after="seconds" if retry_after else None),
        network_delay=0.009,
        network_jitter=0.002,
        **more,  # type: ignore[arg-type]
    )


def bucket(per_second: float, burst: int, level: float | None = None) -> BucketLimit:
    """A bucket by its refill per second."""
    return BucketLimit(per_second * 60, burst, initial_level=level)


def sliding(count: int, seconds: float) -> WindowLimit:
    """A sliding window."""
    return WindowLimit(count, seconds, sliding=True)


def fixed(count: int, seconds: float) -> WindowLimit:
    """A fixed window in which some time has passed at the start."""
    return WindowLimit(count, seconds, phase=PHASE)


def cases() -> list[Case]:
    """All cases, in the order of the table."""
    kinds = (_buckets, _windows, _concurrency, _retry_after, _several, _changing, _shared, _hostile)
    return [case for kind in kinds for case in kind()]


def _buckets() -> Iterator[Case]:
    minute, fast = bucket(40 / 60, 40), bucket(200, 40)
    yield Case(1, "bucket 40/60 b40, N=400", _scenario(400, [minute], latency=6), 0.99, 0.015)
    yield Case(1, "bucket 40/60 b40, N=4000", _scenario(4000, [minute], latency=6), 0.995, 0.005)
    scenario = _scenario(2000, [fast], latency=0.1, concurrency=64)
    yield Case(1, "bucket 200/s b40 lat .1 c64", scenario, 0.985, 0.005)
    yield Case(1, "bucket 5/s b1", _scenario(1000, [bucket(5, 1)]), 0.985, 0.015)
    yield Case(1, "bucket 20/s b200", _scenario(2000, [bucket(20, 200)]), 0.985, 0.015)
    for name, rate, burst, prompts, latency, concurrency in (
        ("40/60 b40", 40 / 60, 40, 400, 6.0, 48),
        ("200/s b40", 200.0, 40, 2000, 0.1, 64),
        ("5/s b1", 5.0, 1, 1000, 0.3, 48),
        ("20/s b200", 20.0, 200, 2000, 0.3, 48),
    ):
        scenario = _scenario(prompts, [bucket(rate, burst, 0.0)], latency=latency, concurrency=concurrency)
        yield Case(1, f"bucket {name} empty at start", scenario, 0.985, 0.015)
    for burst in (3, 10):
        yield Case(1, f"bucket 5/s b{burst}", _scenario(1000, [bucket(5, burst)]), 0.985, 0.015)


def _windows() -> Iterator[Case]:
    for kind, make in (("sliding", sliding), ("fixed", fixed)):
        for count, seconds in ((40, 60), (300, 60), (60, 4), (300, 10), (500, 60)):
            for windows in (5, 20):
                for latency in (0.3, 3.0):
                    # 48 in flight at 3 s are 16 per second: too few for 60 in 4 s and 300 in 10 s.
                    slots = 200 if count == 500 else 48 if latency < 1 or seconds == 60 else count
                    name = f"{kind} {count} in {seconds}, N={windows}w, lat {latency:g}, c{slots}"
                    limits = [make(count, seconds)]
                    scenario = _scenario(windows * count, limits, latency=latency, concurrency=slots)
                    yield Case(2, name, scenario, 0.9, 0.15)


def _concurrency() -> Iterator[Case]:
    for count in (4, 8, 16):
        for latency in (0.3, 2.0):
            scenario = _scenario(400, [ConcurrencyLimit(count)], latency=latency)
            yield Case(3, f"concurrent {count}, lat {latency:g}", scenario, 0.85, 0.15)


def _retry_after() -> Iterator[Case]:
    for rate, burst, prompts, slots in ((10, 10, 1000, 48), (40, 40, 2000, 48), (200, 40, 2000, 64)):
        limits = [bucket(rate, burst)]
        scenario = _scenario(prompts, limits, latency=0.1, concurrency=slots, retry_after=True)
        yield Case(4, f"Retry-After, bucket {rate}/s b{burst}, lat .1", scenario, 0.9, 0.15)
    for kind, make in (("sliding", sliding), ("fixed", fixed)):
        for count, seconds in ((40, 60), (300, 60), (60, 4)):
            scenario = _scenario(5 * count, [make(count, seconds)], retry_after=True)
            yield Case(4, f"Retry-After, {kind} {count} in {seconds}, N=5w", scenario, 0.9, 0.15)


def _several() -> Iterator[Case]:
    scenario = _scenario(1500, [bucket(10, 20), sliding(300, 60)])
    yield Case(5, "bucket 10/s b20 + sliding 300/60", scenario, 0.85, 0.15)
    scenario = _scenario(1000, [sliding(10, 1), sliding(200, 60)])
    yield Case(5, "sliding 10/1 + sliding 200/60", scenario, 0.85, 0.15)
    for latency in (0.3, 2.0):
        scenario = _scenario(400, [bucket(5, 10), ConcurrencyLimit(4)], latency=latency)
        yield Case(5, f"bucket 5/s b10 + concurrent 4, lat {latency:g}", scenario, 0.85, 0.15)


def _changing() -> Iterator[Case]:
    for name, first, then, at, prompts, latency, begin, end, rate, bounds in (
        ("40/min -> 20/min (empty), 60..660 s after", bucket(40 / 60, 40), bucket(20 / 60, 40, 0.0), 600, 800, 6.0,
         660, 1260, 20 / 60, (0.9, None)),
        ("20/min -> 80/min, 180..480 s after", bucket(20 / 60, 20), bucket(80 / 60, 80, 80.0), 900, 1500, 6.0,
         1080, 1380, 80 / 60, (0.9, 0.025)),
        ("bucket 60/min -> sliding 30/60, 120..420 s after", bucket(1, 20), sliding(30, 60), 300, 700, 0.3,
         420, 720, 0.5, (0.9, 0.15)),
        ("bucket 40/min -> sliding 40/60, 120..420 s after", bucket(40 / 60, 40), sliding(40, 60), 600, 900, 0.3,
         720, 1020, 40 / 60, (0.9, 0.15)),
        ("sliding 40/60 -> bucket 60/min, 120..420 s after", sliding(40, 60), bucket(1, 10), 600, 900, 0.3,
         720, 1020, 1.0, (0.9, 0.15)),
        ("sliding 300/60 -> 150/60, 120..420 s after", sliding(300, 60), sliding(150, 60), 300, 3000, 0.3,
         420, 720, 2.5, (0.9, 0.15)),
        ("sliding 150/60 -> 300/60, 180..480 s after", sliding(150, 60), sliding(300, 60), 300, 3000, 0.3,
         480, 780, 5.0, (0.9, 0.15)),
    ):  # fmt: skip
        change = LimitChange(at, limits=[then])
        scenario = _scenario(prompts, [first], latency=latency, changes=[change])
        yield Case(6, name, scenario, *bounds, share=rate_share(begin, end, rate), counted_from=at)


def _shared() -> Iterator[Case]:
    for name, limit, prompts, half, begin, end, latency, slots in (
        ("bucket 40/min", bucket(40 / 60, 40), 800, 20 / 60, 60, 1500, 6.0, 48),
        ("bucket 10/s b20", bucket(10, 20), 3000, 5.0, 30, 500, 0.3, 48),
        ("bucket 200/s", bucket(200, 40), 6000, 100.0, 2, 50, 0.1, 64),
        ("sliding 300/60", sliding(300, 60), 1500, 2.5, 60, 360, 0.3, 48),
        ("fixed 40/60", fixed(40, 60), 200, 20 / 60, 60, 480, 0.3, 48),
    ):
        scenario = _scenario(prompts, [limit], latency=latency, concurrency=slots, background_rate=half)
        yield Case(7, f"shared {name}, half taken", scenario, 0.85, 0.05, share=rate_share(begin, end, half))


def _hostile() -> Iterator[Case]:
    scenario = _scenario(400, [bucket(1, 40), ClosedTimes(seconds=600)])
    yield Case(8, "all refused for 10 min, then 60/min", scenario, None, None, share=rate_share(660, 960, 1.0))
    scenario = _scenario(200, [RandomLimit(0.5)])
    yield Case(8, "refused at random, p=.5", scenario, None, None, share=_answered)
    flips = ClosedTimes(after=5, seconds=5, every=10)
    scenario = _scenario(400, [bucket(20, 20), flips])
    yield Case(8, "20/s b20, nothing every other 5 s", scenario, None, None, share=rate_share(0, 1e9, 10.0))
    yield Case(8, "anything, nothing every other 5 s", _scenario(3000, [flips]), None, None, share=_answered)
    scenario = _scenario(1500, [bucket(2, 40), ClosedTimes(after=200, seconds=600)])
    name = "120/min, out 200..800 s, then 860..1100"
    yield Case(8, name, scenario, None, None, share=rate_share(860, 1100, 2.0))


def _answered(result: SimulationResult) -> float:
    return result.answered / result.scenario.prompts


def outcome_of(case: Case, seed: int) -> Outcome:
    """Simulates one run of a case."""
    result = simulate(evolve(case.scenario, seed=seed))
    accepted = sum(at >= case.counted_from for at in result.accepted_at)
    rate_limited = sum(at >= case.counted_from for at in result.rate_limited_at)
    return Outcome(case.share(result), rate_limited / max(1, accepted), dark_second(result))


def dark_second(result: SimulationResult) -> int:
    """The highest number of 429s in a second in which the service accepts nothing, after the first ten seconds."""
    light = {int(at) for at in result.accepted_at}
    dark = Counter(int(at) for at in result.rate_limited_at if at >= _FIRST_SECONDS and int(at) not in light)
    return max(dark.values(), default=0)


def run(*, seeds: int = SEEDS, only: Sequence[str] = ("",), processes: int = 2) -> Section:
    """Simulates every case over its seeds: those whose name has one of the texts."""
    chosen = [case for case in cases() if any(text in f"{case.group} {case.name}" for text in only)]
    with ProcessPoolExecutor(processes) as workers:
        figures = []
        for case in chosen:
            begin = time.perf_counter()
            outcomes = list(workers.map(partial(_outcome_at, case.name), range(seeds)))
            figures.append(Figures(case, outcomes))
            print("  ".join(figures[-1].row()), f" {time.perf_counter() - begin:.1f} s", flush=True)
    met, above = (sum(getattr(each, name) for each in figures) for name in ("meets_targets", "meets_reference"))
    return Section(
        "Limits of every kind, nothing declared",
        f"The real client in virtual time against {len(figures)} services, {seeds} seeds each. The share is the best "
        "possible time divided by the time taken, or the requests accepted in a span divided by those that the limit "
        "has room for. Wasted are the 429s per accepted request. A dark second is one in which nothing is accepted; "
        f"at most {MAX_DARK} 429s in it are the target, after the first ten seconds. The reference is a prototype in a "
        f"laboratory of its own. {met} of {len(figures)} meet their targets, {above} the reference.",
        ("service", "targets: share / wasted", "reference", "share, median (worst)", "wasted, median (worst)",
         "dark second", ""),
        [each.row() for each in figures],
    )  # fmt: skip


def _outcome_at(name: str, seed: int) -> Outcome:
    """By name, because the functions of a case do not pass between processes."""
    return outcome_of(next(case for case in cases() if case.name == name), seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.any_limit", description="Measures limits of every kind."
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of each simulated case; default {SEEDS}")
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases whose name has this text; repeatable")
    parser.add_argument("--processes", type=int, default=2, help="simulations beside each other; default 2")
    parser.add_argument("--sockets", action="store_true", help="over real sockets, beside other clients")
    parser.add_argument("--repetitions", type=int, default=5, help="with --sockets; default 5")
    parser.add_argument("--client", action="append", metavar="TEXT", help="likewise: clients; repeatable")
    parser.add_argument("--beside", type=int, default=limit_sockets.BESIDE, help="likewise: runs at the same time")
    parser.add_argument("--give-up", type=float, default=limit_sockets.GIVE_UP, help="likewise: seconds of a run")
    parser.add_argument("--output", type=Path, help="write the report there")
    chosen = parser.parse_args(arguments)
    only = chosen.only or [""]
    if chosen.sockets:
        section = limit_sockets.run(
            repetitions=chosen.repetitions,
            services=[service for service in limit_sockets.SERVICES if any(text in service.name for text in only)],
            only=chosen.client or [""],
            give_up=chosen.give_up,
            beside=chosen.beside,
        )
    else:
        section = run(seeds=chosen.seeds, only=only, processes=chosen.processes)
    text = markdown([section], "python -m benchmarks.any_limit" + " --sockets" * chosen.sockets)
    print(text)
    if chosen.output is not None:
        chosen.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
