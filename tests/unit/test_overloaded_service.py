"""A service that cannot take as much at once as the client sends: everything is answered, with less concurrency."""

import asyncio
import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.transport import RawReply

pytestmark = pytest.mark.virtual_time

POOL: Mapping[str, Any] = {"code": 401, "output": {"error": "pool timed out while waiting for an open connection"}}
LATENCY, PLACES, PATIENCE = 0.3, 4, 1.0


class Database:
    """A service with four places in its database: who waits longer than a second for one gets a 401."""

    def __init__(self, fault: RawReply | None = None) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self._fault = fault or RawReply(200, {}, json.dumps(POOL).encode())
        self.answered = self.faults = 0

    async def post(self, body: bytes) -> RawReply:
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
        return RawReply(200, {}, b'{"content":"x","usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2}}')

    async def aclose(self) -> None:
        return None


FAULTS = {
    "a 401 of the database": None,
    "a 500 of the database": RawReply(200, {}, b'{"code":500,"output":{"error":"sorry, too many clients already"}}'),
    "529": RawReply(529, {}, b'{"error":{"type":"overloaded_error","message":"Overloaded"}}'),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_forty_chats_at_once_are_all_answered_by_a_service_with_four_places(fault: str) -> None:
    service = Database(FAULTS[fault])
    async with AsyncOneLLM(transport=service, random=Random(1)) as client:
        replies = await asyncio.gather(*(client.chat("x", model="GPT-5-Mini") for _ in range(40)))
    assert len(replies) == 40
    assert service.answered == 40
    assert {reply.possibly_billed for reply in replies} == {0}
    assert asyncio.get_running_loop().time() < 60


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fan_out_of_400_is_answered_by_a_service_with_four_places(fault: str) -> None:
    service = Database(FAULTS[fault])
    limits = Limits(requests_per_minute=60_000, burst=1000)
    async with AsyncOneLLM(transport=service, limits=limits, random=Random(1)) as client:
        replies = await client.gather_chats(["x"] * 400, model="GPT-5-Mini")
        assert len(replies) == 400
        assert client.snapshot().at_rest
    assert service.answered == 400
    best = 400 * LATENCY / PLACES
    assert asyncio.get_running_loop().time() < 10 + best / 0.8
    assert service.faults < 60


async def test_one_request_alone_that_finds_no_place_again_and_again_fails_in_the_end() -> None:
    service = Database()
    async with AsyncOneLLM(transport=service, random=Random(1)) as client:
        for _ in range(PLACES):
            await service._places.acquire()
        with pytest.raises(Exception, match="pool timed out"):
            await client.chat("x", model="GPT-5-Mini")
    assert service.faults <= 5
