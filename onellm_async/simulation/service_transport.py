"""The way from a client to the pure local service, without sockets: delays and faults in virtual time."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Literal

from attrs import field, frozen
from attrs.validators import in_

from onellm_async.errors import APIConnectionError, APITimeoutError, FailureKind
from onellm_async.server.backends import echo
from onellm_async.server.connection_wait import wait_for_connection
from onellm_async.server.jobs import Job, ServerReply
from onellm_async.server.service import PATH, Service
from onellm_async.simulation.recorder import Recorder
from onellm_async.transport import RawReply

__all__ = ["Network", "Outage", "ServiceTransport"]

_BROKEN = "The connection to the simulated service broke."
_UNREACHABLE = "The simulated service cannot be reached."


@frozen
class Outage:
    """From `at` to `until` seconds nothing gets through.

    The service is ``"unreachable"``, or it is ``"silent"``: it takes what comes, and no answer ever follows.
    """

    at: float
    until: float
    kind: Literal["unreachable", "silent"] = field(default="unreachable", validator=in_(("unreachable", "silent")))


@frozen(kw_only=True)
class Network:
    """What lies between a client and the service.

    Attributes:
        travel: Least seconds that a request travels, and its reply again.
        travel_jitter: Seconds by which a way may be longer, uniformly.
        stall_rate: Share of the requests that get lost on the way, without a word.
        timeout: Seconds after which the client's transport stops waiting for a reply; None: never.
        outages: When nothing gets through.
    """

    travel: float = 0.02
    travel_jitter: float = 0.02
    stall_rate: float = 0.0
    timeout: float | None = None
    outages: Sequence[Outage] = ()

    def outage_at(self, now: float) -> Outage | None:
        """The outage that there is at that moment."""
        return next((outage for outage in self.outages if outage.at <= now < outage.until), None)


class ServiceTransport:
    """Carries requests to a `Service` as a network would.

    Args:
        service: Who answers.
        key: Sent with each request.
        travel: See `Network`, of which this and `travel_jitter` make one when `network` is None.
        travel_jitter: See `Network`.
        random: Where jitter and stalls come from.
        network: What lies between.
        recorder: Is told of each request that leaves, and of its end.
    """

    def __init__(
        self,
        service: Service,
        key: str,
        *,
        travel: float = 0.02,
        travel_jitter: float = 0.02,
        random: Random,
        network: Network | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._service = service
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._network = Network(travel=travel, travel_jitter=travel_jitter) if network is None else network
        self._random = random
        self._recorder = recorder
        self.sent_at: list[float] = []
        """When each request left, in virtual seconds."""

    async def post(self, body: bytes) -> RawReply:
        """Carries one request there and its reply back.

        Raises:
            APIConnectionError: If an outage or the service's fault plan breaks the connection.
            APITimeoutError: If no reply comes in time.
        """
        self.sent_at.append(asyncio.get_running_loop().time())
        if self._recorder is None:
            return await self._in_time(body)
        request, arrived = self._recorder.left(len(body)), True
        try:
            return await self._in_time(body)
        except APIConnectionError as error:
            arrived = error.kind is not FailureKind.CANNOT_CONNECT
            raise
        finally:
            self._recorder.returned(request, arrived=arrived)

    async def _in_time(self, body: bytes) -> RawReply:
        if self._network.timeout is None:
            return await self._carried(body)
        try:
            async with asyncio.timeout(self._network.timeout):
                return await self._carried(body)
        except TimeoutError:
            text = f"No answer within {self._network.timeout:g} s."
            raise APITimeoutError(text) from None

    async def _carried(self, body: bytes) -> RawReply:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._way())
        outage = self._network.outage_at(loop.time())
        if outage is not None and outage.kind == "unreachable":
            raise APIConnectionError(_UNREACHABLE, kind=FailureKind.CANNOT_CONNECT)
        if outage is not None or (self._network.stall_rate and self._random.random() < self._network.stall_rate):
            await loop.create_future()
        received = self._service.receive("POST", PATH, self._headers, body, loop.time())
        if isinstance(received, RawReply):
            await asyncio.sleep(self._way())
            return received
        return await self._answered(received)

    async def _answered(self, job: Job) -> RawReply:
        if self._service.settings.faults.database_places is not None:
            late = await self._placed(job)
            if late is not None and late.reply is not None:
                await asyncio.sleep(self._way())
                return late.reply
        try:
            await asyncio.sleep(job.plan.latency)
        except asyncio.CancelledError:  # the service does not know that nobody listens any more, and bills
            if self._service.apply_fault(job) is None:
                self._service.complete(job, echo(job), disconnected=True)
            raise
        delivery = self._service.apply_fault(job) or self._service.complete(job, echo(job))
        await asyncio.sleep(self._way())
        if delivery.reply is None or delivery.truncated:
            raise APIConnectionError(_BROKEN)
        return delivery.reply

    async def _placed(self, job: Job) -> ServerReply | None:
        try:
            return await wait_for_connection(self._service, job)
        except asyncio.CancelledError:
            self._service.abandon(job)
            raise

    async def aclose(self) -> None:
        """Holds nothing."""

    def _way(self) -> float:
        return self._network.travel + self._random.uniform(0, self._network.travel_jitter)
