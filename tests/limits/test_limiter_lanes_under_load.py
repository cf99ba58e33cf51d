"""A web request must not wait behind a batch that shares its key."""

import asyncio
from random import Random

import pytest

from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits

pytestmark = pytest.mark.virtual_time

RATE = 40 / 60
BATCH = 10_000
ARRIVALS = 200
PERIODS_ALLOWED = 0.5


async def share_the_key(seed, share):
    """Lets interactive requests come at that share of the rate; returns their waits, and what the best could be."""
    random = Random(seed)
    slots = Limiter(Limits(requests_per_minute=60 * RATE, burst=40), random=Random(seed))
    loop = asyncio.get_running_loop()
    grants, arrived, waits = [], [], []

    async def request(lane):
        began = loop.time()
        permit = await slots.acquire(lane=lane)
        grants.append(loop.time())
        if lane == "interactive":
            arrived.append(began)
            waits.append(loop.time() - began)
        try:
            await asyncio.sleep(random.lognormvariate(1.7, 0.3))
        finally:
            permit.answered()

    batch = [asyncio.create_task(request("batch")) for _ in range(BATCH)]
    await asyncio.sleep(120)  # the burst is used up, and the batch takes every token
    tasks = []
    for _ in range(ARRIVALS):
        await asyncio.sleep(random.expovariate(share * RATE))
        tasks.append(asyncio.create_task(request("interactive")))
    await asyncio.wait(tasks)
    assert slots.snapshot().queued["batch"] > BATCH / 2, "the batch was there all the time"
    for task in batch:
        task.cancel()
    await asyncio.wait(batch)
    moments = iter(sorted(grants))
    best = [next(moment for moment in moments if moment >= began) - began for began in sorted(arrived)]
    return p99(waits), p99(best)


def p99(waits):
    """In refill periods."""
    assert len(waits) == ARRIVALS
    return sorted(waits)[int(0.99 * ARRIVALS) - 1] * RATE


@pytest.mark.parametrize("seed", range(5))
async def test_interactive_hardly_waits_while_a_batch_saturates_the_key(seed):
    waited, _ = await share_the_key(seed, share=0.1)
    assert waited <= PERIODS_ALLOWED


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.25, 0.4], ids=["one in four", "two in five"])
async def test_much_interactive_traffic_waits_little_longer_than_if_the_batch_never_had_a_turn(seed, share):
    waited, best = await share_the_key(seed, share)
    assert waited <= best + 0.5
