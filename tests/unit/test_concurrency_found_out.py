"""`max_concurrency="auto"` of a client: fan-outs and runs follow the number that is found out."""

import asyncio
from random import Random

import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Limits
from onellm_async.testing import FakeRequest, FakeTransport, Reply, failure

pytestmark = pytest.mark.virtual_time
LIMITS = Limits(max_concurrency="auto", requests_per_minute=600_000, burst=10_000)


class Places:
    """A service with so many places: one more request fails at once."""

    def __init__(self, places: int) -> None:
        self.places, self.in_flight, self.most, self.faults = places, 0, 0, 0
        self.transport = FakeTransport(self._reply)

    async def _reply(self, request: FakeRequest) -> Reply:
        if self.in_flight >= self.places:
            self.faults += 1
            return failure(529, "Overloaded")
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0.5)
        self.in_flight -= 1
        return "Hi"


async def test_a_fan_out_has_as_many_workers_as_are_found_out() -> None:
    service = Places(8)
    async with AsyncOneLLM(transport=service.transport, limits=LIMITS, random=Random(1)) as client:
        outcomes = client.iter_chats((str(number) for number in range(400)), model="GPT-5")
        tasks = [len(asyncio.all_tasks()) async for _ in outcomes]
        assert client.snapshot().concurrency <= 12
    assert min(tasks[:4]) < 12, "it begins with four"
    assert max(tasks) < 30
    assert asyncio.get_running_loop().time() < 400 / 8 * 0.5 / 0.8
    assert service.most == 8


async def test_a_fan_out_of_a_list_grows_with_the_service() -> None:
    transport = FakeTransport(delay=1.0)
    async with AsyncOneLLM(transport=transport, limits=LIMITS, random=Random(1)) as client:
        await client.gather_chats(["x"] * 508, model="GPT-5")
    assert asyncio.get_running_loop().time() < 8, "4, 8, 16, … at once"


@pytest.mark.parametrize("value", ["all", 0, True, 1.5, None])
def test_what_is_no_number_of_slots_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"Limits.max_concurrency is"):
        Limits(max_concurrency=value)  # type: ignore[arg-type]
