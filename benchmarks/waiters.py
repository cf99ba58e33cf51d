"""What a queue costs: 100,000 requests that wait and are cancelled in any order. ``python -m benchmarks.waiters``."""

import asyncio
import gc
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from random import Random

from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits

NUMBER = 100_000
Acquire = Callable[[], Awaitable[object]]


async def nothing_but_a_future() -> Acquire:
    """What a task needs in order to wait at all."""
    return lambda: asyncio.get_running_loop().create_future()


async def onellm() -> Acquire:
    limiter = Limiter(Limits(requests_per_minute=0.001, burst=1), random=Random(0))
    (await limiter.acquire()).answered()
    return limiter.acquire


async def semaphore() -> Acquire:
    return asyncio.Semaphore(0).acquire


async def aiolimiter() -> Acquire:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(1, 1e6)
    await limiter.acquire()
    return limiter.acquire


CONTENDERS = (nothing_but_a_future, onellm, semaphore, aiolimiter)


async def _waiting(acquire: Acquire, number: int) -> list[asyncio.Task[None]]:
    async def wait() -> None:
        await acquire()

    tasks = [asyncio.create_task(wait()) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def seconds(make: Callable[[], Awaitable[Acquire]], order: str, number: int) -> tuple[float, float]:
    """Seconds to let `number` tasks wait, and to cancel them ``forward``, ``backward`` or at ``random``."""
    acquire = await make()
    gc.collect()
    began = time.perf_counter()
    tasks = await _waiting(acquire, number)
    enqueued = time.perf_counter()
    if order == "backward":
        tasks.reverse()
    elif order == "random":
        Random(1).shuffle(tasks)
    cancelling = time.perf_counter()
    await _cancelled(tasks)
    return enqueued - began, time.perf_counter() - cancelling


async def bytes_each(make: Callable[[], Awaitable[Acquire]], number: int) -> float:
    """Bytes for each task that waits, the task included."""
    await _cancelled(await _waiting(await make(), number))  # Python keeps some of the memory for the next round
    acquire = await make()
    gc.collect()
    tracemalloc.start()
    tasks = await _waiting(acquire, number)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await _cancelled(tasks)
    return used / number


async def uncontended(number: int = 20_000) -> float:
    """Microseconds to acquire and release when nobody waits; the best of five rounds."""
    limiter = Limiter(Limits(requests_per_minute=6e9, burst=10**9), random=Random(0))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(number):
            (await limiter.acquire()).answered()
        best = min(best, (time.perf_counter() - began) / number)
    return best * 1e6


def main(number: int = NUMBER) -> None:
    """Prints the table; an asyncio.Semaphore is cancelled forward only, as the other orders take it minutes."""
    least = asyncio.run(bytes_each(nothing_but_a_future, number // 5))
    print(f"{number:,} waiters; bytes are beyond a task that waits for a future of its own")
    print(f"{'':22}{'order':>10}{'enqueue s':>12}{'cancel s':>12}{'bytes':>8}")
    for make in CONTENDERS:
        try:
            each = asyncio.run(bytes_each(make, number // 5)) - least
        except ImportError:
            print(f"{make.__name__:22}  not installed")
            continue
        for order in ("forward",) if make in {semaphore, aiolimiter} else ("forward", "backward", "random"):
            enqueue, cancel = asyncio.run(seconds(make, order, number))
            print(f"{make.__name__:22}{order:>10}{enqueue:12.2f}{cancel:12.2f}{each:8.0f}", flush=True)
    print(f"acquire and release, nobody waiting: {asyncio.run(uncontended()):.2f} µs")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
