import asyncio
import threading
import time

import pytest

from onellm_async.simulation.clock import DeadlockError, run_in_virtual_time


def test_a_year_of_waiting_takes_no_time_and_ends_on_time():
    async def wait():
        await asyncio.sleep(365 * 86400)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(wait()) == 365 * 86400


def test_timers_ring_in_the_order_of_their_times():
    async def wait():
        rung = []
        loop = asyncio.get_running_loop()
        for delay in (3, 1, 2):
            loop.call_later(delay, lambda delay=delay: rung.append((loop.time(), delay)))
        await asyncio.sleep(4)
        return rung

    assert run_in_virtual_time(wait()) == [(1, 1), (2, 2), (3, 3)]


def test_another_thread_can_still_wake_the_loop():
    async def wait():
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(woken.set_result, "awake"))
        thread.start()
        word = await woken
        thread.join()
        return word, loop.time()

    assert run_in_virtual_time(wait()) == ("awake", 0)


def test_a_thread_that_still_works_at_the_end_is_waited_for():
    ended = []

    def work():
        time.sleep(0.02)  # a thread knows no virtual time
        ended.append("thread")

    async def start():
        asyncio.get_running_loop().run_in_executor(None, work)

    run_in_virtual_time(start())  # Python 3.12 and later would warn that it was given up after 300 s
    assert ended == ["thread"]


def test_a_deadlock_is_told_instead_of_hanging(monkeypatch):
    monkeypatch.setattr("onellm_async.simulation.clock._MAX_REAL_WAIT", 0.01)

    async def wait():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError, match="Every task waits"):
        run_in_virtual_time(wait())
