"""One timer for the timeouts of all attempts: they all have the same length, so the first to start ends first."""

import asyncio
from types import TracebackType
from typing import Self

_PAUSE = 0.1
"""Seconds without a new attempt after which the event loop may not have looked at its connections."""


class AttemptEndedError(Exception):
    """The client was closed before the request was sent."""


class SharedTimeout:
    """The timeout of many attempts, like `asyncio.timeout` for each, but cheaper.

    There is one timer however many attempts are made, and it is set again only when it fires. So an attempt costs a
    dictionary entry, where a timer for each would be pushed onto the event loop's heap and cancelled again. It belongs
    to the event loop it is made in.

    Args:
        seconds: For one attempt.
    """

    __slots__ = ("_seconds", "last_start", "loop", "running", "timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.running: dict[asyncio.Task[object] | None, Attempt] = {}
        """The attempts by the tasks that make them, the oldest first."""
        self.timer: asyncio.TimerHandle | None = None
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.last_start: float = self.loop.time()
        """When the last attempt started that did not come after a pause, or the last pause was made up for."""

    def start_timer(self, started: float) -> None:
        """Ends the oldest attempt in time, which was started at `started`."""
        self.timer = self.loop.call_at(started + self._seconds, self._on_timer)

    def _on_timer(self) -> None:
        self.timer = None
        now = self.loop.time()
        for task, attempt in list(self.running.items()):
            if attempt.started + self._seconds > now:
                self.start_timer(attempt.started)
                return
            del self.running[task]
            attempt.end(TimeoutError)

    def end_unsent(self) -> None:
        """Ends the attempts that wait for a connection."""
        for task, attempt in list(self.running.items()):
            if not attempt.sent:
                del self.running[task]
                attempt.end(AttemptEndedError)

    def close(self) -> None:
        """Stops the timer, and with it every timeout."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Attempt:
    """One attempt, for as long as the ``with`` block lasts. A task makes one at a time.

    Args:
        timeout: Ends it.
        headers: Encoded headers of this attempt alone, each with its line end.

    Attributes:
        headers: As given.
        sent: Whether anything of it has been written to a connection.
        after_pause: Whether the event loop may have been stopped before it; see `catch_up`.
        started: When it was entered, in the event loop's time.

    Raises:
        TimeoutError: From ``with``, when its time is over.
        AttemptEndedError: From ``with``, after `SharedTimeout.end_unsent`.
    """

    __slots__ = ("_cancelling", "_ending", "_task", "_timeout", "after_pause", "headers", "sent", "started")

    def __init__(self, timeout: SharedTimeout, headers: bytes = b"") -> None:
        self._timeout = timeout
        self.headers: bytes = headers
        self._ending: type[Exception] | None = None
        self._cancelling = 0
        self._task: asyncio.Task[object] | None = None
        self.sent: bool = False
        self.after_pause: bool = False
        self.started: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether `SharedTimeout.end_unsent` has ended it."""
        return self._ending is AttemptEndedError

    def __enter__(self) -> Self:
        self._task = task = asyncio.current_task()
        if task is None:
            raise RuntimeError("A chat is sent from within a task.")
        timeout = self._timeout
        self._cancelling = task.cancelling()
        self.started = now = timeout.loop.time()
        if now - timeout.last_start < _PAUSE:
            timeout.last_start = now
        else:
            self.after_pause = True
        timeout.running[task] = self
        if timeout.timer is None:
            timeout.start_timer(now)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ending is None:
            del self._timeout.running[self._task]
            return
        assert self._task is not None  # noqa: S101  # it was one when it entered
        # As in asyncio.timeout: a cancellation by other code takes precedence.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._ending from error

    def end(self, error: type[Exception]) -> None:
        """Ends it with an error of the class `error`."""
        self._ending = error
        if self._task is not None:
            self._task.cancel()

    async def catch_up(self) -> None:
        """Makes up for a pause; see the function of this name."""
        await catch_up()
        self._timeout.last_start = self._timeout.loop.time()


async def catch_up() -> None:
    """Lets the event loop notice which idle connections the server has closed while the loop was not running.

    What is written to such a connection is lost, and looks like a request that the service took and never answered.
    """
    for _ in range(3):  # to poll, to read the end of the stream, and for TLS to pass it on
        await asyncio.sleep(0)
