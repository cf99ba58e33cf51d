"""What a run will take: duration, load and cost, by simulation, before anything is spent."""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from math import ceil, exp
from statistics import fmean, median
from typing import Literal, TypeAlias

from attrs import evolve, frozen

from onellm_async.limits.policy import Limits
from onellm_async.simulation.extrapolation import SteadyState, drawn_out, settled_gaps, steady_state
from onellm_async.simulation.rehearsal import ExpectedService, Rehearsal, rehearse
from onellm_async.simulation.workload import Price, Workload

__all__ = ["Plan", "Resource", "Spread", "Suggestion", "plan"]

Resource: TypeAlias = Literal["rate", "concurrency", "tokens", "service"]
"""What decides how long a run takes; ``answers``: nothing is waited for but the answers themselves."""

_SHORTEST = 2000
"""Prompts that are simulated at least; the rest is extrapolated."""
_FINDING_OUT = 700
"""Prompts until an undeclared rate is known, and its longest cruise."""
_FEWEST_SEEDS = 3
_MOST_SIMULATED = 100_000
"""Prompts over all runs; where a run needs very many, fewer runs are made."""
_SUGGESTION_SEEDS = 3
_WORTH_A_WORD = 0.1
"""Share of the waiting from which a resource is said to decide, and a suggestion is tried."""
_LEAST_SAVING = 0.01
_CURVE = 60


@frozen
class Spread:
    """A figure over several runs."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The least, the middle and the greatest of `values`."""
        return cls(min(values), median(values), max(values))


@frozen
class Suggestion:
    """What would make a run faster.

    Attributes:
        limit: The attribute of `Limits` to change.
        value: To what.
        saved: Seconds by which the run would then be shorter.
    """

    limit: str
    value: float
    saved: float


@frozen(kw_only=True)
class Plan:
    """A run, foretold.

    Attributes:
        workload: What is asked.
        duration: Seconds from the first request to the last answer.
        bottleneck: The resource that is waited for most.
        bottleneck_shares: Share of the run in which each resource was what was waited for.
        suggestions: What would make the run faster, the best first.
        requests_per_second: Prompts per second, on average.
        mean_in_flight: Requests under way, on average.
        max_in_flight: Requests under way, at most.
        rate_limited: Requests that the service will answer with a 429; they cost nothing.
        failed: Prompts that will fail in spite of retries.
        price: What it costs.
        progress: Seconds and prompts answered by then, in the run of median duration.
        simulated: Prompts that each run simulated; beyond them the steady state was extrapolated.
        seeds: Runs.
    """

    workload: Workload
    duration: Spread
    bottleneck: Resource
    bottleneck_shares: Mapping[Resource, float]
    suggestions: Sequence[Suggestion]
    requests_per_second: float
    mean_in_flight: float
    max_in_flight: int
    rate_limited: Spread
    failed: Spread
    price: Price
    progress: Sequence[tuple[float, int]]
    simulated: int
    seeds: int


@frozen
class _Foretold:
    """Several runs, drawn out to the whole workload."""

    runs: Sequence[Rehearsal]
    states: Sequence[SteadyState]
    gaps: Sequence[float]
    simulated: int
    more: int

    @property
    def durations(self) -> list[float]:
        return [run.makespan + self.more * gap for run, gap in zip(self.runs, self.gaps, strict=True)]


def plan(
    workload: Workload, limits: Limits, service: ExpectedService, *, seeds: int = 5, max_simulated: int | None = None
) -> Plan:
    """Foretells how a run over `workload` will go, with the real client in virtual time. Nothing is sent.

    A long workload is simulated in its beginning, and extrapolated in its steady state; the same arguments give the
    same plan. Must not be called while an event loop runs in this thread.

    Args:
        workload: What is asked; from a `WorkloadMeter`, or `Workload.uniform`.
        limits: What the client will be told.
        service: What the service is expected to do.
        seeds: Runs with different latencies and faults. Fewer are made where a single run is very long.
        max_simulated: Prompts that a run simulates, at most; None chooses as many as the steady state needs.

    Example:
        >>> foretold = plan(Workload.uniform(1000), Limits(), ExpectedService())
        >>> round(foretold.duration.median / 60), foretold.bottleneck
        (24, 'rate')
    """
    if not workload.prompts:
        return _nothing(workload)
    foretold = _foretell(workload, limits, service, seeds=seeds, max_simulated=max_simulated)
    runs, durations = foretold.runs, foretold.durations
    duration = Spread.of(durations)
    shares = _shares(runs, _scarcer(workload, limits, service))
    share = workload.prompts / foretold.simulated
    middle = min(range(len(runs)), key=lambda run: abs(durations[run] - duration.median))
    return Plan(
        workload=workload,
        duration=duration,
        bottleneck=max(shares, key=lambda resource: shares[resource]),
        bottleneck_shares=shares,
        suggestions=_suggestions(workload, limits, service, shares, foretold),
        requests_per_second=workload.prompts / duration.median,
        mean_in_flight=fmean(run.in_flight_seconds * share / whole for run, whole in zip(runs, durations, strict=True)),
        max_in_flight=max(run.max_in_flight for run in runs),
        rate_limited=Spread.of(
            [
                len(run.refused_at) + foretold.more * state.refusals
                for run, state in zip(runs, foretold.states, strict=True)
            ]
        ),
        failed=Spread.of([run.failed * share for run in runs]),
        price=workload.price,
        progress=drawn_out(runs[middle].settled_at, foretold.gaps[middle], foretold.more, _CURVE),
        simulated=foretold.simulated,
        seeds=len(runs),
    )


def _foretell(
    workload: Workload, limits: Limits, service: ExpectedService, *, seeds: int, max_simulated: int | None
) -> _Foretold:
    warm_up = _warm_up(workload, limits, service)
    number = min(workload.prompts, max_simulated or max(_SHORTEST, 3 * warm_up))
    demands = list(islice(cycle(workload.sample), number))
    count = max(min(seeds, _FEWEST_SEEDS), min(seeds, _MOST_SIMULATED // number))
    runs = [rehearse(demands, limits, service, seed) for seed in range(count)]
    more = workload.prompts - number
    states = [steady_state(run.left_at, run.refused_at, warm_up=warm_up, tail=limits.max_concurrency) for run in runs]
    return _Foretold(runs, states, settled_gaps(states, more), number, more)


def _warm_up(workload: Workload, limits: Limits, service: ExpectedService) -> int:
    """Prompts until the steady state."""
    warm_up = 2 * (max(service.burst, limits.burst) + limits.max_concurrency)
    if limits.tokens_per_minute is not None:
        # The bucket of tokens is full at the start; while it empties it is refilled, so count it twice.
        warm_up += ceil(2 * limits.tokens_per_minute / _mean_tokens(workload))
    return warm_up + (_FINDING_OUT if limits.requests_per_minute is None else 0)


def _shares(runs: Sequence[Rehearsal], scarcer: Resource) -> dict[Resource, float]:
    total = sum(run.makespan for run in runs)
    shares: dict[Resource, float] = {"rate": 0.0, "concurrency": 0.0, "tokens": 0.0, "service": 0.0}
    for run in runs:
        shares["concurrency"] += run.waits["slots"] / total
        shares["service"] += run.waits["answers"] / total
        shares[scarcer] += run.waits["leave"] / total
    return shares


def _scarcer(workload: Workload, limits: Limits, service: ExpectedService) -> Resource:
    """Which of the two limits per minute lets fewer requests go in the long run."""
    if limits.tokens_per_minute is None:
        return "rate"
    requests = min(service.requests_per_minute, limits.requests_per_minute or service.requests_per_minute)
    return "tokens" if limits.tokens_per_minute / _mean_tokens(workload) < requests else "rate"


def _mean_tokens(workload: Workload) -> float:
    return fmean(demand.tokens for demand in workload.sample)


def _suggestions(
    workload: Workload,
    limits: Limits,
    service: ExpectedService,
    shares: Mapping[Resource, float],
    foretold: _Foretold,
) -> list[Suggestion]:
    """Tries more of each resource that is waited for, in the same simulated circumstances."""
    seeds = min(len(foretold.runs), _SUGGESTION_SEEDS)
    usual = median(foretold.durations[:seeds])
    found = []
    for resource in sorted(shares, key=lambda name: -shares[name]):
        if shares[resource] < _WORTH_A_WORD or resource == "service":
            continue
        name, value, better, richer = _more_of(resource, limits, service)
        changed = _foretell(workload, better, richer, seeds=seeds, max_simulated=foretold.simulated)
        saved = usual - median(changed.durations)
        if saved > _LEAST_SAVING * usual:
            found.append(Suggestion(name, value, saved))
    return sorted(found, key=lambda suggestion: -suggestion.saved)


def _more_of(
    resource: Resource, limits: Limits, service: ExpectedService
) -> tuple[str, float, Limits, ExpectedService]:
    """The attribute, its new value, and what follows from it: twice as much, or as many slots as the rate can use."""
    if resource == "concurrency":
        slots = _slots_for(limits, service)
        return "max_concurrency", slots, evolve(limits, max_concurrency=slots), service
    if resource == "tokens":
        tokens = 2 * (limits.tokens_per_minute or 0.0)
        return "tokens_per_minute", tokens, evolve(limits, tokens_per_minute=tokens), service
    rate = 2 * service.requests_per_minute
    told = None if limits.requests_per_minute is None else 2 * limits.requests_per_minute
    richer = evolve(service, requests_per_minute=rate)
    return "requests_per_minute", told or rate, evolve(limits, requests_per_minute=told), richer


def _slots_for(limits: Limits, service: ExpectedService) -> int:
    """Little's law: as many as requests are under way at the full rate, and a quarter for the ups and downs."""
    mean = service.latency * exp(service.latency_sigma**2 / 2)
    rate = min(service.requests_per_minute, limits.requests_per_minute or service.requests_per_minute) / 60
    return max(limits.max_concurrency + 1, 8 * ceil(1.25 * rate * mean / 8))


def _nothing(workload: Workload) -> Plan:
    zero = Spread(0.0, 0.0, 0.0)
    return Plan(
        workload=workload,
        duration=zero,
        bottleneck="service",
        bottleneck_shares={},
        suggestions=(),
        requests_per_second=0.0,
        mean_in_flight=0.0,
        max_in_flight=0,
        rate_limited=zero,
        failed=zero,
        price=workload.price,
        progress=(),
        simulated=0,
        seeds=0,
    )
