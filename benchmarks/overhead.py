"""What a call costs: requests per second, and CPU time per request, against a server that is not the limit."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from benchmarks.peers import AnswerAll, Contender, prompts
from benchmarks.processes import FastServer, measured
from benchmarks.repetitions import Found, interleaved, shortfall, spread
from benchmarks.report import Section

BASELINE = Contender("aiohttp", "plain_aiohttp")
CONTENDERS = (
    BASELINE,
    Contender("onellm-async, its transport alone", "onellm", {"call": "post"}),
    Contender("onellm-async, chat", "onellm"),
    Contender(
        "onellm-async, chat with limits, lanes and a hook",
        "onellm",
        {
            "limits": {"requests_per_minute": 10**8, "burst": 10**6, "tokens_per_minute": 10**11},
            "watched": True,
        },
    ),
    Contender(
        "onellm-async, chat with a discovered limit",
        "onellm",
        {"limits": {"requests_per_minute": "auto"}, "found": 1e5},
    ),
    Contender("onellm-async, gather_chats", "onellm", {"call": "gather_chats"}),
    Contender("async-batch-llm around aiohttp", "async_batch"),
    Contender("openai-python over aiohttp", "openai_python", {"transport": "aiohttp"}),
    Contender("openai-python over httpx", "openai_python"),
    Contender("litellm", "litellm_sdk"),
)
IN_FLIGHT = 64
_WARM_UP = 512


async def measure(connect: Callable[[], AbstractAsyncContextManager[AnswerAll]], seconds: float) -> Found:
    """Measures as many requests as take about that long, after two rounds of warming up.

    Returns:
        ``rate`` in requests per second and ``cpu`` in microseconds of this process per request, all threads included.
    """
    async with connect() as answer_all:
        await answer_all(prompts(_WARM_UP))
        started = time.perf_counter()
        await answer_all(prompts(_WARM_UP, _WARM_UP))
        pace = _WARM_UP / (time.perf_counter() - started)
        number = min(max(_WARM_UP, int(pace * seconds)), 100_000)
        texts = list(prompts(number, 2 * _WARM_UP))
        started, cpu = time.perf_counter(), time.process_time()
        errors = await answer_all(texts)
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    if errors:
        raise RuntimeError(f"{errors.total()} of {number} prompts failed: {dict(errors)}")
    return {"rate": number / elapsed, "cpu": cpu / number * 1e6}


def compared(
    server: FastServer, contenders: Sequence[Contender], baseline: Contender, *, repetitions: int, seconds: float
) -> tuple[list[tuple[Contender, list[Found]]], Sequence[Found]]:
    """What was found of each contender, and of the one that the others are compared with."""
    target = {"root": f"http://127.0.0.1:{server.port}", "in_flight": IN_FLIGHT}

    def once(contender: Contender) -> Found:
        return measured("overhead", contender.peer, options=contender.options, target=target, plan={"seconds": seconds})

    table = interleaved(contenders, repetitions, once)
    return table, next((found for contender, found in table if contender is baseline), [])


def run(server: FastServer, contenders: Sequence[Contender], *, repetitions: int, seconds: float) -> Section:
    """Compares the contenders; the ratios are to plain aiohttp in the same repetition."""
    table, baseline = compared(server, contenders, BASELINE, repetitions=repetitions, seconds=seconds)
    return Section(
        "Overhead",
        f"One client process, {IN_FLIGHT} requests in flight on loopback; about {seconds:g} s for each measurement, "
        f"after a warm-up, in a fresh process. Median of {repetitions} (minimum to maximum). The server is "
        f"{server.name} in a process of its own; it answered {server.capacity:,.0f} requests/s to a client of next to "
        "no cost. CPU time is the client process's, all threads included. The ratios are to plain aiohttp in the same "
        "repetition.",
        ("client", "requests/s", "CPU µs/request", "requests/s / aiohttp", "CPU / aiohttp"),
        [_row(contender, found, baseline) for contender, found in table],
        charted="requests/s",
    )


def _row(contender: Contender, found: Sequence[Found], baseline: Sequence[Found]) -> Sequence[str]:
    if missing := shortfall(found):
        return (contender.name, missing, "", "", "")
    rates, cpus = ([each[figure] for each in found] for figure in ("rate", "cpu"))
    ratios = ["", ""]
    if baseline and not shortfall(baseline):
        pairs = list(zip(found, baseline, strict=True))
        ratios = [spread((own[figure] / base[figure] for own, base in pairs), 2) for figure in ("rate", "cpu")]
    return (contender.name, spread(rates), spread(cpus), *ratios)
