"""A scenario simulated under observation, and checked against the invariants."""

from collections.abc import Callable, Sequence

from attrs import evolve, frozen

from onellm_async.simulation.scenario import Scenario
from onellm_async.simulation.simulate import SimulationResult, simulate
from tests.fuzzing.invariants import Violation, violations
from tests.fuzzing.recorder import Recorder
from tests.fuzzing.trace import Trace, TrueLimit


@frozen
class ObservedRun:
    """A simulated run and what was observed of each client.

    Attributes:
        result: The result of the simulation.
        traces: The trace of each client.
        violations: All that is wrong with the run.
    """

    result: SimulationResult
    traces: Sequence[Trace]
    violations: Sequence[Violation]


def observe(scenario: Scenario, recorder: Callable[[Scenario], Recorder] | None = None) -> ObservedRun:
    """Simulates a scenario with a recorder for each client, and checks all invariants.

    Args:
        scenario: The scenario.
        recorder: Makes a recorder; None for the usual one.
    """
    make = recorder or (lambda scenario: Recorder(scenario.limits, scenario.deadline))
    recorders = [make(scenario) for _ in range(scenario.clients)]
    result = simulate(scenario, observers=recorders)
    traces = [_trace(result, number, each) for number, each in enumerate(recorders)]
    found = []
    for number, trace in enumerate(traces):
        if number in scenario.deaths:
            continue  # it ends in the middle of everything
        client = number if len(traces) > 1 else None
        found += [evolve(violation, client=client) for violation in violations(trace)]
    return ObservedRun(result, traces, found)


def _trace(result: SimulationResult, client: int, recorder: Recorder) -> Trace:
    scenario, snapshot = result.scenario, result.snapshots[client]
    leaks = [] if snapshot.at_rest else [f"the client is not at rest: {snapshot}"]
    return Trace(
        limits=scenario.limits,
        retry=scenario.retry,
        true_limit=_true_limit(scenario),
        events=recorder.events,
        deadlines=recorder.deadlines,
        singles=frozenset(recorder.singles),
        prompts=result.prompts[client],
        outcomes=result.outcomes[client],
        chat_answers=result.chat_answers[client],
        billed=result.billed_prompts,
        requests=recorder.requests(),
        state_mismatches=recorder.state_mismatches,
        missed_wakeups=recorder.missed_wakeups,
        token_errors=recorder.token_errors,
        leaks=[*leaks, *result.leaks],
        accepted_at=result.accepted_at,
        finished=result.finished[client],
        ended_at=result.makespan,
    )


def _true_limit(scenario: Scenario) -> TrueLimit | None:
    """The service's bucket, if the only client always knows it and believes in it."""
    rate, burst = scenario.requests_per_minute, scenario.burst
    honest = all(
        limits.requests_per_minute == rate and limits.burst <= burst and limits.mode in {"correct", "off"}
        for limits in scenario.all_limits
    )
    if not honest or scenario.clients > 1 or scenario.service_limits is not None:
        return None
    return TrueLimit(rate / 60, burst)
