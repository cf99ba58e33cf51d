"""An event loop in virtual time: hours of waiting take no time, and every run takes the same steps."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_RESOLUTION = 1e-6
"""Seconds. Timers this close fire together. Anything finer is lost to rounding in the sum of a month of waits."""
_MAX_REAL_WAIT = 5.0
"""Seconds of real time to wait for another thread before a deadlock is reported."""


class DeadlockError(RuntimeError):
    """Every task waits, and no timer is set that could wake one."""


class _JumpingSelector(selectors.DefaultSelector):
    """Polls instead of waiting, and adds the time it would have waited to the virtual clock."""

    elapsed = 0.0
    on_idle: Callable[[float], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            # No timer is set, so only another thread can end this wait.
            ready = super().select(_MAX_REAL_WAIT)
            if not ready:
                raise DeadlockError("Every task waits, and no timer is set that could wake one.")
            return ready
        if self.on_idle is not None:
            self.on_idle(max(timeout, 0.0))
        self.elapsed += max(timeout, 0.0)
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits for a timer: its clock, which starts at 0 s, jumps to the next one.

    Sockets work, but take no virtual time. Use `onellm_async.testing.FakeTransport` or `ServiceTransport` instead.
    """

    EPOCH = 1_700_000_000.0
    """Unix time at which the clock starts, so that headers with dates mean the same in each run."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = _RESOLUTION

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.elapsed

    def wall_time(self) -> float:
        """Unix time of the virtual clock, in place of `time.time`."""
        return self.EPOCH + self._jumping.elapsed

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Waits for the threads of the executor. They take real time, so `timeout` would pass at once.

        Args:
            timeout: Ignored. From Python 3.12 on, `asyncio.Runner` passes one.
        """
        await super().shutdown_default_executor()

    def set_idle_callback(self, callback: Callable[[float], None]) -> None:
        """Calls `callback` before each jump, with the seconds to jump, when no callback or task is ready.

        Args:
            callback: May inspect anything, but must not schedule anything.
        """
        self._jumping.on_idle = callback

    def pending_timers(self) -> int:
        """Number of timers that have neither fired nor been cancelled."""
        scheduled: list[asyncio.TimerHandle] = getattr(self, "_scheduled", [])
        return sum(not timer.cancelled() for timer in scheduled)


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine like ``asyncio.run``, in virtual time.

    Raises:
        DeadlockError: If every task waits and no timer is set.

    Example:
        >>> async def wait_for_an_hour():
        ...     await asyncio.sleep(3600)
        ...     return asyncio.get_running_loop().time()
        >>> run_in_virtual_time(wait_for_an_hour())
        3600.0
    """
    # Debug mode would take most of the time, and its warnings about slow callbacks mean nothing in virtual time.
    with asyncio.Runner(loop_factory=VirtualClockLoop, debug=False) as runner:
        return runner.run(main)
