"""One simulated run over a workload: the real client against a service that answers in the expected sizes."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from random import Random
from typing import Literal, TypeAlias

from attrs import field, frozen

from onellm_async.chat import ChatRequest, Usage
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import ConfigurationError
from onellm_async.events import Answered, Event, Failed, Queued, RateLimited, Retrying, Sent
from onellm_async.limits.policy import Limits
from onellm_async.server.jobs import Completion, Job, ServerReply
from onellm_async.server.service import Service
from onellm_async.server.settings import Faults, ServerSettings
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.simulation.scenario import Network
from onellm_async.simulation.service_transport import ServiceTransport
from onellm_async.simulation.workload import RequestSize
from onellm_async.validation import Checks
from onellm_async.wire import Dialect, encode_request

WaitReason: TypeAlias = Literal["concurrency", "permit", "service"]
"""What a run waits for: a free slot, a permit of the rate or token limit, or only answers in flight."""

_KEY = "planned"
_MODEL = "GPT-5-Nano"
_BYTES_PER_TOKEN = 4
_NETWORK = Network(delay=0.02, jitter=0.05)
_check = Checks(ConfigurationError, "ExpectedService.")


@frozen(kw_only=True)
class ExpectedService:
    """What the service is expected to do.

    Attributes:
        requests_per_minute: True refill rate. Default 40, as published.
        burst: True bucket size. Default 40, as published.
        latency: Median seconds of an answer. Default 6.
        latency_sigma: Standard deviation of the latency's logarithm. Default 0.3, which puts the 95th percentile at 1.6
            times the median.
        failure_rate: Share of the requests that end in a 500, which is not billed. Default 0, at most 0.5: above that
            a fan-out waits for the service to recover, which cannot be estimated.

    Raises:
        ConfigurationError: If a value is out of range; the message names it.
    """

    requests_per_minute: float = field(default=40.0, validator=_check.number(0, above=True))
    burst: int = field(default=40, validator=_check.integer(1))
    latency: float = field(default=6.0, validator=_check.number(0))
    latency_sigma: float = field(default=0.3, validator=_check.number(0, 5))
    failure_rate: float = field(default=0.0, validator=_check.number(0, 0.5))


@frozen
class SimulatedRun:
    """What came of one run.

    Attributes:
        makespan: Seconds until the last outcome.
        sent_at: Time of each prompt's last attempt, sorted.
        rate_limited_at: Time at which each request with a 429 was sent, sorted.
        completed_at: Time of each prompt's outcome, sorted.
        failed: Prompts without an answer.
        in_flight_seconds: Seconds in flight, summed over all requests.
        max_in_flight: Maximum number of requests in flight.
        waits: Seconds by what the run waited for.
    """

    makespan: float
    sent_at: Sequence[float]
    rate_limited_at: Sequence[float]
    completed_at: Sequence[float]
    failed: int
    in_flight_seconds: float
    max_in_flight: int
    waits: Mapping[WaitReason, float]


def simulate_workload(
    sizes: Sequence[RequestSize], limits: Limits, service: ExpectedService, seed: int
) -> SimulatedRun:
    """Runs the client over requests of the given sizes in virtual time. The same arguments give the same result.

    Must not be called while an event loop runs in this thread.
    """
    return run_in_virtual_time(_run(sizes, limits, service, seed))


async def _run(sizes: Sequence[RequestSize], limits: Limits, service: ExpectedService, seed: int) -> SimulatedRun:
    random = Random(seed)
    settings = ServerSettings(
        requests_per_minute=service.requests_per_minute,
        burst=service.burst,
        keys={_KEY: 1e12},
        faults=Faults(
            latency=service.latency,
            latency_sigma=service.latency_sigma,
            server_error_rate=service.failure_rate,
            seed=seed,
        ),
        keep_rows=0,
    )
    tokens_count = limits.tokens_per_minute is not None
    simulated = _SizedAnswers(settings) if tokens_count else Service(settings)
    transport = ServiceTransport(simulated, _KEY, random=random, network=_NETWORK)
    recorder = _RunRecorder(limits.max_in_flight)
    async with AsyncOneLLM(transport=transport, limits=limits, hooks=(recorder,), random=random) as client:
        async for _ in client.iter_chats(_requests(sizes, tokens_count=tokens_count)):
            pass
        return recorder.run(asyncio.get_running_loop().time())


def _requests(sizes: Sequence[RequestSize], *, tokens_count: bool) -> Iterator[ChatRequest]:
    """Requests of these sizes. Without a token limit the size does not matter, and short ones are faster."""
    plain = ChatRequest(_MODEL, "x")
    frame = len(encode_request(plain, Dialect.DOCUMENTED))
    for size in sizes:
        if not tokens_count:
            yield plain
            continue
        label = f"{size.output_tokens}:"
        filler = "x" * (size.body_bytes - frame - len(label))
        yield ChatRequest(_MODEL, label + filler, max_tokens=size.max_tokens)


class _SizedAnswers(Service):
    """Reports the token usage of real answers. Each prompt begins with the number of output tokens."""

    def complete(self, job: Job, completion: Completion, *, disconnected: bool = False) -> ServerReply:
        text = job.request.messages[0].content
        usage = Usage(ceil(len(text) / _BYTES_PER_TOKEN), int(text.partition(":")[0]))
        return super().complete(job, Completion("", usage), disconnected=disconnected)


class _RunRecorder:
    """A hook that records what is in flight, and how long the next request waited for what.

    Args:
        max_concurrency: Slots of the client.
    """

    def __init__(self, max_concurrency: int) -> None:
        self._max_concurrency = max_concurrency
        self._last_event_at = 0.0
        self._waiting: set[int] = set()
        self._in_flight: dict[int, float] = {}
        self._sent_at: list[float] = []
        self._rate_limited_at: list[float] = []
        self._completed_at: list[float] = []
        self._failed = self._max_in_flight = 0
        self._in_flight_seconds = 0.0
        self._waits: dict[WaitReason, float] = {"concurrency": 0.0, "permit": 0.0, "service": 0.0}

    def __call__(self, event: Event, /) -> None:
        self._waits[self._wait_reason()] += event.at - self._last_event_at
        self._last_event_at = event.at
        if isinstance(event, Queued | RateLimited):
            self._waiting.add(event.request)
        else:
            self._waiting.discard(event.request)
        if isinstance(event, Sent):
            self._in_flight[event.request] = event.at
            self._max_in_flight = max(self._max_in_flight, len(self._in_flight))
        elif isinstance(event, Answered | RateLimited | Retrying | Failed):
            self._end_attempt(event, self._in_flight.pop(event.request, event.at))

    def _wait_reason(self) -> WaitReason:
        if len(self._in_flight) >= self._max_concurrency:
            return "concurrency"
        return "permit" if self._waiting else "service"

    def _end_attempt(self, event: Event, sent_at: float) -> None:
        self._in_flight_seconds += event.at - sent_at
        if isinstance(event, RateLimited):
            self._rate_limited_at.append(sent_at)
        elif isinstance(event, Answered | Failed):
            self._sent_at.append(sent_at)
            self._completed_at.append(event.at)
            self._failed += isinstance(event, Failed)

    def run(self, makespan: float) -> SimulatedRun:
        """The whole run, once it is over."""
        return SimulatedRun(
            makespan,
            tuple(sorted(self._sent_at)),
            tuple(sorted(self._rate_limited_at)),
            tuple(self._completed_at),
            self._failed,
            self._in_flight_seconds,
            self._max_in_flight,
            dict(self._waits),
        )
