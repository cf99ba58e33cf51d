"""A run of the real client against the pure service in virtual time: hours in seconds, repeatable by its seed."""

import asyncio
from collections.abc import Sequence
from random import Random

from attrs import evolve, field, frozen

from onellm_async.chat import ChatResponse
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import OneLLMError
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy
from onellm_async.server.ledger import Outcome
from onellm_async.server.service import Service
from onellm_async.server.settings import Faults, ServerSettings
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.simulation.service_transport import ServiceTransport

__all__ = ["LimitChange", "Scenario", "SimulationResult", "simulate"]

_KEY = "simulated"
_MODEL = "GPT-5-Nano"


@frozen
class LimitChange:
    """The service's limit becomes `requests_per_minute` at `at` seconds."""

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
    seed: int = 0


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


async def _run(scenario: Scenario) -> SimulationResult:
    settings = ServerSettings(
        requests_per_minute=scenario.requests_per_minute,
        burst=scenario.burst,
        initial_level=scenario.initial_level,
        keys={_KEY: 1e9},
        faults=evolve(scenario.faults, seed=scenario.seed),
        keep_rows=0,
    )
    service = Service(settings)
    loop = asyncio.get_running_loop()
    for change in scenario.changes:
        loop.call_at(change.at, service.retune, change.requests_per_minute, change.at)
    seeds = Random(scenario.seed)
    runs = [_Client(scenario, service, Random(seeds.random())) for _ in range(scenario.clients)]
    await asyncio.gather(*(run.ask_everything(number) for number, run in enumerate(runs)))
    return SimulationResult(
        scenario=scenario,
        makespan=loop.time(),
        best_makespan=best_makespan(scenario),
        answered=sum(run.answered for run in runs),
        failed=sum(run.failed for run in runs),
        refused=service.ledger.outcomes[Outcome.REFUSED],
        billed=service.ledger.billed,
        sent_at=[run.transport.sent_at for run in runs],
        answered_at=[run.answered_at for run in runs],
        at_rest=all(run.at_rest for run in runs),
    )


class _Client:
    def __init__(self, scenario: Scenario, service: Service, random: Random) -> None:
        self._scenario = scenario
        self.transport = ServiceTransport(
            service, _KEY, travel=scenario.travel, travel_jitter=scenario.travel_jitter, random=random
        )
        self._random = random
        self.answered = self.failed = 0
        self.answered_at: list[float] = []
        self.at_rest = False

    async def ask_everything(self, number: int) -> None:
        scenario, loop = self._scenario, asyncio.get_running_loop()
        prompts = [f"{number}:{i}" for i in range(scenario.prompts)]
        client = AsyncOneLLM(
            transport=self.transport, limits=scenario.limits, retry=scenario.retry, random=self._random
        )
        async with client:
            async for outcome in client.iter_chats(prompts, model=_MODEL):
                match outcome.response, outcome.error:
                    case ChatResponse(content=content), _ if content == outcome.prompt:
                        self.answered += 1
                        self.answered_at.append(loop.time())
                    case _, OneLLMError():
                        self.failed += 1
            self.at_rest = client.snapshot().at_rest
