"""Files that survive a power failure: what is synchronized, and what is said when another program is in the way."""

import os
import sys
from pathlib import Path

if sys.platform != "win32":
    try:
        import fcntl
    except ImportError:  # a system without it has no full synchronization either
        fcntl = None  # type: ignore[assignment]

__all__ = ["describe_os_error", "sync_directory", "sync_file"]

_FULL_SYNC: int | None = None if sys.platform == "win32" else getattr(fcntl, "F_FULLFSYNC", None)
"""On macOS `os.fsync` hands data to the drive, which may keep it in its cache. This command empties the cache too."""
_HELD_OPEN = {5, 32, 33}
"""Windows' ERROR_ACCESS_DENIED (also: the file to replace is open), ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION."""


def sync_file(descriptor: int) -> None:
    """Returns when an open file is on the disk.

    Raises:
        OSError: If the system cannot write it.
    """
    if sys.platform != "win32" and _FULL_SYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        except OSError:  # a file system that lacks the command, such as a network share
            pass
        else:
            return
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Returns when the names in a directory are on the disk. Does nothing where a directory cannot be opened.

    Raises:
        OSError: If the system cannot write it.
    """
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(error: OSError) -> str:
    """Why the system refused, as the end of a sentence; with the cure where another program may hold the file open.

    Example:
        >>> describe_os_error(FileNotFoundError(2, "No such file or directory"))
        'No such file or directory'
    """
    text = str(error.strerror or error)
    if getattr(error, "winerror", None) in _HELD_OPEN:
        return (
            f"{text.rstrip('.')}. If another program has the file open, close it there and run the same command again"
        )
    return text
