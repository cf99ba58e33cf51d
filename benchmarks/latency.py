"""The latency that a client adds, and how long it keeps the event loop from others: requests at a steady pace."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp

from benchmarks.peers import Contender, prompts
from benchmarks.processes import FastServer, measured
from benchmarks.repetitions import Found, interleaved, shortfall, spread
from benchmarks.report import Section
from onellm_async import AsyncOneLLM, Limits

BASELINE = Contender("aiohttp", "plain_aiohttp", {"client": "aiohttp"})
CONTENDERS = (BASELINE, Contender("onellm-async, chat", "onellm", {"client": "onellm"}))
BUSY = 5000
"""Requests per second at which the event loop's lag is reported."""
_MODEL = "GPT-5-Mini"
_TICK = 0.005

Ask: TypeAlias = Callable[[str], Awaitable[object]]


@asynccontextmanager
async def _aiohttp(root: str) -> AsyncIterator[Ask]:
    headers = {"Authorization": "Bearer key"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def ask(prompt: str) -> object:
            body = {"model": _MODEL, "messages": [{"role": "user", "content": prompt}]}
            async with session.post(f"{root}/api", json=body) as response:
                return await response.json()

        yield ask


@asynccontextmanager
async def _onellm(root: str) -> AsyncIterator[Ask]:
    async with AsyncOneLLM("key", base_url=f"{root}/api", limits=Limits.unlimited(10_000)) as client:

        async def ask(prompt: str) -> object:
            return await client.chat(prompt, model=_MODEL)

        yield ask


_CLIENTS = {"aiohttp": _aiohttp, "onellm": _onellm}


async def measure(connect: object, client: str, root: str, rate: float, seconds: float) -> Found:
    """Sends at `rate`, evenly, whether answers are there or not, after half a second to warm up.

    Returns:
        ``p50`` and ``p99`` of the latency from the moment a request was due; ``lag50`` and ``lag99``, by which a timer
        in the same loop came late. All in milliseconds.
    """
    async with _CLIENTS[client](root) as ask:
        await _paced(ask, rate, 0.5)
        latencies, lags = await _paced(ask, rate, seconds)
    return {**_percentiles("p", latencies), **_percentiles("lag", lags)}


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {f"{name}50": cuts[49] * 1000, f"{name}99": cuts[98] * 1000}


async def _paced(ask: Ask, rate: float, seconds: float) -> tuple[list[float], list[float]]:
    latencies: list[float] = []
    lags: list[float] = []
    texts = list(prompts(int(rate * seconds)))

    async def timed(prompt: str, due: float) -> None:
        await ask(prompt)
        latencies.append(time.perf_counter() - due)

    async def tick() -> None:
        while True:
            due = time.perf_counter() + _TICK
            await asyncio.sleep(_TICK)
            lags.append(time.perf_counter() - due)

    ticking = asyncio.create_task(tick())
    try:
        async with asyncio.TaskGroup() as tasks:
            started, sent = time.perf_counter(), 0
            while sent < len(texts):
                while sent < len(texts) and (due := started + sent / rate) <= time.perf_counter():
                    tasks.create_task(timed(texts[sent], due))
                    sent += 1
                await asyncio.sleep(0.0005)
    finally:
        ticking.cancel()
    return latencies, lags


def run(server: FastServer, *, repetitions: int, seconds: float) -> Section:
    """Compares at half of what plain aiohttp can do, and at `BUSY` requests per second."""
    root = f"http://127.0.0.1:{server.port}"
    probe = {"target": {"root": root, "in_flight": 64}, "plan": {"seconds": seconds}}
    capacity = measured("overhead", BASELINE.peer, options={}, **probe)
    rows: list[Sequence[str]] = []
    for rate in (capacity.get("rate", BUSY) / 2, BUSY):

        def once(contender: Contender, rate: float = rate) -> Found:
            plan: dict[str, Any] = {**contender.options, "root": root, "rate": rate, "seconds": seconds}
            return measured("latency", contender.peer, options={}, target=probe["target"], plan=plan)

        table = interleaved(CONTENDERS, repetitions, once)
        rows += [_row(rate, contender, found, table[0][1]) for contender, found in table]
    return Section(
        "Latency added",
        "Requests leave at a steady pace, whether answers are there or not: at half of what plain aiohttp can do here, "
        f"and at {BUSY:,} a second. Latency counts from the moment a request was due; the lag is how late a timer of "
        f"the same event loop is. Median of {repetitions} (minimum to maximum); what is added is the difference to "
        "plain aiohttp in the same repetition.",
        ("client", "requests/s", "p50 ms", "p99 ms", "p99 added ms", "loop lag p50 ms", "loop lag p99 ms"),
        rows,
    )


def _row(rate: float, contender: Contender, found: Sequence[Found], baseline: Sequence[Found]) -> Sequence[str]:
    if missing := shortfall(found) or shortfall(baseline):
        return (contender.name, missing, "", "", "", "", "")
    added = spread((own["p99"] - base["p99"] for own, base in zip(found, baseline, strict=True)), 2)
    figures = {name: spread((each[name] for each in found), 2) for name in ("p50", "p99", "lag50", "lag99")}
    return (contender.name, f"{rate:,.0f}", figures["p50"], figures["p99"], added, figures["lag50"], figures["lag99"])
