"""One timer for the timeouts of all attempts: they all have the same length, so the first to start ends first."""

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["CommonTimeout"]


class CommonTimeout:
    """Ends whatever takes longer than `seconds` within ``with timeout:``, like `asyncio.timeout`, but cheaper.

    There is one timer however many tasks are inside, and it is set anew only when it rings. So entering and leaving
    costs a dictionary entry, where a timer for each would be pushed onto the event loop's heap and cancelled again. It
    belongs to the event loop it is made in; a task can be inside once at a time.

    Args:
        seconds: From entering to leaving.

    Raises:
        TimeoutError: From ``with``, when they are over.
    """

    __slots__ = ("_ending", "_entered", "_loop", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._entered: dict[asyncio.Task[object], tuple[float, int]] = {}
        self._ending: dict[asyncio.Task[object], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("A chat is sent from within a task.")
        now = self._loop.time()
        self._entered[task] = (now, task.cancelling())
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._seconds, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # it was one when it entered
        if self._entered.pop(task, None) is not None:
            return
        # As in asyncio.timeout: who else has cancelled the task meanwhile has the last word.
        if task.uncancel() <= self._ending.pop(task) and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        for task, (entered, cancelling) in list(self._entered.items()):
            if entered + self._seconds > now:
                self._timer = self._loop.call_at(entered + self._seconds, self._ring)
                return
            del self._entered[task]
            self._ending[task] = cancelling
            task.cancel()

    def close(self) -> None:
        """Stops the timer, and with it every timeout."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
