"""One of several processes with one key: ``python -m benchmarks.quota_process JOB``.

It prints a line when it is ready, begins when it reads one, and prints what it found.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

from onellm_async import AsyncOneLLM, Limits

_MODEL = "GPT-5-Nano"
_SLOTS = 64

Acquire = Callable[[], Awaitable[object]]


@asynccontextmanager
async def _no_limiter() -> Any:
    yield None


@asynccontextmanager
async def _pyrate_file(rate: float, burst: int, place: str) -> Any:
    from pyrate_limiter import Limiter, Rate, SQLiteBucket

    bucket = SQLiteBucket.init_from_file([_rate(Rate, rate, burst)], db_path=place, use_file_lock=True)
    limiter = Limiter(bucket)
    yield limiter.try_acquire_async


@asynccontextmanager
async def _pyrate_redis(rate: float, burst: int, place: str) -> Any:
    from pyrate_limiter import Limiter, Rate, RedisBucket
    from redis.asyncio import Redis

    async with Redis.from_url(place) as redis:
        bucket = RedisBucket.init([_rate(Rate, rate, burst)], redis, "pyrate")
        limiter = Limiter(await bucket)
        yield limiter.try_acquire_async


def _rate(kind: Any, rate: float, burst: int) -> Any:
    """A window in which the service refills its whole bucket, as neither peer knows buckets in these stores."""
    return kind(burst, round(1000 * burst / rate))


@asynccontextmanager
async def _limits_redis(rate: float, burst: int, place: str) -> Any:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    limiter = MovingWindowRateLimiter(RedisStorage(f"async+{place}", implementation="redispy"))
    seconds = max(1, round(burst / rate))
    item = RateLimitItemPerSecond(round(rate * seconds), seconds)

    async def acquire() -> None:
        while not await limiter.hit(item, "key"):
            window = await limiter.get_window_stats(item, "key")
            await asyncio.sleep(max(0.005, window.reset_time - time.time()))

    yield acquire


_PEERS: dict[str, Callable[[float, int, str], AbstractAsyncContextManager[Acquire]]] = {
    "pyrate-limiter, SQLite": _pyrate_file,
    "pyrate-limiter, Redis": _pyrate_redis,
    "limits, Redis": _limits_redis,
}


async def _batch(client: AsyncOneLLM, number: int, acquire: Acquire | None) -> list[float]:
    """Asks that many prompts, and returns when each was answered."""
    answered: list[float] = []
    if acquire is None:
        async for outcome in client.iter_chats((f"prompt {n}" for n in range(number)), model=_MODEL):
            outcome.unwrap()
            answered.append(time.time())
        return answered

    async def ask(slots: asyncio.Semaphore, text: str) -> None:
        async with slots:
            await acquire()
            await client.chat(text, model=_MODEL)
            answered.append(time.time())

    slots = asyncio.Semaphore(_SLOTS)
    await asyncio.gather(*(ask(slots, f"prompt {n}") for n in range(number)))
    return sorted(answered)


async def _interactive(client: AsyncOneLLM, number: int, rate: float) -> list[float]:
    """Asks single chats at random moments, and returns how long each took."""
    took: list[float] = []

    async def ask() -> None:
        started = time.perf_counter()
        await client.chat("Quick!", model=_MODEL, lane="interactive")
        took.append(time.perf_counter() - started)

    random = Random(0)
    async with asyncio.TaskGroup() as visitors:
        for _ in range(number):
            await asyncio.sleep(random.expovariate(rate))
            visitors.create_task(ask())
    return took


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the job and returns its findings."""
    peer = _PEERS.get(job["way"])
    limits = Limits.unlimited(_SLOTS) if peer is not None else Limits(max_concurrency=_SLOTS, **job["limits"])
    async with AsyncExitStack() as stack:
        rate, burst, place = job["rate"], job["burst"], job["place"]
        context = peer(rate, burst, place) if peer is not None else _no_limiter()
        acquire = await stack.enter_async_context(context)
        client = AsyncOneLLM("key", base_url=job["url"], limits=limits, quota=job["quota"])
        await stack.enter_async_context(client)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        cpu = time.process_time()
        found: dict[str, Any] = {}
        if job["chats"]:
            found["took"] = await _interactive(client, job["chats"], job["chat_rate"])
        else:
            found["answered"] = await _batch(client, job["number"], acquire)
        found["cpu"] = time.process_time() - cpu
    return found


if __name__ == "__main__":
    try:
        result = asyncio.run(run(json.loads(sys.argv[1])))
    except ModuleNotFoundError as error:
        result = {"absent": error.name}
        print("ready", flush=True)
    print(json.dumps(result))
