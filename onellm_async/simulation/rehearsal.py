"""One simulated run over a workload: the real client against a service that answers in the sizes expected of it."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from random import Random
from typing import Literal, TypeAlias

from attrs import field, frozen

from onellm_async.chat import ChatRequest, Usage
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import ConfigurationError
from onellm_async.events import Answered, Event, Failed, Queued, Refused, Retrying, Sent
from onellm_async.limits.policy import Limits
from onellm_async.server.jobs import Completion, Job, ServerReply
from onellm_async.server.service import Service
from onellm_async.server.settings import Faults, ServerSettings
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.simulation.service_transport import ServiceTransport
from onellm_async.simulation.workload import RequestSize
from onellm_async.validation import Checks
from onellm_async.wire import Dialect, encode_request

__all__ = ["ExpectedService", "Rehearsal", "Wait", "rehearse"]

Wait: TypeAlias = Literal["slots", "leave", "answers"]

_KEY = "planned"
_MODEL = "GPT-5-Nano"
_BYTES_PER_TOKEN = 4
_check = Checks(ConfigurationError, "ExpectedService.")


@frozen(kw_only=True)
class ExpectedService:
    """What the service is expected to do.

    Attributes:
        requests_per_minute: Its true refill. Default 40, as published.
        burst: Its true capacity. Default 40, as published.
        latency: Median seconds of an answer. Default 6.
        latency_sigma: Spread of its logarithm. Default 0.3, which puts the 95th percentile at 1.6 times the median.
        failure_rate: Share of the requests let through that end in a 500, which is not billed. Default 0, at most 0.5:
            where more fails, a fan-out waits for better times, and nobody can foretell those.

    Raises:
        ConfigurationError: If a value is out of range; the message names it.
    """

    requests_per_minute: float = field(default=40.0, validator=_check.number(0, above=True))
    burst: int = field(default=40, validator=_check.integer(1))
    latency: float = field(default=6.0, validator=_check.number(0))
    latency_sigma: float = field(default=0.3, validator=_check.number(0, 5))
    failure_rate: float = field(default=0.0, validator=_check.number(0, 0.5))


@frozen
class Rehearsal:
    """What came of one run.

    Attributes:
        makespan: Seconds until the last outcome.
        left_at: When each prompt left for the last time, sorted.
        refused_at: When each refused request had left, sorted.
        settled_at: When each prompt had its outcome, sorted.
        failed: Prompts without an answer.
        in_flight_seconds: Seconds that requests were under way, summed over them.
        max_in_flight: The most that were under way at once.
        waits: For how many seconds what was waited for: ``slots``, all of which were taken; ``leave`` to go, by the
            rate of requests or of tokens; or ``answers`` alone.
    """

    makespan: float
    left_at: Sequence[float]
    refused_at: Sequence[float]
    settled_at: Sequence[float]
    failed: int
    in_flight_seconds: float
    max_in_flight: int
    waits: Mapping[Wait, float]


def rehearse(demands: Sequence[RequestSize], limits: Limits, service: ExpectedService, seed: int) -> Rehearsal:
    """Runs the client over `demands` in virtual time. The same arguments give the same result.

    Must not be called while an event loop runs in this thread.
    """
    return run_in_virtual_time(_run(demands, limits, service, seed))


async def _run(demands: Sequence[RequestSize], limits: Limits, service: ExpectedService, seed: int) -> Rehearsal:
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
    sized = limits.tokens_per_minute is not None
    answering = _SizedAnswers(settings) if sized else Service(settings)
    transport = ServiceTransport(answering, _KEY, travel_jitter=0.05, random=random)
    watch = _Watch(limits.max_concurrency)
    async with AsyncOneLLM(transport=transport, limits=limits, hooks=(watch,), random=random) as client:
        async for _ in client.iter_chats(_requests(demands, sized=sized)):
            pass
        return watch.rehearsal(asyncio.get_running_loop().time())


def _requests(demands: Sequence[RequestSize], *, sized: bool) -> Iterator[ChatRequest]:
    """Requests of these sizes; where nobody counts tokens, as short as possible, which is quicker."""
    plain = ChatRequest(_MODEL, "x")
    frame = len(encode_request(plain, Dialect.DOCUMENTED))
    for demand in demands:
        if not sized:
            yield plain
            continue
        label = f"{demand.output_tokens}:"
        filler = "x" * (demand.body_bytes - frame - len(label))
        yield ChatRequest(_MODEL, label + filler, max_tokens=demand.max_tokens)


class _SizedAnswers(Service):
    """Its answers report the tokens expected of real ones; a prompt begins with the number of its answer's."""

    def complete(self, job: Job, completion: Completion, *, disconnected: bool = False) -> ServerReply:
        text = job.request.messages[0].content
        usage = Usage(ceil(len(text) / _BYTES_PER_TOKEN), int(text.partition(":")[0]))
        return super().complete(job, Completion("", usage), disconnected=disconnected)


class _Watch:
    """A hook that writes down who is under way, and for how long the next one waited for what."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._last = 0.0
        self._waiting: set[int] = set()
        self._sent: dict[int, float] = {}
        self._left_at: list[float] = []
        self._refused_at: list[float] = []
        self._settled_at: list[float] = []
        self._failed = self._most = 0
        self._seconds = 0.0
        self._waits: dict[Wait, float] = {"slots": 0.0, "leave": 0.0, "answers": 0.0}

    def __call__(self, event: Event, /) -> None:
        self._waits[self._wait()] += event.at - self._last
        self._last = event.at
        if isinstance(event, Queued | Refused):
            self._waiting.add(event.request)
        else:
            self._waiting.discard(event.request)
        if isinstance(event, Sent):
            self._sent[event.request] = event.at
            self._most = max(self._most, len(self._sent))
        elif isinstance(event, Answered | Refused | Retrying | Failed):
            self._come_back(event, self._sent.pop(event.request, event.at))

    def _wait(self) -> Wait:
        if len(self._sent) >= self._slots:
            return "slots"
        return "leave" if self._waiting else "answers"

    def _come_back(self, event: Event, left: float) -> None:
        self._seconds += event.at - left
        if isinstance(event, Refused):
            self._refused_at.append(left)
        elif isinstance(event, Answered | Failed):
            self._left_at.append(left)
            self._settled_at.append(event.at)
            self._failed += isinstance(event, Failed)

    def rehearsal(self, makespan: float) -> Rehearsal:
        """What was seen, at the end."""
        return Rehearsal(
            makespan,
            tuple(sorted(self._left_at)),
            tuple(sorted(self._refused_at)),
            tuple(self._settled_at),
            self._failed,
            self._seconds,
            self._most,
            dict(self._waits),
        )
