"""The end of a run: outcomes in any order → the order of the input → the sink.

Writing happens in a task of its own, which takes everything that is ready at once: a slow disk makes the portions
larger, and not the requests slower, until `_MOST_BYTES` wait.
"""

import asyncio
from typing import Protocol

from onellm_async.batch.outputs.reorder import ReorderBuffer

__all__ = ["LineSink", "OrderedWriter"]

_MOST_BYTES = 4 * 1024 * 1024


class LineSink(Protocol):
    """Takes output in the order in which it is to stand."""

    async def write(self, lines: bytes) -> None:
        """Takes whole lines.

        Raises:
            BatchError: If they cannot be written.
        """


class OrderedWriter:
    """Writes what leaves a run.

    Args:
        sink: Where to.
        window: How many positions may be held back.
    """

    def __init__(self, sink: LineSink, window: int) -> None:
        self._sink = sink
        self._window = window
        self._order: ReorderBuffer[bytes] = ReorderBuffer()
        self._ready: list[bytes] = []
        self._size = 0
        self._closed = self._abandoned = self._waited_for = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def put(self, position: int, line: bytes) -> None:
        """Takes the line of `position`, once; an empty one where there is nothing to say."""
        ready = self._order.put(position, line)
        if ready:
            self._ready += ready
            self._size += sum(map(len, ready))
            self._news.set()
            self._room.set()

    @property
    def is_waited_for(self) -> bool:
        """Whether the input waits in `room_for`, as an earlier position has no line yet."""
        return self._waited_for

    async def room_for(self, position: int) -> None:
        """Returns when `position` may be worked on: it is not too far ahead, and the sink keeps up. Safe to cancel."""
        while position - self._order.next_position >= self._window or self._size > _MOST_BYTES:
            self._room.clear()
            self._waited_for = not self._ready
            try:
                await self._room.wait()
            finally:
                self._waited_for = False

    async def drain_into_sink(self) -> None:
        """Writes until `close`, and everything that is there by then.

        Raises:
            BatchError: If the sink fails.
        """
        while not self._abandoned and not (self._closed and not self._ready):
            if not self._ready:
                self._news.clear()
                await self._news.wait()
                continue
            lines, self._ready = b"".join(self._ready), []
            try:
                if lines:
                    await self._sink.write(lines)
            finally:
                self._size -= len(lines)
                self._room.set()

    def abandon(self) -> None:
        """Nothing more is to be written: what little space the disk has is wanted elsewhere."""
        self._abandoned = True
        self._news.set()

    def close(self) -> None:
        """Nothing more will come: what waits for a gap to be filled is let go of over the gap."""
        self._ready += self._order.drain()
        self._closed = True
        self._news.set()
