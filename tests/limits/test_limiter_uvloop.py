import asyncio
from random import Random

import pytest

from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits

uvloop = pytest.importorskip("uvloop", reason="the extra `speed` is not installed")


def test_timers_that_are_due_at_once_wake_everybody_under_uvloop():
    limits = Limits(max_concurrency=64, requests_per_minute=6e7, burst=10_000, tokens_per_minute=1e10)
    limiter = Limiter(limits, random=Random(0))

    async def ask() -> None:
        for _ in range(50):
            permit = await limiter.acquire(tokens=1000)
            await asyncio.sleep(0)
            permit.answered(12)

    async def everybody() -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*(ask() for _ in range(200)))
        assert limiter.snapshot().at_rest

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(everybody())
