"""The end of a run: outcomes in any order → the order of the input → the sink.

Writing happens in a task of its own, which takes everything that is ready at once: a slow disk makes the portions
larger, and not the requests slower, until `_MAX_READY` bytes wait.

Where the lines can be read again from a journal, one slow prompt holds no other up: what is early is held up to
`_MAX_EARLY` bytes, and beyond that only its position is. Without a journal a window bounds how far the newest prompt is
ahead of the oldest one without an outcome.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

WINDOW = 4096
"""Prompts; see `OrderedWriter`. At 2 kB an answer, 8 MB."""
_MAX_READY = 4 * 1024 * 1024
"""Bytes that may wait for the sink before the input does."""
_MAX_EARLY = 4 * 1024 * 1024
"""Bytes of early lines that are held where they can be read again."""
_PORTION = 500
"""Lines that are written at once. Reading so many from a journal takes some milliseconds of the event loop."""
_TRIM_AFTER = 64 * 1024
"""Positions that were taken before their bytes are given back."""

_ABSENT, _HELD, _EMPTY, _TO_READ = range(4)


class LineSink(Protocol):
    """Takes output in the order in which it is to stand."""

    async def write(self, lines: bytes) -> None:
        """Takes whole lines.

        Raises:
            BatchError: If they cannot be written.
        """


class ReorderBuffer:
    """Lines that arrive by position in any order and are taken in order of position. Pure.

    A position costs one byte, and its line what it is long. Lines beyond `max_early` are not held; `take` gives None
    in their place.

    Args:
        max_early: Bytes of held lines; None for any number.

    Attributes:
        next_position: The position that everything else waits for.
        ready_bytes: Bytes of the held lines that can be taken.

    Example:
        >>> buffer = ReorderBuffer()
        >>> buffer.put(1, b"b"), buffer.put(0, b"a")
        (False, True)
        >>> buffer.take(10)
        (0, [b'a', b'b'])
    """

    def __init__(self, max_early: int | None = None) -> None:
        self.next_position: int = 0
        self.ready_bytes: int = 0
        self._max_early = max_early
        self._early_bytes = 0
        self._states = bytearray()
        self._start = 0
        self._taken = 0
        self._lines: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Positions that can be taken."""
        return self.next_position - self._taken

    def put(self, position: int, line: bytes) -> bool:
        """Takes the line of `position`, once. Returns whether anything can be taken that could not before."""
        offset = position - self._start
        if offset >= len(self._states):
            self._states.extend(bytes(offset - len(self._states) + 1024))
        in_turn = position == self.next_position
        if not line:
            self._states[offset] = _EMPTY
        elif in_turn or self._max_early is None or self._early_bytes + len(line) <= self._max_early:
            self._states[offset] = _HELD
            self._lines[position] = line
            self._early_bytes += len(line)
        else:
            self._states[offset] = _TO_READ
        if in_turn:
            self._advance()
        return in_turn

    def _advance(self) -> None:
        offset, states = self.next_position - self._start, self._states
        while offset < len(states) and (state := states[offset]):
            if state == _HELD:
                size = len(self._lines[self._start + offset])
                self._early_bytes -= size
                self.ready_bytes += size
            offset += 1
        self.next_position = self._start + offset

    def take(self, limit: int) -> tuple[int, list[bytes | None]]:
        """At most `limit` lines in order, and the position of the first; None where a line was not held."""
        first, last = self._taken, min(self._taken + limit, self.next_position)
        lines = [self._line(position) for position in range(first, last)]
        self.ready_bytes -= sum(len(line) for line in lines if line)
        self._taken = last
        if last - self._start > _TRIM_AFTER:
            del self._states[: last - self._start]
            self._start = last
        return first, lines

    def skip_gap(self) -> bool:
        """Goes on behind the positions without a line: nothing more will come. Returns whether anything is there."""
        offset, states = self.next_position - self._start, self._states
        while offset < len(states) and not states[offset]:
            states[offset] = _EMPTY
            offset += 1
        if offset >= len(states):
            return False
        self._advance()
        return True

    def _line(self, position: int) -> bytes | None:
        state = self._states[position - self._start]
        if state == _HELD:
            return self._lines.pop(position)
        return b"" if state == _EMPTY else None


class OrderedWriter:
    """Writes the output of a run.

    Args:
        sink: Where to.
        window: How far the newest position may be ahead of the oldest one without a line, where lines cannot be read
            again.
        read: Returns the lines from a first to a last position, both included, all of which were put; None where they
            cannot be read again.
        header: What stands before the first line.
    """

    def __init__(
        self,
        sink: LineSink,
        *,
        window: int = WINDOW,
        read: Callable[[int, int], Sequence[bytes]] | None = None,
        header: bytes = b"",
    ) -> None:
        self._sink = sink
        self._header = header
        self._window = window
        self._read = read
        self._buffer = ReorderBuffer(None if read is None else _MAX_EARLY)
        self._writing = 0
        self._closed = self._discarded = self._waited_for = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def put(self, position: int, line: bytes) -> None:
        """Takes the line of `position`, once; an empty one where there is nothing to say."""
        if self._buffer.put(position, line):
            self._news.set()
            self._room.set()

    @property
    def written(self) -> int:
        """The position up to which lines were taken for the sink."""
        return self._buffer.next_position - len(self._buffer)

    @property
    def is_waited_for(self) -> bool:
        """Whether the input waits in `wait_for_space`, as an earlier position has no line yet."""
        return self._waited_for

    def _has_space_for(self, position: int) -> bool:
        if self._buffer.ready_bytes + self._writing > _MAX_READY:
            return False
        return self._read is not None or position - self._buffer.next_position < self._window

    async def wait_for_space(self, position: int) -> None:
        """Returns when `position` may be worked on: it is not too far ahead, and the sink keeps up. Safe to cancel."""
        while not self._has_space_for(position):
            self._room.clear()
            self._waited_for = not len(self._buffer)
            try:
                await self._room.wait()
            finally:
                self._waited_for = False

    async def write_all(self) -> None:
        """Writes until `close`, and everything that is there by then.

        Raises:
            BatchError: If the sink fails, or a line cannot be read again.
        """
        if self._header:
            await self._sink.write(self._header)
        while not self._discarded:
            if not len(self._buffer):
                if self._closed and not self._buffer.skip_gap():
                    return
                if not self._closed:
                    self._news.clear()
                    await self._news.wait()
                continue
            lines = b"".join(self._taken())
            self._writing = len(lines)
            try:
                if lines:
                    await self._sink.write(lines)
                else:
                    await asyncio.sleep(0)
            finally:
                self._writing = 0
                self._room.set()

    def _taken(self) -> list[bytes]:
        first, taken = self._buffer.take(_PORTION)
        lines, offset = list[bytes](), 0
        while offset < len(taken):
            end = offset
            while end < len(taken) and taken[end] is None:
                end += 1
            if end > offset and self._read is not None:
                lines.extend(self._read(first + offset, first + end - 1))
            if end < len(taken):
                lines.append(taken[end] or b"")
            offset = end + 1
        return lines

    def discard(self) -> None:
        """Nothing more is to be written: what little space the disk has is wanted elsewhere."""
        self._discarded = True
        self._news.set()

    def close(self) -> None:
        """Nothing more will come: what waits for a gap to be filled is written without it."""
        self._closed = True
        self._news.set()
