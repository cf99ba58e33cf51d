"""An event loop whose clock jumps: hours of waiting take no time at all, and every run takes the same steps."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["StandstillError", "VirtualClockLoop", "run_in_virtual_time"]

T = TypeVar("T")

_RESOLUTION = 1e-6
"""Seconds; timers this close ring together. Finer than that, the sum of a month of waits would round away."""
_LONGEST_REAL_WAIT = 5.0


class StandstillError(RuntimeError):
    """Everybody waits, and nothing is scheduled that could end it: a deadlock."""


class _JumpingSelector(selectors.DefaultSelector):
    """Polls instead of waiting, and tells the clock how long it would have waited."""

    elapsed = 0.0
    onlooker: Callable[[float], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            # Only another thread can end this wait; nothing in virtual time can.
            ready = super().select(_LONGEST_REAL_WAIT)
            if not ready:
                raise StandstillError("Every task waits, and no timer is set that could wake one.")
            return ready
        if self.onlooker is not None:
            self.onlooker(max(timeout, 0.0))
        self.elapsed += max(timeout, 0.0)
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Like any loop, but where it would wait for a timer, its clock jumps there. It starts at 0 s.

    Sockets work, but take no virtual time; whatever is simulated should not use them.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = _RESOLUTION

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.elapsed

    def before_each_jump(self, look: Callable[[float], None]) -> None:
        """Has `look` called whenever nothing is left to be done now, with the seconds that the clock will jump.

        It may look at everything, but must not schedule anything.
        """
        self._jumping.onlooker = look

    def timers_set(self) -> int:
        """Timers that have neither rung nor been cancelled."""
        scheduled: list[asyncio.TimerHandle] = getattr(self, "_scheduled", [])
        return sum(not timer.cancelled() for timer in scheduled)


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Like ``asyncio.run``, in virtual time.

    Raises:
        StandstillError: If `main` waits for something that never comes.

    Example:
        >>> async def wait_for_an_hour():
        ...     await asyncio.sleep(3600)
        ...     return asyncio.get_running_loop().time()
        >>> run_in_virtual_time(wait_for_an_hour())
        3600.0
    """
    # Without asyncio's debug mode: its warnings about slow callbacks mean nothing here, and it costs most of the time.
    with asyncio.Runner(loop_factory=VirtualClockLoop, debug=False) as runner:
        return runner.run(main)
