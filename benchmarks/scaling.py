"""What a request costs as more of them are under way or wait, without any network: time and memory of our own steps."""

import asyncio
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from benchmarks.peers import Contender
from benchmarks.processes import measured
from benchmarks.repetitions import Found, interleaved, shortfall, spread
from benchmarks.report import Section
from onellm_async import AsyncOneLLM, Limits
from onellm_async.limits.admission import Admission
from onellm_async.limits.backoff_only import BackoffOnly
from onellm_async.limits.queue import Ticket
from onellm_async.transport import RawReply

IN_FLIGHT = (1, 10, 100, 1_000, 10_000)
QUEUED = (0, 1_000, 100_000, 1_000_000)
_REPLY = (
    b'{"provider":"OpenAI","model":"gpt-5-mini","role":"assistant","content":"Paris.",'
    b'"usage":{"input_tokens":10,"output_tokens":2,"total_tokens":12},"finish_reason":"stop"}'
)
_MODEL = "GPT-5-Mini"


class _Instant:
    """Answers in the next turn of the loop."""

    async def post(self, body: bytes) -> RawReply:
        await asyncio.sleep(0)
        return RawReply(200, {}, _REPLY)

    async def aclose(self) -> None:
        """Nothing is open."""


class _Silent(_Instant):
    """Answers when told to."""

    def __init__(self) -> None:
        self.told = asyncio.Event()

    async def post(self, body: bytes) -> RawReply:
        await self.told.wait()
        return RawReply(200, {}, _REPLY)


async def measure(connect: object, subject: str, size: int, number: int) -> Found:
    """Measures one `subject`: ``in_flight`` or ``queued`` in µs, ``waiting`` or ``sent`` in bytes, for each request."""
    if subject == "in_flight":
        return {"µs": await _in_flight(size, number)}
    if subject == "queued":
        return {"µs": _queued(size, number)}
    return {"bytes": await _held(size, 1 if subject == "waiting" else size)}


async def _in_flight(size: int, number: int) -> float:
    """CPU time of a chat while `size` are under way."""
    async with AsyncOneLLM(transport=_Instant(), limits=Limits.unlimited(size)) as client:
        share = max(10, number // size)  # starting the tasks is not to count

        async def work() -> None:
            for _ in range(share):
                await client.chat("Hello", model=_MODEL)

        await client.chat("Hello", model=_MODEL)
        started = time.process_time()
        await asyncio.gather(*(work() for _ in range(size)))
        return (time.process_time() - started) / (share * size) * 1e6


def _queued(size: int, number: int) -> float:
    """CPU time of admission, from joining the queue to the answer, while `size` others wait."""
    core = Admission(Limits.unlimited(1), BackoffOnly(Random(0)), 0.0)
    for _ in range(size + 1):
        core.enqueue(Ticket("default"), 0.0)
    (leaving,) = core.dispatch(0.0)
    started = time.process_time()
    for _ in range(number):
        core.enqueue(Ticket("default"), 0.0)
        core.answered(leaving, 0.0)
        (leaving,) = core.dispatch(0.0)
    return (time.process_time() - started) / number * 1e6


async def _held(size: int, concurrency: int) -> float:
    """Memory of each of `size` chats in tasks of their own, of which `concurrency` are under way and others wait."""
    transport = _Silent()
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(concurrency)) as client:
        await asyncio.sleep(0)
        before = _resident()
        chats = [asyncio.create_task(client.chat("Hello", model=_MODEL)) for _ in range(size)]
        for _ in range(3):
            await asyncio.sleep(0)
        held = (_resident() - before) / size
        transport.told.set()
        await asyncio.gather(*chats)
    return held


def _resident() -> float:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(*, repetitions: int, number: int, most: int) -> list[Section]:
    """Measures sizes up to `most`, with about `number` requests each."""
    rows = [
        Contender(f"{size:,} {words}", "onellm", {"subject": subject, "size": size, "number": number})
        for subject, sizes, words in (("in_flight", IN_FLIGHT, "under way"), ("queued", QUEUED, "waiting"))
        for size in sizes
        if size <= most
    ]
    held = [
        Contender(f"that is {words}", "onellm", {"subject": subject, "size": min(10_000, most), "number": 0})
        for subject, words in (("waiting", "waiting"), ("sent", "under way"))
    ]

    def once(contender: Contender) -> Found:
        target = {"root": "", "in_flight": 1}
        return measured("scaling", contender.peer, options={}, target=target, plan=dict(contender.options))

    table = interleaved([*rows, *held], repetitions, once)

    def figures(contenders: Sequence[Contender], unit: str, digits: int) -> list[Sequence[str]]:
        return [
            (contender.name, shortfall(found) or spread((each[unit] for each in found), digits))
            for contender, found in table
            if contender in contenders
        ]

    return [
        Section(
            "Scaling",
            "CPU time of our own steps for each request, without any network: of a whole `chat` while so many are "
            "under way, and of admission alone, from joining the queue to the answer, while so many others wait. "
            f"Median of {repetitions} (minimum to maximum).",
            ("requests", "CPU µs/request"),
            figures(rows, "µs", 1),
            charted="CPU µs/request",
        ),
        Section(
            "Memory of a request",
            f"{min(10_000, most):,} chats, each in a task of its own, by the growth of the process.",
            ("request", "bytes"),
            figures(held, "bytes", 0),
        ),
    ]
