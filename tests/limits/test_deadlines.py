"""A deadline that cannot be met is told at once, and only then; in virtual time."""

import asyncio
import json

import pytest

from onellm_async import AsyncOneLLM, DeadlineExceededError, Limits
from onellm_async.transport import RawReply

pytestmark = pytest.mark.virtual_time

REPLY = json.dumps({"content": "hi", "usage": {"input_tokens": 5, "output_tokens": 2}}).encode()


def now():
    return asyncio.get_running_loop().time()


class Models:
    """Answers after the seconds of the model that is asked; counts what it is sent."""

    def __init__(self, **seconds):
        self.seconds, self.sent = seconds, 0

    async def post(self, body):
        self.sent += 1
        await asyncio.sleep(self.seconds[json.loads(body)["model"]])
        return RawReply(200, {}, REPLY)

    async def aclose(self):
        pass


async def stop(task):
    task.cancel()
    await asyncio.wait([task])


async def test_a_slow_model_does_not_make_the_deadlines_of_another_hopeless():
    limits = Limits(requests_per_minute=120, burst=10)
    async with AsyncOneLLM(transport=Models(slow=5.0, fast=0.02), limits=limits) as client:
        batch = asyncio.create_task(client.gather_chats(["q"] * 100, model="slow"))
        await asyncio.sleep(6.5)
        for _ in range(5):
            began = now()
            await client.chat("user", model="fast", lane="interactive", deadline=4)
            assert now() - began < 4
            await asyncio.sleep(3)
        await stop(batch)


async def test_the_slow_model_itself_is_known_to_be_too_slow():
    service = Models(slow=5.0, fast=0.02)
    async with AsyncOneLLM(transport=service, limits=Limits(requests_per_minute=60, burst=1)) as client:
        await client.gather_chats(["q"] * 3, model="slow")
        await client.chat("x", model="fast")
        began, sent = now(), service.sent
        with pytest.raises(DeadlineExceededError, match=r"The deadline is 5\.5 s away, .* an answer usually 5\.0 s\."):
            await client.chat("user", model="slow", lane="interactive", deadline=5.5)
        assert (service.sent, now()) == (sent, began)
        await client.chat("user", model="slow", lane="interactive", deadline=7)


async def test_one_slow_answer_does_not_shed_a_model_for_good():
    service = Models(model=6.0, other=0.1)
    async with AsyncOneLLM(transport=service, limits=Limits(requests_per_minute=120, burst=1)) as client:
        batch = asyncio.create_task(client.gather_chats(["q"] * 1000, model="other"))
        await client.chat("cold start", model="model")
        service.seconds["model"] = 0.2
        answered = []
        for second in range(200):
            await asyncio.sleep(1)
            try:
                await client.chat("user", model="model", lane="interactive", deadline=4)
                answered.append(second)
            except DeadlineExceededError:
                assert not answered, "after the first answer it is known to be fast"
        assert len(answered) > 100
        await stop(batch)


async def test_users_behind_a_slow_batch_that_has_all_slots_wait_for_few_of_them():
    async with AsyncOneLLM(transport=Models(slow=40.0, fast=0.1), limits=Limits.unlimited(8)) as client:
        await client.chat("warm up", model="fast")
        batch = asyncio.create_task(client.gather_chats(["q"] * 100, model="slow"))
        await asyncio.sleep(45)
        users = [client.chat("user", model="fast", lane="interactive", deadline=60) for _ in range(30)]
        replies = await asyncio.gather(*users, return_exceptions=True)
        assert not [reply for reply in replies if isinstance(reply, Exception)]
        await stop(batch)


async def test_a_batch_that_ended_does_not_make_a_crowd_of_users_wait_on_paper():
    """Slots are released as fast as what is in flight now, not as what was answered last."""
    async with AsyncOneLLM(transport=Models(slow=40.0, fast=0.1), limits=Limits.unlimited(8)) as client:
        await client.chat("warm up", model="fast")
        await client.gather_chats(["q"] * 80, model="slow")
        await client.chat("user", model="fast")
        users = [client.chat("user", model="fast", deadline=4) for _ in range(100)]
        assert len(await asyncio.gather(*users)) == 100
