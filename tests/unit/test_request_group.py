import asyncio

import pytest

from onellm_async import AsyncOneLLM, Attempt, ChatRequest, Limits, RequestGroup, RetryPolicy
from onellm_async.errors import (
    APIConnectionError,
    BudgetExceededError,
    CircuitOpenError,
    ConfigurationError,
    RequestCancelledError,
)
from onellm_async.failure_kinds import FailureKind
from onellm_async.testing import FakeTransport, answer

pytestmark = pytest.mark.virtual_time

REQUEST = ChatRequest("GPT-5-Nano", "Hi")
BREAK = APIConnectionError("refused", kind=FailureKind.CANNOT_CONNECT)


class Hooks:
    """Runs a function before each attempt, and remembers what failed."""

    def __init__(self, before_sending=None):
        self._before_sending = before_sending
        self.failed: list[int] = []

    async def before_sending(self, attempt: Attempt) -> None:
        if self._before_sending is not None:
            await self._before_sending(attempt)

    def after_failing(self, possibly_billed: int) -> None:
        self.failed.append(possibly_billed)


def client_over(transport: FakeTransport, **settings: object) -> AsyncOneLLM:
    return AsyncOneLLM(transport=transport, **settings)  # type: ignore[arg-type]


async def test_attempt_hooks_run_before_each_attempt_and_after_each_failure():
    transport = FakeTransport([APIConnectionError("reset"), 429, "Hello"])
    announced: list[tuple[Attempt, int]] = []

    async def before_sending(attempt: Attempt) -> None:
        await asyncio.sleep(0)
        announced.append((attempt, len(transport.requests)))

    hooks = Hooks(before_sending)
    async with client_over(transport) as client:
        response = await client.send(REQUEST, group=RequestGroup(), attempt_hooks=hooks)
    assert response.content == "Hello"
    assert announced == [(Attempt(1, 0), 0), (Attempt(2, 1), 1), (Attempt(2, 1), 2)]
    assert hooks.failed == [1, 1]


async def test_what_forbids_an_attempt_ends_the_request_unsent_and_gives_everything_back():
    async def forbid(attempt: Attempt) -> None:
        raise BudgetExceededError("Nothing is left.")

    transport = FakeTransport("Hello")
    limits = Limits(max_concurrency=1, requests_per_minute=1, burst=1)
    async with client_over(transport, limits=limits) as client:
        with pytest.raises(BudgetExceededError) as caught:
            await client.send(REQUEST, attempt_hooks=Hooks(forbid))
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
        task = asyncio.create_task(client.send(REQUEST, attempt_hooks=Hooks(never)))
        await asked.wait()
        task.cancel()
        await asyncio.wait({task})
        assert client.snapshot().at_rest
        await client.send(REQUEST)
    assert len(transport.requests) == 1


async def test_a_request_cancelled_by_its_group_during_its_announcement_is_not_sent():
    transport = FakeTransport("Hello")
    async with client_over(transport) as client:
        group = RequestGroup()

        async def cancel(attempt: Attempt) -> None:
            group.cancel()

        with pytest.raises(RequestCancelledError) as caught:
            await client.send(REQUEST, group=group, attempt_hooks=Hooks(cancel))
    assert (caught.value.attempts, len(transport.requests)) == (0, 0)


@pytest.mark.parametrize("used", [False, True], ids=["before its first request", "after its first request"])
async def test_a_cancelled_group_sends_nothing_more_while_other_requests_go_on(used):
    transport = FakeTransport("Hello")
    async with client_over(transport, retry=RetryPolicy(max_attempts=1)) as client:
        group = RequestGroup()
        if used:
            await client.send(REQUEST, group=group)
        group.cancel()
        with pytest.raises(RequestCancelledError):
            await client.send(REQUEST, group=group)
        assert (await client.send(REQUEST)).content == "Hello"


async def test_cancelling_a_group_ends_queued_requests_and_backoff_but_nothing_in_flight():
    transport = FakeTransport(lambda request: 500 if request.prompt == "fails" else answer("Hello", delay=9))
    limits, retry = Limits(max_concurrency=1), RetryPolicy(backoff_base=1000, backoff_cap=1000)
    async with client_over(transport, limits=limits, retry=retry) as client:
        group = RequestGroup()
        failing = asyncio.create_task(client.send(ChatRequest("GPT-5", "fails"), group=group))
        await asyncio.sleep(0.5)
        sent, queued = (asyncio.create_task(client.send(REQUEST, group=group)) for _ in range(2))
        await asyncio.sleep(1)
        group.cancel()
        ended = await asyncio.gather(failing, queued, return_exceptions=True)
        assert [type(error) for error in ended] == [RequestCancelledError] * 2
        assert not sent.done()
        assert (await sent).content == "Hello"


async def test_requests_of_a_fail_fast_group_do_not_wait_for_an_open_circuit():
    retry = RetryPolicy(max_attempts=1, breaker_failures=3, breaker_wait=60)
    async with client_over(FakeTransport(BREAK), retry=retry) as client:
        for _ in range(3):
            with pytest.raises(APIConnectionError):
                await client.send(REQUEST)
        with pytest.raises(CircuitOpenError):
            await client.send(REQUEST, group=RequestGroup(wait_for_ready=False))
        waiting = asyncio.create_task(client.send(REQUEST, group=RequestGroup(answered=True)))
        await asyncio.sleep(1)
        assert not waiting.done()
        waiting.cancel()


async def test_a_group_that_never_retries_what_may_be_billed_does_not():
    for ambiguous, attempts in ((True, 4), (False, 1)):
        async with client_over(FakeTransport(503)) as client:
            group = RequestGroup(retry_ambiguous=ambiguous)
            with pytest.raises(Exception, match="503") as caught:
                await client.send(REQUEST, group=group)
        assert caught.value.attempts == attempts  # type: ignore[attr-defined]


async def test_a_group_of_another_client_is_refused():
    group = RequestGroup()
    async with client_over(FakeTransport("Hello")) as one, client_over(FakeTransport("Hello")) as other:
        await one.send(REQUEST, group=group)
        with pytest.raises(ConfigurationError, match="group belongs to another client"):
            await other.send(REQUEST, group=group)
