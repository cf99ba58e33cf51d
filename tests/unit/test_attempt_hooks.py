"""What the owner of a single request is told of each attempt."""

import asyncio

import pytest

from onellm_async import AsyncOneLLM, BudgetExceededError, ChatRequest, DeadlineExceededError, RetryPolicy
from onellm_async.call import Attempt
from onellm_async.testing import FakeTransport, hang

REQUEST = ChatRequest("GPT-5-Nano", "Hello")


class Recorder:
    def __init__(self, forbidden: int = 0) -> None:
        self.seen: list[str] = []
        self._forbidden = forbidden

    async def before_sending(self, attempt: Attempt) -> None:
        if attempt.number == self._forbidden:
            raise BudgetExceededError("The cost cap is reached.")
        self.seen.append(f"send {attempt.number}, possibly billed {attempt.possibly_billed}")

    def after_failing(self, possibly_billed: int) -> None:
        self.seen.append(f"failed, possibly billed {possibly_billed}")


@pytest.mark.virtual_time
async def test_a_single_request_reports_each_attempt_before_and_after() -> None:
    recorder = Recorder()
    transport = FakeTransport([429, 502, 500, "Hi"])
    async with AsyncOneLLM(transport=transport, retry=RetryPolicy()) as client:
        reply = await client.send(REQUEST, attempt_hooks=recorder)
    assert reply.content == "Hi"
    assert recorder.seen == [
        "send 1, possibly billed 0",
        "failed, possibly billed 0",
        "send 1, possibly billed 0",
        "failed, possibly billed 1",
        "send 2, possibly billed 1",
        "failed, possibly billed 1",
        "send 3, possibly billed 1",
    ]


@pytest.mark.virtual_time
async def test_an_attempt_can_be_forbidden_and_is_not_sent() -> None:
    recorder = Recorder(forbidden=2)
    transport = FakeTransport([502, "never"])
    async with AsyncOneLLM(transport=transport) as client:
        with pytest.raises(BudgetExceededError) as raised:
            await client.send(REQUEST, attempt_hooks=recorder)
    assert len(transport.requests) == 1
    assert raised.value.possibly_billed == 1


@pytest.mark.virtual_time
async def test_an_attempt_that_is_cut_off_in_flight_has_no_end_of_its_own() -> None:
    recorder = Recorder()
    async with AsyncOneLLM(transport=FakeTransport([hang()])) as client:
        with pytest.raises(DeadlineExceededError):
            await client.send(REQUEST, deadline=5, attempt_hooks=recorder)
        sending = asyncio.create_task(client.send(REQUEST, attempt_hooks=recorder))
        await asyncio.sleep(1)
        sending.cancel()
        await asyncio.wait({sending})
    assert recorder.seen == ["send 1, possibly billed 0"] * 2
