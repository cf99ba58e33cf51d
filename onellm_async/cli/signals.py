"""Ctrl-C, SIGTERM and SIGHUP: the first ends a run gracefully, another Ctrl-C or SIGTERM at once."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Caught", "ending_on_signals"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_SAME_WITHIN = 0.2
"""Seconds within which a SIGTERM after another is the same: `timeout` sends one to a process and one to its group."""


class Caught:
    """Which signal came; None while none has."""

    def __init__(self) -> None:
        self.number: int | None = None


@contextmanager
def ending_on_signals(stop: asyncio.Event, say: Callable[[str], None] = lambda text: None) -> Iterator[Caught]:
    """Inside the block the first SIGINT, SIGTERM or SIGHUP sets `stop`; another SIGINT or SIGTERM cancels the task.

    Two SIGTERMs within a fifth of a second are one. A signal that is ignored when the block is entered stays ignored
    (`nohup`, background jobs of a script).

    Args:
        stop: Set on the first signal.
        say: Told what the first signal does.
    """
    loop, task, caught = asyncio.get_running_loop(), asyncio.current_task(), Caught()
    terminated_at = float("-inf")
    numbers = {number: name for name in _NAMES if (number := getattr(signal, name, None)) is not None}
    asked = False

    def end(number: int, at: float) -> None:
        nonlocal asked, terminated_at
        if numbers[number] == "SIGTERM":
            is_same = at - terminated_at < _SAME_WITHIN
            terminated_at = at
            if is_same:
                return
        # A closed terminal is no request to hurry: the kernel and the shell each send a SIGHUP, and systemd sends one
        # after its SIGTERM.
        insists = asked and numbers[number] != "SIGHUP"
        asked = asked or numbers[number] != "SIGHUP"
        if caught.number is None:
            caught.number = number
            stop.set()
            say("Stopping: nothing more is sent; waiting for requests in flight. Press Ctrl-C again to end at once.")
        elif insists and task is not None:
            task.cancel()

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end, number, loop.time())

    handled = [number for number in numbers if signal.getsignal(number) not in {signal.SIG_IGN, None}]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
