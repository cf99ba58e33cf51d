"""One process writes a journal. The lock is a file of its own, so it is free the moment its owner dies.

The system's lock on ``NAME.lock`` decides, never the file's existence. Its text names the owner, and how many steps
were written by then. After a crash the journal must hold as many.
"""

import errno
import logging
import os
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error
from onellm_async.wire import dump_json, parse_json

if sys.platform == "win32":  # pragma: no cover
    import msvcrt
else:
    try:
        import fcntl
    except ImportError:  # a system without file locks
        fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("onellm_async")
_TRIES, _PAUSE = 10, 0.02
"""A process that checks the lock holds it for microseconds, which a single try could meet."""
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK)}
"""What the system says of a lock that another process has; anything else means that there are no locks."""
_TEXT = 512
"""Bytes of the owner's text. On Windows the lock begins far behind it, as a locked range cannot be read."""


@frozen
class LockOwner:
    """The process that writes a journal, as far as the text of the lock names it.

    Attributes:
        pid: Process id; None where it is not known.
        host: Name of its machine.
        writes: Steps of the journal that were durable when it last wrote the text.
    """

    pid: int | None = None
    host: str | None = None
    writes: int = 0

    def __str__(self) -> str:
        if self.pid is None:
            return "another process"
        return f"process {self.pid}" + (f" on {self.host}" if self.host else "")


class JournalInUseError(BatchError):
    """Another process writes the journal."""


class JournalLock:
    """The right to write a journal.

    Args:
        journal: Path of the journal.

    Attributes:
        before: The owner that did not release it, for example a killed process; None after a clean end.
        existed: Whether the file existed. An empty one, which names no process, accepts lost answers.

    Raises:
        BatchError: If another process has it, or the lock cannot be created.
    """

    def __init__(self, journal: Path) -> None:
        if sys.platform != "win32" and fcntl is None:
            _log.warning("This system has no file locks. Let no other run write %s at the same time.", journal)
        self._path = lock_path(journal)
        self.existed: bool = os.path.lexists(self._path)
        self._descriptor = self._acquire(journal)
        self.before: LockOwner | None = _read(self._descriptor)
        self._head = dump_json({"pid": os.getpid(), "host": socket.gethostname()})[:-1]

    def _acquire(self, journal: Path) -> int:
        holder = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE)
            check_regular(self._path)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            try:
                descriptor = os.open(self._path, flags, 0o600)
            except OSError as error:
                raise BatchError(f"{self._path} cannot be written: {describe_os_error(error)}.") from None
            try:
                locked = _lock(descriptor)
            except OSError as error:
                os.close(descriptor)
                raise BatchError(
                    f"{self._path} cannot be locked: {describe_os_error(error)}.",
                    advice="Its file system has no locks. Keep the journal on a local disk: journal='PATH.journal'",
                ) from None
            if not locked:
                holder = _read(descriptor)
                os.close(descriptor)
            elif _still_there(descriptor, self._path):
                return descriptor
            else:  # its last owner removed it after we had opened it
                os.close(descriptor)
                holder = None
        raise JournalInUseError(
            f"{journal} is in use by {holder or 'another process'}.",
            advice="Wait for it, stop it (onellm-async stop), or name another output.",
        )

    def note(self, writes: int) -> None:
        """Writes how many steps are durable. Not synchronized: it is for crashes of the process."""
        text = self._head + b',"writes":%d}' % writes
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, text.ljust(_TEXT))

    def release(self, *, clean: bool) -> None:
        """Releases the lock.

        Args:
            clean: Whether the journal was closed. Otherwise the text stays for the next process.
        """
        if clean and os.name == "posix":
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if clean and os.name != "posix":  # pragma: no cover - an open file cannot be removed there
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


def check_regular(path: Path) -> bool:
    """Whether there is a file. It is not opened: closing a second descriptor would drop SQLite's locks.

    Raises:
        BatchError: If it is a symbolic link, which is not followed, or no regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise BatchError(f"{path} cannot be used: {getattr(error, 'strerror', error)}.") from None
    if stat.S_ISLNK(mode):
        raise BatchError(f"{path} is a symbolic link, which is not followed.", advice="Name the file itself.")
    if not stat.S_ISREG(mode):
        raise BatchError(f"{path} is not a regular file.", advice="Name another output.")
    return True


def lock_path(journal: Path) -> Path:
    """The path of the lock of `journal`."""
    return journal.with_name(journal.name + ".lock")


def lock_owner(journal: Path) -> LockOwner | None:
    """The process that writes `journal` right now; None without one."""
    try:
        descriptor = os.open(lock_path(journal), os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        return None if _lock(descriptor) else _read(descriptor) or LockOwner()
    except OSError:  # the file system has no locks
        return None
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":  # pragma: no cover
            os.lseek(descriptor, 2**30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        elif fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> LockOwner | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = parse_json(os.read(descriptor, _TEXT).strip())
        return LockOwner(int(found["pid"]), str(found["host"]), int(found["writes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
