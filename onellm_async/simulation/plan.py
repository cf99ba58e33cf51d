"""Estimates the duration, load and cost of a run by simulation, before anything is spent."""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from math import ceil, exp
from statistics import fmean, median

from attrs import evolve, frozen

from onellm_async import serialization
from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.policy import Limits
from onellm_async.serialization import JSON
from onellm_async.simulation.extrapolation import SteadyState, extrapolate, shrink_to_mean, steady_state
from onellm_async.simulation.simulated_run import ExpectedService, SimulatedRun, simulate_workload
from onellm_async.simulation.workload import Price, Workload

_MIN_SIMULATED = 2000
"""Minimum number of prompts to simulate; the rest is extrapolated."""
_DISCOVERY = 700
"""Prompts until an undeclared rate is discovered and the client cruises at its longest."""
_MIN_SEEDS = 3
"""Minimum number of runs, however long each of them is."""
_MAX_SIMULATED = 100_000
"""Maximum number of prompts over all runs; beyond it fewer runs are made."""
_SUGGESTION_SEEDS = 3
"""Maximum number of runs to try a suggestion with."""
_MIN_SHARE = 0.1
"""Share of the run from which a bottleneck gets a suggestion."""
_MIN_SAVING = 0.01
"""Share of the duration that a suggestion must save."""
_CURVE_POINTS = 60
"""Points of the progress curve."""


@frozen
class Spread:
    """One figure over several runs: its minimum, median and maximum."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of `values`."""
        return cls(min(values), median(values), max(values))


@frozen
class Suggestion:
    """A change that would make a run faster.

    Attributes:
        limit: The attribute of `Limits` to change.
        value: Its new value.
        saved: Seconds that the change would save.
    """

    limit: str
    value: float
    saved: float


@frozen(kw_only=True)
class Plan:
    """The estimate of a run.

    Attributes:
        workload: The prompts of the run.
        duration: Seconds from the first request to the last answer.
        bottleneck: What limits the speed for the largest share of the run.
        bottleneck_shares: Share of the run that each bottleneck takes: ``"rate"``, ``"concurrency"``, ``"tokens"`` and
            ``"service"``, where only answers are waited for.
        suggestions: Changes that would make the run faster, the best first.
        requests_per_second: Mean prompts per second.
        mean_in_flight: Mean number of requests in flight.
        max_in_flight: Maximum number of requests in flight.
        rate_limited: Requests that the service will answer with a 429, at no cost.
        failed: Prompts that will fail in spite of retries.
        price: Cost of the run.
        progress: Pairs of seconds and prompts completed by then, in the run of median duration.
        simulated: Prompts that each run simulated; the rest is extrapolated.
        seeds: Number of runs.
    """

    workload: Workload
    duration: Spread
    bottleneck: Bottleneck
    bottleneck_shares: Mapping[Bottleneck, float]
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

    def to_dict(self) -> dict[str, JSON]:
        """Returns the plan as a dict that JSON can hold, without the sample of the workload's sizes."""
        bare = evolve(self.workload, sample=())
        workload = {name: value for name, value in serialization.to_dict(bare).items() if name != "sample"}
        return serialization.to_dict(evolve(self, workload=bare)) | {"workload": workload}


@frozen
class _Estimate:
    """Several simulated runs, extrapolated to the whole workload."""

    runs: Sequence[SimulatedRun]
    states: Sequence[SteadyState]
    gaps: Sequence[float]
    simulated: int
    more: int

    @property
    def durations(self) -> list[float]:
        return [run.makespan + self.more * gap for run, gap in zip(self.runs, self.gaps, strict=True)]

    @property
    def rate_limited(self) -> list[float]:
        return [
            len(run.rate_limited_at) + self.more * state.rate_limited
            for run, state in zip(self.runs, self.states, strict=True)
        ]


def plan(
    workload: Workload, limits: Limits, service: ExpectedService, *, seeds: int = 5, max_simulated: int | None = None
) -> Plan:
    """Estimates a run over `workload`, with the real client in virtual time. Sends nothing.

    Simulates the beginning of a long workload and extrapolates its steady state. The same arguments give the same
    plan. Must not be called while an event loop runs in this thread.

    Args:
        workload: The prompts, from a `WorkloadMeter` or `Workload.uniform`.
        limits: Limits of the client.
        service: Expected behavior of the service.
        seeds: Number of runs, which differ in latencies and faults. A very long run gets fewer.
        max_simulated: Maximum number of prompts that each run simulates; None for as many as the steady state needs.

    Example:
        >>> estimate = plan(Workload.uniform(1000), Limits(), ExpectedService())
        >>> round(estimate.duration.median / 60), estimate.bottleneck
        (24, 'rate')
    """
    if not workload.prompts:
        return _empty_plan(workload)
    estimate = _estimate(workload, limits, service, seeds=seeds, max_simulated=max_simulated)
    runs, durations = estimate.runs, estimate.durations
    duration = Spread.of(durations)
    shares = _bottleneck_shares(runs, _scarcer_limit(workload, limits, service))
    scale = workload.prompts / estimate.simulated
    middle = min(range(len(runs)), key=lambda run: abs(durations[run] - duration.median))
    return Plan(
        workload=workload,
        duration=duration,
        bottleneck=max(shares, key=lambda name: shares[name]),
        bottleneck_shares=shares,
        suggestions=_suggestions(workload, limits, service, shares, estimate),
        requests_per_second=workload.prompts / duration.median,
        mean_in_flight=fmean(run.in_flight_seconds * scale / whole for run, whole in zip(runs, durations, strict=True)),
        max_in_flight=max(run.max_in_flight for run in runs),
        rate_limited=Spread.of(estimate.rate_limited),
        failed=Spread.of([run.failed * scale for run in runs]),
        price=workload.price,
        progress=extrapolate(runs[middle].completed_at, estimate.gaps[middle], estimate.more, _CURVE_POINTS),
        simulated=estimate.simulated,
        seeds=len(runs),
    )


def _estimate(
    workload: Workload, limits: Limits, service: ExpectedService, *, seeds: int, max_simulated: int | None
) -> _Estimate:
    warm_up = _warm_up(workload, limits, service)
    number = min(workload.prompts, max_simulated or max(_MIN_SIMULATED, 3 * warm_up))
    sizes = list(islice(cycle(workload.sample), number))
    count = max(min(seeds, _MIN_SEEDS), min(seeds, _MAX_SIMULATED // number))
    runs = [simulate_workload(sizes, limits, service, seed) for seed in range(count)]
    more = workload.prompts - number
    tail = limits.max_in_flight
    states = [steady_state(run.sent_at, run.rate_limited_at, warm_up=warm_up, tail=tail) for run in runs]
    return _Estimate(runs, states, shrink_to_mean(states, more), number, more)


def _warm_up(workload: Workload, limits: Limits, service: ExpectedService) -> int:
    """Prompts until the steady state."""
    warm_up = 2 * (max(service.burst, limits.burst) + limits.max_in_flight)
    if limits.tokens_per_minute is not None:
        # The token bucket is full at the start, and refilled while it empties: count it twice.
        warm_up += ceil(2 * limits.tokens_per_minute / _mean_tokens(workload))
    return warm_up + (_DISCOVERY if limits.requests_per_minute == "auto" else 0)


def _bottleneck_shares(runs: Sequence[SimulatedRun], scarcer: Bottleneck) -> dict[Bottleneck, float]:
    total = sum(run.makespan for run in runs)
    shares: dict[Bottleneck, float] = {"rate": 0.0, "concurrency": 0.0, "tokens": 0.0, "service": 0.0}
    for run in runs:
        shares["concurrency"] += run.waits["concurrency"] / total
        shares["service"] += run.waits["service"] / total
        shares[scarcer] += run.waits["permit"] / total
    return shares


def _scarcer_limit(workload: Workload, limits: Limits, service: ExpectedService) -> Bottleneck:
    """Which limit per minute, of requests or of tokens, allows fewer requests in the long run."""
    if limits.tokens_per_minute is None:
        return "rate"
    requests = min(service.requests_per_minute, limits.declared_rate or service.requests_per_minute)
    return "tokens" if limits.tokens_per_minute / _mean_tokens(workload) < requests else "rate"


def _mean_tokens(workload: Workload) -> float:
    return fmean(size.tokens for size in workload.sample)


def _suggestions(
    workload: Workload,
    limits: Limits,
    service: ExpectedService,
    shares: Mapping[Bottleneck, float],
    estimate: _Estimate,
) -> list[Suggestion]:
    """Tries more of each limit that is a bottleneck, with the same seeds."""
    seeds = min(len(estimate.runs), _SUGGESTION_SEEDS)
    usual = median(estimate.durations[:seeds])
    found = []
    for bottleneck in sorted(shares, key=lambda name: -shares[name]):
        if shares[bottleneck] < _MIN_SHARE or bottleneck == "service":
            continue
        name, value, more_limits, more_service = _more_of(bottleneck, limits, service)
        changed = _estimate(workload, more_limits, more_service, seeds=seeds, max_simulated=estimate.simulated)
        saved = usual - median(changed.durations)
        if saved > _MIN_SAVING * usual:
            found.append(Suggestion(name, value, saved))
    return sorted(found, key=lambda suggestion: -suggestion.saved)


def _more_of(
    bottleneck: Bottleneck, limits: Limits, service: ExpectedService
) -> tuple[str, float, Limits, ExpectedService]:
    """The attribute of `Limits`, its new value, and the settings: twice as much, or the slots that the rate needs."""
    if bottleneck == "concurrency":
        slots = _slots_for_rate(limits, service)
        return "max_concurrency", slots, evolve(limits, max_concurrency=slots), service
    if bottleneck == "tokens":
        tokens = 2 * (limits.tokens_per_minute or 0.0)
        return "tokens_per_minute", tokens, evolve(limits, tokens_per_minute=tokens), service
    rate = 2 * service.requests_per_minute
    declared = None if limits.declared_rate is None else 2 * limits.declared_rate
    more_service = evolve(service, requests_per_minute=rate)
    more_limits = evolve(limits, requests_per_minute=declared or limits.requests_per_minute)
    return "requests_per_minute", declared or rate, more_limits, more_service


def _slots_for_rate(limits: Limits, service: ExpectedService) -> int:
    """Slots for the full rate by Little's law, and a quarter more for its variation."""
    mean_latency = service.latency * exp(service.latency_sigma**2 / 2)
    rate = min(service.requests_per_minute, limits.declared_rate or service.requests_per_minute) / 60
    return max(limits.max_in_flight + 1, 8 * ceil(1.25 * rate * mean_latency / 8))


def _empty_plan(workload: Workload) -> Plan:
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
