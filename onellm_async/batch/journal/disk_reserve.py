"""Space reserved while there is some, so that no paid answer is lost when the disk fills up.

A file of random bytes is beside a journal while a run writes it. It is removed when the disk is full: then outcomes of
requests in flight can still be written, and nothing more is sent.
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
    """The space reserved for one journal.

    Args:
        journal: Its path.

    Raises:
        BatchError: If there is not enough; nothing should be sent then.
        OSError: If it fails for another reason.
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
                f"{journal.parent} has no {_BYTES // 2**20} MiB of free space, which a run reserves for answers in "
                "flight.",
                advice="Free some space and run the same command again. Nothing was sent.",
            ) from None
        finally:
            os.close(descriptor)

    def release(self) -> bool:
        """Releases the space. Returns whether there was any."""
        with suppress(OSError):
            self._path.unlink()
            return True
        return False


def lacks_space(error: Exception) -> bool:
    """Whether SQLite failed for what may be a lack of space."""
    return getattr(error, "sqlite_errorcode", None) in _CODES
