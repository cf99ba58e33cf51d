"""The asyncio host of admission: futures for those who wait, and one timer for all of them."""

import asyncio
from collections.abc import Callable
from random import Random

from onellm_async.errors import ClientClosedError, ConfigurationError, DeadlineExceededError, OneLLMError
from onellm_async.limits.adaptive import LearnedRate
from onellm_async.limits.admission import Admission
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import GRANTED, QUEUED, Ticket
from onellm_async.limits.rate import BackOffOnly, DeclaredRate, RateControl
from onellm_async.limits.snapshot import Snapshot

__all__ = ["Group", "Limiter", "Permit"]


class Permit(Ticket):
    """Leave to send one request, from `Limiter.acquire`.

    Exactly one of `answered`, `refused`, `give_back` and `settle` takes effect; calls after the first do nothing, so
    that a ``finally: permit.settle()`` is always right.
    """

    __slots__ = ("_limiter", "waker")

    def __init__(self, limiter: "Limiter", lane: str, tokens: float, deadline: float | None, order: int) -> None:
        super().__init__(lane, tokens, deadline, order)
        self._limiter = limiter
        self.waker: asyncio.Future[None] | None = None

    def answered(self, tokens: float | None = None) -> None:
        """The service let the request through, and it is over.

        Args:
            tokens: What it used in fact; None when that is not known, and the estimate stands.
        """
        limiter = self._limiter
        limiter.core.answered(self, limiter.time(), tokens)
        limiter.pump()

    def settle(self) -> None:
        """The request is over, and nobody knows whether it reached the service."""
        if self.state == GRANTED:
            self._limiter.core.settle(self, self._limiter.time())
            self._limiter.pump()

    def refused(self, retry_after: float | None = None) -> None:
        """The service refused the request by rate limit.

        Args:
            retry_after: Seconds that it asked everybody to wait; None when it did not say.
        """
        self._limiter.core.refused(self, self._limiter.time(), retry_after)
        self._limiter.pump()

    def give_back(self) -> None:
        """The request never reached the service, so it used nothing."""
        self._limiter.core.give_back(self, self._limiter.time())
        self._limiter.pump()


class Group:
    """Requests whose wait can be ended together, see `Limiter.end`.

    Attributes:
        waiting: Permits of the group that wait at this moment.
        ended: Why nothing of the group is admitted any more; None while it is.
    """

    __slots__ = ("ended", "waiting")

    def __init__(self) -> None:
        self.waiting: set[Permit] = set()
        self.ended: Callable[[], OneLLMError] | None = None


class Limiter:
    """Admits requests one by one as the limits allow.

    It belongs to the event loop in which it was last used; what it has learned about the rate outlives the loop.

    Args:
        limits: What the user declared.
        random: Where jitter comes from.

    Example:
        ::

            permit = await limiter.acquire(tokens=800, lane="interactive")
            try:
                ...  # send
                permit.answered()
            finally:
                permit.settle()
    """

    def __init__(self, limits: Limits, *, random: Random) -> None:
        self.limits = limits
        self._random = random
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rate: RateControl | None = None
        self._idle = asyncio.Event()
        self.core: Admission
        self.time: Callable[[], float]

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes `loop` the home of the limiter.

        Raises:
            ConfigurationError: If the limiter is at home in another loop that is running.
        """
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise ConfigurationError(
                "This client is in use in another running event loop.", advice="Make one client for each loop."
            )
        self._loop, self._timer = loop, None
        self._idle = asyncio.Event()  # an event belongs to the loop in which it was first awaited
        self.time = loop.time
        now = loop.time()
        if self._rate is None:
            self._rate = _rate_control(self.limits, now, self._random)
        else:
            self._rate.rebase(now)
        known = getattr(self, "core", None)
        self.core = Admission(self.limits, self._rate, now)
        if known is not None:
            self.core.answers, self.core.refusals = known.answers, known.refusals

    async def acquire(
        self,
        *,
        tokens: float = 0.0,
        lane: str = "default",
        deadline: float | None = None,
        order: int = -1,
        group: Group | None = None,
    ) -> Permit:
        """Waits until a request may be sent.

        Safe to cancel: a cancelled wait gives back whatever it was granted, and wakes the next.

        Args:
            tokens: Estimated tokens of the request and its reply.
            lane: Where to wait.
            deadline: Latest time to send, on the loop's clock.
            order: `Permit.order` of the permit that the service refused, to get its place back.
            group: Those whose wait may be ended together with this one.

        Raises:
            ConfigurationError: If there is no such lane.
            QueueFullError: If too many wait already.
            DeadlineExceededError: If the deadline passes, or cannot be met.
            ClientClosedError: If the limiter is closed meanwhile.
            OneLLMError: Whatever the wait of its group is ended with.
        """
        if group is not None and group.ended is not None:
            raise group.ended()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.bind(loop)
        core = self.core
        core.queue.check_lane(lane)
        permit = Permit(self, lane, tokens, deadline, order)
        now = loop.time()
        if core.try_enter(permit, now):
            return permit
        core.enqueue(permit, now)
        permit.waker = loop.create_future()
        self._arm(now)
        if group is not None:
            group.waiting.add(permit)
        try:
            await permit.waker
        except asyncio.CancelledError:
            if core.withdraw(permit, loop.time()):
                self.pump()
            raise
        finally:
            if group is not None:
                group.waiting.discard(permit)
        return permit

    def end(self, group: Group, error: Callable[[], OneLLMError]) -> None:
        """Ends the wait of everybody in `group` with an error of its own. Permits that are out are not touched."""
        for permit in group.waiting:
            if permit.state == QUEUED:
                self.core.withdraw(permit, self.time())
                _wake(permit, error())
        if self._loop is not None:
            self.pump()

    def pump(self) -> None:
        """Grants what can be granted now, and sets the timer for what cannot."""
        core = self.core
        if not core.in_flight:
            self._idle.set()
        if not core.waiting:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        now = self.time()
        for ticket in core.expire(now):
            _wake(ticket, DeadlineExceededError("The deadline passed while the request waited for admission."))
        for ticket in core.dispatch(now):
            _wake(ticket)
        self._arm(now)

    def _arm(self, now: float) -> None:
        wake = self.core.next_wake(now)
        if self._timer is not None:
            if wake is not None and self._timer.when() <= wake and not self._timer.cancelled():
                return  # it rings early enough, and will set itself anew
            self._timer.cancel()
            self._timer = None
        if wake is not None and self._loop is not None:
            self._timer = self._loop.call_at(wake, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.pump()

    def hold(self, until: float) -> None:
        """The service is down: nothing leaves before `until`, and then one probe at a time until `release`."""
        self.core.hold(until)
        self.pump()

    def release(self) -> None:
        """The service is back."""
        self.core.release()
        self.pump()

    def close(self) -> None:
        """Ends every wait with `ClientClosedError`. Permits that are out may still be settled."""
        if self._loop is None:
            return
        for ticket in self.core.drain():
            _wake(ticket, ClientClosedError("The client was closed while this chat waited."))
        self.pump()

    def snapshot(self) -> Snapshot:
        """What is going on now. Changes nothing."""
        most = self.limits.max_concurrency
        if self._loop is None:
            return Snapshot(max_concurrency=most)
        core, now = self.core, self.time()
        rate = core.rate.rate * 60
        wake = core.next_wake(now)
        return Snapshot(
            queued=core.queue.lengths(),
            in_flight=core.in_flight,
            max_concurrency=most,
            rate=None if rate == float("inf") else rate,
            answered=core.answers,
            refused=core.refusals,
            waiting_for=core.bottleneck(now),
            next_in=None if wake is None else max(0.0, wake - now),
            timer_set=self._timer is not None,
        )

    async def idle(self) -> None:
        """Returns when no permit is out. Safe to cancel."""
        while self._loop is asyncio.get_running_loop() and self.core.in_flight:
            self._idle.clear()
            await self._idle.wait()


def _wake(ticket: Ticket, error: Exception | None = None) -> None:
    assert isinstance(ticket, Permit)  # noqa: S101  # the host queues nothing else
    waker = ticket.waker
    # A waker that is done was cancelled in this very turn of the loop; its owner gives everything back.
    if waker is not None and not waker.done():
        if error is None:
            waker.set_result(None)
        else:
            waker.set_exception(error)


def _rate_control(limits: Limits, now: float, random: Random) -> RateControl:
    if not limits.rate_limited:
        return BackOffOnly(random)
    if limits.requests_per_minute is None:
        return LearnedRate(now)
    return DeclaredRate(limits.requests_per_minute / 60, limits.burst, now)
