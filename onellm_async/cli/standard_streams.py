"""The standard streams of a command: what a closed, full, stopped or abandoned one means is decided here, once.

**Standard error** informs people. Text that cannot be written is dropped: no run ends because its terminal is gone. A
thread of its own writes, so that a reader that has stopped (Ctrl-S, a pager, a stalled ssh) does not stop the event
loop, and with it the requests in flight.

**Standard output** carries results. A write that fails is a `BatchError`; its ``__cause__`` is a BrokenPipeError where
the reader left. Where it is no terminal it is UTF-8 with bare line feeds, whatever the locale says: results are data.

**A closed stream** (``>&-``) keeps its descriptor, so that no journal and no socket can get number 0, 1 or 2. Each use
of it fails as if it were closed.
"""

import contextlib
import io
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol, TextIO, TypeVar

from onellm_async.descriptors import unwritable, write_all_with
from onellm_async.errors import BatchError

__all__ = ["guarded_streams", "is_behind"]

_BACKLOG = 8 * 1024 * 1024
"""Bytes for standard error that wait for its reader. What is said beyond them is counted and dropped."""
_SETTLE = 1.0
"""Seconds that a result waits for the messages before it, so that both stay in order on one terminal."""


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Replaces `sys.stdin`, `sys.stdout` and `sys.stderr` within the block; waits for standard error at its end."""
    for descriptor, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        _keep_open(descriptor, flags)
    before = sys.stdin, sys.stdout, sys.stderr
    messages = _guarded(before[2], 2, _Messages)
    results = _guarded(before[1], 1, lambda target: _Results(target, messages))
    if before[0] is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115  # a descriptor that is not ours
    sys.stdout = before[1] if results is None else _as_text(results, data=True)
    sys.stderr = before[2] if messages is None else _as_text(messages, data=False)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, BatchError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before
        if messages is not None:
            messages.end()


def is_behind(stream: IO[str]) -> bool:
    """Whether what was said to a guarded standard error is not read yet, so that no more should be said needlessly."""
    guard = getattr(stream, "buffer", None)
    return isinstance(guard, _Messages) and guard.behind


def _keep_open(descriptor: int, flags: int) -> None:
    """Fills the place of a closed descriptor with one that can only be used the other way round."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, flags)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


_G = TypeVar("_G", bound="_Guard")


def _guarded(stream: TextIO | None, descriptor: int, guard: "Callable[[_Target], _G]") -> _G | None:
    """The guard of a stream; None where the stream is none of the operating system's, such as a StringIO."""
    try:
        return guard(_Target(stream, descriptor))
    except (AttributeError, ValueError):
        return None


def _as_text(guard: "_Guard", *, data: bool) -> io.TextIOWrapper:
    as_data = data and not guard.isatty()
    return io.TextIOWrapper(
        guard,
        encoding="utf-8" if as_data else guard.target.encoding,
        errors="backslashreplace",  # half a surrogate pair must not lose a paid answer
        newline="\n" if as_data else None,
        line_buffering=True,
    )


class _Binary(Protocol):
    """What takes the bytes of a stream in the end, such as `io.FileIO`."""

    def write(self, data: memoryview, /) -> int | None: ...

    def fileno(self) -> int: ...


class _Target:
    """A standard stream as Python opened it, below its buffers: what fails there is not kept and written again."""

    def __init__(self, stream: TextIO | None, descriptor: int) -> None:
        self.stream = stream
        self.raw: _Binary
        if stream is None:
            self.raw = io.FileIO(descriptor, "w", closefd=False)
        else:
            buffer = stream.buffer
            self.raw = getattr(buffer, "raw", buffer)

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def write(self, data: bytes | memoryview) -> None:
        write_all_with(self.raw.write, data, self.raw.fileno)


class _Guard(io.RawIOBase):
    """The lowest layer of a stream: writes everything, or decides what a failure means."""

    def __init__(self, target: _Target) -> None:
        super().__init__()
        self.target = target

    @property
    def name(self) -> str:
        return str(getattr(self.target.stream, "name", ""))

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.target.isatty()

    def fileno(self) -> int:
        return self.target.raw.fileno()


class _Messages(_Guard):
    """Standard error: never fails and never blocks."""

    def __init__(self, target: _Target) -> None:
        super().__init__(target)
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = self._dropped = 0
        self._writing = self._ended = False
        self._thread: threading.Thread | None = None

    @property
    def behind(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._waiting) or self._writing

    def write(self, data: Any, /) -> int:  # the type of io.RawIOBase: anything with a buffer
        text = bytes(data)
        with self._changed:
            if self._ended:
                self._put(text)
            elif self._size + len(text) > _BACKLOG:
                self._dropped += 1
            else:
                if self._dropped:
                    text = b"(%d messages were dropped here: standard error was not read.)\n" % self._dropped + text
                    self._dropped = 0
                self._waiting.append(text)
                self._size += len(text)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._write, name="onellm-async-stderr", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        return len(text)

    def settle(self, seconds: float | None) -> None:
        """Waits until everything is written or dropped, at most so long; for ever if None."""
        with self._changed:
            self._changed.wait_for(lambda: not self.behind, seconds)

    def end(self) -> None:
        """Waits until everything is written or dropped; Ctrl-C ends the wait for a reader that does not read."""
        with contextlib.suppress(KeyboardInterrupt):
            self.settle(None)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                text = self._waiting.popleft()
                self._size -= len(text)
                self._writing = True
            self._put(text)

    def _put(self, text: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # gone, full, closed: it could not be read
            self.target.write(text)


class _Results(_Guard):
    """Standard output: what cannot be written ends the command."""

    def __init__(self, target: _Target, messages: _Messages | None) -> None:
        super().__init__(target)
        self._messages = messages

    def write(self, data: Any, /) -> int:  # the type of io.RawIOBase: anything with a buffer
        if self._messages is not None:
            self._messages.settle(_SETTLE)
        try:
            self.target.write(data)
        except OSError as error:
            raise unwritable("standard output", error)  # noqa: B904  # it names its cause itself
        return len(data)
