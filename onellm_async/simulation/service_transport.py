"""The way from a client to the pure local service, without sockets: delays and faults in virtual time."""

import asyncio
from random import Random

from onellm_async.errors import APIConnectionError, Fate
from onellm_async.server.backends import echo
from onellm_async.server.service import PATH, Service
from onellm_async.transport import RawReply

__all__ = ["ServiceTransport"]

_BROKEN = "The connection to the simulated service broke."


class ServiceTransport:
    """Carries requests to a `Service` as a network would.

    Args:
        service: Who answers.
        key: Sent with each request.
        travel: Median seconds that a request travels, and its reply again.
        travel_jitter: Seconds by which a way may be longer, uniformly.
        random: Where the jitter comes from.
    """

    def __init__(
        self, service: Service, key: str, *, travel: float = 0.02, travel_jitter: float = 0.02, random: Random
    ) -> None:
        self._service = service
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._travel = travel
        self._jitter = travel_jitter
        self._random = random
        self.sent_at: list[float] = []
        """When each request left, in virtual seconds."""

    async def post(self, body: bytes) -> RawReply:
        """Carries one request there and its reply back.

        Raises:
            APIConnectionError: If the service's fault plan breaks the connection.
        """
        loop = asyncio.get_running_loop()
        self.sent_at.append(loop.time())
        await asyncio.sleep(self._way())
        received = self._service.receive("POST", PATH, self._headers, body, loop.time())
        if isinstance(received, RawReply):
            await asyncio.sleep(self._way())
            return received
        await asyncio.sleep(received.plan.latency)
        delivery = self._service.doomed(received) or self._service.complete(received, echo(received))
        await asyncio.sleep(self._way())
        if delivery.reply is None or delivery.truncated:
            raise APIConnectionError(_BROKEN, fate=Fate.AMBIGUOUS)
        return delivery.reply

    async def aclose(self) -> None:
        """Holds nothing."""

    def _way(self) -> float:
        return self._travel + self._random.uniform(0, self._jitter)
