import asyncio

import pytest

from onellm_async import AsyncOneLLM, ChatRequest, Limits, RetryPolicy
from onellm_async.call import Attempt
from onellm_async.errors import APIConnectionError, BudgetExceededError, RequestCancelledError
from onellm_async.testing import FakeTransport

pytestmark = pytest.mark.virtual_time

REQUEST = ChatRequest("GPT-5-Nano", "Hi")


def client_over(transport: FakeTransport, **settings: object) -> AsyncOneLLM:
    return AsyncOneLLM(transport=transport, **settings)  # type: ignore[arg-type]


async def test_every_attempt_is_announced_before_it_leaves():
    transport = FakeTransport([APIConnectionError("reset"), 429, "Hello"])
    announced: list[tuple[Attempt, int]] = []

    async def before_sending(attempt: Attempt) -> None:
        await asyncio.sleep(0)
        announced.append((attempt, len(transport.requests)))

    async with client_over(transport) as client:
        response = await client.group().send(REQUEST, before_sending=before_sending)
    assert response.content == "Hello"
    assert announced == [(Attempt(1, 0), 0), (Attempt(2, 1), 1), (Attempt(2, 1), 2)]


async def test_what_forbids_an_attempt_ends_the_request_unsent_and_gives_everything_back():
    async def forbid(attempt: Attempt) -> None:
        raise BudgetExceededError("Nothing is left.")

    transport = FakeTransport("Hello")
    limits = Limits(max_concurrency=1, requests_per_minute=1, burst=1)
    async with client_over(transport, limits=limits) as client:
        with pytest.raises(BudgetExceededError) as caught:
            await client.group().send(REQUEST, before_sending=forbid)
        assert caught.value.attempts == 0
        assert len(transport.requests) == 0
        started = asyncio.get_running_loop().time()
        await client.send(REQUEST)
        assert asyncio.get_running_loop().time() - started < 1  # the first-burst pace, not the refill of a minute


async def test_cancelling_the_announcement_gives_everything_back():
    asked = asyncio.Event()

    async def never(attempt: Attempt) -> None:
        asked.set()
        await asyncio.Event().wait()

    transport = FakeTransport("Hello")
    async with client_over(transport, limits=Limits(max_concurrency=1)) as client:
        task = asyncio.create_task(client.group().send(REQUEST, before_sending=never))
        await asked.wait()
        task.cancel()
        await asyncio.wait({task})
        assert client.snapshot().at_rest
        await client.send(REQUEST)
    assert len(transport.requests) == 1


async def test_a_request_withdrawn_during_its_announcement_is_not_sent():
    transport = FakeTransport("Hello")
    async with client_over(transport) as client:
        group = client.group()

        async def withdraw(attempt: Attempt) -> None:
            group.withdraw()

        with pytest.raises(RequestCancelledError) as caught:
            await group.send(REQUEST, before_sending=withdraw)
    assert (caught.value.attempts, len(transport.requests)) == (0, 0)


async def test_a_withdrawn_group_sends_nothing_more_while_other_requests_go_on():
    transport = FakeTransport("Hello")
    async with client_over(transport, retry=RetryPolicy(max_attempts=1)) as client:
        group = client.group()
        group.withdraw()
        with pytest.raises(RequestCancelledError):
            await group.send(REQUEST)
        assert (await client.send(REQUEST)).content == "Hello"
