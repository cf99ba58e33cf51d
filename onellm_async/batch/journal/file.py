"""A journal as a file: making it, opening it, and what is said when SQLite or the system refuses."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from onellm_async.batch.journal.schema import APPLICATION_ID, migrate
from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error, sync_directory

__all__ = [
    "connect",
    "create",
    "demand_regular",
    "has_log",
    "has_whole_pages",
    "journal_path",
    "log_lost",
    "make_durable",
    "remove",
    "to_batch_error",
    "translate_errors",
]

_ADVICE = "What was committed is kept: the same command goes on from there once that is mended."
_RESTORE = (
    "Bring it back from a backup, together with its -wal file; or begin anew with --force, or with another output: "
    "everything is then sent, and paid, again."
)
_READ_ONLY = (
    "cannot be written: the file or its directory is read-only",
    "What was committed is kept: make it writable, then the same command goes on from there.",
)
_BUSY = ("is locked by another program", f"Close that program. {_ADVICE}")
_REFUSALS = {
    sqlite3.SQLITE_FULL: (
        "cannot grow: the disk is full",
        "What was committed is kept: make space, then the same command goes on from there.",
    ),
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened: it, or its directory, is missing, read-only or not accessible",
        "Check the path, its permissions, and the space on the disk; then the same command goes on from there.",
    ),
    sqlite3.SQLITE_IOERR: ("cannot be read or written: the disk reports an error ({})", _ADVICE),
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_NOTADB: ("is not a journal", "Name another output, or move that file away."),
    sqlite3.SQLITE_CORRUPT: ("is damaged ({})", _RESTORE),
}
"""What SQLite's codes mean to the user, and what helps."""
_OLDEST = (3, 33)
"""SQLite of August 2020: the first with UPDATE … FROM."""
_PAGE = 16_384
"""Bytes of a page. One of 4 KiB holds a single answer of 2.2 kB: 4,180 bytes a row, against 2,460 with this one."""
_BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process that writes: a command of another terminal is done in milliseconds."""


def journal_path(path: str | os.PathLike[str]) -> Path:
    """The journal of a run, from its own path or that of the output (``OUTPUT.journal``)."""
    given = Path(path)
    return given if given.suffix == ".journal" else given.with_name(given.name + ".journal")


def to_batch_error(error: Exception, path: Path) -> BatchError:
    """What SQLite or the system said about `path`, in words that tell how to go on."""
    if isinstance(error, BatchError):
        return error
    if isinstance(error, OSError):
        return BatchError(f"{path} cannot be used: {describe_os_error(error)}.", advice=_ADVICE)
    what, advice = _REFUSALS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, ("cannot be used: {}", _ADVICE))
    return BatchError(f"{path} {what.format(error)}.", advice=advice)


def damaged(path: Path, what: str) -> BatchError:
    """The error for a journal that lacks something it had."""
    return BatchError(f"{path} is damaged ({what}).", advice=_RESTORE)


def log_lost(path: Path, found: str) -> BatchError:
    """The error for a journal whose newest rows are missing.

    Args:
        path: Of the journal.
        found: How that was noticed.
    """
    lock = path.with_name(path.name + ".lock")
    return BatchError(
        f"{path} lacks answers: {found}.",
        advice=f"Bring {path.name}-wal back, from where the run was. Or make {lock} an empty file to go on with what "
        "is left: what was lost is then sent, and paid, again. --force begins anew.",
    )


def has_log(path: Path) -> bool:
    """Whether SQLite's log with the newest rows lies beside a journal. To be asked before a connection makes one."""
    try:
        return path.with_name(path.name + "-wal").lstat().st_size > 0
    except OSError:
        return False


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Translates what SQLite and the system raise inside of it.

    Raises:
        BatchError: Instead.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise to_batch_error(error, path) from None


def demand_regular(path: Path) -> bool:
    """Whether there is a file; it is looked at, not opened: closing a second descriptor would drop SQLite's locks.

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


def connect(path: Path, *, mode: str = "rw") -> sqlite3.Connection:
    """A connection in autocommit mode to a journal that exists.

    Args:
        path: Of the journal.
        mode: ``rw`` or ``ro``.

    Raises:
        BatchError: If there is none, or the file is something else.
        sqlite3.Error: If it cannot be opened or read.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise BatchError(
            f"This Python has SQLite {sqlite3.sqlite_version}; a journal needs {'.'.join(map(str, _OLDEST))} or later.",
            advice="Use a newer build of Python.",
        )
    if not demand_regular(path):
        raise BatchError(f"There is no journal at {path}.", advice="Name the output of a run, or its journal.")
    logged = has_log(path)
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_TIMEOUT,
        cached_statements=64,
    )
    try:
        _demand_journal(connection, path, logged=logged)
    except BaseException:
        connection.close()
        raise
    return connection


def has_whole_pages(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a journal ends where a page ends. SQLite reads what was cut off the last page as zeros."""
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    return path.lstat().st_size % int(page) == 0


def _demand_journal(connection: sqlite3.Connection, path: Path, *, logged: bool) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application == APPLICATION_ID:
        if not logged and not has_whole_pages(connection, path):  # nothing is being written
            raise damaged(path, "it was cut")
        return
    if path.lstat().st_size == 0:
        raise damaged(path, "it is empty")
    raise BatchError(f"{path} is not a journal.", advice="Name another output, or move that file away.")


def make_durable(connection: sqlite3.Connection) -> None:
    """Has every commit of a connection survive a power failure. The last two settings matter on macOS only."""
    for pragma in ("synchronous = FULL", "fullfsync = 1", "checkpoint_fullfsync = 1"):
        connection.execute(f"PRAGMA {pragma}")


def create(path: Path, first_rows: tuple[tuple[str, tuple[object, ...]], ...]) -> None:
    """Makes a journal: whole, or not at all, and readable by its owner alone.

    Args:
        path: Where it is to be; nothing may be there.
        first_rows: Statements, with their parameters, that make its first rows.

    Raises:
        OSError: If it cannot be made.
        sqlite3.Error: If it cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    remove(fresh)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    os.close(os.open(fresh, flags, 0o600))
    try:
        with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE}")
            connection.execute("PRAGMA journal_mode = WAL")
            make_durable(connection)
            migrate(connection, str(path))
            for statement, parameters in first_rows:
                connection.execute(statement, parameters)
        fresh.rename(path)
        sync_directory(path.parent)  # so that the name survives a power failure
    except BaseException:
        remove(fresh)
        raise


def remove(path: Path) -> None:
    """Removes a journal and the files that SQLite keeps beside it."""
    for ending in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
