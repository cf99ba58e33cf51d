"""Closing without hanging up: a client over this transport awaits what is under way when it is closed."""

import asyncio

from onellm_async.transport import RawReply, Transport

__all__ = ["DrainingTransport"]


class DrainingTransport:
    """Carries requests through `inner`, and closes it only when the last answer is there.

    Requests under way are paid for. So ``client.aclose()`` ends what waits, refuses what is new, and lets these finish.

    Args:
        inner: What carries the requests, such as `onellm_async.transport.AiohttpTransport`.

    Example:
        ::

            client = AsyncOneLLM(transport=DrainingTransport(AiohttpTransport(url, key, Timeout())))
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def post(self, body: bytes) -> RawReply:
        """Like the inner transport's."""
        self._under_way += 1
        self._idle.clear()
        try:
            return await self._inner.post(body)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def aclose(self) -> None:
        """Waits for the answers of what is under way, then closes the inner transport."""
        await self._idle.wait()
        await self._inner.aclose()
