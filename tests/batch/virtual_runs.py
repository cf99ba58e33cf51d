"""Runs in virtual time, against a service that is a function."""

import asyncio
import json
from collections import defaultdict
from random import Random

from attrs import field, frozen

from onellm_async import AsyncOneLLM, Limits
from onellm_async.batch import (
    HealthPolicy,
    NullJournal,
    ProgressTracker,
    RecordState,
    RunPolicy,
    RunReport,
    entries_from,
)
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeTransport
from onellm_async.transport import RawReply

ANSWER = {"content": "hi", "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}, "finish_reason": "stop"}
BOOM = RawReply(500, {}, b'{"error": "boom"}')


class FakeService(FakeTransport):
    """Answers after `latency` seconds, or at once with what `failure` gives for the prompt and the time."""

    def __init__(self, failure, latency=2.0):
        super().__init__(self._reply_to)
        self.failure = failure
        self.latency = latency
        self._times = defaultdict(list)

    async def _reply_to(self, request):
        self._times[request.prompt].append(request.at)
        reply = self.failure(request.prompt, request.at)
        if not isinstance(reply, Exception):
            await asyncio.sleep(0.002 if reply is not None else self.latency)
        return ANSWER if reply is None else reply

    @property
    def sent(self):
        return [(request.at, request.prompt) for request in self.requests]

    def times_of(self, prompt):
        return self._times[prompt]


@frozen
class Ran:
    report: RunReport
    lines: list[str]
    said: list[str] = field(repr=False)
    seconds: float
    service: FakeService = field(repr=False)

    @property
    def failed(self):
        return [int(line.split()[0]) for line in self.lines if "answered" not in line]


class Lines:
    def __init__(self):
        self.lines = []

    async def write(self, lines):
        self.lines += lines.decode().splitlines()


def encode(row):
    text = "answered" if row.state is RecordState.ANSWERED else json.loads(row.result)["message"]
    return f"{row.index} {text}\n".encode()


def run(
    prompts, failure, *, limits=None, latency=2.0, retry=None, seed=0, source=None, journal=None, sink=None, **options
):
    """A run of `prompts`, of which those fail that `failure` has a reply for."""

    async def main():
        service, lines, said = FakeService(failure, latency), sink or Lines(), []
        loop = asyncio.get_running_loop()
        tracker = ProgressTracker(loop.time())
        client = AsyncOneLLM(
            transport=service, limits=limits or Limits(), retry=retry, hooks=(tracker,), random=Random(seed)
        )
        entries = entries_from(prompts, defaults=RequestDefaults(model="GPT-5-Mini"), name="in.txt")
        async with client:
            report = await RunEngine(
                client,
                entries,
                journal=NullJournal(),
                sink=lines,
                encode=encode,
                tracker=tracker,
                say=said.append,
                clock=loop.time,
                **{"policy": RunPolicy(deduplicate=False), "health": HealthPolicy(), **options},
            ).run()
        return Ran(report, lines.lines, said, loop.time(), service)

    return run_in_virtual_time(main())
