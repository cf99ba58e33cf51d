"""A request that comes back has the place that it had, whatever it was sent back by; in virtual time."""

import asyncio
from random import Random

import pytest

from onellm_async.errors import DeadlineExceededError
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import LANES, Limits
from onellm_async.limits.queue import QUEUED, Queue, Ticket

pytestmark = pytest.mark.virtual_time


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


def now():
    return asyncio.get_running_loop().time()


ENDS = {
    "refused": lambda permit: permit.rate_limited(),
    "failed": lambda permit: permit.release(),
    "never arrived": lambda permit: permit.give_back(),
    "answered with an error": lambda permit: permit.answered(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("backoff", [0.0, 2.5])
async def test_a_request_that_comes_back_is_next_in_its_lane(end, lane, backoff):
    slots, answered = limiter(requests_per_minute=60, burst=1), []

    async def request(number):
        permit = await slots.acquire(lane=lane)
        if number == 0:
            await asyncio.sleep(0.1)
            ENDS[end](permit)
            await asyncio.sleep(backoff)
            permit = await slots.acquire(lane=lane, order=permit.order)
        answered.append(number)
        permit.answered()

    await asyncio.gather(*(request(number) for number in range(13)))
    left_meanwhile = int(backoff) + (end == "never arrived")  # which leaves its token to the next
    assert answered.index(0) == left_meanwhile, "before all that had to wait for longer"


async def test_those_that_come_back_keep_their_order_among_themselves():
    slots = limiter(max_concurrency=5, requests_per_minute=6e5, burst=1000)
    first = [await slots.acquire() for _ in range(5)]
    later = [asyncio.create_task(slots.acquire()) for _ in range(5)]
    await asyncio.sleep(0)
    order = []

    async def come_back(permit):
        again = await slots.acquire(order=permit.order)
        order.append(again.order)
        again.answered()

    slots.pause()
    for permit in first:
        permit.release()
    tasks = []
    for which in (3, 0, 4, 1, 2):
        tasks.append(asyncio.create_task(come_back(first[which])))
        await asyncio.sleep(1)
    slots.resume()
    await asyncio.gather(*tasks)
    for task in later:
        (await task).answered()
    assert order == [0, 1, 2, 3, 4]


async def test_a_batch_request_that_comes_back_does_not_overtake_users():
    slots = limiter(requests_per_minute=60, burst=1)
    failed = await slots.acquire(lane="batch")
    users = [asyncio.create_task(slots.acquire(lane="interactive")) for _ in range(3)]
    await asyncio.sleep(0)
    failed.release()
    again = asyncio.create_task(slots.acquire(lane="batch", order=failed.order))
    for _ in range(2):
        await asyncio.sleep(1.1)
    assert sum(task.done() for task in users) >= 1
    for task in [*users, again]:
        (await task).answered()


async def test_a_deadline_still_ends_the_wait_of_one_that_comes_back():
    slots = limiter(max_concurrency=1)
    held = await slots.acquire()
    with pytest.raises(DeadlineExceededError):
        await slots.acquire(order=held.order, deadline=now() + 7)
    assert now() == 7
    held.answered()


async def test_its_wait_begins_anew():
    slots = limiter(max_concurrency=1)
    failed = await slots.acquire()
    await asyncio.sleep(50)
    other = asyncio.create_task(slots.acquire())
    await asyncio.sleep(5)
    again = asyncio.create_task(slots.acquire(order=failed.order))
    await asyncio.sleep(1)
    assert slots.snapshot().longest_wait["default"] == 6
    other.cancel()
    await asyncio.wait([other])
    assert slots.snapshot().longest_wait["default"] == 1
    failed.release()
    (await again).answered()


def test_thousands_that_came_back_and_were_withdrawn_or_sent_leave_nothing():
    queue = Queue(LANES)
    tickets = [Ticket("batch", deadline=1e6, order=number) for number in range(5000)]
    for ticket in tickets:
        queue.push(ticket, requeued=True)
    for ticket in tickets[::-1][:4900]:
        queue.cancel(ticket)
    assert len(queue._lanes["batch"].requeued) <= 250
    for _ in range(90):
        head = queue.head()
        assert head.state == QUEUED
        queue.pop(head)
        head.state = 1
    assert len(queue) == 10
    assert len(queue._deadlines) <= 64
    assert [ticket.order for ticket in queue.drain()] == list(range(90, 100))
