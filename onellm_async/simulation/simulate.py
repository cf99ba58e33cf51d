"""Simulates one scenario: the real client against the pure service, in virtual time.

Hours of rate limit take seconds, and a seed gives the same run to the last digit.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from math import exp, inf, log
from random import Random

from attrs import evolve, field, frozen

from onellm_async.chat import ChatOutcome
from onellm_async.client import AsyncOneLLM
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.snapshot import Snapshot
from onellm_async.quota.memory_quota import MemoryQuota
from onellm_async.server.ledger import Outcome
from onellm_async.server.service import Service
from onellm_async.server.service_limits import AccountLimits, BucketLimit, RandomLimit, ServiceLimit
from onellm_async.server.settings import ServerSettings
from onellm_async.simulation.clock import VirtualClockLoop, run_in_virtual_time
from onellm_async.simulation.scenario import LimitChange, Pause, Scenario
from onellm_async.simulation.service_transport import ServiceTransport
from onellm_async.simulation.simulated_client import ClientWorkload, ObservedTransport, Observer, SimulatedClient

_KEY = "simulated"
_GIVE_UP_FACTOR = 50
"""Multiple of the best makespan after which a run is given up."""
_GIVE_UP_SECONDS = 3600.0
"""Seconds added to that multiple."""
_MAX_GAP = 90.0
"""Seconds between two requests of a client, at most, while 429s come at random: the slowest rate of a shared limit that
is discovered."""
_UNKNOWN_TOKENS = 600
"""Tokens that the client books for a request of a model whose usual answers are not known yet, or for a lost one."""


@frozen
class SimulationResult:
    """What came of a simulated scenario.

    Attributes:
        scenario: The scenario.
        makespan: Seconds until the last answer.
        best_makespan: Seconds that an omniscient client would need.
        answered: Prompts of the fan-outs with the right answer.
        failed: Prompts of the fan-outs without an answer.
        rate_limited: Requests that the service answered with a 429.
        billed: Requests that the service billed.
        accepted_at: Virtual time at which each request that the service accepted arrived, sorted.
        rate_limited_at: Virtual time at which each request with a 429 arrived, sorted.
        sent_at: Virtual time of each request sent, per client.
        answered_at: Virtual time of each answer of the fan-out, per client, in the order of completion.
        finished: Whether each client came to an end; False if the run was given up.
        billed_prompts: Number of requests billed, per prompt.
        snapshots: The last snapshot of each client.
        prompts: Prompts of the fan-out, per client.
        outcomes: Outcomes of the fan-out, per client, in the order of completion. They are not compared.
        chat_answers: Prompt and answer of the single chats that were answered, per client.
        leaks: Tasks and timers that are left in the event loop.
    """

    scenario: Scenario
    makespan: float
    best_makespan: float
    answered: int
    failed: int
    rate_limited: int
    billed: int
    accepted_at: Sequence[float] = field(repr=False)
    rate_limited_at: Sequence[float] = field(repr=False)
    sent_at: Sequence[Sequence[float]]
    answered_at: Sequence[Sequence[float]]
    finished: Sequence[bool]
    billed_prompts: Mapping[str, int] = field(repr=False)
    snapshots: Sequence[Snapshot] = field(repr=False)
    prompts: Sequence[Sequence[str]] = field(repr=False)
    outcomes: Sequence[Sequence[ChatOutcome]] = field(repr=False, eq=False)
    chat_answers: Sequence[Sequence[tuple[str, str | None]]] = field(repr=False)
    leaks: Sequence[str]

    @property
    def at_rest(self) -> bool:
        """Whether no client has a slot taken, a request queued or a timer set at the end."""
        return all(snapshot.at_rest for snapshot in self.snapshots)

    @property
    def goodput(self) -> float:
        """Best makespan divided by makespan; 1 is perfect."""
        return self.best_makespan / self.makespan

    @property
    def rate_limited_share(self) -> float:
        """429s per prompt."""
        return self.rate_limited / (self.scenario.prompts * self.scenario.clients)

    @property
    def fairness(self) -> float:
        """Jain's index of the clients' rates: 1 if all are equal, 1/n if one client has everything."""
        rates = [len(times) / times[-1] for times in self.answered_at if times]
        return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates)) if rates else 0.0


def simulate(scenario: Scenario, *, observers: Sequence[Observer] = ()) -> SimulationResult:
    """Runs a scenario. The same scenario gives the same result, to the last digit.

    Must not be called while an event loop runs in this thread.

    Args:
        scenario: What to simulate.
        observers: One for each client, in their order; clients beyond the last one are not observed.

    Example:
        >>> from onellm_async import Limits
        >>> result = simulate(Scenario(prompts=100, limits=Limits()))
        >>> result.answered, result.rate_limited, round(result.makespan)
        (100, 0, 96)
    """
    return run_in_virtual_time(_run(scenario, observers))


async def _run(scenario: Scenario, observers: Sequence[Observer]) -> SimulationResult:
    loop, service = asyncio.get_running_loop(), _service(scenario)
    assert isinstance(loop, VirtualClockLoop)  # noqa: S101  # made by run_in_virtual_time
    changes = [loop.call_at(change.at, _change_limit, service, change, scenario.burst) for change in scenario.changes]
    seeds = Random(scenario.seed)
    quota = _quota(scenario)
    transports, clients = [], []
    for number in range(scenario.clients):
        random = Random(seeds.random())
        transport = ServiceTransport(service, _KEY, random=random, network=scenario.network)
        observer = observers[number] if number < len(observers) else None
        transports.append(transport)
        clients.append(_client(scenario, number, transport, random, observer, quota))

    def report_idle(seconds: float) -> None:
        for client in clients:
            client.report_idle(seconds)

    loop.set_idle_callback(report_idle)
    tasks = [asyncio.create_task(client.work()) for client in clients]
    changes += [loop.call_at(at, _die, tasks[client], quota, client) for client, at in scenario.deaths.items()]
    await asyncio.wait(tasks, timeout=give_up_after(scenario))
    makespan = loop.time()
    for task in tasks:
        task.cancel()
    for change in changes:
        change.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    leaks = _leaks(loop)
    for task in tasks:
        if not task.cancelled():
            task.result()
    outcomes = [outcome for client in clients for outcome in client.outcomes]
    return SimulationResult(
        scenario=scenario,
        makespan=makespan,
        best_makespan=best_makespan(scenario),
        answered=sum(
            outcome.response is not None and outcome.response.content == outcome.prompt for outcome in outcomes
        ),
        failed=sum(outcome.error is not None for outcome in outcomes),
        rate_limited=service.ledger.outcomes[Outcome.RATE_LIMITED],
        billed=service.ledger.billed,
        accepted_at=_arrivals(service, rate_limited=False),
        rate_limited_at=_arrivals(service, rate_limited=True),
        sent_at=[transport.sent_at for transport in transports],
        answered_at=[client.answered_at for client in clients],
        finished=[client.finished for client in clients],
        # The ledger keeps the beginning of each prompt, which is enough to tell prompts apart.
        billed_prompts=Counter(
            row.prompt for row in service.ledger.rows if row.outcome in {Outcome.ANSWERED, Outcome.LOST}
        ),
        snapshots=[client.client.snapshot() for client in clients],
        prompts=[client.workload.prompts for client in clients],
        outcomes=[client.outcomes for client in clients],
        chat_answers=[client.chat_answers for client in clients],
        leaks=leaks,
    )


def best_makespan(scenario: Scenario) -> float:
    """Seconds that a client would need that knows the service's limits and all of their changes beforehand.

    Its concurrency is not limited. It ignores outages, requests of other clients, and limits that apply at random.
    """
    network = 2 * scenario.network_delay + scenario.network_jitter
    limits = [scenario.limits_at_start, *(change.limits_after(scenario.burst) for change in scenario.changes)]
    if all(len(each) == 1 and isinstance(each[0], BucketLimit) for each in limits) and scenario.service_limits is None:
        return _last_refill(scenario) + scenario.faults.latency + network
    return _last_answer(scenario) + network


def _last_refill(scenario: Scenario) -> float:
    """When the last token is refilled that the prompts need."""
    level = scenario.burst if scenario.initial_level is None else scenario.initial_level
    remaining, now, rate = scenario.prompts * scenario.clients - level, 0.0, scenario.requests_per_minute / 60
    for change in scenario.changes:
        refilled = (change.at - now) * rate
        if remaining <= refilled:
            break
        remaining, now, rate = remaining - refilled, change.at, (change.requests_per_minute or 0.0) / 60
    return now + max(0.0, remaining / rate)


def _last_answer(scenario: Scenario) -> float:
    """When the last answer is ready if each prompt is sent as soon as all limits have room for it."""
    limits = AccountLimits(_certain(scenario.limits_at_start), 0.0)
    changes = deque(sorted(scenario.changes, key=lambda change: change.at))
    ends: deque[float] = deque()
    now, remaining = 0.0, scenario.prompts * scenario.clients
    while remaining:
        rejection = limits.admit(now)
        if rejection is None:
            ends.append(now + scenario.faults.latency)
            remaining -= 1
            continue
        next_change = changes[0].at if changes else inf
        next_room = inf if rejection.wait is None else now + max(rejection.wait, 1e-9)
        next_end = ends[0] if ends else inf
        now = min(next_change, next_room, next_end)
        if now == inf:
            return inf
        while ends and ends[0] <= now:
            ends.popleft()
            limits.end()
        while changes and changes[0].at <= now:
            limits.change(_certain(changes.popleft().limits_after(scenario.burst)), now)
    return now + scenario.faults.latency


def _certain(limits: Sequence[ServiceLimit]) -> list[ServiceLimit]:
    """The limits that do not apply at random."""
    return [limit for limit in limits if not isinstance(limit, RandomLimit)]


def give_up_after(scenario: Scenario) -> float:
    """Seconds after which a run is given up, because something in it waits forever."""
    requests = scenario.prompts + len(scenario.chats)
    given = scenario.faults.retry_after
    retry_after = 4 * (given if isinstance(given, int | float) else 0) * requests * scenario.clients
    delays = retry_after + _max_delay(scenario) + _random_delay(scenario)
    return _GIVE_UP_FACTOR * best_makespan(scenario) + _GIVE_UP_SECONDS + delays


def _random_delay(scenario: Scenario) -> float:
    """Seconds by which 429s at random may delay a client: it takes them for those of other clients, and slows down."""
    limits = [*scenario.limits_at_start, *(limit for change in scenario.changes for limit in change.limits or ())]
    share = max((limit.share for limit in limits if isinstance(limit, RandomLimit)), default=0.0)
    if not share:
        return 0.0
    slowest = min((limits.declared_rate / 60 for limits in scenario.all_limits if limits.declared_rate), default=inf)
    gap = max(_MAX_GAP, DeclaredRate.MANY_CLIENTS / slowest)
    sharing = scenario.clients if scenario.shared_quota else 1  # a quota has one rate
    return (scenario.prompts + len(scenario.chats)) * sharing * gap / (1 - share)


def _max_delay(scenario: Scenario) -> float:
    """Seconds by which pauses, source gaps, few slots and few tokens may delay a client."""
    requests = scenario.prompts + len(scenario.chats)
    sharing = requests * (scenario.clients if scenario.shared_quota else 1)  # a quota has one account of tokens
    pauses = sum(control.seconds for control in scenario.controls if isinstance(control, Pause))
    gaps = sum(gap.seconds for gap in scenario.source_gaps)
    last_chat = max((chat.at for chat in scenario.chats), default=0.0)
    slow = max(
        requests * scenario.faults.latency / (limits.max_in_flight if limits.max_concurrency != "auto" else 1)
        + 60 * sharing * (_UNKNOWN_TOKENS + scenario.max_prompt_length) / (limits.tokens_per_minute or float("inf"))
        for limits in scenario.all_limits
    )
    return pauses + gaps + last_chat + _GIVE_UP_FACTOR * slow / 10


def _service(scenario: Scenario) -> Service:
    settings = ServerSettings(
        dialect=scenario.dialect,
        limits=scenario.limits_at_start,
        background_rate=scenario.background_rate,
        rate_headers=scenario.rate_headers,
        keys={_KEY: 1e9},
        faults=evolve(scenario.faults, seed=scenario.seed),
    )
    service = Service(settings, epoch=VirtualClockLoop.EPOCH)
    service.account(_KEY, 0.0)  # windows and times are counted from the start
    return service


def _change_limit(service: Service, change: LimitChange, burst: float) -> None:
    service.change_limits(change.limits_after(burst), change.at)


def _arrivals(service: Service, *, rate_limited: bool) -> list[float]:
    rows = service.ledger.rows
    return sorted(row.received_at for row in rows if (row.outcome is Outcome.RATE_LIMITED) == rate_limited)


def _quota(scenario: Scenario) -> MemoryQuota | None:
    if not scenario.shared_quota:
        return None
    return MemoryQuota(latency=scenario.quota_latency, outages=scenario.quota_outages)


def _die(task: "asyncio.Task[None]", quota: MemoryQuota | None, client: int) -> None:
    if quota is not None and client < len(quota.members):  # clients join in their order, with their first request
        quota.members[client].die()
    task.cancel()


def _client(
    scenario: Scenario,
    number: int,
    transport: ServiceTransport,
    random: Random,
    observer: Observer | None,
    quota: MemoryQuota | None,
) -> SimulatedClient:
    client = AsyncOneLLM(
        transport=transport if observer is None else ObservedTransport(transport, observer),
        limits=scenario.limits,
        retry=scenario.retry,
        dialect=scenario.dialect,
        hooks=() if observer is None else (observer,),
        random=random,
        quota="off" if quota is None else quota,
    )
    workload = ClientWorkload(
        prompts=_prompts(scenario, number),
        lane=scenario.lane,
        deadline=scenario.deadline,
        consumer_pause=scenario.consumer_pause,
        chats=scenario.chats,
        source_gaps=scenario.source_gaps,
        controls=[control for control in scenario.controls if control.client in {None, number}],
    )
    return SimulatedClient(client, workload, observer)


def _prompts(scenario: Scenario, client: int) -> list[str]:
    prompts = [f"{client}:{index}" for index in range(scenario.prompts)]
    lengths = Random(f"lengths of {scenario.seed}, {client}")
    if not scenario.max_prompt_length:
        return prompts
    return [prompt.ljust(round(exp(lengths.uniform(0, log(scenario.max_prompt_length)))), ".") for prompt in prompts]


def _leaks(loop: VirtualClockLoop) -> list[str]:
    tasks = sorted(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()})
    timers = loop.pending_timers()
    return [*(f"task {name} is left" for name in tasks), *([f"{timers} timers are left"] if timers else [])]
