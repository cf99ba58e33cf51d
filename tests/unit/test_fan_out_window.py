import asyncio

import attrs
import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeTransport

pytestmark = pytest.mark.virtual_time


async def test_a_fan_out_under_way_widens_its_window_when_more_concurrency_is_allowed():
    service = FakeTransport("Hello", delay=1)
    async with AsyncOneLLM(transport=service, limits=Limits.unlimited(max_concurrency=2)) as client:
        asyncio.get_running_loop().call_later(
            2.5, lambda: client.retune(attrs.evolve(client.limits, max_concurrency=10))
        )
        replies = await client.gather_chats([f"{number}" for number in range(40)], model="GPT-5")
    assert len(replies) == 40
    assert service.max_in_flight == 10


async def test_a_short_list_has_no_more_workers_than_prompts():
    async with AsyncOneLLM(
        transport=FakeTransport("Hello", delay=1), limits=Limits.unlimited(max_concurrency=1000)
    ) as client:
        fan_out = asyncio.create_task(client.gather_chats(["a", "b"], model="GPT-5"))
        await asyncio.sleep(0.5)
        assert len(asyncio.all_tasks()) == 2 + 2
        await fan_out
