"""What the checks of the bots of the examples share."""

import asyncio
from collections.abc import Callable

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeTransport


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what others do, who set no event."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def faked(reply: object) -> tuple[FakeTransport, AsyncOneLLM]:
    """A client without a service, and its transport."""
    transport = FakeTransport(reply)
    return transport, AsyncOneLLM(transport=transport, limits=Limits.unlimited())
