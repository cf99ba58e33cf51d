"""The asyncio host, in virtual time."""

import asyncio
import math
import random
from random import Random

import pytest

from onellm_async.errors import ClientClosedError, ConfigurationError, DeadlineExceededError, QueueFullError
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits

pytestmark = pytest.mark.virtual_time


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


def now():
    return asyncio.get_running_loop().time()


def at_rest(limiter):
    core = limiter.core
    return core.in_flight == 0 and core.waiting == 0 and len(core.queue) == 0 and limiter.snapshot().at_rest


async def test_first_permit_is_there_at_once():
    slots = limiter()
    permit = await slots.acquire()
    permit.answered()
    assert now() == 0
    assert at_rest(slots)


async def test_sends_keep_to_burst_and_rate():
    slots = limiter(requests_per_minute=60, burst=5)
    times = []
    for _ in range(20):
        permit = await slots.acquire()
        times.append(now())
        permit.answered()
    for i, begin in enumerate(times):
        for j, end in enumerate(times[i:], i):
            assert j - i + 1 <= 5 + (end - begin) * 1.0 + 1e-6, (i, j)
    assert times[-1] <= 16.5


async def test_waiters_are_served_in_the_order_in_which_they_came():
    slots = limiter(max_concurrency=1, requests_per_minute=6e6, burst=1000)
    held = await slots.acquire()
    order = []

    async def wait(name):
        permit = await slots.acquire()
        order.append(name)
        permit.answered()

    tasks = [asyncio.create_task(wait(i)) for i in range(10)]
    await asyncio.sleep(0)
    held.answered()
    newcomer = asyncio.create_task(wait("newcomer"))
    await asyncio.gather(*tasks, newcomer)
    assert order == [*range(10), "newcomer"]
    assert at_rest(slots)


async def test_slot_bounds_what_is_in_flight():
    slots = limiter(max_concurrency=3, requests_per_minute=6e6, burst=1000)
    flying = peak = 0

    async def request():
        nonlocal flying, peak
        permit = await slots.acquire()
        flying += 1
        peak = max(peak, flying)
        await asyncio.sleep(1)
        flying -= 1
        permit.answered()

    await asyncio.gather(*(request() for _ in range(12)))
    assert peak == 3
    assert now() == pytest.approx(4, abs=0.01)
    assert at_rest(slots)


async def test_cancelled_waiter_leaves_no_trace():
    slots = limiter(max_concurrency=1)
    held = await slots.acquire()
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.answered()
    assert at_rest(slots)


async def test_waiter_cancelled_in_the_very_turn_of_its_grant_gives_it_back():
    slots = limiter(max_concurrency=1, requests_per_minute=6e6, burst=1000)
    held = await slots.acquire()
    cancelled, next_one = (asyncio.create_task(slots.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    held.answered()  # grants the first waiter …
    cancelled.cancel()  # … which is gone before it can run
    permit = await next_one
    assert cancelled.cancelled()
    permit.answered()
    assert at_rest(slots)


async def test_waiter_cancelled_just_before_a_grant_does_not_swallow_it():
    slots = limiter(max_concurrency=1, requests_per_minute=6e6, burst=1000)
    held = await slots.acquire()
    cancelled, next_one = (asyncio.create_task(slots.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    held.answered()
    (await next_one).answered()
    assert at_rest(slots)


async def test_refused_request_returns_to_the_head_and_slows_everybody():
    slots = limiter(requests_per_minute=60, burst=10)
    first = await slots.acquire()
    later = [asyncio.create_task(slots.acquire()) for _ in range(9)]
    await asyncio.sleep(0)
    sent = sum(task.done() for task in later)
    first.rate_limited()
    again = await slots.acquire(order=first.order)
    assert now() > 0.5, "the bucket is taken for empty"
    assert sum(task.done() for task in later) == sent < 9
    again.answered()
    for task in later:
        (await task).answered()
    assert at_rest(slots)


async def test_retry_after_closes_the_gate_for_all_and_never_opens_it_earlier():
    slots = limiter(requests_per_minute=6000, burst=100)
    first, second = await slots.acquire(), await slots.acquire()
    first.rate_limited(retry_after=20)
    second.rate_limited(retry_after=5)
    await slots.acquire()
    assert now() >= 20


async def test_request_that_never_reached_the_service_costs_nothing():
    slots = limiter(requests_per_minute=60, burst=1)
    for _ in range(50):
        (await slots.acquire()).give_back()
    assert now() < 10


async def test_only_the_first_end_of_a_permit_counts():
    slots = limiter(max_concurrency=2)
    permit = await slots.acquire()
    permit.answered()
    permit.release()
    permit.rate_limited()
    permit.give_back()
    permit.answered()
    assert slots.core.in_flight == 0


async def test_deadline_that_cannot_be_met_fails_at_once():
    slots = limiter(requests_per_minute=60, burst=1)
    (await slots.acquire()).answered()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(10)]
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceededError, match=r"The deadline is 5.0 s away, but the queue takes about 1"):
        await slots.acquire(deadline=now() + 5)
    assert now() == 0
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert at_rest(slots)


async def test_deadline_passing_in_the_queue_ends_the_wait_on_time():
    slots = limiter(max_concurrency=1)
    held = await slots.acquire()
    with pytest.raises(DeadlineExceededError, match="while the request waited"):
        await slots.acquire(deadline=now() + 7)
    assert now() == pytest.approx(7)
    held.answered()
    assert at_rest(slots)


async def test_more_than_max_pending_are_shed_with_the_length_of_the_queue():
    slots = limiter(max_concurrency=1, max_pending=2)
    held = await slots.acquire()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    told = r"Queue full: 2 requests are queued \(Limits\.max_pending\)\. Estimated wait: "
    with pytest.raises(QueueFullError, match=told) as shed:
        await slots.acquire()
    assert shed.value.pending == 2
    assert math.isfinite(shed.value.retry_after)
    held.answered()
    for task in waiting:
        (await task).answered()


async def test_refused_request_is_never_shed():
    slots = limiter(max_concurrency=1, max_pending=0, requests_per_minute=600)
    permit = await slots.acquire()
    permit.rate_limited()
    again = await slots.acquire(order=permit.order)
    again.answered()
    assert at_rest(slots)


async def test_closing_ends_every_wait():
    slots = limiter(max_concurrency=1)
    held = await slots.acquire()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(5)]
    await asyncio.sleep(0)
    slots.close()
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, ClientClosedError)
    held.answered()
    assert at_rest(slots)


async def test_while_the_service_is_down_one_probe_goes_and_success_frees_all():
    slots = limiter(requests_per_minute=6000, burst=100)
    straggler = await slots.acquire()
    slots.open_circuit(now() + 15)
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(5)]
    await asyncio.sleep(14)
    assert not any(task.done() for task in waiting)
    await asyncio.sleep(10)
    assert [task.done() for task in waiting] == [True, False, False, False, False], "one probe, stragglers or not"
    probe = waiting[0].result()
    probe.give_back()
    await asyncio.sleep(1)
    assert sum(task.done() for task in waiting) == 2, "a probe that came to nothing is followed by another"
    slots.close_circuit()
    await asyncio.sleep(1)
    assert all(task.done() for task in waiting)
    straggler.answered()


async def test_tokens_are_taken_on_estimate_and_settled_to_the_reply():
    slots = limiter(requests_per_minute=6000, burst=100, tokens_per_minute=600)
    (await slots.acquire(tokens=600)).answered(100)  # 500 come back
    (await slots.acquire(tokens=500)).answered(500)
    assert now() == pytest.approx(0, abs=0.3)
    (await slots.acquire(tokens=100)).answered(100)
    assert now() == pytest.approx(10, abs=0.3)


async def test_reply_longer_than_its_estimate_leaves_a_debt():
    slots = limiter(requests_per_minute=6000, burst=100, tokens_per_minute=600)
    (await slots.acquire(tokens=10)).answered(1200)
    (await slots.acquire(tokens=10)).answered(10)
    assert now() == pytest.approx(61, abs=0.3)


async def test_oversize_request_runs_alone_from_a_full_bucket_instead_of_hanging():
    slots = limiter(requests_per_minute=6000, burst=100, tokens_per_minute=600)
    (await slots.acquire(tokens=60)).answered(60)
    (await slots.acquire(tokens=5000)).answered(5000)
    assert now() == pytest.approx(6, abs=0.3)


async def test_large_request_is_not_starved_by_small_ones():
    slots = limiter(requests_per_minute=6e5, burst=1000, tokens_per_minute=600)
    (await slots.acquire(tokens=600)).answered()
    order = []

    async def request(name, tokens):
        (await slots.acquire(tokens=tokens)).answered(tokens)
        order.append(name)

    tasks = [asyncio.create_task(request("large", 500))]
    tasks += [asyncio.create_task(request(f"small {i}", 1)) for i in range(20)]
    await asyncio.gather(*tasks)
    assert order[0] == "large"


async def test_thousands_cancelled_in_any_order_leave_nothing():
    slots = limiter(requests_per_minute=60, burst=1)
    (await slots.acquire()).answered()
    tasks = [asyncio.create_task(slots.acquire()) for _ in range(3000)]
    await asyncio.sleep(0)
    random.Random(1).shuffle(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert at_rest(slots)
    (await slots.acquire()).answered()


async def test_unknown_lane_is_refused():
    with pytest.raises(ConfigurationError, match="'fast'"):
        await limiter().acquire(lane="fast")


async def test_without_a_rate_refusals_are_answered_by_backing_off():
    slots = Limiter(Limits.unlimited(), random=Random(3))
    waits = []
    for _ in range(8):
        began = now()
        permit = await slots.acquire()
        waits.append(now() - began)
        permit.rate_limited()
    assert waits[0] == 0
    assert max(waits) <= 30
    assert sum(waits[4:]) > sum(waits[:4])
    await asyncio.sleep(60)
    (await slots.acquire()).answered()
    permit = await slots.acquire()
    began = now()
    permit.rate_limited()
    await slots.acquire()
    assert now() - began <= 1, "an answer forgets the refusals before it"


async def test_permanent_disagreement_with_the_declared_rate_lowers_it():
    slots = limiter(requests_per_minute=600, burst=10)
    served, budget = 0, 10.0  # the service really gives 2 a second
    last = now()
    refused = 0
    while served < 200:
        permit = await slots.acquire()
        budget = min(10.0, budget + 2 * (now() - last))
        last = now()
        await asyncio.sleep(0)
        if budget >= 1:
            budget -= 1
            served += 1
            permit.answered()
        else:
            refused += 1
            permit.rate_limited()
    assert refused < 100
    assert now() < 200


async def test_idle_returns_when_the_last_permit_is_back():
    slots = limiter()
    permits = [await slots.acquire() for _ in range(3)]
    idle = asyncio.create_task(slots.idle())
    for permit in permits:
        await asyncio.sleep(1)
        assert not idle.done()
        permit.release()
    await idle
    await slots.idle()
