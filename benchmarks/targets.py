"""Targets of the limiter and whether it meets them, in virtual time over many seeds; and its own cost.

A *refill period* is the time in which one token is refilled, 1/r. The service is the published one: 40 tokens, refilled
at 40 per minute. Answers take 6 s in the median, with a sigma of 0.3.
"""

import asyncio
import statistics
import time
import tracemalloc
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from random import Random

from attrs import frozen

from benchmarks.report import Section
from onellm_async.client import AsyncOneLLM
from onellm_async.events import Event, Granted
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits
from onellm_async.server.service import Service
from onellm_async.server.settings import Faults, ServerSettings
from onellm_async.simulation import (
    LimitChange,
    Scenario,
    ServiceTransport,
    SimulationResult,
    run_in_virtual_time,
    simulate,
)

RATE = 40 / 60
CHANGE_AT = 300.0
LATENCY = 6.0
UNDECLARED = Limits(requests_per_minute="auto")
_INTERACTIVE_MODEL = "GPT-5-Mini"


@frozen
class Target:
    """One figure of one setting.

    Attributes:
        setting: Setting of the run.
        figure: The measured figure.
        bound: The target.
        at_least: Whether the target is a lower bound.
        form: Format of a value.
    """

    setting: str
    figure: str
    bound: float
    at_least: bool = False
    form: str = "{:.1f}"

    def row(self, values: Sequence[float]) -> tuple[str, ...]:
        """The row of the table: target, median, worst value, and whether they meet it."""
        median = statistics.median(values)
        worst = min(values) if self.at_least else max(values)
        met = [value >= self.bound if self.at_least else value <= self.bound for value in (median, worst)]
        verdict = "met" if all(met) else "met by the median" if met[0] else "not met"
        sign = "≥" if self.at_least else "≤"
        shown = (self.form.format(value) for value in (self.bound, median, worst))
        target, *rest = shown
        return (f"{self.setting}: {self.figure}", f"{sign} {target}", *rest, verdict)


def _goodput_and_rate_limited(setting: str, goodput: float, rate_limited: float) -> tuple[Target, Target]:
    return (
        Target(setting, "goodput", goodput, at_least=True, form="{:.4f}"),
        Target(setting, "rate-limited", rate_limited, form="{:.2%}"),
    )


def goodput_of(limits: Limits, number: int, seed: int) -> tuple[float, float]:
    """Goodput and the share of 429s of one simulated run."""
    result = simulate(Scenario(prompts=number, limits=limits, seed=seed))
    if result.answered != number:
        raise RuntimeError(f"{number - result.answered} of {number} prompts have no answer (seed {seed}).")
    return result.goodput, result.rate_limited_share


def seconds_until_back(result: SimulationResult, per_minute: float, changed_at: float = CHANGE_AT) -> float:
    """Seconds that a client took to return to the optimum after its limit changed; infinite if it never did.

    It is back at the first moment after which, while 40 tokens are refilled, at least 0.9 of them are answered and at
    most 1.1 of them (and one request) are sent. An answer counts at the time of its request, the median latency before.
    """
    rate = per_minute / 60
    span = 40 / rate
    asked = [time - LATENCY for time in result.answered_at[0]]
    sent = result.sent_at[0]
    start = changed_at
    while start + span <= sent[-1]:
        answers = bisect_left(asked, start + span) - bisect_left(asked, start)
        sends = bisect_left(sent, start + span) - bisect_left(sent, start)
        if answers >= 0.9 * rate * span and sends <= 1.1 * rate * span + 1:
            return start - changed_at
        start += span / 40
    return float("inf")


def back_after(per_minute: float, number: int, seed: int) -> tuple[float]:
    """Seconds until a client that has to discover the limit is back after the limit became `per_minute`."""
    changes = [LimitChange(CHANGE_AT, per_minute)]
    result = simulate(Scenario(prompts=number, limits=UNDECLARED, changes=changes, seed=seed))
    return (seconds_until_back(result, per_minute),)


def interactive_wait(minutes: int, seed: int) -> tuple[float]:
    """The 99th percentile of the waits of interactive chats while a batch saturates the key, in refill periods."""
    return (run_in_virtual_time(_waits_beside_a_batch(seed, minutes)) * RATE,)


async def _waits_beside_a_batch(seed: int, minutes: int) -> float:
    random = Random(seed)
    service = Service(ServerSettings(faults=Faults(latency=LATENCY, latency_sigma=0.3, seed=seed), keep_rows=0))
    waits: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Granted) and event.model == _INTERACTIVE_MODEL:
            waits.append(event.waited)

    async with AsyncOneLLM(
        transport=ServiceTransport(service, "key", random=random), hooks=(watch,), random=random
    ) as client:

        async def batch() -> None:
            async for _ in client.iter_chats(("batch" for _ in range(100_000)), model="GPT-5-Nano"):
                pass

        saturating = asyncio.create_task(batch())
        await asyncio.sleep(120)
        async with asyncio.TaskGroup() as users:
            for _ in range(minutes * 6):
                await asyncio.sleep(random.expovariate(1 / 10))
                users.create_task(client.chat("Quick!", model=_INTERACTIVE_MODEL, lane="interactive"))
        saturating.cancel()
        await asyncio.wait({saturating})
    return statistics.quantiles(waits, n=100)[98]


def acquire_and_release(rounds: int = 20_000) -> float:
    """Microseconds of an acquisition that need not wait, and its release."""

    async def measure() -> float:
        limiter = Limiter(Limits(requests_per_minute=1e9, burst=1_000_000), random=Random(0))
        (await limiter.acquire()).answered()
        started = time.perf_counter()
        for _ in range(rounds):
            (await limiter.acquire()).answered()
        return (time.perf_counter() - started) / rounds * 1e6

    return asyncio.run(measure())


def bytes_per_waiter(number: int = 100_000) -> float:
    """Bytes that each of many waiting requests takes beside its task, which awaits a future of its own as it would."""

    async def plain() -> None:
        await asyncio.get_running_loop().create_future()

    async def admitted(limiter: Limiter) -> None:
        await limiter.acquire()

    async def taken(wait: Callable[[], object]) -> int:
        before = tracemalloc.get_traced_memory()[0]
        tasks = [asyncio.create_task(wait()) for _ in range(number)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        used = tracemalloc.get_traced_memory()[0] - before
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return used

    async def measure() -> float:
        limiter = Limiter(Limits(max_concurrency=1), random=Random(0))
        permit = await limiter.acquire()
        own = await taken(plain)
        waiting = await taken(partial(admitted, limiter))
        permit.release()
        return (waiting - own) / number

    tracemalloc.start()
    try:
        return asyncio.run(measure())
    finally:
        tracemalloc.stop()


def run(
    *, seeds: int, numbers: tuple[int, int, int] = (400, 4000, 1000), minutes: int = 60, waiters: int = 100_000
) -> Section:
    """Measures every target. Simulations run beside each other; what is timed runs alone.

    Args:
        seeds: Of each simulation.
        numbers: Prompts of a short run, of a long one, and of one whose limit changes.
        minutes: In which interactive chats come.
        waiters: Requests whose memory is measured.
    """
    rows: list[tuple[str, ...]] = []
    with ProcessPoolExecutor() as processes:
        for targets, once in _simulated(*numbers, minutes):
            columns = zip(*processes.map(once, range(seeds), chunksize=1), strict=True)
            rows += [target.row(values) for target, values in zip(targets, columns, strict=True)]
    cost = Target("uncontended acquire and release", "µs", 5.0)
    memory = Target(f"{waiters:,} queued", "bytes each beside the task", 400.0, form="{:.0f}")
    rows.append(cost.row([acquire_and_release() for _ in range(9)]))
    rows.append(memory.row([bytes_per_waiter(waiters)]))
    return Section(
        "Targets of the limiter",
        f"The real client in virtual time against the published limit (a bucket of 40, 40 per minute; answers of 6 s), "
        f"{seeds} seeds each; the last two rows on the machine. A changed limit counts as found when, for the time in "
        "which 40 tokens are refilled, at least 0.9 of them are used and at most 1.1 are sent. A refill period is "
        "1/r, here 1.5 s. A target is met if all seeds meet it.",
        ("target", "bound", "median", "worst", ""),
        rows,
    )


def _simulated(
    short: int, long: int, changed: int, minutes: int
) -> list[tuple[Sequence[Target], Callable[[int], tuple[float, ...]]]]:
    declared = Limits()
    return [
        (_goodput_and_rate_limited(f"declared, N = {short}", 0.985, 0.005), partial(goodput_of, declared, short)),
        (_goodput_and_rate_limited(f"declared, N = {long:,}", 0.985, 0.005), partial(goodput_of, declared, long)),
        (_goodput_and_rate_limited(f"not declared, N = {short}", 0.99, 0.015), partial(goodput_of, UNDECLARED, short)),
        (_goodput_and_rate_limited(f"not declared, N = {long:,}", 0.995, 0.005), partial(goodput_of, UNDECLARED, long)),
        ((Target("hidden limit halves", "seconds until back", 40 / (RATE / 2)),), partial(back_after, 20, changed)),
        ((Target("hidden limit doubles", "seconds until back", 40 / (RATE * 2)),), partial(back_after, 80, changed)),
        (
            (Target("interactive beside a batch", "p99 wait in refill periods", 2.0, form="{:.2f}"),),
            partial(interactive_wait, minutes),
        ),
    ]
