"""One limiter, several event loops, in real time."""

import asyncio
from random import Random

import pytest

from onellm_async.errors import ConfigurationError
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


def test_limiter_goes_on_in_another_loop_with_what_it_knows():
    slots = limiter(requests_per_minute=60, burst=4)

    async def drain():
        (await slots.acquire()).answered()
        return slots.core.rate.time_until(3, asyncio.get_running_loop().time())

    assert asyncio.run(drain()) < 1.1
    assert asyncio.run(drain()) > 1.1, "two of the burst are used up, although this loop has seen only one leave"


async def test_limiter_of_a_running_loop_is_refused_in_another():
    slots = limiter()
    await slots.acquire()

    def elsewhere():
        asyncio.run(slots.acquire())

    with pytest.raises(ConfigurationError, match="another running event loop"):
        await asyncio.to_thread(elsewhere)


def test_idleness_can_be_awaited_in_one_loop_after_another():
    slots = limiter()

    async def wait_until_idle():
        permit = await slots.acquire()
        idle = asyncio.create_task(slots.idle())
        await asyncio.sleep(0)
        permit.settle()
        await idle

    asyncio.run(wait_until_idle())
    asyncio.run(wait_until_idle())
