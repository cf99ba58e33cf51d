"""Ctrl-C and SIGTERM: the first ends a run in good order, the second at once."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Caught", "ending_on_signals"]


class Caught:
    """Which signal came; None while none has."""

    def __init__(self) -> None:
        self.number: int | None = None


@contextmanager
def ending_on_signals(stop: asyncio.Event, say: Callable[[str], None] = lambda text: None) -> Iterator[Caught]:
    """Inside the block the first SIGINT or SIGTERM sets `stop`, and the next cancels the current task.

    Args:
        stop: Set on the first signal.
        say: Told what the first signal does.
    """
    loop, task, caught = asyncio.get_running_loop(), asyncio.current_task(), Caught()

    def end(number: int) -> None:
        if caught.number is None:
            caught.number = number
            stop.set()
            say("Stopping: nothing more is sent; waiting for what is under way. Ctrl-C once more ends at once.")
        elif task is not None:
            task.cancel()

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end, number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
