"""Pausing and retuning while requests wait and are under way, in virtual time."""

import asyncio
from random import Random

import pytest

from onellm_async.errors import DeadlineExceededError, QueueFullError
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.simulation.clock import run_in_virtual_time

pytestmark = pytest.mark.virtual_time

FAST = {"requests_per_minute": 6e5, "burst": 1000}


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


def now():
    return asyncio.get_running_loop().time()


def at_rest(limiter):
    core = limiter.core
    return core.in_flight == 0 and core.waiting == 0 and len(core.queue) == 0 and limiter.snapshot().at_rest


def wait(slots, number, **options):
    return [asyncio.create_task(slots.acquire(**options)) for _ in range(number)]


def gone(tasks):
    return sum(task.done() for task in tasks)


async def finish(slots, tasks):
    for task in tasks:
        (await task).answered()
    assert at_rest(slots)


async def test_while_paused_nothing_leaves_and_after_it_everybody_does_in_order():
    slots = limiter(**FAST)
    (await slots.acquire()).answered()
    slots.pause()
    tasks = wait(slots, 5)
    await asyncio.sleep(1000)
    assert gone(tasks) == 0
    assert not slots.snapshot().timer_set, "nothing can happen by itself"
    slots.resume()
    await asyncio.sleep(1)
    assert [task.result().order for task in tasks] == [1, 2, 3, 4, 5]
    await finish(slots, tasks)


async def test_what_is_under_way_goes_on_during_a_pause():
    slots = limiter(max_concurrency=1, **FAST)
    held = await slots.acquire()
    tasks = wait(slots, 1)
    await asyncio.sleep(0)
    slots.pause()
    held.answered()
    await asyncio.sleep(10)
    assert slots.core.in_flight == 0
    assert gone(tasks) == 0
    slots.resume()
    await finish(slots, tasks)


async def test_a_deadline_passes_on_time_during_a_pause():
    slots = limiter(**FAST)
    slots.pause()
    with pytest.raises(DeadlineExceededError, match="while the request waited"):
        await slots.acquire(deadline=now() + 7)
    assert now() == pytest.approx(7)
    assert at_rest(slots)


async def test_nobody_is_hopeless_during_a_pause_however_long_the_queue():
    slots = limiter(requests_per_minute=1, burst=1)
    (await slots.acquire()).answered()
    slots.pause()
    tasks = wait(slots, 100)
    await asyncio.sleep(0)
    urgent = wait(slots, 1, deadline=now() + 5, lane="interactive")
    await asyncio.sleep(1)
    assert gone(urgent) == 0, "how long the pause lasts is not known"
    slots.retune(Limits(**FAST))
    slots.resume()
    await asyncio.sleep(1)
    await finish(slots, urgent + tasks)


async def test_a_full_queue_says_that_the_client_is_paused():
    slots = limiter(max_pending=1, **FAST)
    slots.pause()
    tasks = wait(slots, 1)
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match=r"Queue full: 1 request is queued .*The client is paused") as shed:
        await slots.acquire()
    assert shed.value.pending == 1
    slots.resume()
    await finish(slots, tasks)


async def test_a_waiter_cancelled_during_a_pause_leaves_no_trace():
    slots = limiter(**FAST)
    slots.pause()
    cancelled, stays = wait(slots, 2)
    await asyncio.sleep(1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    slots.resume()
    await finish(slots, [stays])


async def test_pausing_twice_is_pausing_once():
    slots = limiter(**FAST)
    slots.resume()
    slots.pause()
    slots.pause()
    tasks = wait(slots, 1)
    await asyncio.sleep(1)
    slots.resume()
    slots.resume()
    await finish(slots, tasks)


async def test_resuming_opens_neither_a_gate_nor_a_service_that_is_down():
    slots = limiter(**FAST)
    (await slots.acquire()).rate_limited(retry_after=20)
    slots.pause()
    tasks = wait(slots, 3)
    await asyncio.sleep(5)
    slots.resume()
    await asyncio.sleep(14)
    assert gone(tasks) == 0
    slots.open_circuit(now() + 30)
    slots.pause()
    slots.resume()
    await asyncio.sleep(29)
    assert gone(tasks) == 0
    await asyncio.sleep(2)
    assert gone(tasks) == 1, "the probe"
    slots.pause()
    slots.close_circuit()
    await asyncio.sleep(5)
    assert gone(tasks) == 1, "back, but paused"
    slots.resume()
    await finish(slots, tasks)


async def test_a_probe_that_fails_during_a_pause_is_followed_by_another_after_it():
    slots = limiter(**FAST)
    first = await slots.acquire()
    first.answered()
    slots.open_circuit(now() + 1)
    tasks = wait(slots, 2)
    await asyncio.sleep(2)
    assert gone(tasks) == 1
    slots.pause()
    tasks[0].result().give_back()
    await asyncio.sleep(5)
    assert gone(tasks) == 1
    slots.resume()
    await asyncio.sleep(0.1)
    assert gone(tasks) == 2
    slots.close_circuit()
    tasks[1].result().answered()
    assert at_rest(slots)


async def test_lower_concurrency_waits_until_fewer_are_under_way():
    slots = limiter(max_concurrency=4, **FAST)
    held = [await slots.acquire() for _ in range(4)]
    tasks = wait(slots, 2)
    await asyncio.sleep(0)
    slots.retune(Limits(max_concurrency=2, **FAST))
    assert slots.core.in_flight == 4
    for expected, permit in zip((0, 0, 1, 2), held, strict=True):
        permit.answered()
        await asyncio.sleep(0.1)
        assert gone(tasks) == expected
    await finish(slots, tasks)


async def test_higher_concurrency_and_rate_take_effect_at_once():
    slots = limiter(max_concurrency=1, requests_per_minute=1, burst=1)
    held = await slots.acquire()
    tasks = wait(slots, 30)
    await asyncio.sleep(1)
    slots.retune(Limits(max_concurrency=100, **FAST))
    await asyncio.sleep(0.5)
    assert gone(tasks) == 30
    held.answered()
    await finish(slots, tasks)


async def test_a_lower_rate_holds_from_then_on():
    slots = limiter(requests_per_minute=600, burst=1)
    (await slots.acquire()).answered()
    tasks = wait(slots, 5)
    await asyncio.sleep(0)
    slots.retune(Limits(requests_per_minute=60, burst=1))
    for task in tasks:
        (await task).answered()
    assert 4 <= now() <= 6


async def test_tokens_per_minute_can_be_introduced_changed_and_dropped_under_way():
    slots = limiter(**FAST)
    early = await slots.acquire()
    slots.retune(Limits(tokens_per_minute=600, **FAST))
    early.answered(600)  # sent without an estimate; it counts all the same
    began = now()
    (await slots.acquire(tokens=100)).answered(100)
    assert now() - began == pytest.approx(10, abs=0.3)
    slots.retune(Limits(tokens_per_minute=6000, **FAST))
    began = now()
    (await slots.acquire(tokens=100)).answered(100)
    assert now() - began == pytest.approx(1, abs=0.1)
    tasks = wait(slots, 1, tokens=6000)
    await asyncio.sleep(0.1)
    slots.retune(Limits(**FAST))
    await asyncio.sleep(0.1)
    assert gone(tasks) == 1
    await finish(slots, tasks)


async def test_a_lower_max_pending_sheds_newcomers_and_nobody_who_waits():
    slots = limiter(max_concurrency=1, **FAST)
    held = await slots.acquire()
    tasks = wait(slots, 3)
    await asyncio.sleep(0)
    slots.retune(Limits(max_concurrency=1, max_pending=2, **FAST))
    with pytest.raises(QueueFullError, match="3 requests are queued"):
        await slots.acquire()
    held.answered()
    await finish(slots, tasks)


async def test_a_rate_can_be_discovered_from_now_on_and_dropped_again():
    slots = limiter(requests_per_minute=60, burst=1)
    (await slots.acquire()).answered()
    tasks = wait(slots, 3)
    await asyncio.sleep(0)
    slots.retune(Limits(requests_per_minute="auto"))
    await asyncio.sleep(1)
    assert gone(tasks) == 3
    await finish(slots, tasks)
    slots.retune(Limits.unlimited())
    await finish(slots, wait(slots, 500))


async def test_retuning_during_a_gate_leaves_it_shut():
    slots = limiter(**FAST)
    (await slots.acquire()).rate_limited(retry_after=20)
    tasks = wait(slots, 3)
    await asyncio.sleep(1)
    slots.retune(Limits(requests_per_minute=6e4, burst=100))
    await asyncio.sleep(18)
    assert gone(tasks) == 0
    await asyncio.sleep(2)
    assert gone(tasks) == 3
    await finish(slots, tasks)


async def test_retuning_while_paused_waits_for_the_end_of_the_pause():
    slots = limiter(requests_per_minute=1, burst=1)
    slots.pause()
    tasks = wait(slots, 10)
    await asyncio.sleep(1)
    slots.retune(Limits(**FAST))
    await asyncio.sleep(1)
    assert gone(tasks) == 0
    slots.resume()
    await asyncio.sleep(1)
    assert gone(tasks) == 10
    await finish(slots, tasks)


def test_what_was_said_before_the_loop_runs_holds_in_it_and_in_the_next_one():
    slots = limiter(requests_per_minute=1, burst=1)
    slots.retune(Limits(max_concurrency=3, **FAST))
    slots.pause()

    async def paused():
        tasks = wait(slots, 5)
        await asyncio.sleep(10)
        assert gone(tasks) == 0
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert at_rest(slots)

    async def resumed():
        tasks = wait(slots, 5)
        await asyncio.sleep(1)
        assert gone(tasks) == 3
        await finish(slots, tasks)

    run_in_virtual_time(paused())
    run_in_virtual_time(paused())
    slots.retune(Limits(max_concurrency=3, max_pending=50, **FAST))
    slots.resume()
    run_in_virtual_time(resumed())
    assert slots.core.answers == 5


def test_a_retry_after_holds_in_the_next_loop_too_but_never_longer_than_it_may():
    slots = limiter(**FAST)

    async def refused():
        await asyncio.sleep(5000)
        (await slots.acquire()).rate_limited(retry_after=300)

    async def asked_again():
        await finish(slots, wait(slots, 1))
        return now()

    run_in_virtual_time(refused())
    assert 295 <= run_in_virtual_time(asked_again()) <= 301, "the clock of the next loop starts at 0 again"


async def test_a_declared_bucket_keeps_its_level_when_it_is_declared_anew():
    held = limiter(requests_per_minute=60, burst=40)
    for _ in range(30):
        (await held.acquire()).answered()
    before = held.snapshot().level
    held.retune(Limits(requests_per_minute=600, burst=40))
    assert held.snapshot().rate == 600
    assert held.snapshot().level == before < 40


async def test_what_was_found_out_stays_known_when_only_the_tests_of_it_become_rarer():
    found = RateState(rate=2.0, burst=10, low=1.9, high=2.1)
    held = Limiter(Limits(requests_per_minute="auto"), random=Random(1), state=found)
    (await held.acquire()).answered()
    held.retune(Limits(requests_per_minute="auto", probe_every=50))
    assert held.snapshot().rate == 120
    held.retune(Limits(requests_per_minute=60, burst=5))
    assert held.snapshot().rate == 60
