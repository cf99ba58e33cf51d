"""The asyncio host of admission: futures for those who wait, and one timer for all of them."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from random import Random

from onellm_async.errors import ClientClosedError, ConfigurationError, OneLLMError
from onellm_async.limits.admission import Admission
from onellm_async.limits.policy import PACED_LANE, Limits
from onellm_async.limits.queue import GRANTED, QUEUED, Ticket
from onellm_async.limits.rate_control import RateControl, control_for, reconfigured
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Snapshot, snapshot_of, unused

__all__ = ["Group", "Limiter", "Permit"]


class Permit(Ticket):
    """Leave to send one request, from `Limiter.acquire`.

    Exactly one of `answered`, `refused`, `overloaded`, `give_back` and `settle` takes effect. Calls after the first do
    nothing, so that a ``finally: permit.settle()`` is always right.
    """

    __slots__ = ("_home", "waker")

    _home: "_Home"
    waker: asyncio.Future[None] | None

    def __init__(
        self,
        lane: str,
        tokens: float,
        deadline: float | None,
        order: int,
        model: str | None,
        pending: bool,
    ) -> None:
        super().__init__(lane, tokens, deadline, order, model)
        self.pending = pending
        self.waker = None

    def answered(self, tokens: float | None = None) -> None:
        """The service let the request through, and it is over.

        Args:
            tokens: What it used in fact; None when that is not known, and the estimate stands.
        """
        home = self._home
        if home.limiter.home is home or home.takes_back(self):
            home.core.answered(self, home.loop.time(), tokens)
            home.pump()

    def settle(self) -> None:
        """The request is over, and nobody knows whether it reached the service."""
        home = self._home
        if self.state == GRANTED and (home.limiter.home is home or home.takes_back(self)):
            home.core.settle(self, home.loop.time())
            home.pump()

    def refused(self, retry_after: float | None = None) -> None:
        """The service refused the request by rate limit.

        Args:
            retry_after: Seconds that it asked everybody to wait; None when it did not say.
        """
        home = self._home
        if home.limiter.home is home or home.takes_back(self):
            home.core.refused(self, home.loop.time(), retry_after)
            home.pump()

    def overloaded(self) -> bool:
        """The service said that too much is in flight, so fewer requests are sent at once for a while.

        Returns:
            Whether the request was sent after concurrency was last taken away. The fault is then an attempt of it.
        """
        home = self._home
        if home.limiter.home is not home and not home.takes_back(self):
            return True
        counts = home.core.overloaded(self, home.loop.time())
        home.pump()
        return counts

    def give_back(self) -> None:
        """The request never reached the service, so it used nothing."""
        home = self._home
        if home.limiter.home is home or home.takes_back(self):
            home.core.give_back(self, home.loop.time())
            home.pump()


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


class _Home:
    """One event loop's part of a limiter: what waits and is in flight there, and the timer that wakes it.

    A loop that was stopped may go on after another one has used the limiter. Its permits settle here, and its waits
    end here, whichever loop is the limiter's home by then.
    """

    __slots__ = ("core", "idle", "limiter", "loop", "rings_at", "timer")

    def __init__(self, limiter: "Limiter", loop: asyncio.AbstractEventLoop, core: Admission) -> None:
        self.limiter: Limiter = limiter
        self.loop: asyncio.AbstractEventLoop = loop
        self.core: Admission = core
        self.idle: asyncio.Event = asyncio.Event()  # an event belongs to the loop in which it was first awaited
        self.timer: asyncio.TimerHandle | None = None
        self.rings_at: float = 0.0

    def takes_back(self, permit: Permit) -> bool:
        """Makes this the limiter's home again, to settle `permit`. Where it cannot be, only the slot is freed."""
        if not self.loop.is_closed() and self.limiter.come_home(self):
            return True
        self.core.settle(permit, self.loop.time())
        if not self.core.in_flight:
            self.idle.set()
        return False

    def pump(self) -> None:
        """Grants what can be granted now, and sets the timer for what cannot."""
        core = self.core
        if not core.in_flight:
            self.idle.set()
        if not core.waiting:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            return
        if self.loop.is_closed():
            return  # its waits will never be heard of again
        now = self.loop.time()
        for ticket in core.expire(now):
            _wake(ticket, core.deadline_error(ticket, now))
        for ticket in core.dispatch(now):
            _wake(ticket)
        self.arm(now)

    def arm(self, now: float) -> None:
        """Sets the timer to when the core has to be asked again."""
        wake = self.core.next_wake(now)
        if self.timer is not None:
            if wake is not None and self.rings_at <= wake:
                return  # it rings early enough, and will set itself anew
            self.timer.cancel()
            self.timer = None
        if wake is not None:
            # Not asked of the timer: uvloop's, where it is due at once, does not know.
            self.timer, self.rings_at = self.loop.call_at(wake, self._ring), wake

    def _ring(self) -> None:
        self.timer = None
        self.look()

    def look(self) -> None:
        """Looks again, in a turn of its own; makes this the limiter's home if it was another loop's meanwhile."""
        if not self.limiter.come_home(self):
            self.end(_in_use_elsewhere)
            return
        now = self.loop.time()
        for ticket in self.core.expire_hopeless(now):
            _wake(ticket, self.core.deadline_error(ticket, now))
        self.pump()

    def end(self, error: Callable[[], OneLLMError]) -> None:
        """Ends every wait with an error of its own."""
        closed = self.loop.is_closed()
        for ticket in self.core.drain():
            if not closed:
                _wake(ticket, error())
        self.pump()


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
        self._rate: RateControl | None = None
        self._homes: list[_Home] = []
        self._process = 0
        self.home: _Home | None = None
        self.core: Admission
        self.time: Callable[[], float]

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes `loop` the home of the limiter.

        Raises:
            ConfigurationError: If the limiter is at home in another loop that is running.
        """
        if self.home is not None and self.home.loop is loop:
            return
        if self.home is not None and self.home.loop.is_running():
            raise _made_before_the_fork() if self._process != os.getpid() else _in_use_elsewhere()
        now = loop.time()
        if self._rate is None:
            self._rate = control_for(self.limits, now, self._random, self._state)
        home = next((home for home in self._homes if home.loop is loop), None)
        if home is None:
            home = _Home(self, loop, Admission(self.limits, self._rate, now))
            if self._paused:
                home.core.gate.pause()
        self._move(home, now)

    def come_home(self, home: "_Home") -> bool:
        """Makes `home` the limiter's home again; False while that is in another loop that is running."""
        if self.home is not home:
            if self.home is not None and self.home.loop.is_running():
                return False
            self._move(home, home.loop.time())
        return True

    def _move(self, home: "_Home", now: float) -> None:
        earlier, rate = self.home, self._rate
        assert rate is not None  # noqa: S101  # there is one since the first home
        if earlier is not None:
            rate.move_clock(now)
            home.core.take_over(earlier.core, now)
        home.core.retune(self.limits, rate, now)
        # What was in flight in a loop that was closed will have no reply; a loop that was stopped may still go on.
        home.core.unanswered += sum(other.core.in_flight for other in self._homes if other.loop.is_closed())
        self._homes = [
            other
            for other in self._homes
            if not other.loop.is_closed() and (other.core.in_flight or other.core.waiting) and other is not home
        ]
        self._homes.append(home)
        self.home, self.core, self.time, self._process = home, home.core, home.loop.time, os.getpid()

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
        return self._admitted(Permit(lane, tokens, deadline, order, model, pending), group)

    async def _admitted(self, permit: Permit, group: Group | None) -> Permit:
        # 100,000 such frames may wait at once, so they hold nothing that the permit does not.
        if self._enter(permit, group):
            return permit
        try:
            await permit.waker  # type: ignore[misc]  # there is one, or it would have entered
        except asyncio.CancelledError:
            home = permit._home  # noqa: SLF001  # of this module
            if home.core.withdraw(permit, home.loop.time()):
                home.pump()
            raise
        finally:
            if group is not None:
                group.waiting.discard(permit)
        return permit

    def _enter(self, permit: Permit, group: Group | None) -> bool:
        if group is not None and group.ended is not None:
            raise group.ended()
        loop = asyncio.get_running_loop()
        home = self.home
        if home is None or loop is not home.loop:
            self.bind(loop)
            home = self.home
            assert home is not None  # noqa: S101  # it is bound
        permit._home = home  # noqa: SLF001  # of this module
        core, now = home.core, loop.time()
        core.queue.check_lane(permit.lane)
        if core.try_enter(permit, now):
            return True
        core.enqueue(permit, now)
        permit.waker = loop.create_future()
        if home.timer is None or permit.deadline is not None or core.tokens is not None or permit.lane != PACED_LANE:
            home.arm(now)  # otherwise all wait for the same moment, whichever is first
        if group is not None:
            group.waiting.add(permit)
        return False

    def end(self, group: Group, error: Callable[[], OneLLMError]) -> None:
        """Ends the wait of all in `group` with an error of its own. Permits that are out are not touched."""
        for permit in group.waiting:
            home = permit._home  # noqa: SLF001  # of this module
            if permit.state == QUEUED:
                home.core.withdraw(permit, home.loop.time())
                if not home.loop.is_closed():
                    _wake(permit, error())
        self._look_everywhere()

    def pump(self) -> None:
        """Grants what can be granted now, and sets the timer for what cannot."""
        if self.home is not None:
            self.home.pump()

    def _look_everywhere(self) -> None:
        self.pump()
        for home in self._homes:
            if home is not self.home and home.core.waiting and not home.loop.is_closed():
                home.loop.call_soon_threadsafe(home.look)  # when that loop goes on

    def hold(self, until: float) -> None:
        """The service is down: nothing leaves before `until`, and then one probe at a time until `release`."""
        self.core.gate.hold(until)
        self.pump()

    def release(self) -> None:
        """The service is back."""
        self.core.gate.release()
        self._look_everywhere()

    def pause(self) -> None:
        """Lets nothing leave until `resume`. Whoever waits keeps waiting, deadlines still pass."""
        self._paused = True
        if self.home is not None:
            self.core.gate.pause()

    def resume(self) -> None:
        """Lets requests leave again."""
        self._paused = False
        if self.home is not None:
            self.core.gate.resume()
            self._look_everywhere()

    def retune(self, limits: Limits) -> None:
        """Goes on with other limits. Whoever waits keeps its place, and what is under way is not touched."""
        before, self.limits = self.limits, limits
        if self._rate is not None:
            now = self.time()
            self._rate = reconfigured(self._rate, before, limits, now, self._random)
            self.core.retune(limits, self._rate, now)
            self._look_everywhere()

    @property
    def state(self) -> RateState | None:
        """What has been learned about the rate, for another limiter to start with; None when there is nothing yet."""
        return self._state if self._rate is None else self._rate.state

    def close(self) -> None:
        """Ends every wait with `ClientClosedError`. Permits that are out may still be settled."""
        for home in self._homes:
            if home is not self.home and home.loop.is_running():  # in another thread
                home.loop.call_soon_threadsafe(home.end, _closed)
            else:
                home.end(_closed)

    def snapshot(self) -> Snapshot:
        """What is going on now. Changes nothing."""
        if self.home is None:
            return unused(self.limits, paused=self._paused)
        return snapshot_of(self.core, self.time(), timer_set=self.home.timer is not None)

    async def idle(self) -> None:
        """Returns when no permit of the running loop is out. Safe to cancel."""
        loop = asyncio.get_running_loop()
        for home in self._homes:
            while home.loop is loop and home.core.in_flight:
                home.idle.clear()
                await home.idle.wait()


def _closed() -> ClientClosedError:
    return ClientClosedError("The client was closed while this chat waited.")


def _in_use_elsewhere() -> ConfigurationError:
    return ConfigurationError(
        "This client is in use in another running event loop.", advice="Make one client for each loop."
    )


def _made_before_the_fork() -> ConfigurationError:
    return ConfigurationError(
        "This client was made before this process was forked, and the parent's event loop is using it.",
        advice="Make a client in each process, after the fork.",
    )


def _wake(ticket: Ticket, error: Exception | None = None) -> None:
    assert isinstance(ticket, Permit)  # noqa: S101  # the host queues nothing else
    waker = ticket.waker
    # A waker that is done was cancelled in this very turn of the loop; its owner gives everything back.
    if waker is not None and not waker.done():
        if error is None:
            waker.set_result(None)
        else:
            waker.set_exception(error)
