"""The asyncio host of admission: one future for each queued request, and one timer for all of them."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from random import Random

from onellm_async.errors import ClientClosedError, ConfigurationError, OneLLMError
from onellm_async.limits.admission import Admission
from onellm_async.limits.overload import FIRST_SIZE
from onellm_async.limits.permit import Permit, RequestGroup
from onellm_async.limits.policy import AUTO, LANES, PACED_LANE, Limits
from onellm_async.limits.queue import QUEUED, Ticket
from onellm_async.limits.rate_control import RateControl, control_for, count_earlier, reconfigured, window_wait
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import NO_RETRIES, Retries, Snapshot, empty_snapshot, snapshot_of

_LANES = tuple(LANES)


class LoopAdmission:
    """One event loop's part of a limiter: its queued requests, its requests in flight and their timer.

    A stopped loop may continue after another one has used the limiter. Its permits are released here, and its waits
    end here, whichever loop the limiter belongs to by then.

    Args:
        limiter: The limiter.
        loop: The event loop.
        core: The admission of the requests of this loop.

    Attributes:
        wall_time: Unix time, to which dates in headers are compared.
    """

    __slots__ = ("core", "idle", "idle_is_awaited", "limiter", "loop", "timer", "timer_at", "wall_time")

    def __init__(self, limiter: "Limiter", loop: asyncio.AbstractEventLoop, core: Admission) -> None:
        self.limiter: Limiter = limiter
        self.loop: asyncio.AbstractEventLoop = loop
        self.wall_time: Callable[[], float] = getattr(loop, "wall_time", time.time)  # virtual time has its own
        self.core: Admission = core
        self.idle: asyncio.Event = asyncio.Event()  # an event belongs to the loop in which it was first awaited
        self.idle_is_awaited: bool = False
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at: float = 0.0

    def takes_back(self, permit: Permit) -> bool:
        """Makes this the limiter's home again, so that `permit` can report a result.

        Returns:
            Whether that was possible. If not, only the slot was released.
        """
        if not self.loop.is_closed() and self.limiter.move_to(self):
            return True
        self.core.release(permit, 0.0 if self.loop.is_closed() else self.loop.time())
        if not self.core.in_flight:
            self.idle.set()
        return False

    def dispatch(self) -> None:
        """Grants what can be granted now, and sets the timer for what cannot."""
        core = self.core
        if self.idle_is_awaited and not core.in_flight:
            self.idle.set()
        if not core.waiting:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            return
        if self.loop.is_closed():
            return  # its waits can never end
        now = self.loop.time()
        for ticket in core.expire(now):
            _wake(ticket, core.deadline_error(ticket, now))
        for ticket in core.dispatch(now):
            _wake(ticket)
        self.schedule_timer(now)

    def schedule_timer(self, now: float) -> None:
        """Sets the timer to the next wake-up of the core."""
        wake = self.core.next_wake(now)
        if self.timer is not None:
            if wake is not None and self.timer_at <= wake:
                return  # it fires early enough, and is then set again
            self.timer.cancel()
            self.timer = None
        if wake is not None:
            # Keep our own deadline: uvloop's `TimerHandle.when()` is wrong for timers due immediately.
            self.timer, self.timer_at = self.loop.call_at(wake, self._on_timer), wake

    def _on_timer(self) -> None:
        self.timer = None
        self.wake()

    def wake(self) -> None:
        """Dispatches in a turn of the loop of its own. Makes this the limiter's home again if it is not."""
        if not self.limiter.move_to(self):
            self.cancel_all(_in_use_elsewhere)
            return
        now = self.loop.time()
        for ticket in self.core.expire_unreachable(now):
            _wake(ticket, self.core.deadline_error(ticket, now))
        self.dispatch()

    def cancel_all(self, error: Callable[[], OneLLMError]) -> None:
        """Ends every wait with a new error.

        Args:
            error: Makes the errors.
        """
        closed = self.loop.is_closed()
        for ticket in self.core.drain():
            if not closed:
                _wake(ticket, error())
        self.dispatch()


class Limiter:
    """Admits requests one by one as the limits allow.

    It belongs to the event loop in which it was last used. What it knows about the rate outlives the loop.

    Args:
        limits: As declared.
        random: Source of jitter.
        state: What an earlier limiter knew about the rate; None starts without.

    Example:
        ::

            permit = await limiter.acquire(tokens=800, lane="interactive")
            try:
                ...  # send
                permit.answered()
            finally:
                permit.release()
    """

    def __init__(self, limits: Limits, *, random: Random, state: RateState | None = None) -> None:
        self.limits: Limits = limits
        self._random = random
        self._state = state
        self._paused = False
        self._rate: RateControl | None = None
        self._homes: list[LoopAdmission] = []
        self._process = 0
        self.home: LoopAdmission | None = None
        self.core: Admission
        self.time: Callable[[], float]

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes the limiter belong to `loop`.

        Raises:
            ConfigurationError: If the limiter belongs to another loop that is running.
        """
        if self.home is not None and self.home.loop is loop:
            return
        if self.home is not None and self.home.loop.is_running():
            raise _made_before_the_fork() if self._process != os.getpid() else _in_use_elsewhere()
        now = loop.time()
        if self._rate is None:
            self._rate = self._new_rate(now)
        home = next((home for home in self._homes if home.loop is loop), None)
        if home is None:
            home = self._new_home(loop, self._rate, now)
            if self._paused:
                home.core.gate.pause()
        self._move(home, now)

    def _new_rate(self, now: float) -> RateControl:
        return control_for(self.limits, now, self._random, self._state)

    def _new_home(self, loop: asyncio.AbstractEventLoop, rate: RateControl, now: float) -> LoopAdmission:
        return LoopAdmission(self, loop, Admission(self.limits, rate, now))

    def move_to(self, home: "LoopAdmission") -> bool:
        """Makes `home` the limiter's home. Returns False if it belongs to another loop that is running."""
        if self.home is not home:
            if self.home is not None and self.home.loop.is_running():
                return False
            self._move(home, home.loop.time())
        return True

    def _move(self, home: "LoopAdmission", now: float) -> None:
        earlier, rate = self.home, self._rate
        assert rate is not None  # noqa: S101  # set with the first home
        if earlier is not None:
            rate.move_clock(now)
            home.core.restore_from(earlier.core, now)
        home.core.retune(self.limits, rate, now)
        # Requests in flight in a closed loop will have no reply. A stopped loop may still continue.
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
        group: RequestGroup | None = None,
        model: str | None = None,
    ) -> Coroutine[None, None, Permit]:
        """Waits until a request may be sent.

        Safe to cancel: a cancelled wait gives back everything that it was granted, and dispatches the next request.

        Args:
            tokens: Estimated tokens of the request and its reply.
            lane: The lane to wait in.
            deadline: Latest time to send, on the loop's clock.
            order: `Permit.order` of an earlier permit of the same request, to keep its place. It then never fails
                because of `Limits.max_pending`.
            group: Requests whose wait can be ended together with this one. It also says whether they count toward
                `Limits.max_pending`.
            model: The model of the request. Its usual latency decides whether the deadline can be met.

        Raises:
            ConfigurationError: If there is no such lane.
            QueueFullError: If `Limits.max_pending` requests are pending already.
            DeadlineExceededError: If the deadline passes or cannot be met.
            ClientClosedError: If the limiter is closed meanwhile.
            OneLLMError: The error that `cancel_group` was given.
        """
        pending = group is None or not group.wait_for_ready
        return self._admitted(Permit(lane, tokens, deadline, order, model, pending), group)

    async def _admitted(self, permit: Permit, group: RequestGroup | None) -> Permit:
        if not self.enter(permit, group):
            await self.wait_for(permit, group)
        return permit

    async def wait_for(self, permit: Permit, group: RequestGroup | None) -> None:
        """Waits until a permit that `enter` has queued is granted; see `acquire`.

        Args:
            permit: The permit.
            group: As for `enter`.
        """
        # There may be 100,000 such frames at once, so they hold nothing that the permit holds.
        try:
            await permit.waker  # type: ignore[misc]  # set by `enter` if it returns False
        except asyncio.CancelledError:
            home = permit.home
            if home.core.cancel(permit, home.loop.time()):
                home.dispatch()
            raise
        finally:
            if group is not None:
                group.waiting.discard(permit)

    def enter(self, permit: Permit, group: RequestGroup | None) -> bool:
        """Grants a new permit at once, or queues it; see `acquire`.

        Args:
            permit: The permit.
            group: Requests whose wait can be ended together with this one.

        Returns:
            Whether it is granted. If not, `wait_for` has to follow without another await in between.
        """
        if group is not None and group.ended is not None:
            raise group.ended()
        loop = asyncio.get_running_loop()
        home = self.home
        if home is None or loop is not home.loop:
            self.bind(loop)
            home = self.home
            assert home is not None  # noqa: S101  # set by `bind`
        permit.home = home
        if group is not None and group.take_turns:
            permit.flow = group
        core, now = home.core, loop.time()
        if permit.lane not in _LANES:
            core.queue.check_lane(permit.lane)
        if core.try_enter(permit, now):
            return True
        core.enqueue(permit, now)
        permit.waker = loop.create_future()
        if home.timer is None or permit.deadline is not None or core.costs_differ or permit.lane != PACED_LANE:
            home.schedule_timer(now)  # otherwise the timer is set for all of them
        if group is not None:
            group.waiting.add(permit)
        return False

    def cancel_group(self, group: RequestGroup, error: Callable[[], OneLLMError]) -> None:
        """Ends the wait of every queued request of `group` with a new error. Granted permits stay.

        Args:
            group: The requests.
            error: Makes the errors.
        """
        for permit in group.waiting:
            home = permit.home
            if permit.state == QUEUED:
                home.core.cancel(permit, home.loop.time())
                if not home.loop.is_closed():
                    _wake(permit, error())
        self._wake_all()

    def dispatch(self) -> None:
        """Grants what can be granted now, and sets the timer for what cannot."""
        if self.home is not None:
            self.home.dispatch()

    def _wake_all(self) -> None:
        self.dispatch()
        for home in self._homes:
            if home is not self.home and home.core.waiting and not home.loop.is_closed():
                home.loop.call_soon_threadsafe(home.wake)  # when that loop continues

    def open_circuit(self, trial_at: float) -> None:
        """Sends nothing before `trial_at`, and then one trial request at a time until `close_circuit`."""
        self.core.gate.open_circuit(trial_at)
        self.dispatch()

    def close_circuit(self) -> None:
        """Ends `open_circuit`: the service answers again."""
        self.core.gate.close_circuit()
        self._wake_all()

    def pause(self) -> None:
        """Sends nothing until `resume`. Queued requests stay queued, and their deadlines still pass."""
        self._paused = True
        if self.home is not None:
            self.core.gate.pause()

    def resume(self) -> None:
        """Ends a pause."""
        self._paused = False
        if self.home is not None:
            self.core.gate.resume()
            self._wake_all()

    def retune(self, limits: Limits) -> None:
        """Continues with other limits. Queued requests keep their places, and requests in flight finish."""
        before, self.limits = self.limits, limits
        if self._rate is not None:
            now = self.time()
            self._rate = reconfigured(self._rate, before, limits, now, self._random)
            self.core.retune(limits, self._rate, now)
            self._wake_all()

    @property
    def slots(self) -> int:
        """Requests that may be in flight: `Limits.max_concurrency`, or as many as were found out if it is "auto"."""
        declared = self.limits.max_concurrency
        if declared != AUTO:
            return declared
        return FIRST_SIZE if self.home is None else self.core.slots.size

    def count_earlier(self, ages: Sequence[float]) -> None:
        """Counts requests of an earlier process in the declared windows. Call it in the event loop that sends.

        Args:
            ages: Seconds since each was sent. What was sent since this limiter is in use is counted already.
        """
        self.bind(asyncio.get_running_loop())
        assert self._rate is not None  # noqa: S101  # set by `bind`
        count_earlier(self._rate, [self.time() - age for age in ages], self.time())

    @property
    def window_wait(self) -> float:
        """Seconds until every declared window has room for a request; 0 if all have."""
        return 0.0 if self._rate is None else window_wait(self._rate, self.time())

    @property
    def state(self) -> RateState | None:
        """What is known about the rate, for another limiter to start from; None if nothing is known yet."""
        return self._state if self._rate is None else self._rate.state

    def restore(self, state: RateState) -> None:
        """Starts from what an earlier limiter knew about the rate, if this one knows nothing and granted nothing."""
        if self._rate is None and self._state is None:
            self._state = state

    def close(self) -> None:
        """Ends every wait with `ClientClosedError`. Granted permits may still report their results."""
        for home in self._homes:
            if home is not self.home and home.loop.is_running():  # in another thread
                home.loop.call_soon_threadsafe(home.cancel_all, _closed)
            else:
                home.cancel_all(_closed)

    async def aclose(self) -> None:
        """Frees what is shared with other processes. This limiter shares nothing."""

    def snapshot(self, retries: Retries = NO_RETRIES) -> Snapshot:
        """The state of the limiter now, and of the retries that its owner tells."""
        if self.home is None:
            return empty_snapshot(self.limits, retries, paused=self._paused)
        return snapshot_of(self.core, self.time(), retries, timer_set=self.home.timer is not None)

    async def idle(self) -> None:
        """Waits until no request of the running loop is in flight. Safe to cancel."""
        loop = asyncio.get_running_loop()
        for home in self._homes:
            while home.loop is loop and home.core.in_flight:
                home.idle.clear()
                home.idle_is_awaited = True
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
    assert isinstance(ticket, Permit)  # noqa: S101  # the host queues permits only
    waker = ticket.waker
    # A waker that is done was cancelled in this turn of the loop. Its owner gives everything back.
    if waker is not None and not waker.done():
        if error is None:
            waker.set_result(None)
        else:
            waker.set_exception(error)
