"""A transport to the pure local service, without sockets: the delays and failures of a network in virtual time."""

import asyncio
from collections.abc import Mapping
from random import Random

from onellm_async.errors import APIConnectionError, APITimeoutError, FailureKind
from onellm_async.server.backends import echo
from onellm_async.server.connection_wait import wait_for_connection
from onellm_async.server.jobs import Job, ServerReply
from onellm_async.server.service import PATH, Service
from onellm_async.simulation.scenario import Network
from onellm_async.transport import RawReply

_CONNECTION_LOST = "The connection to the simulated service was lost."
_UNREACHABLE = "The simulated service cannot be reached."


class ServiceTransport:
    """Carries requests to a `Service` as a network would.

    Args:
        service: The service.
        key: API key sent with each request.
        random: Source of jitter and stalls.
        network: Delays and failures between client and service.
    """

    def __init__(self, service: Service, key: str, *, random: Random, network: Network | None = None) -> None:
        self._service = service
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._network = network if network is not None else Network()
        self._random = random
        self.sent_at: list[float] = []
        """Virtual time at which each request was sent."""

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> RawReply:
        """Carries one request to the service and its reply back; its headers mean nothing to the service.

        Raises:
            APIConnectionError: If an outage or the service's fault plan breaks the connection.
            APITimeoutError: If no reply comes within the network's timeout.
        """
        self.sent_at.append(asyncio.get_running_loop().time())
        if self._network.timeout is None:
            return await self._exchange(body)
        try:
            async with asyncio.timeout(self._network.timeout):
                return await self._exchange(body)
        except TimeoutError:
            text = f"No answer within {self._network.timeout:g} s."
            raise APITimeoutError(text) from None

    async def _exchange(self, body: bytes) -> RawReply:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._delay())
        outage = self._network.outage_at(loop.time())
        if outage is not None and outage.kind == "unreachable":
            raise APIConnectionError(_UNREACHABLE, kind=FailureKind.CANNOT_CONNECT)
        if outage is not None or (self._network.stall_rate and self._random.random() < self._network.stall_rate):
            await loop.create_future()
        received = self._service.receive("POST", PATH, self._headers, body, loop.time())
        if isinstance(received, RawReply):
            await asyncio.sleep(self._delay())
            return received
        return await self._process(received)

    async def _process(self, job: Job) -> RawReply:
        if self._service.settings.faults.database_places is not None:
            late = await self._wait_for_database(job)
            if late is not None and late.reply is not None:
                await asyncio.sleep(self._delay())
                return late.reply
        try:
            await asyncio.sleep(job.plan.latency)
        except asyncio.CancelledError:  # the service does not notice that the client is gone, and bills the answer
            if self._service.apply_fault(job) is None:
                self._service.complete(job, echo(job), disconnected=True)
            raise
        answer = self._service.apply_fault(job) or self._service.complete(job, echo(job))
        await asyncio.sleep(self._delay())
        if answer.reply is None or answer.truncated:
            raise APIConnectionError(_CONNECTION_LOST)
        return answer.reply

    async def _wait_for_database(self, job: Job) -> ServerReply | None:
        try:
            return await wait_for_connection(self._service, job)
        except asyncio.CancelledError:
            self._service.abandon(job)
            raise

    async def aclose(self) -> None:
        """Does nothing: there is nothing to close."""

    def _delay(self) -> float:
        return self._network.delay + self._random.uniform(0, self._network.jitter)
