import asyncio
import json

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.events import Answered, Cancelled, Failed
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeReply, FakeTransport, answer, failure
from onellm_async.transport import RawReply

MODEL = "GPT-5-Nano"


@pytest.mark.parametrize(
    ("reply", "wait", "attempts", "billed"),
    [
        (answer("hi", delay=60), 5, 1, 1),  # in flight
        (500, 0.001, 1, 0),  # in backoff
    ],
    ids=["in flight", "in backoff"],
)
def test_a_cancelled_request_ends_with_an_event_that_says_what_may_be_billed(reply, wait, attempts, billed):
    async def ends():
        seen = []
        transport = FakeTransport(lambda request: reply)
        async with AsyncOneLLM(transport=transport, hooks=[seen.append]) as client:
            chat = asyncio.ensure_future(client.chat("x", model=MODEL, lane="interactive"))
            await asyncio.sleep(wait)
            chat.cancel()
            await asyncio.wait({chat})
        return seen

    end = run_in_virtual_time(ends())[-1]
    assert end == Cancelled(1, MODEL, end.at, attempts, pytest.approx(wait), billed, "interactive")


def test_one_that_is_cancelled_while_it_is_queued_was_never_sent():
    async def ends():
        seen = []
        transport = FakeTransport(lambda request: answer("hi"))
        async with AsyncOneLLM(transport=transport, hooks=[seen.append]) as client:
            client.pause()
            chats = [asyncio.ensure_future(client.chat("x", model=MODEL, deadline=deadline)) for deadline in (None, 9)]
            await asyncio.sleep(1)
            for chat in chats:
                chat.cancel()
            await asyncio.wait(chats)
        return seen

    ends_seen = [event for event in run_in_virtual_time(ends()) if isinstance(event, Cancelled)]
    assert [(end.attempts, end.possibly_billed) for end in ends_seen] == [(0, 0), (0, 0)]


def test_each_request_of_a_cancelled_fan_out_has_one_end():
    async def ends():
        seen = []

        def reply(request):
            return 422 if "bad" in request.messages[-1]["content"] else answer("hi", delay=1)

        client = AsyncOneLLM(transport=FakeTransport(reply), hooks=[seen.append], limits=Limits.unlimited(4))
        async with client:
            prompts = [f"{'bad' if n % 5 == 3 else 'good'} {n}" for n in range(40)]
            batch = asyncio.ensure_future(client.gather_chats(prompts, model=MODEL, return_exceptions=True))
            await asyncio.sleep(3.5)
            batch.cancel()
            await asyncio.wait({batch})
        return seen

    seen = run_in_virtual_time(ends())
    begun = {event.request for event in seen}
    ended = [event.request for event in seen if isinstance(event, Answered | Failed | Cancelled)]
    assert sorted(ended) == sorted(begun)
    assert any(isinstance(event, Cancelled) for event in seen)


def test_an_answer_says_what_an_exporter_needs():
    reply = {"content": "hi", "finish_reason": "MAX_TOKENS", "model": "nano-1", "provider": "openai"}

    async def first():
        seen = []
        last = FakeReply(raw=RawReply(200, {}, json.dumps(reply).encode()))
        replies = iter([429, failure(503), last])
        async with AsyncOneLLM(transport=FakeTransport(lambda request: next(replies)), hooks=[seen.append]) as client:
            await client.chat("x", model=MODEL, lane="batch")
        return seen[-1]

    end = run_in_virtual_time(first())
    assert (end.lane, end.rate_limited, end.possibly_billed, end.attempts) == ("batch", 1, 1, 2)
    assert (end.response_model, end.provider, end.finish_kind) == ("nano-1", "openai", "length")
