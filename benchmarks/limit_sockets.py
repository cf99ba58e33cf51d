"""Limits of every kind over real sockets, beside other clients: ``python -m benchmarks.any_limit --sockets``.

Windows have 4 seconds, so that a run of six windows takes 20 seconds at best.
"""

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from itertools import product
from math import ceil
from statistics import median
from typing import Any

from attrs import frozen

from benchmarks.peers import AnswerAll, Contender, prompts
from benchmarks.processes import measured, python_server
from benchmarks.repetitions import Found, shortfall
from benchmarks.report import Section

LATENCY = 0.3
IN_FLIGHT = 48
GIVE_UP = 300.0
"""Seconds after which a run is stopped."""
WINDOW = 4.0
BESIDE = 4
"""Runs at the same time. Each takes a small part of a processor."""


@frozen
class LimitedService:
    """A service of the table.

    Attributes:
        name: Its name in the table.
        arguments: Arguments of its server.
        prompts: Prompts of a run.
        optimum: Seconds that an omniscient client needs.
        rate: Requests per second in the long run, for clients that are told.
        burst: Requests at once, for clients that are told.
        latency: Seconds of an answer.
        in_flight: Requests in flight, at most.
    """

    name: str
    arguments: Sequence[str]
    prompts: int
    optimum: float
    rate: float
    burst: int
    latency: float = LATENCY
    in_flight: int = IN_FLIGHT


def _window(kind: str, count: int, windows: int = 6) -> LimitedService:
    name = f"{kind} {count} in {WINDOW:g} s"
    optimum = (windows - 1) * WINDOW + LATENCY
    return LimitedService(
        name, [f"--window={kind}:{count}/{WINDOW:g}s"], windows * count, optimum, count / WINDOW, count
    )


SERVICES = (
    _window("sliding", 40),
    _window("fixed", 40),
    _window("sliding", 100),
    _window("fixed", 100),
    LimitedService("8 in flight", ["--max-concurrent=8"], 400, ceil(400 / 8) * LATENCY, 8 / LATENCY, 8),
    LimitedService("40/s, burst 40, Retry-After", ["--rate=40", "--retry-after"], 840, 20 + LATENCY, 40, 40),
    LimitedService(
        "20/s, burst 20 and sliding 60 in 4 s",
        ["--rate=20", "--burst=20", f"--window=sliding:60/{WINDOW:g}s"],
        360,
        20 + LATENCY,
        15,
        20,
    ),
    LimitedService("200/s, burst 40", ["--rate=200", "--burst=40"], 2000, 1960 / 200 + 0.1, 200, 40, 0.1, 64),
)
QUICK = (LimitedService("40 in 0.5 s", ["--window=40/0.5s"], 80, 0.5 + LATENCY, 80, 40),)


def contenders_for(service: LimitedService) -> Sequence[Contender]:
    """The clients. Two are told the limit: as requests per time, or as a rate per minute."""
    return (
        Contender("onellm-async, nothing declared", "onellm", _ours({"requests_per_minute": "auto"})),
        Contender("aiohttp + tenacity, exponential jitter, no end", "plain_aiohttp", {"retries": 100_000}),
        Contender("openai-python, 10 retries", "openai_python", {"retries": 10}),
        Contender(
            "openai-python, 10 retries, aiolimiter told",
            "openai_python",
            {"retries": 10, "limiter": [service.burst, service.burst / service.rate]},
        ),
        Contender("litellm, 10 retries", "litellm_sdk", {"retries": 10}),
        Contender(
            "async-batch-llm, told, pause of 1 s",
            "async_batch",
            {"requests_per_minute": service.rate * 60, "burst_seconds": service.burst / service.rate, "pause": 1},
        ),
        Contender("inspect_ai, adaptive connections", "inspect_sdk"),
    )


def _ours(limits: dict[str, Any]) -> dict[str, Any]:
    return {"call": "gather_chats", "limits": limits}


async def measure(
    connect: Callable[[], AbstractAsyncContextManager[AnswerAll]], number: int, root: str, give_up: float
) -> Found:
    """Measures one fan-out.

    Returns:
        ``elapsed`` in seconds, ``failed`` prompts, and what the server counted; ``given_up`` if it took too long.
    """
    async with connect() as answer_all:
        texts = list(prompts(number))
        started = time.perf_counter()
        try:
            async with asyncio.timeout(give_up) as limit:
                errors = await answer_all(texts)
        except TimeoutError:
            if not limit.expired():
                raise
            return {"given_up": give_up, **await asyncio.to_thread(_stats, root)}
        elapsed = time.perf_counter() - started
        return {"elapsed": elapsed, "failed": errors.total(), **await asyncio.to_thread(_stats, root)}


def _stats(root: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{root}/stats") as response:  # noqa: S310 - our own server
        found: dict[str, Any] = json.load(response)
        return found


def run(
    *,
    repetitions: int,
    services: Sequence[LimitedService] = SERVICES,
    only: str | Sequence[str] = "",
    give_up: float = GIVE_UP,
    beside: int = BESIDE,
) -> Section:
    """Measures every client at every service, a repetition of all before the next, some at the same time.

    Args:
        repetitions: Of each run.
        services: The services.
        only: Text in the name of each client that takes part, or several of them.
        give_up: Seconds after which a run is stopped.
        beside: Runs at the same time.
    """
    texts = [only] if isinstance(only, str) else only
    pairs = [
        (service, contender)
        for service, index in product(services, range(len(contenders_for(services[0]))))
        if any(text in (contender := contenders_for(service)[index]).name for text in texts)
    ]
    found: dict[tuple[str, str], list[Found]] = {}
    with ThreadPoolExecutor(beside) as pool:
        for repetition in range(repetitions):
            results = pool.map(lambda pair: _once(*pair, give_up), pairs)
            for (service, contender), result in zip(pairs, results, strict=True):
                found.setdefault((service.name, contender.name), []).append(result)
                print(f"[{repetition + 1}] {service.name}: {contender.name}: {result}", file=sys.stderr, flush=True)
    rows = [_row(service, contender, found[service.name, contender.name]) for service, contender in pairs]
    return Section(
        "Limits of every kind on real sockets",
        f"{IN_FLIGHT} requests in flight; an answer takes {LATENCY:g} s, a 429 comes at once (200/s: 64 requests, "
        f"0.1 s). The share is the best "
        f"possible time divided by the time taken. A dark second is one in which nothing is accepted, after the first "
        f"ten seconds. Median of {repetitions} (worst); {beside} runs at a time. "
        f"A run is stopped after {give_up:g} s.",
        ("service, client", "share", "429s per prompt", "dark second", "failed or unanswered prompts"),
        rows,
    )


def _once(service: LimitedService, contender: Contender, give_up: float) -> Found:
    with python_server("limited", f"--latency={service.latency}", *service.arguments) as port:
        root = f"http://127.0.0.1:{port}"
        return measured(
            "limit_sockets",
            contender.peer,
            options=contender.options,
            target={"root": root, "in_flight": service.in_flight},
            plan={"number": service.prompts, "root": root, "give_up": give_up},
        )


def _row(service: LimitedService, contender: Contender, found: Sequence[Found]) -> Sequence[str]:
    name = f"{service.name}: {contender.name}"
    if missing := shortfall(found):
        return (name, missing, "", "", "")
    times = [each.get("elapsed", float("inf")) for each in found]
    shares = [service.optimum / elapsed for elapsed in times]
    wasted = [each["refused"] / service.prompts for each in found]
    missing_prompts = [each["failed"] if "failed" in each else service.prompts - each["processed"] for each in found]
    share = f"{median(shares):.2f} ({min(shares):.2f})"
    if not all(shares):
        share = f"not done after {max(each.get('given_up', 0.0) for each in found):g} s"
    return (
        name,
        share,
        f"{median(wasted):.2f} ({max(wasted):.2f})",
        f"{median(each['dark'] for each in found):g} ({max(each['dark'] for each in found)})",
        f"{median(missing_prompts):g} ({max(missing_prompts)})",
    )
