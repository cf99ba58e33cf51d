"""One limiter, several event loops, one after the other."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from onellm_async import AsyncOneLLM
from onellm_async.errors import ClientClosedError, ConfigurationError, RequestCancelledError
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import Limits
from onellm_async.simulation.clock import VirtualClockLoop
from onellm_async.testing import FakeTransport

FAST = {"requests_per_minute": 6e5, "burst": 1000}


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


@contextmanager
def loops(*kinds: type[asyncio.AbstractEventLoop]) -> Iterator[list[asyncio.AbstractEventLoop]]:
    """Event loops that run only when told to."""
    made = [kind() for kind in kinds]
    try:
        yield made
    finally:
        for loop in made:
            if not loop.is_closed():
                for task in asyncio.all_tasks(loop):
                    task.cancel()
                    loop.run_until_complete(asyncio.wait([task]))
                loop.close()


def turn(loop, seconds=0.0):
    loop.run_until_complete(asyncio.sleep(seconds))


def start(loop, coroutine):
    task = loop.create_task(coroutine)
    turn(loop, 0.001)
    return task


BOTH = pytest.mark.parametrize("kind", [asyncio.SelectorEventLoop, VirtualClockLoop], ids=["real", "virtual"])


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
        permit.release()
        await idle

    asyncio.run(wait_until_idle())
    asyncio.run(wait_until_idle())


ENDS = {
    "answered": lambda permit: permit.answered(),
    "refused": lambda permit: permit.rate_limited(0.05),
    "overloaded": lambda permit: permit.overloaded(),
    "given back": lambda permit: permit.give_back(),
    "settled": lambda permit: permit.release(),
}


@BOTH
@pytest.mark.parametrize("end", ENDS)
def test_a_permit_settles_in_the_loop_that_granted_it(kind, end):
    slots = limiter(max_concurrency=2, tokens_per_minute=6e6, **FAST)
    with loops(kind, kind) as (first, second):
        permit = start(first, slots.acquire(tokens=10)).result()
        for _ in range(3):
            start(second, slots.acquire(tokens=10)).result().answered(10)
        assert slots.snapshot().in_flight == 0
        ENDS[end](permit)
        turn(first)
        assert slots.snapshot().in_flight == 0
        turn(first, 0.1)
        one, two, three = (start(first, slots.acquire()) for _ in range(3))
        assert (one.done(), two.done() or end == "overloaded", three.done()) == (True, True, False)
        one.result().answered()
        turn(first, 0.01)
        two.result().answered()
        turn(first, 0.01)
        three.result().answered()
        first.run_until_complete(slots.idle())


@BOTH
def test_what_is_in_flight_in_a_loop_that_was_stopped_still_holds_its_slot_there(kind):
    slots = limiter(max_concurrency=2, **FAST)
    with loops(kind, kind) as (first, second):
        held = start(first, slots.acquire()).result()
        one, two, three = (start(second, slots.acquire()) for _ in range(3))
        assert (one.done(), two.done(), three.done()) == (True, True, False), "a loop that may never go on holds none"
        for task in (one, two, three):
            turn(second, 0.01)
            task.result().answered()
        here, waiting = (start(first, slots.acquire()) for _ in range(2))
        assert (here.done(), waiting.done(), slots.snapshot().in_flight) == (True, False, 2)
        held.answered()
        turn(first, 0.01)
        here.result().answered()
        waiting.result().answered()
        assert slots.snapshot().in_flight == 0


@BOTH
@pytest.mark.parametrize("left", ["in flight", "open"])
def test_what_waits_in_a_loop_that_was_stopped_goes_on_with_it(kind, left):
    slots = limiter(requests_per_minute=6000, burst=1)
    with loops(kind, kind) as (first, second):
        start(first, slots.acquire()).result().answered()
        waiting = [start(first, slots.acquire()) for _ in range(3)]
        other = start(second, slots.acquire())
        turn(second, 0.15)
        if left == "open":
            other.result().answered()
        for task in waiting:
            turn(first, 0.15)
            task.result().answered()
        assert slots.snapshot().at_rest
        if left == "in flight":
            other.result().answered()
        assert slots.snapshot().at_rest


@BOTH
def test_what_waits_in_a_loop_that_was_stopped_hears_of_a_resume_in_another(kind):
    slots = limiter(max_concurrency=1, **FAST)
    with loops(kind, kind) as (first, second):
        start(first, slots.acquire()).result().answered()
        slots.pause()
        waiting = start(first, slots.acquire())
        paused = start(second, slots.acquire())
        assert not paused.done()
        slots.resume()
        turn(second, 0.01)
        paused.result().answered()
        turn(first, 0.01)
        waiting.result().answered()


def test_a_retune_in_another_loop_holds_in_the_one_that_was_stopped():
    slots = limiter(max_concurrency=1, requests_per_minute=1, burst=1)
    with loops(VirtualClockLoop, VirtualClockLoop) as (first, second):
        start(first, slots.acquire()).result().answered()
        waiting = [start(first, slots.acquire()) for _ in range(3)]
        other = start(second, slots.acquire())
        slots.retune(Limits(max_concurrency=5, tokens_per_minute=1e6, **FAST))
        turn(second, 0.01)
        other.result().answered(7)
        turn(first, 0.01)
        assert [task.done() for task in waiting] == [True, True, True]
        for task in waiting:
            task.result().answered(7)
        assert slots.snapshot().tokens_level == pytest.approx(1e6, abs=100)


def test_what_is_granted_while_another_loop_runs_is_told_that_the_client_is_in_use():
    slots = limiter(requests_per_minute=600, burst=1)
    go_on, stop = threading.Event(), threading.Event()

    async def held():
        (await slots.acquire()).answered()
        go_on.set()
        await asyncio.to_thread(stop.wait)

    with loops(asyncio.SelectorEventLoop) as (first,):
        permit = start(first, slots.acquire()).result()
        waiting = start(first, slots.acquire())
        other = threading.Thread(target=lambda: asyncio.run(held()))
        other.start()
        go_on.wait(10)
        permit.answered()
        with pytest.raises(ConfigurationError, match="another running event loop"):
            first.run_until_complete(asyncio.wait_for(waiting, 10))
        assert slots.snapshot().in_flight == 0, "of the loop that runs"
        stop.set()
        other.join()


@pytest.mark.parametrize("ending", ["aclose", "drain"])
def test_closing_in_a_new_loop_what_waits_in_a_closed_one_is_no_error(ending, recwarn):
    client = AsyncOneLLM(transport=FakeTransport(delay=3600), limits=Limits.unlimited(1))
    first = asyncio.SelectorEventLoop()
    tasks = [first.create_task(client.chat("x", model="GPT-5")) for _ in range(4)]
    turn(first, 0.01)
    first.close()
    del first

    async def end():
        await getattr(client, ending)()
        client._sender.open()
        chat = asyncio.create_task(client.chat("y", model="GPT-5"))
        await asyncio.sleep(0)
        assert client.snapshot().in_flight == 1
        assert client.snapshot().unanswered == 1, "of the loop that is gone"
        chat.cancel()
        await asyncio.wait([chat])
        await client.aclose()

    asyncio.run(end())
    assert client.snapshot().at_rest
    for task in tasks:
        task._log_destroy_pending = False
        task.get_coro().close()


def test_ending_a_group_that_waits_in_a_closed_loop_is_no_error():
    slots, group = limiter(max_concurrency=1), RequestGroup(wait_for_ready=False)
    first = asyncio.SelectorEventLoop()
    tasks = [first.create_task(slots.acquire(group=group)) for _ in range(3)]
    turn(first)
    first.close()
    slots.cancel_group(group, lambda: RequestCancelledError("over"))
    slots.resume()
    slots.retune(Limits(max_concurrency=5))
    slots.close()
    for task in tasks:
        task._log_destroy_pending = False
        task.get_coro().close()
    assert slots.core.waiting == 0


def test_closing_ends_what_waits_in_a_loop_that_was_stopped():
    slots = limiter(max_concurrency=1)
    with loops(VirtualClockLoop, VirtualClockLoop) as (first, second):
        held = start(first, slots.acquire()).result()
        waiting = start(first, slots.acquire())
        start(second, slots.acquire()).result().answered()
        slots.close()
        turn(first)
        with pytest.raises(ClientClosedError):
            waiting.result()
        held.answered()
        assert slots.snapshot().at_rest


FORKED = """
import asyncio, os
from onellm_async import AsyncOneLLM, ConfigurationError
from onellm_async.testing import FakeTransport

client = AsyncOneLLM(transport=FakeTransport("hi"))

async def main():
    await client.chat("x", model="GPT-5")
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    try:
        asyncio.run(client.chat("x", model="GPT-5"))
    except ConfigurationError as error:
        print(error, flush=True)
    os._exit(0)

asyncio.run(main())
if not (child := os.fork()):
    print(asyncio.run(client.chat("x", model="GPT-5")).content, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_child_forked_from_a_running_loop_hears_of_the_fork():
    told = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=True)
    lines = told.stdout.splitlines()
    assert lines[0].startswith("This client was made before this process was forked, and the parent's event loop is")
    assert lines[0].endswith("Make a client in each process, after the fork.")
    assert lines[1] == "hi", "one that no loop uses can be used in the child"
