"""A service that cannot take as much at once as the client sends: everything is answered, with less concurrency."""

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeRequest, FakeTransport, Reply, failure

pytestmark = pytest.mark.virtual_time

POOL: Mapping[str, Any] = {"code": 401, "output": {"error": "pool timed out while waiting for an open connection"}}
LATENCY, PLACES, PATIENCE = 0.3, 4, 1.0


class Database:
    """A service with four places in its database: who waits longer than a second for one gets a 401."""

    def __init__(self, fault: Reply = POOL) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self._fault = fault
        self.answered = self.faults = 0
        self.transport = FakeTransport(self._reply)

    async def _reply(self, request: FakeRequest) -> Reply:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._places.acquire()
        except TimeoutError:
            self.faults += 1
            return self._fault
        try:
            await asyncio.sleep(LATENCY)
        finally:
            self._places.release()
        self.answered += 1
        return "x"


FAULTS = {
    "a 401 of the database": POOL,
    "a 500 of the database": {"code": 500, "output": {"error": "sorry, too many clients already"}},
    "529": failure(529, "Overloaded"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_forty_chats_at_once_are_all_answered_by_a_service_with_four_places(fault: str) -> None:
    service = Database(FAULTS[fault])
    async with AsyncOneLLM(transport=service.transport, random=Random(1)) as client:
        replies = await asyncio.gather(*(client.chat("x", model="GPT-5-Mini") for _ in range(40)))
    assert len(replies) == 40
    assert service.answered == 40
    assert {reply.possibly_billed for reply in replies} == {0}
    assert asyncio.get_running_loop().time() < 60


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fan_out_of_400_is_answered_by_a_service_with_four_places(fault: str) -> None:
    service = Database(FAULTS[fault])
    limits = Limits(requests_per_minute=60_000, burst=1000)
    async with AsyncOneLLM(transport=service.transport, limits=limits, random=Random(1)) as client:
        replies = await client.gather_chats(["x"] * 400, model="GPT-5-Mini")
        assert len(replies) == 400
        assert client.snapshot().at_rest
    assert service.answered == 400
    best = 400 * LATENCY / PLACES
    assert asyncio.get_running_loop().time() < 10 + best / 0.8
    assert service.faults < 60


async def test_one_request_alone_that_finds_no_place_again_and_again_fails_in_the_end() -> None:
    service = Database()
    async with AsyncOneLLM(transport=service.transport, random=Random(1)) as client:
        for _ in range(PLACES):
            await service._places.acquire()
        with pytest.raises(Exception, match="pool timed out"):
            await client.chat("x", model="GPT-5-Mini")
    assert service.faults <= 5
