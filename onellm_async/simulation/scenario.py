"""A run of the real client against the pure service in virtual time: hours in seconds, repeatable by its seed."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from math import exp, log
from random import Random

from attrs import evolve, frozen

from onellm_async.client import AsyncOneLLM
from onellm_async.server.ledger import Outcome
from onellm_async.server.service import Service
from onellm_async.server.settings import ServerSettings
from onellm_async.simulation.clock import VirtualClockLoop, run_in_virtual_time
from onellm_async.simulation.conditions import LimitChange, Scenario
from onellm_async.simulation.controls import Pause, Retune
from onellm_async.simulation.invariants import violations
from onellm_async.simulation.makespan import best_makespan, longest_makespan
from onellm_async.simulation.participant import Participant, Silence, SingleChat, Task
from onellm_async.simulation.recorder import Recorder
from onellm_async.simulation.service_transport import Network, Outage, ServiceTransport
from onellm_async.simulation.trace import TrueLimit

__all__ = [
    "LimitChange",
    "Outage",
    "Pause",
    "Retune",
    "Scenario",
    "Silence",
    "SimulationResult",
    "SingleChat",
    "simulate",
]

_KEY = "simulated"


@frozen
class SimulationResult:
    """What came of it.

    Attributes:
        scenario: What was simulated.
        makespan: Seconds until the last answer.
        best_makespan: Seconds that an omniscient client would have taken.
        answered: Prompts with an answer that is theirs.
        failed: Prompts without.
        rate_limited: Requests that the service answered with a 429.
        billed: Requests that it billed.
        sent_at: When each request left, per client.
        answered_at: When each answer was there, per client, in the order of completion.
        at_rest: Whether every client ended with all slots back, nobody waiting and no timer set.
        violations: Which of the invariants in ``invariants.py`` were broken, and how; empty when all is well.
    """

    scenario: Scenario
    makespan: float
    best_makespan: float
    answered: int
    failed: int
    rate_limited: int
    billed: int
    sent_at: Sequence[Sequence[float]]
    answered_at: Sequence[Sequence[float]]
    at_rest: bool
    violations: Sequence[str]

    @property
    def goodput(self) -> float:
        """Best possible makespan over the real one; 1 is perfect."""
        return self.best_makespan / self.makespan

    @property
    def rate_limited_share(self) -> float:
        """429s per prompt."""
        return self.rate_limited / (self.scenario.prompts * self.scenario.clients)

    @property
    def fairness(self) -> float:
        """Jain's index of the clients' rates: 1 when all are equal, 1/n when one has everything."""
        rates = [len(times) / times[-1] for times in self.answered_at if times]
        return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates)) if rates else 0.0


def simulate(scenario: Scenario) -> SimulationResult:
    """Runs `scenario`. The same scenario gives the same result, to the last digit."""
    return run_in_virtual_time(_run(scenario))


async def _run(scenario: Scenario) -> SimulationResult:
    loop, service = asyncio.get_running_loop(), _service(scenario)
    assert isinstance(loop, VirtualClockLoop)  # noqa: S101  # made by run_in_virtual_time
    changes = [loop.call_at(change.at, _change, service, change) for change in scenario.changes]
    seeds = Random(scenario.seed)
    transports, participants = [], []
    for number in range(scenario.clients):
        transport, participant = _participant(scenario, service, number, Random(seeds.random()))
        transports.append(transport)
        participants.append(participant)

    def look(ahead: float) -> None:
        for participant in participants:
            participant.look(ahead)

    loop.before_each_jump(look)
    working = [asyncio.create_task(participant.work()) for participant in participants]
    await asyncio.wait(working, timeout=longest_makespan(scenario))
    makespan = loop.time()
    for task in working:
        task.cancel()
    for change in changes:
        change.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    left_over = _left_over(loop)
    for task in working:
        if not task.cancelled():
            task.result()
    outcomes = [outcome for participant in participants for outcome in participant.outcomes]
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
        sent_at=[transport.sent_at for transport in transports],
        answered_at=[participant.answered_at for participant in participants],
        at_rest=all(participant.client.snapshot().at_rest for participant in participants),
        violations=_violations(scenario, service, participants, left_over),
    )


def _service(scenario: Scenario) -> Service:
    settings = ServerSettings(
        dialect=scenario.dialect,
        requests_per_minute=scenario.requests_per_minute,
        burst=scenario.burst,
        initial_level=scenario.initial_level,
        keys={_KEY: 1e9},
        faults=evolve(scenario.faults, seed=scenario.seed),
    )
    return Service(settings)


def _change(service: Service, change: LimitChange) -> None:
    service.retune(change.requests_per_minute, change.at)
    if not change.requests_per_minute:
        service.account(_KEY, change.at).bucket.drain(change.at)


def _participant(
    scenario: Scenario, service: Service, number: int, random: Random
) -> tuple[ServiceTransport, Participant]:
    network = Network(
        travel=scenario.travel,
        travel_jitter=scenario.travel_jitter,
        stall_rate=scenario.stall_rate,
        timeout=scenario.timeout,
        outages=scenario.outages,
    )
    recorder = Recorder(scenario.limits, scenario.deadline)
    transport = ServiceTransport(service, _KEY, random=random, network=network, recorder=recorder)
    client = AsyncOneLLM(
        transport=transport,
        limits=scenario.limits,
        retry=scenario.retry,
        dialect=scenario.dialect,
        hooks=(recorder,),
        random=random,
    )
    task = Task(
        prompts=_prompts(scenario, number),
        lane=scenario.lane,
        deadline=scenario.deadline,
        consumer_pause=scenario.consumer_pause,
        chats=scenario.chats,
        silences=scenario.silences,
        controls=[control for control in scenario.controls if control.client in {None, number}],
    )
    return transport, Participant(client, recorder, task)


def _prompts(scenario: Scenario, client: int) -> list[str]:
    prompts = [f"{client}:{index}" for index in range(scenario.prompts)]
    lengths = Random(f"lengths of {scenario.seed}, {client}")
    if not scenario.longest_prompt:
        return prompts
    return [prompt.ljust(round(exp(lengths.uniform(0, log(scenario.longest_prompt)))), ".") for prompt in prompts]


def _left_over(loop: VirtualClockLoop) -> list[str]:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    timers = loop.timers_set()
    return [*([f"tasks are left: {tasks}"] if tasks else []), *([f"{timers} timers are left"] if timers else [])]


def _violations(
    scenario: Scenario, service: Service, participants: Sequence[Participant], left_over: Sequence[str]
) -> list[str]:
    # The ledger keeps the beginnings of prompts, and these are enough to tell them apart.
    billed = Counter(row.prompt for row in service.ledger.rows if row.outcome in {Outcome.ANSWERED, Outcome.LOST})
    true_limit = _true_limit(scenario)
    found = []
    for number, participant in enumerate(participants):
        trace = participant.trace(scenario.limits, scenario.retry, true_limit, billed, left_over)
        found += [text if len(participants) == 1 else f"client {number}: {text}" for text in violations(trace)]
    return found


def _true_limit(scenario: Scenario) -> TrueLimit | None:
    """The service's bucket, if the only client was always told the truth about it and believes it."""
    rate, burst = scenario.requests_per_minute, scenario.burst
    honest = all(
        limits.requests_per_minute == rate and limits.burst <= burst and limits.mode in {"correct", "off"}
        for limits in scenario.limits_in_turn
    )
    if not honest or scenario.clients > 1:
        return None
    return TrueLimit(rate / 60, burst)
