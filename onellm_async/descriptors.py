"""Complete writes and reads on file descriptors that may be pipes, sockets or terminals of another program."""

import errno
import os
import select
import sys
import time
from collections.abc import Callable

from onellm_async.errors import BatchError

__all__ = ["check_writable", "read_piece", "unwritable", "write_all", "write_all_with"]


def reader_left_errors(platform: str) -> frozenset[int]:
    """Error numbers of a write that mean that the program which read the stream has ended.

    Args:
        platform: As `sys.platform` names it. Windows says EINVAL for a closed pipe.
    """
    return frozenset({errno.EPIPE, errno.ECONNRESET, *([errno.EINVAL] if platform == "win32" else [])})


READER_LEFT = reader_left_errors(sys.platform)
"""Of this platform."""
_RETRY_EVERY = 0.02
"""Seconds between attempts where a descriptor cannot be waited for."""
_WAIT = 1.0
"""Longest wait for a descriptor at a time, in seconds; the loop then looks again."""


def check_writable(descriptor: int, name: str) -> None:
    """Checks without writing anything that a stream is open and not known to be full.

    Raises:
        BatchError: As `unwritable` says.
    """
    try:
        os.write(descriptor, b"")
    except BlockingIOError:
        pass
    except OSError as error:
        raise unwritable(name, error)  # noqa: B904  # it names its cause itself


def unwritable(name: str, error: OSError) -> BatchError:
    """What the user hears of a stream that cannot be written.

    Args:
        name: Of the stream.
        error: Of the write. Kept as the cause, except for a stream that is closed: that one was unusable from the
            start. It is a BrokenPipeError where the program that read the stream has ended.
    """
    if error.errno == errno.EBADF:
        return BatchError(f"{name} is closed.", advice="Leave it open, or redirect it to a file.")
    made = BatchError(f"{name} cannot be written: {error.strerror}.")
    left = error.errno in READER_LEFT
    made.__cause__ = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if left else error
    return made


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes `data` completely. Blocks, also where the descriptor does not (``O_NONBLOCK``).

    Raises:
        OSError: If the rest cannot be written.
    """
    write_all_with(lambda view: os.write(descriptor, view), data, lambda: descriptor)


def write_all_with(
    write: Callable[[memoryview], int | None], data: bytes | memoryview, fileno: Callable[[], int]
) -> None:
    """Writes `data` completely by a function such as `io.RawIOBase.write`. Blocks.

    Args:
        write: Writes a part and returns its length; where it would have to wait, None or a BlockingIOError.
        data: What is written.
        fileno: The descriptor to wait for then.

    Raises:
        OSError: If the rest cannot be written.
    """
    view = memoryview(data)
    while view:
        try:
            written = write(view)
        except BlockingIOError:
            written = None
        if written is None:
            _wait([], [fileno()])
        else:
            view = view[written:]


def read_piece(descriptor: int, size: int) -> bytes:
    """Reads at most `size` bytes, none at the end. Blocks, also where the descriptor does not (``O_NONBLOCK``).

    Raises:
        OSError: If it cannot be read.
    """
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            _wait([descriptor], [])


def _wait(readers: list[int], writers: list[int]) -> None:
    try:
        select.select(readers, writers, [], _WAIT)
    except (OSError, ValueError):  # Windows can wait for sockets only; a descriptor may be too large a number
        time.sleep(_RETRY_EVERY)
