"""A run of the real client against the pure service in virtual time: hours in seconds, repeatable by its seed."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from math import exp, log
from random import Random

from attrs import evolve, field, frozen

from onellm_async.client import AsyncOneLLM
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy
from onellm_async.server.ledger import Outcome
from onellm_async.server.service import Service
from onellm_async.server.settings import Faults, ServerSettings
from onellm_async.simulation.clock import VirtualClockLoop, run_in_virtual_time
from onellm_async.simulation.controls import Control, Pause, Retune
from onellm_async.simulation.invariants import violations
from onellm_async.simulation.participant import Participant, Silence, SingleChat, Task
from onellm_async.simulation.recorder import Recorder
from onellm_async.simulation.service_transport import Network, Outage, ServiceTransport
from onellm_async.simulation.trace import TrueLimit
from onellm_async.wire import Dialect

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
_PATIENCE = 50
"""Times the best makespan, an hour, and four Retry-Afters for each request: a run that takes longer is given up."""
_UNLEARNED_TOKENS = 600
"""What a request is taken for until its model's usual answers are known, and what is booked for it if it gets lost."""


@frozen
class LimitChange:
    """The service's limit becomes `requests_per_minute` at `at` seconds; 0 also empties its bucket."""

    at: float
    requests_per_minute: float


@frozen(kw_only=True)
class Scenario:
    """What is simulated.

    Attributes:
        prompts: How many each client asks.
        clients: Uncoordinated clients, each as in a process of its own, on one key.
        limits: What the clients are told.
        requests_per_minute: The service's true refill.
        burst: The service's true capacity.
        initial_level: Tokens in the service's bucket at the start; None: full.
        faults: What goes wrong; its seed is replaced by `seed`.
        changes: When the true limit changes.
        travel: Seconds on the way, each way.
        travel_jitter: Seconds by which a way may be longer.
        retry: The clients' policy.
        dialect: Of the service and its clients.
        lane: Where the prompts wait.
        deadline: Seconds for each prompt; None for no end.
        consumer_pause: Seconds that whoever reads the outcomes takes for each.
        chats: Asked of each client beside its prompts.
        stall_rate: Share of the requests that get lost on the way, without a word.
        timeout: Seconds after which a client stops waiting for a reply; None: never.
        outages: When nothing gets through. The best makespan does not count them.
        controls: Pauses of running clients, and limits that they go on with. Nor are these counted.
        silences: When the prompts are long in coming. Nor are these.
        longest_prompt: Characters to which prompts are filled up, each to a random length between its own and this
            one; 0: none is.
        seed: Decides on every random value.
    """

    prompts: int = 400
    clients: int = 1
    limits: Limits = field(factory=lambda: Limits(requests_per_minute=None))
    requests_per_minute: float = 40.0
    burst: int = 40
    initial_level: float | None = None
    faults: Faults = field(factory=lambda: Faults(latency=6.0, latency_sigma=0.3))
    changes: Sequence[LimitChange] = ()
    travel: float = 0.02
    travel_jitter: float = 0.05
    retry: RetryPolicy = field(factory=RetryPolicy)
    dialect: Dialect = Dialect.DOCUMENTED
    lane: str = "batch"
    deadline: float | None = None
    consumer_pause: float = 0.0
    chats: Sequence[SingleChat] = ()
    stall_rate: float = 0.0
    timeout: float | None = None
    outages: Sequence[Outage] = ()
    controls: Sequence[Control] = ()
    silences: Sequence[Silence] = ()
    longest_prompt: int = 0
    seed: int = 0

    @property
    def limits_in_turn(self) -> Sequence[Limits]:
        """What the clients are told at the start and later."""
        return [self.limits, *(control.limits for control in self.controls if isinstance(control, Retune))]


@frozen
class SimulationResult:
    """What came of it.

    Attributes:
        scenario: What was simulated.
        makespan: Seconds until the last answer.
        best_makespan: Seconds that an omniscient client would have taken.
        answered: Prompts with an answer that is theirs.
        failed: Prompts without.
        refused: Requests that the service refused by rate limit.
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
    refused: int
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
    def refused_share(self) -> float:
        """Refused requests per prompt."""
        return self.refused / (self.scenario.prompts * self.scenario.clients)

    @property
    def fairness(self) -> float:
        """Jain's index of the clients' rates: 1 when all are equal, 1/n when one has everything."""
        rates = [len(times) / times[-1] for times in self.answered_at if times]
        return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates)) if rates else 0.0


def simulate(scenario: Scenario) -> SimulationResult:
    """Runs `scenario`. The same scenario gives the same result, to the last digit."""
    return run_in_virtual_time(_run(scenario))


def best_makespan(scenario: Scenario) -> float:
    """Seconds that a client would need that knows everything beforehand."""
    level = scenario.burst if scenario.initial_level is None else scenario.initial_level
    left, now, rate = scenario.prompts * scenario.clients - level, 0.0, scenario.requests_per_minute / 60
    for change in scenario.changes:
        step = (change.at - now) * rate
        if left <= step:
            break
        left, now, rate = left - step, change.at, change.requests_per_minute / 60
    return now + max(0.0, left / rate) + scenario.faults.latency + 2 * scenario.travel + scenario.travel_jitter


def _longest_makespan(scenario: Scenario) -> float:
    told_to_wait = 4 * (scenario.faults.retry_after or 0) * (scenario.prompts + len(scenario.chats)) * scenario.clients
    return _PATIENCE * best_makespan(scenario) + 3600 + told_to_wait + _held_back(scenario)


def _held_back(scenario: Scenario) -> float:
    """Seconds for which pauses, silences, scarce slots and scarce tokens may hold up a client."""
    asked = scenario.prompts + len(scenario.chats)
    pauses = sum(control.seconds for control in scenario.controls if isinstance(control, Pause))
    silences = sum(silence.seconds for silence in scenario.silences)
    last_chat = max((chat.at for chat in scenario.chats), default=0.0)
    slow = max(
        asked * scenario.faults.latency / limits.max_concurrency
        + 60 * asked * (_UNLEARNED_TOKENS + scenario.longest_prompt) / (limits.tokens_per_minute or float("inf"))
        for limits in scenario.limits_in_turn
    )
    return pauses + silences + last_chat + _PATIENCE * slow / 10


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
    await asyncio.wait(working, timeout=_longest_makespan(scenario))
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
        refused=service.ledger.outcomes[Outcome.REFUSED],
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
