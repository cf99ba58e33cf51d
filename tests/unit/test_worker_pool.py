import asyncio
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.worker_pool import WorkerPool, spread


async def unused(item):
    raise AssertionError(item)


def new_pool(capacity):
    return WorkerPool(unused, capacity=capacity)


def work_items(number):
    return [SimpleNamespace(index=index) for index in range(number)]


async def filled(number, capacity=1000):
    pool = new_pool(capacity)
    for work_item in work_items(number):
        await pool.put(work_item)
    return pool


async def taken(pool, number):
    return [(await pool.take()).index for _ in range(number)]


async def test_prompts_come_in_the_order_of_the_input():
    assert await taken(await filled(5), 5) == [0, 1, 2, 3, 4]


async def test_who_puts_waits_for_room_and_who_takes_for_prompts():
    pool = new_pool(2)
    putting = asyncio.create_task(put_all(pool, 10))
    assert await taken(pool, 10) == list(range(10))
    await putting
    taking = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    assert not taking.done()
    pool.close()
    assert await taking is None


async def put_all(pool, number):
    for work_item in work_items(number):
        await pool.put(work_item)


async def test_a_paused_pool_gives_nothing_and_reads_further_ahead():
    pool = new_pool(1)
    pool.pause(100)
    taking = asyncio.create_task(pool.take())
    await put_all(pool, 100)
    assert not taking.done()
    assert len(pool) == 100
    pool.resume(1)
    assert (await taking) is not None


@given(st.integers(1, 300))
def test_after_a_pause_nothing_is_lost_and_neighbors_lie_far_apart(number):
    async def main():
        pool = await filled(number)
        pool.pause(1000)
        pool.resume(1000, [SimpleNamespace(index=-1)])
        order = await taken(pool, number + 1)
        assert Counter(order) == Counter(range(-1, number))
        assert order[-1] == -1
        for tried in range(8, number, 8):  # any beginning lies evenly over the whole
            in_first_half = sum(place < number / 2 for place in order[:tried])
            assert abs(in_first_half - tried / 2) <= 2

    asyncio.run(main())


async def test_trials_come_from_places_far_apart():
    pool = await filled(1000)
    places = sorted(pool.take_from_afar(number, lambda work_item: True).index for number in range(8))
    gaps = [after - before for before, after in pairwise([0, *places, 1000])]
    assert max(gaps) < 250
    assert min(gaps[1:-1]) > 80


async def test_a_trial_is_taken_only_from_what_fits():
    pool = await filled(10)
    assert pool.take_from_afar(0, lambda work_item: work_item.index == 7).index == 7
    assert pool.take_from_afar(1, lambda work_item: work_item.index == 7) is None
    assert len(pool) == 9


async def test_what_is_put_back_comes_first_whether_or_not_there_is_room():
    pool = await filled(2, capacity=2)
    pool.put_back(SimpleNamespace(index=9))
    assert await taken(pool, 3) == [9, 0, 1]


async def test_a_waiter_that_is_cancelled_takes_no_turn_from_others():
    pool = new_pool(10)
    first, second = asyncio.create_task(pool.take()), asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    await pool.put(SimpleNamespace(index=0))
    first.cancel()
    assert (await asyncio.wait_for(second, 5)).index == 0
    with pytest.raises(asyncio.CancelledError):
        await first


def test_any_number_of_first_places_lie_evenly():
    for number in range(2, 100):
        places = sorted(spread(place) for place in range(number))
        assert max(after - before for before, after in pairwise(places)) < 2.7 / number


async def waits(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_a_cancelled_worker_ends_neither_the_source_nor_the_others_and_is_replaced():
    done, begun, go_on = [], [], asyncio.Event()

    async def work(item):
        begun.append(item)
        await go_on.wait()
        done.append(item)

    async def feed():
        for item in range(1, 101):
            await pool.put(item)

    pool = WorkerPool(work, capacity=0)
    pool.feed(feed())
    before = asyncio.all_tasks()
    pool.resize(3)
    workers = list(asyncio.all_tasks() - before)
    await waits(lambda: len(begun) == 3)
    workers[0].cancel()
    await waits(lambda: pool.size == 2)
    pool.resize(3)
    go_on.set()
    await pool.wait_for_input()
    pool.close()
    await pool.wait_until_ended()
    assert len(done) == 99


async def test_a_worker_that_ends_with_an_exception_is_an_error_of_the_pool():
    async def work(item):
        raise ZeroDivisionError

    async def feed():
        for item in range(100):
            await pool.put(item)

    pool = WorkerPool(work, capacity=0)
    pool.feed(feed())
    pool.resize(2)
    with pytest.raises(ZeroDivisionError):
        await pool.wait_for_input()
    with pytest.raises(ZeroDivisionError):
        await pool.wait_until_idle()
    await pool.aclose()


async def test_a_smaller_pool_ends_its_workers_after_their_items():
    sizes = []

    async def work(item):
        await asyncio.sleep(0)
        sizes.append(pool.size)

    async def feed():
        for item in range(1, 101):
            await pool.put(item)
            if item == 50:
                pool.resize(2)

    pool = WorkerPool(work, capacity=1)
    pool.feed(feed())
    pool.resize(10)
    await pool.wait_for_input()
    pool.close()
    await pool.wait_until_ended()
    assert (max(sizes), sizes[80]) == (10, 2)


async def test_an_item_that_was_handed_out_is_not_idle():
    pool = new_pool(1)
    taking = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    pool.put_nowait(SimpleNamespace(index=0))
    assert not pool.is_idle
    taking.cancel()
    await asyncio.wait({taking})
    assert (len(pool), pool.busy) == (1, 0)


async def test_idle_workers_take_from_a_source_without_a_feeder_and_nothing_once_it_is_closed():
    done = []

    async def work(item):
        await asyncio.sleep(0)
        done.append(item)

    def source():
        yield from range(10)
        pool.close()

    pool = WorkerPool(work, capacity=0, source=source())
    pool.resize(3)
    await pool.wait_until_ended()
    assert (done, pool.is_idle, pool.has_ended) == (list(range(10)), True, True)
    endless = WorkerPool(work, capacity=0, source=iter(int, 1))
    endless.resize(3)
    await asyncio.sleep(0)
    endless.close()
    await endless.wait_until_ended()
    assert done[10:] == [0] * 3
