"""Space set aside while there is some, so that a disk that fills up takes no answer that is already paid for.

A file of random bytes lies beside a journal while a run writes it. When the disk is full it is given up: outcomes of
requests in flight can then still be written, and nothing more is sent.
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from onellm_async.errors import BatchError

__all__ = ["DiskReserve", "lacks_space"]

_BYTES = 4 * 2**20
"""With the default 48 requests in flight 85 kB for each answer and its share of the log."""
_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
"""A spent quota is an error of writing to SQLite, and so is a full disk where it keeps the index of its log."""


class DiskReserve:
    """The space set aside for one journal.

    Args:
        journal: Its path.

    Raises:
        BatchError: If there is not as much; nothing should be sent then.
        OSError: If the system refuses for another reason.
    """

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(journal.name + ".reserve")
        self.release()  # of a process that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._path, flags, 0o600)
        try:
            left = memoryview(os.urandom(_BYTES))  # that no file system can store in less
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            self.release()
            raise BatchError(
                f"{journal.parent} has no {_BYTES // 2**20} MiB left, which a run keeps free for answers in flight.",
                advice="Make space, then give the same command again. Nothing was sent.",
            ) from None
        finally:
            os.close(descriptor)

    def release(self) -> bool:
        """Gives the space up, and tells whether there was any left to give up."""
        with suppress(OSError):
            self._path.unlink()
            return True
        return False


def lacks_space(error: Exception) -> bool:
    """Whether SQLite failed for what may be a lack of space."""
    return getattr(error, "sqlite_errorcode", None) in _CODES
