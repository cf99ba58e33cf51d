"""Random runs under random caps: what the service billed never passes them. ``BUDGET_SEEDS=300`` tries as many."""

import asyncio
import os
from contextlib import suppress
from random import Random

import pytest

from onellm_async import AsyncOneLLM, ChatRequest, Limits, RetryPolicy, catalog
from onellm_async.batch import Budget, Entry, HealthPolicy, Journal, ParsedEntry, RunIdentity
from onellm_async.batch.engine import RunEngine
from onellm_async.chat import Usage
from onellm_async.errors import APIConnectionError, BudgetExceededError
from onellm_async.failure_kinds import FailureKind
from onellm_async.server import Faults, ServerSettings, Service
from onellm_async.simulation import Network, ServiceTransport
from onellm_async.structured_output import shape_of
from onellm_async.testing import FakeTransport, failure

MODELS = [entry.name for entry in catalog.entries() if entry.output_price is not None]
EXACT = 1e-9
"""USD; sums of the same prices in another order differ by less."""


class RandomPrompts:
    """Prompts of all lengths to models of all prices, a tenth of them repeated; some ask for several answers."""

    source = "random"

    def __init__(self, random, options=dict):
        self.requests = []
        for number in range(random.randint(20, 80)):
            if self.requests and random.random() < 0.1:
                self.requests.append(random.choice(self.requests))
                continue
            text = f"{number} " + "äbc d"[: random.randint(1, 5)] * int(random.paretovariate(0.7) % 2000)
            self.requests.append(
                ChatRequest(random.choice(MODELS), text, **{"max_tokens": random.randint(1, 2000)} | options())
            )

    def read(self, raw, *, line, index):
        return ParsedEntry(index, line, self.requests[index])

    async def __aiter__(self):
        for index in range(len(self.requests)):
            yield Entry(index, index + 1, str(index).encode(), self)

    def reserve_custom_id(self, custom_id):
        pass


class Nowhere:
    async def write(self, lines):
        pass


def random_service(random, *, certain=False, **settings):
    rates = ("reset_before_rate", "server_error_rate", "reset_after_rate", "truncate_rate")
    faults = {} if certain else {rate: random.choice([0, 0.02, 0.1]) for rate in rates}
    return Service(
        ServerSettings(
            requests_per_minute=1e6,
            burst=100_000,
            balance=1e6,
            faults=Faults(seed=random.randrange(10**6), latency=0.002, latency_sigma=0.5, **faults, **settings),
        )
    )


async def sit(
    transport, prompts, budget, path, random, *, concurrency, until_the_end, say=lambda text: None, **options
):
    """One session; one that is not until the end is told to stop, or cancelled, at a random moment."""
    limits, retry = (
        Limits.unlimited(max_concurrency=concurrency),
        RetryPolicy(backoff_cap=0.002, retry_budget=1000, breaker_failures=0),
    )
    stop = asyncio.Event()
    client = AsyncOneLLM(transport=transport, limits=limits, retry=retry)
    async with client, Journal.open(path, RunIdentity(input="random")) as journal:
        running = asyncio.create_task(
            RunEngine(
                client,
                prompts,
                journal=journal,
                sink=Nowhere(),
                encode=lambda row: b"",
                budget=budget,
                health=HealthPolicy(max_failure_share=1.0),
                stop=stop,
                say=say,
                **options,
            ).run()
        )
        if not until_the_end:
            await asyncio.wait({running}, timeout=random.uniform(0, 0.1))
            random.choice([stop.set, running.cancel])()
        with suppress(asyncio.CancelledError):
            return await running
    return None


@pytest.mark.parametrize("seed", range(int(os.environ.get("BUDGET_SEEDS", "20"))))
async def test_what_is_billed_never_passes_the_cap_and_what_fits_is_used(seed, tmp_path):
    random = Random(seed)
    prompts, service, path = RandomPrompts(random), random_service(random), tmp_path / "answers.journal"
    worst = [Budget(max_cost=1).worst_case(request) for request in prompts.requests]
    share = random.choice([0.02, 0.2, 0.5, 1.0])
    by_tokens = seed % 3 == 2
    max_cost = None if by_tokens else share * sum(charge.cost for charge in worst)
    max_tokens = max(1, int(share * sum(charge.tokens for charge in worst))) if by_tokens else None
    budget, ledger = Budget(max_cost=max_cost, max_tokens=max_tokens), service.ledger

    for session in range(last := random.randint(0, 2), -1, -1):
        transport = ServiceTransport(service, "any key", random=random, network=Network(delay=0.0, jitter=0.002))
        report = await sit(
            transport, prompts, budget, path, random, concurrency=random.randint(1, 20), until_the_end=session == 0
        )
        assert max_cost is None or ledger.billed_usd <= max_cost + EXACT
        assert max_tokens is None or ledger.input_tokens + ledger.output_tokens <= max_tokens
    counts = report.counts
    assert ledger.billed_usd <= counts.cost + counts.at_risk + EXACT
    if report.complete:
        assert counts.answered + counts.failed == len(prompts.requests)
        return
    assert isinstance(report.stopped_by, BudgetExceededError), (report, last)
    tokens = counts.input_tokens + counts.output_tokens + counts.at_risk_tokens
    if by_tokens:
        assert tokens + max(charge.tokens for charge in worst) > max_tokens
    else:
        assert counts.cost + counts.at_risk + max(charge.cost for charge in worst) > max_cost


@pytest.mark.parametrize("seed", range(int(os.environ.get("BUDGET_SEEDS", "20"))))
async def test_the_cap_holds_for_answers_that_are_corrected_and_every_turn_is_counted(seed, tmp_path):
    random = Random(seed)
    prompts, path = RandomPrompts(random), tmp_path / "answers.journal"
    shape = shape_of({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]})
    prompts.requests = [shape.asked_in(request) for request in prompts.requests]
    corrections, certain = random.randint(0, 2), seed % 2
    service = random_service(random, unfit_rate=random.choice([0.1, 0.5]), certain=certain)
    worst = [
        Budget(max_cost=1).bound(request, corrections).charge.cost * (1 + corrections) for request in prompts.requests
    ]
    max_cost = random.choice([0.02, 0.2, 0.5, 1.0]) * sum(worst)
    ledger = service.ledger
    for session in range(random.randint(0, 2), -1, -1):
        transport = ServiceTransport(service, "any key", random=random, network=Network(delay=0.0, jitter=0.002))
        report = await sit(
            transport,
            prompts,
            Budget(max_cost=max_cost),
            path,
            random,
            concurrency=random.randint(1, 20),
            until_the_end=session == 0,
            shape=shape,
            corrections=corrections,
        )
        assert ledger.billed_usd <= max_cost + EXACT
    counts = report.counts
    assert ledger.billed_usd <= counts.cost + counts.at_risk + EXACT
    assert counts.cost <= ledger.billed_usd + EXACT
    if certain and not counts.possibly_billed + counts.in_flight:  # no session was cut off in flight
        assert counts.cost == pytest.approx(ledger.billed_usd, abs=EXACT)
        assert (counts.input_tokens, counts.output_tokens) == (ledger.input_tokens, ledger.output_tokens)
    if report.complete:
        assert counts.answered + counts.failed == len(prompts.requests)
    else:
        assert isinstance(report.stopped_by, BudgetExceededError), report
        assert counts.cost + counts.at_risk + max(worst) > max_cost


class BillingService(FakeTransport):
    """Bills what a service may: every answer of several, what ``extra`` asks for, and thoughts beyond ``max_tokens``.

    Attributes:
        billed_usd: In all.
        billed_tokens: Likewise.
        beyond: What single replies billed beyond the most that their requests allow, in (USD, tokens).
        delivered_beyond: Whether such a reply has arrived.
    """

    def __init__(self, random, *, overshooting):
        super().__init__(self._reply_to)
        self.random = random
        self.overshooting = overshooting
        self.fault_rate = random.choice([0, 0.02, 0.1])
        self.billed_usd = self.billed_tokens = 0
        self.beyond = []
        self.delivered_beyond = False

    def usage(self, body):
        random, number = self.random, body.get("n", 1)
        texts = [message["content"] for message in body["messages"]]
        most = number * body["max_tokens"]
        used = Usage(
            input_tokens=random.randint(1, number * sum(len(text.encode()) for text in texts)),
            output_tokens=random.randint(0, most),
        )
        if random.random() < self.overshooting:
            return Usage(used.input_tokens, int(most * random.uniform(1, 4))), most
        return used, most

    def bill(self, body):
        usage, most = self.usage(body)
        model = body["model"]
        cost = catalog.cost(model, usage)
        self.billed_usd += cost
        self.billed_tokens += usage.input_tokens + usage.output_tokens
        if usage.output_tokens > most:
            self.beyond.append(
                (cost - catalog.cost(model, Usage(usage.input_tokens, most)), usage.output_tokens - most)
            )
        return usage

    async def _reply_to(self, request):
        random, body = self.random, request.fields
        await asyncio.sleep(random.uniform(0, 0.004))
        if random.random() < self.fault_rate:
            return APIConnectionError("refused", kind=FailureKind.CANNOT_RECONNECT)
        if random.random() < self.fault_rate:
            return failure(500, "no")
        usage = self.bill(body)
        await asyncio.sleep(random.uniform(0, 0.002))
        if random.random() < self.fault_rate:
            return APIConnectionError("reset")
        counts = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
        self.delivered_beyond |= usage.output_tokens > body.get("n", 1) * body["max_tokens"]
        return {"content": "x", "usage": counts}


@pytest.mark.parametrize("seed", range(int(os.environ.get("BUDGET_SEEDS", "20"))))
async def test_the_cap_holds_for_several_answers_for_extra_and_but_for_what_is_in_flight_for_replies_that_bill_more(
    seed, tmp_path
):
    random = Random(seed)

    def options():
        found = {} if random.random() < 0.3 else {"n": random.randint(1, 5)}
        extra = {}
        if random.random() < 0.3:
            extra["max_tokens"] = random.randint(1, 4000)
        if random.random() < 0.2:
            extra["n"] = random.randint(1, 5)
        if random.random() < 0.2:
            extra["messages"] = [{"role": "user", "content": "y" * random.randint(1, 900)}]
        return found | ({"extra": extra} if extra else {})

    prompts, path = RandomPrompts(random, options), tmp_path / "answers.journal"
    service = BillingService(random, overshooting=random.choice([0, 0, 0.1, 1]))
    worst = [Budget(max_cost=1).worst_case(request) for request in prompts.requests]
    share = random.choice([0.02, 0.2, 0.5, 1.0])
    by_tokens = seed % 3 == 2
    max_cost = None if by_tokens else share * sum(charge.cost for charge in worst)
    max_tokens = max(1, int(share * sum(charge.tokens for charge in worst))) if by_tokens else None
    budget, most_in_flight = Budget(max_cost=max_cost, max_tokens=max_tokens), 0
    complete = False
    for session in range(random.randint(0, 2), -1, -1):
        concurrency, told, service.delivered_beyond = random.randint(1, 20), [], False
        most_in_flight = max(most_in_flight, concurrency)
        report = await sit(
            service, prompts, budget, path, random, concurrency=concurrency, until_the_end=session == 0, say=told.append
        )
        beyond = [sum(sorted(each, reverse=True)[:most_in_flight]) for each in zip(*service.beyond, strict=True)] or [
            0,
            0,
        ]
        assert max_cost is None or service.billed_usd <= max_cost + beyond[0] + EXACT
        assert max_tokens is None or service.billed_tokens <= max_tokens + beyond[1]
        complete = report is not None and report.complete
        told = [text for text in told if " failed: " not in text]
        if report is not None and service.delivered_beyond:
            (text,) = told
            assert "× max_tokens; reservations are scaled." in text
        if not service.beyond:
            assert told == []
    assert complete or isinstance(report.stopped_by, BudgetExceededError)
