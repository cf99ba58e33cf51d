"""Who counts toward `Limits.max_pending`, and who is turned away by it; in virtual time."""

import asyncio
from random import Random

import pytest

from onellm_async import AsyncOneLLM, ChatResponse, Limits, QueueFullError, RequestCancelledError
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.permit import RequestGroup
from onellm_async.testing import FakeTransport

pytestmark = pytest.mark.virtual_time

BUSY = Limits(requests_per_minute=600, burst=2, max_pending=10)


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


def wait(slots, number, **options):
    return [asyncio.create_task(slots.acquire(**options)) for _ in range(number)]


def chats(client, number):
    return [client.chat("user", model="GPT-5", lane="interactive") for _ in range(number)]


async def test_a_fan_out_of_any_size_is_never_turned_away():
    async with AsyncOneLLM(transport=FakeTransport("hi", delay=0.05), limits=BUSY) as client:
        assert len(await client.gather_chats(["q"] * 100, model="GPT-5")) == 100
        outcomes = [outcome async for outcome in client.iter_chats(["q"] * 60, model="GPT-5")]
        assert [outcome.error for outcome in outcomes] == [None] * 60


async def test_a_fan_out_takes_no_places_of_users():
    limits = Limits(requests_per_minute=600, burst=2, max_pending=50)
    async with AsyncOneLLM(transport=FakeTransport("hi", delay=0.05), limits=limits) as client:
        batch = asyncio.create_task(client.gather_chats(["q"] * 200, model="GPT-5"))
        await asyncio.sleep(1)
        replies = await asyncio.gather(*chats(client, 50))
        assert all(isinstance(reply, ChatResponse) for reply in replies)
        await batch


async def test_of_a_crowd_as_many_wait_as_may_beside_a_fan_out():
    async with AsyncOneLLM(transport=FakeTransport("hi", delay=0.05), limits=BUSY) as client:
        batch = asyncio.create_task(client.gather_chats(["q"] * 200, model="GPT-5"))
        await asyncio.sleep(1)
        replies = await asyncio.gather(*chats(client, 15), return_exceptions=True)
        shed = [reply for reply in replies if isinstance(reply, QueueFullError)]
        assert len(shed) == 5
        assert {error.pending for error in shed} == {10}
        assert {error.attempts for error in shed} == {0}
        batch.cancel()
        await asyncio.wait([batch])


async def test_one_that_was_sent_before_is_never_turned_away_and_takes_no_place():
    slots = limiter(max_concurrency=1, max_pending=2)
    failed = await slots.acquire()
    newcomers = wait(slots, 2)
    await asyncio.sleep(0)
    again = asyncio.create_task(slots.acquire(order=failed.order))
    await asyncio.sleep(0)
    assert (slots.core.waiting, slots.core.pending) == (3, 2)
    failed.release()
    (await again).answered()
    held = await newcomers[0]
    last = wait(slots, 1)
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await slots.acquire()
    held.answered()
    for task in [newcomers[1], *last]:
        (await task).answered()


async def test_requests_that_wait_for_ready_are_not_turned_away_and_do_not_count():
    slots, patient = limiter(max_concurrency=1, max_pending=1), RequestGroup(wait_for_ready=True)
    held = await slots.acquire()
    many = wait(slots, 20, group=patient)
    single = wait(slots, 1, group=RequestGroup(wait_for_ready=False))
    await asyncio.sleep(0)
    assert (slots.core.waiting, slots.core.pending) == (21, 1)
    with pytest.raises(QueueFullError, match=r"Queue full: 1 request is queued \(Limits\.max_pending\)\. Estimated"):
        await slots.acquire(group=RequestGroup(wait_for_ready=False))
    held.answered()
    for task in many + single:
        (await task).answered()
    assert slots.core.pending == 0


def over():
    return RequestCancelledError("over")


@pytest.mark.parametrize("end", ["granted", "cancelled", "expired", "closed", "ended"])
async def test_a_place_is_free_again_however_its_wait_ended(end):
    slots, group = limiter(max_concurrency=1, max_pending=3), RequestGroup(wait_for_ready=False)
    held = await slots.acquire()
    tasks = wait(slots, 3, group=group, deadline=5.0 if end == "expired" else None)
    await asyncio.sleep(0)
    assert slots.core.pending == 3
    match end:
        case "granted":
            held.answered()
            for task in tasks:
                (await task).answered()
        case "cancelled":
            for task in tasks:
                task.cancel()
        case "expired":
            await asyncio.sleep(6)
        case "closed":
            slots.close()
        case "ended":
            slots.cancel_group(group, over)
    await asyncio.wait(tasks)
    assert (slots.core.pending, slots.core.waiting) == (0, 0)
    for task in tasks:
        assert task.cancelled() or task.exception() is not None or end == "granted"
    held.answered()


async def test_where_none_may_wait_the_error_says_so():
    slots = limiter(max_concurrency=1, max_pending=0)
    held = await slots.acquire()
    with pytest.raises(QueueFullError, match=r"Queue full: no request may wait \(Limits\.max_pending\)\. "):
        await slots.acquire()
    held.answered()


# Groups that take turns


def group():
    return RequestGroup(wait_for_ready=False, take_turns=True)


async def test_the_single_request_of_a_group_does_not_wait_for_the_flood_of_another():
    slots, flood, single = limiter(requests_per_minute=60, burst=1), group(), group()
    waiting = wait(slots, 100, group=flood)
    await asyncio.sleep(0.5)
    begun = asyncio.get_running_loop().time()
    permit = await slots.acquire(group=single)
    assert asyncio.get_running_loop().time() - begun <= 2.1
    permit.answered()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_groups_with_much_to_do_share_a_lane_equally():
    slots, sent = limiter(requests_per_minute=60, burst=1), []

    async def ask(name, own):
        (await slots.acquire(group=own)).answered()
        sent.append(name)

    groups = {name: group() for name in "abc"}
    tasks = [asyncio.create_task(ask(name, own)) for name, own in groups.items() for _ in range(50)]
    await asyncio.sleep(60)
    assert {sent.count(name) for name in "abc"} <= {19, 20}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_group_alone_leaves_a_ninth_of_the_queue_to_others():
    slots, flood = limiter(requests_per_minute=6, burst=1, max_pending=90), group()
    results = asyncio.gather(*wait(slots, 200, group=flood), return_exceptions=True)
    await asyncio.sleep(1)
    assert slots.snapshot().pending == 80
    late = wait(slots, 5, group=group())
    await asyncio.sleep(25)
    assert sum(task.done() and task.exception() is None for task in late) == 1
    slots.close()
    full = [each for each in await results if isinstance(each, QueueFullError)]
    assert len(full) == 119
    assert "80 requests are queued, 80 of them of this group" in str(full[-1])
    await asyncio.gather(*late, return_exceptions=True)


async def test_the_retry_after_of_a_group_is_the_wait_of_its_own_turn():
    slots, flood = limiter(requests_per_minute=60, burst=1, max_pending=9), group()
    waiting = wait(slots, 9, group=flood)
    await asyncio.sleep(0)
    waiting += wait(slots, 1, group=group())
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as of_another:
        await slots.acquire(group=group())
    with pytest.raises(QueueFullError) as of_the_flood:
        await slots.acquire(group=flood)
    assert of_another.value.retry_after == pytest.approx(3, abs=0.3)
    assert of_the_flood.value.retry_after == pytest.approx(10, abs=0.6)
    slots.close()
    await asyncio.gather(*waiting, return_exceptions=True)
