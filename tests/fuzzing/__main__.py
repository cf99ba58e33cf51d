"""``python -m tests.fuzzing SEED``: replays the random scenario of a seed and reports broken invariants."""

import argparse
import sys
from collections.abc import Sequence
from itertools import count

from attrs import asdict, fields

from onellm_async.simulation.scenario import Scenario
from onellm_async.simulation.simulate import SimulationResult
from tests.fuzzing.invariants import Violation
from tests.fuzzing.observed_run import ObservedRun, observe
from tests.fuzzing.random_scenario import random_scenario
from tests.fuzzing.trace_printer import Moment, TracingRecorder, moment_lines


def replay_line(seed: int, violation: Violation, *, undisturbed: bool = False) -> str:
    """The command that replays a seed and shows the events around a violation."""
    flags = f"{' --undisturbed' * undisturbed} --trace --around {violation.at:.3f}"
    return f"python -m tests.fuzzing {seed}{flags}   # {violation}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scenarios of one or more seeds; returns 1 if one of them breaks an invariant, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzzing",
        description="Runs the client against the simulated service in the random scenario of a seed, in virtual time.",
        epilog="Exit code 1: an invariant is broken.",
    )
    parser.add_argument("seed", type=int, help="seed of the scenario")
    parser.add_argument("--count", type=int, default=1, help="run this many seeds from SEED on, and show what fails")
    parser.add_argument(
        "--undisturbed", action="store_true", help="without pauses, retunes, token limits, waves and source gaps"
    )
    parser.add_argument("--trace", action="store_true", help="print every event with its request, lane, level, phase")
    parser.add_argument("--around", type=float, metavar="SECONDS", help="with --trace: only the events around a time")
    chosen = parser.parse_args(arguments)
    if chosen.around is not None and not chosen.trace:
        parser.error("--around needs --trace")
    if chosen.count == 1:
        return _one(chosen.seed, undisturbed=chosen.undisturbed, trace=chosen.trace, around=chosen.around)
    broken = 0
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        run = observe(random_scenario(seed, undisturbed=chosen.undisturbed))
        if run.violations:
            broken += 1
            print(replay_line(seed, run.violations[0], undisturbed=chosen.undisturbed), flush=True)
    print(f"{chosen.count - broken:,} of {chosen.count:,} seeds passed.")
    return bool(broken)


def _one(seed: int, *, undisturbed: bool, trace: bool, around: float | None) -> int:
    scenario = random_scenario(seed, undisturbed=undisturbed)
    if not trace:
        run = observe(scenario)
        print("\n".join(_summary(run)))
        return bool(run.violations)
    moments, numbers = list[Moment](), count()
    run = observe(scenario, lambda scenario: TracingRecorder(scenario, moments, next(numbers)))
    print("\n".join([*moment_lines(moments, around=around), "", *_summary(run)]))
    return bool(run.violations)


def _summary(run: ObservedRun) -> list[str]:
    result: SimulationResult = run.result
    scenario = asdict(result.scenario, recurse=False)
    return [
        *(f"{each.name}: {scenario[each.name]}" for each in fields(Scenario)),
        "",
        f"makespan: {result.makespan:.3f} s, at best {result.best_makespan:.3f} s (goodput {result.goodput:.3f})",
        f"answered: {result.answered}, failed: {result.failed}",
        f"rate-limited: {result.rate_limited} ({result.rate_limited_share:.1%}), billed: {result.billed}",
        f"fairness: {result.fairness:.3f}",
        f"violations: {len(run.violations)}",
        *map(str, run.violations),
    ]


if __name__ == "__main__":
    sys.exit(main())
