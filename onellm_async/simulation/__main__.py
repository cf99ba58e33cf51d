"""``python -m onellm_async.simulation SEED``: replays a random scenario and tells what came of it."""

import argparse
import sys
from collections.abc import Sequence

from attrs import asdict, fields

from onellm_async.simulation.random_scenario import random_scenario
from onellm_async.simulation.scenario import Scenario, SimulationResult, simulate

__all__ = ["main", "replay_line"]


def replay_line(seed: int, *, undisturbed: bool = False) -> str:
    """The command that repeats the run of a seed."""
    return f"python -m onellm_async.simulation {seed}{' --undisturbed' * undisturbed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scenarios of one or more seeds; returns 1 when an invariant is broken in one of them, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m onellm_async.simulation",
        description="Runs the client against the simulated service in the random scenario of a seed, in virtual time.",
        epilog="Exit code 1: an invariant was broken.",
    )
    parser.add_argument("seed", type=int, help="decides on everything")
    parser.add_argument("--count", type=int, default=1, help="run that many seeds from SEED on, and show what fails")
    parser.add_argument(
        "--undisturbed", action="store_true", help="without pauses, retunes, limits of tokens, waves and silences"
    )
    chosen = parser.parse_args(arguments)
    if chosen.count == 1:
        result = simulate(random_scenario(chosen.seed, undisturbed=chosen.undisturbed))
        print(_shown(result))
        return bool(result.violations)
    broken = 0
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        result = simulate(random_scenario(seed, undisturbed=chosen.undisturbed))
        if result.violations:
            broken += 1
            print(f"{replay_line(seed, undisturbed=chosen.undisturbed)}   # {result.violations[0]}", flush=True)
    print(f"{chosen.count - broken:,} of {chosen.count:,} seeds passed.")
    return bool(broken)


def _shown(result: SimulationResult) -> str:
    scenario = asdict(result.scenario, recurse=False)
    lines = [f"{each.name}: {scenario[each.name]}" for each in fields(Scenario)]
    lines += [
        "",
        f"makespan: {result.makespan:.3f} s, at best {result.best_makespan:.3f} s (goodput {result.goodput:.3f})",
        f"answered: {result.answered}, failed: {result.failed}",
        f"rate-limited: {result.rate_limited} ({result.rate_limited_share:.1%}), billed: {result.billed}",
        f"fairness: {result.fairness:.3f}",
        f"violations: {len(result.violations)}",
        *result.violations,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
