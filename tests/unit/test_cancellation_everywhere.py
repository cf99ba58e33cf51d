"""A request is cancelled at each of its awaits in turn, in every situation; nothing may leak and nobody else notice."""

import asyncio
import types
from random import Random

import pytest

from onellm_async.chat import ChatRequest
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import APIConnectionError
from onellm_async.failure_kinds import FailureKind
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeTransport, failure

MODEL = "GPT-5-Nano"
ANSWER = {"content": "there"}
REFUSAL = failure(429, headers={"Retry-After": "3"})
ERROR = 500
BREAK = APIConnectionError("refused", kind=FailureKind.CANNOT_CONNECT)


def scripted(script):
    """Answers what contains "victim" by the script, each reply after a second, and all others at once."""
    steps = list(script)
    return FakeTransport(lambda request: steps.pop(0) if "victim" in request.prompt and steps else ANSWER, delay=1)


@types.coroutine
def cancelled_at(coroutine, number, *, while_waiting):
    """Runs `coroutine`, and cancels its task at its suspension `number`: while it waits, or as it is to be woken."""
    task, loop, count, result = asyncio.current_task(), asyncio.get_running_loop(), 0, (coroutine.send, None)
    while True:
        step, value = result
        try:
            waits_for = step(value)
        except StopIteration as end:
            return end.value
        count += 1
        if count == number:
            if while_waiting or waits_for is None:
                loop.call_soon(task.cancel)
            else:
                waits_for.add_done_callback(lambda _: task.cancel())
        try:
            result = (coroutine.send, (yield waits_for))
        except BaseException as error:
            result = (coroutine.throw, error)


NARROW = Limits(max_concurrency=1, requests_per_minute=6000, burst=100)
SITUATIONS = {
    "free": ([], Limits(max_concurrency=4, requests_per_minute=6000, burst=100), {}),
    "waiting for a slot": ([], NARROW, {}),
    "waiting for the rate": ([], Limits(max_concurrency=10, requests_per_minute=60, burst=1), {}),
    "waiting for tokens": (
        [],
        Limits(max_concurrency=10, requests_per_minute=6000, burst=100, tokens_per_minute=700),
        {},
    ),
    "with a deadline": ([], NARROW, {"deadline": 100}),
    "between attempts": ([ERROR, ERROR], NARROW, {}),
    "not processed": ([BREAK, BREAK], NARROW, {}),
    "put back by a refusal": ([REFUSAL, REFUSAL], NARROW, {}),
    "a refusal, then an error, with a deadline": (
        [REFUSAL, ERROR],
        Limits(max_concurrency=4, requests_per_minute=600, burst=5),
        {"deadline": 100},
    ),
    "while the service is down": ([BREAK] * 3, NARROW, {}),
}


async def others_answers(client):
    return [reply.content for reply in await client.gather_chats([f"other {i}" for i in range(4)], model=MODEL)]


async def run(situation, number, while_waiting, fan_out):
    """Returns whether the cancellation came before the end, and everything that others can see."""
    script, limits, options = SITUATIONS[situation]
    down = situation == "while the service is down"
    retry = RetryPolicy(breaker_failures=1 if down else 0, breaker_wait=5.0)
    transport = scripted(script)
    before = asyncio.all_tasks()
    async with AsyncOneLLM(transport=transport, limits=limits, retry=retry, random=Random(1)) as client:
        others = asyncio.create_task(others_answers(client))
        await asyncio.sleep(0)
        if fan_out:
            asking = client.gather_chats([f"victim {i}" for i in range(3)], model=MODEL, **options)
        else:
            asking = client.send(ChatRequest(MODEL, "victim"), lane="batch", group=RequestGroup(), **options)
        victim = asyncio.create_task(_awaited(cancelled_at(asking, number, while_waiting=while_waiting)))
        await asyncio.wait({victim})
        cancelled = victim.cancelled()
        assert cancelled or victim.exception() is None
        told = await others
        await asyncio.sleep(0)
        said = client.snapshot()
        assert said.at_rest, said
        assert transport.in_flight == 0
        assert [reply.content for reply in await client.gather_chats(["after"], model=MODEL)] == ["there"]
    assert asyncio.all_tasks() == before
    assert asyncio.get_running_loop().pending_timers() == 0
    return cancelled, told


async def _awaited(awaitable):
    return await awaitable


@pytest.mark.parametrize("fan_out", [False, True], ids=["send", "gather_chats"])
@pytest.mark.parametrize("while_waiting", [True, False], ids=["while waiting", "in the turn of waking"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_cancelled_at_any_await_it_leaves_no_trace(situation, while_waiting, fan_out):
    for number in range(1, 200):
        cancelled, told = run_in_virtual_time(run(situation, number, while_waiting, fan_out))
        assert told == ["there"] * 4
        if not cancelled:
            break
    else:
        pytest.fail("it never came to its end")
    assert number > 1, "there was at least one await to be cancelled at"


@pytest.mark.parametrize("leaves", [False, True], ids=["still waiting", "under way"])
def test_a_cancelled_request_has_spent_its_share_of_the_rate_only_if_it_left(leaves):
    async def run():
        transport = scripted([])
        async with AsyncOneLLM(
            transport=transport, limits=Limits(max_concurrency=1, requests_per_minute=0.06, burst=10), random=Random(1)
        ) as client:
            held = asyncio.create_task(client.chat("other", model=MODEL))
            await asyncio.sleep(0 if not leaves else 2)
            rate, loop = client._sender._limiter.core.rate, asyncio.get_running_loop()
            before = rate.time_until(9, loop.time())
            asking = client.send(ChatRequest(MODEL, "victim"))
            task = asyncio.create_task(_awaited(cancelled_at(asking, 1, while_waiting=True)))
            await asyncio.wait({task})
            assert task.cancelled()
            after = rate.time_until(9, loop.time())
            await held
            assert client.snapshot().at_rest
            return (after - before) * 0.001

    assert run_in_virtual_time(run()) == pytest.approx(1.0 if leaves else 0.0, abs=0.01)
