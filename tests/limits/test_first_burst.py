"""What a declared limit lets through at the very start, by lane; in virtual time."""

import asyncio
from random import Random

import pytest

from onellm_async import AsyncOneLLM, DeadlineExceededError, Limits, QueueFullError, Usage
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import LANES
from onellm_async.testing import FakeTransport, answer

pytestmark = pytest.mark.virtual_time


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


def wait(slots, number, **options):
    return [asyncio.create_task(slots.acquire(**options)) for _ in range(number)]


def sent(tasks):
    return sum(task.done() and not task.cancelled() for task in tasks)


async def stop(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def service(level=40.0):
    """A key's bucket of 40, refilled at 40 per minute, shared by all clients that are given this transport."""
    bucket = TokenBucket(40 / 60, 40, level=level)

    async def reply(request):
        await asyncio.sleep(0.01)
        if not bucket.try_take(1, asyncio.get_running_loop().time()):
            return 429
        await asyncio.sleep(2)
        return answer("hi", usage=Usage(5, 2))

    return FakeTransport(reply)


async def crowd(client, number, lane="interactive"):
    """How many of so many chats at once were answered, shed, or failed, and how long the slowest took."""
    began = asyncio.get_running_loop().time()
    chats = [client.chat("user", model="GPT-5", lane=lane, deadline=30) for _ in range(number)]
    ends = await asyncio.gather(*chats, return_exceptions=True)
    kinds = [sum(isinstance(end, kind) for end in ends) for kind in (QueueFullError, DeadlineExceededError)]
    return number - sum(kinds), *kinds, asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("lane", ["interactive", "default"])
async def test_users_have_the_declared_burst_at_once(lane):
    slots = limiter()
    tasks = wait(slots, 60, lane=lane)
    await asyncio.sleep(0)
    assert sent(tasks) == 38, "all but the margin"
    await stop(tasks)


async def test_a_batch_is_paced_until_the_burst_is_confirmed():
    slots = limiter()
    tasks = wait(slots, 60, lane="batch")
    await asyncio.sleep(0)
    assert sent(tasks) == 1
    await asyncio.sleep(1)
    assert sent(tasks) == pytest.approx(11, abs=1)
    await asyncio.sleep(3)
    assert sent(tasks) >= 38
    await stop(tasks)


@pytest.mark.parametrize("lane", ["interactive", "default"])
async def test_users_do_not_wait_behind_the_pace_of_a_batch_nor_a_batch_for_users(lane):
    slots = limiter()
    batch = wait(slots, 60, lane="batch")
    await asyncio.sleep(0.5)
    before = sent(batch)
    users = wait(slots, 20, lane=lane)
    await asyncio.sleep(0.001)
    assert sent(users) == 20
    assert sent(batch) - before <= 20 / LANES[lane] + 1, "its share while both wait"
    await asyncio.sleep(1)
    assert sent(batch) - before == pytest.approx(10 + 20 / LANES[lane], abs=2), "then at its pace again"
    await stop(batch + users)


async def test_a_refusal_in_the_first_burst_empties_the_bucket_for_all_lanes():
    slots = limiter()
    users = wait(slots, 10, lane="interactive")
    await asyncio.sleep(0.1)
    for user in users:
        (await user).rate_limited()
    later = [*wait(slots, 5, lane="interactive"), *wait(slots, 5), *wait(slots, 5, lane="batch")]
    await asyncio.sleep(1)
    assert sent(later) == 0
    await asyncio.sleep(3)
    assert 1 <= sent(later) <= 3
    assert slots.snapshot().rate == 40, "one episode says nothing about the rate"
    await stop(later)


async def test_a_crowd_at_the_start_is_served_as_well_as_one_a_minute_later():
    limited = service()
    async with AsyncOneLLM(transport=limited, limits=Limits(max_pending=16), random=Random(1)) as client:
        first = await crowd(client, 60)
        await asyncio.sleep(75)
        later = await crowd(client, 60)
    assert first[:3] == later[:3] == (54, 6, 0)
    assert len(limited.requests) - 2 * 54 <= 1, "429s"


async def test_a_crowd_at_four_processes_that_share_the_limit_has_the_whole_burst():
    limited = service()
    limits = Limits(requests_per_minute=40 / 4, burst=40 // 4, max_pending=4)
    clients = [AsyncOneLLM(transport=limited, limits=limits, random=Random(number)) for number in range(4)]
    ends = await asyncio.gather(*(crowd(client, 30) for client in clients))
    assert sum(answered for answered, *_ in ends) == 4 * (8 + 4)
    assert sum(late for _, _, late, _ in ends) == 0
    for client in clients:
        await client.aclose()


async def test_a_crowd_that_meets_an_empty_bucket_is_answered_all_the_same():
    """As after a restart: what another process had just used is refused at no cost, and comes back."""
    limited = service(level=2.0)
    async with AsyncOneLLM(transport=limited, random=Random(1)) as client:
        replies = await asyncio.gather(*(client.chat("user", model="GPT-5", lane="interactive") for _ in range(20)))
    assert len(replies) == 20
    assert asyncio.get_running_loop().time() < 1.1 * 18 * 1.5 + 4
    assert len(limited.requests) - 20 <= 20, "429s"


def test_what_waits_for_the_pace_is_no_longer_said_to_be_sendable_or_not_by_others():
    rate = DeclaredRate(40 / 60, 40, 0.0)
    rate.take(0.0)
    assert rate.time_until(1, 0.0) == 0
    assert rate.time_until(1, 0.0, paced=True) == pytest.approx(0.1)
    assert rate.time_until(1, 60.0, paced=True) == 0
