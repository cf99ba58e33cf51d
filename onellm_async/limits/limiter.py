"""The asyncio host of admission: futures for those who wait, and one timer for all of them."""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random

from onellm_async.errors import ClientClosedError, ConfigurationError, OneLLMError
from onellm_async.limits.admission import Admission
from onellm_async.limits.marks import RateState
from onellm_async.limits.modes import rate_control, retuned
from onellm_async.limits.policy import PACED_LANE, Limits
from onellm_async.limits.queue import GRANTED, QUEUED, Ticket
from onellm_async.limits.rate import RateControl
from onellm_async.limits.snapshot import Snapshot, snapshot_of, unused

__all__ = ["Group", "Limiter", "Permit"]


class Permit(Ticket):
    """Leave to send one request, from `Limiter.acquire`.

    Exactly one of `answered`, `refused`, `overloaded`, `give_back` and `settle` takes effect. Calls after the first do
    nothing, so that a ``finally: permit.settle()`` is always right.
    """

    __slots__ = ("_limiter", "waker")

    def __init__(
        self,
        limiter: "Limiter",
        lane: str,
        tokens: float,
        deadline: float | None,
        order: int,
        model: str | None,
        pending: bool,
    ) -> None:
        super().__init__(lane, tokens, deadline, order, model)
        self.pending = pending
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

    def overloaded(self) -> bool:
        """The service said that too much is in flight, so fewer requests are sent at once for a while.

        Returns:
            Whether the request was sent after concurrency was last taken away. The fault is then an attempt of it.
        """
        counts = self._limiter.core.overloaded(self, self._limiter.time())
        self._limiter.pump()
        return counts

    def give_back(self) -> None:
        """The request never reached the service, so it used nothing."""
        self._limiter.core.give_back(self, self._limiter.time())
        self._limiter.pump()


class Group:
    """Requests whose wait can be ended together, see `Limiter.end`.

    Args:
        wait_for_ready: See the attribute.

    Attributes:
        wait_for_ready: Whether its requests wait however long it takes, as those of a fan-out or a run: they are never
            turned away by `Limits.max_pending`, and do not count toward it.
        waiting: Permits of the group that wait at this moment.
        ended: Why nothing of the group is admitted any more; None while it is.
    """

    __slots__ = ("__weakref__", "ended", "wait_for_ready", "waiting")

    def __init__(self, *, wait_for_ready: bool = False) -> None:
        self.wait_for_ready: bool = wait_for_ready
        self.waiting: set[Permit] = set()
        self.ended: Callable[[], OneLLMError] | None = None


class Limiter:
    """Admits requests one by one as the limits allow.

    It belongs to the event loop in which it was last used; what it has learned about the rate outlives the loop.

    Args:
        limits: What the user declared.
        random: Where jitter comes from.
        state: What an earlier limiter learned about the rate; None starts without.

    Example:
        ::

            permit = await limiter.acquire(tokens=800, lane="interactive")
            try:
                ...  # send
                permit.answered()
            finally:
                permit.settle()
    """

    def __init__(self, limits: Limits, *, random: Random, state: RateState | None = None) -> None:
        self.limits: Limits = limits
        self._random = random
        self._state = state
        self._paused = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
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
        self._idle = asyncio.Event()  # an event belongs to the loop in which it was first awaited
        earlier = self.core if self._loop is not None else None
        self._loop, self._timer, self.time = loop, None, loop.time
        now = loop.time()
        if self._rate is None:
            self._rate = rate_control(self.limits, now, self._random, self._state)
        else:
            self._rate.rebase(now)
        self.core = Admission(self.limits, self._rate, now)
        if earlier is not None:
            self.core.take_over(earlier, now)
        elif self._paused:
            self.core.gate.pause()

    def acquire(
        self,
        *,
        tokens: float = 0.0,
        lane: str = "default",
        deadline: float | None = None,
        order: int = -1,
        group: Group | None = None,
        model: str | None = None,
    ) -> Coroutine[None, None, Permit]:
        """Waits until a request may be sent.

        Safe to cancel: a cancelled wait gives back whatever it was granted, and wakes the next.

        Args:
            tokens: Estimated tokens of the request and its reply.
            lane: Where to wait.
            deadline: Latest time to send, on the loop's clock.
            order: `Permit.order` of an earlier permit of the same request, to get its place back. It is then never
                turned away by `Limits.max_pending`.
            group: Those whose wait may be ended together with this one; it also says whether they count toward
                `Limits.max_pending`.
            model: The model it asks, whose usual latency decides whether the deadline can be met.

        Raises:
            ConfigurationError: If there is no such lane.
            QueueFullError: If too many wait already.
            DeadlineExceededError: If the deadline passes, or cannot be met.
            ClientClosedError: If the limiter is closed meanwhile.
            OneLLMError: Whatever the wait of its group is ended with.
        """
        pending = group is None or not group.wait_for_ready
        return self._admitted(Permit(self, lane, tokens, deadline, order, model, pending), group)

    async def _admitted(self, permit: Permit, group: Group | None) -> Permit:
        # 100,000 such frames may wait at once, so they hold nothing that the permit does not.
        if self._enter(permit, group):
            return permit
        try:
            await permit.waker  # type: ignore[misc]  # there is one, or it would have entered
        except asyncio.CancelledError:
            self._leave(permit)
            raise
        finally:
            if group is not None:
                group.waiting.discard(permit)
        return permit

    def _enter(self, permit: Permit, group: Group | None) -> bool:
        if group is not None and group.ended is not None:
            raise group.ended()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.bind(loop)
        core, now = self.core, loop.time()
        core.queue.check_lane(permit.lane)
        if core.try_enter(permit, now):
            return True
        core.enqueue(permit, now)
        permit.waker = loop.create_future()
        if self._timer is None or permit.deadline is not None or core.tokens is not None or permit.lane != PACED_LANE:
            self._arm(now)  # otherwise everybody waits for the same moment, whoever is first
        if group is not None:
            group.waiting.add(permit)
        return False

    def _leave(self, permit: Permit) -> None:
        if self.core.withdraw(permit, self.time()):
            self.pump()

    def end(self, group: Group, error: Callable[[], OneLLMError]) -> None:
        """Ends the wait of everybody in `group` with an error of its own. Permits that are out are not touched."""
        for permit in group.waiting:
            if permit.state == QUEUED:
                self.core.withdraw(permit, self.time())
                _wake(permit, error())
        self._pump_if_at_home()

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
            _wake(ticket, core.deadline_error(ticket, now))
        for ticket in core.dispatch(now):
            _wake(ticket)
        self._arm(now)

    def _arm(self, now: float) -> None:
        wake = self.core.next_wake(now)
        if self._timer is not None:
            if wake is not None and self._rings_at <= wake:
                return  # it rings early enough, and will set itself anew
            self._timer.cancel()
            self._timer = None
        if wake is not None and self._loop is not None:
            # Not asked of the timer: uvloop's, where it is due at once, does not know.
            self._timer, self._rings_at = self._loop.call_at(wake, self._ring), wake

    def _ring(self) -> None:
        self._timer = None
        now = self.time()
        for ticket in self.core.expire_hopeless(now):
            _wake(ticket, self.core.deadline_error(ticket, now))
        self.pump()

    def _pump_if_at_home(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self.pump()

    def hold(self, until: float) -> None:
        """The service is down: nothing leaves before `until`, and then one probe at a time until `release`."""
        self.core.gate.hold(until)
        self.pump()

    def release(self) -> None:
        """The service is back."""
        self.core.gate.release()
        self.pump()

    def pause(self) -> None:
        """Lets nothing leave until `resume`. Whoever waits keeps waiting, deadlines still pass."""
        self._paused = True
        if self._loop is not None:
            self.core.gate.pause()

    def resume(self) -> None:
        """Lets requests leave again."""
        self._paused = False
        if self._loop is not None:
            self.core.gate.resume()
            self._pump_if_at_home()

    def retune(self, limits: Limits) -> None:
        """Goes on with other limits. Whoever waits keeps its place, and what is under way is not touched."""
        before, self.limits = self.limits, limits
        if self._rate is not None:
            now = self.time()
            self._rate = retuned(self._rate, before, limits, now, self._random)
            self.core.retune(limits, self._rate, now)
            self._pump_if_at_home()

    @property
    def state(self) -> RateState | None:
        """What has been learned about the rate, for another limiter to start with; None when there is nothing yet."""
        return self._state if self._rate is None else self._rate.state

    def close(self) -> None:
        """Ends every wait with `ClientClosedError`. Permits that are out may still be settled."""
        if self._loop is None:
            return
        for ticket in self.core.drain():
            _wake(ticket, ClientClosedError("The client was closed while this chat waited."))
        self.pump()

    def snapshot(self) -> Snapshot:
        """What is going on now. Changes nothing."""
        if self._loop is None:
            return unused(self.limits, paused=self._paused)
        return snapshot_of(self.core, self.time(), timer_set=self._timer is not None)

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
