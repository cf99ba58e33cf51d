"""A journal as a file: create it, open it, check it, and translate what SQLite and the system report."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

from attrs import frozen

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.lock import JournalLock, check_regular
from onellm_async.batch.journal.schema import APPLICATION_ID, Ledger, create_schema, migrate, read_ledger
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error, sync_directory
from onellm_async.wire import dump_json, parse_json

_ADVICE = "What was committed is kept. Fix the cause and run the same command again to resume."
_RESTORE = (
    "Restore it from a backup, together with its -wal file. Or start over with force=True or another output: then "
    "every prompt is sent, and paid, again."
)
_READ_ONLY = (
    "cannot be written: the file or its directory is read-only",
    "What was committed is kept. Make it writable and run the same command again to resume.",
)
_BUSY = ("is locked by another program", f"Close that program. {_ADVICE}")
_REFUSALS = {
    sqlite3.SQLITE_FULL: (
        "cannot grow: the disk is full",
        "What was committed is kept. Free some space and run the same command again to resume.",
    ),
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened: it, or its directory, is missing, read-only or not accessible",
        "Check the path, its permissions and the space on the disk, then run the same command again to resume.",
    ),
    sqlite3.SQLITE_IOERR: ("cannot be read or written: the disk reports an error ({})", _ADVICE),
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_NOTADB: ("is not a journal", "Use another output, or move that file away."),
    sqlite3.SQLITE_CORRUPT: ("is damaged ({})", _RESTORE),
}
"""What SQLite's codes mean, and what to do."""
_MIN_SQLITE = (3, 32)
"""SQLite of May 2020: the first that takes as many parameters as a statement of many rows has."""
_PAGE = 16_384
"""Bytes of a page. One of 4 KiB holds a single answer of 2.2 kB: 4,180 bytes a row, against 2,460 with this one."""
_BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process that writes: a command of another terminal is done in milliseconds."""


def journal_path(path: str | os.PathLike[str]) -> Path:
    """The journal of a run, from its own path or that of the output (``OUTPUT.journal``).

    Raises:
        BatchError: If it is no name of a file.
    """
    given = Path(path)
    if not given.name:
        raise BatchError(f"'{os.fspath(path)}' is no name of a file.", advice="Name the output, or its journal.")
    return given if given.suffix == ".journal" else given.with_name(given.name + ".journal")


def to_batch_error(error: Exception, path: Path) -> BatchError:
    """The error of SQLite or of the system about `path`, with what to do."""
    if isinstance(error, BatchError):
        return error
    if isinstance(error, OSError):
        return BatchError(f"{path} cannot be used: {describe_os_error(error)}.", advice=_ADVICE)
    code = getattr(error, "sqlite_errorcode", 0)
    primary = sqlite3.SQLITE_FULL if code == sqlite3.SQLITE_IOERR_SHMSIZE else code & 0xFF
    what, advice = _REFUSALS.get(primary, ("cannot be used: {}", _ADVICE))
    return BatchError(f"{path} {what.format(error)}.", advice=advice)


def damaged(path: Path, what: str) -> BatchError:
    """The error for a journal that lacks something it had."""
    return BatchError(f"{path} is damaged ({what}).", advice=_RESTORE)


def log_lost(path: Path, found: str) -> BatchError:
    """The error for a journal whose newest records are missing.

    Args:
        path: Of the journal.
        found: How that was noticed.
    """
    lock = path.with_name(path.name + ".lock")
    return BatchError(
        f"{path} lacks answers: {found}.",
        advice=f"Restore {path.name}-wal from where the run was. Or make {lock} an empty file to resume without the "
        "lost answers: their prompts are then sent, and paid, again. force=True starts over.",
    )


def has_log(path: Path) -> bool:
    """Whether SQLite's log, with the newest records, is beside a journal. A connection creates one."""
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


def connect(path: Path, *, mode: str = "rw") -> sqlite3.Connection:
    """A connection in autocommit mode to a journal that exists.

    Args:
        path: Of the journal.
        mode: ``rw`` or ``ro``.

    Raises:
        BatchError: If there is none, or the file is something else.
        sqlite3.Error: If it cannot be opened or read.
    """
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        raise BatchError(
            f"This Python has SQLite {sqlite3.sqlite_version}; a journal needs "
            f"{'.'.join(map(str, _MIN_SQLITE))} or later.",
            advice="Use a newer build of Python.",
        )
    if not check_regular(path):
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
        _check_journal(connection, path, logged=logged)
    except BaseException:
        connection.close()
        raise
    return connection


def has_whole_pages(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a journal ends where a page ends. SQLite reads what was cut off the last page as zeros."""
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    return path.lstat().st_size % int(page) == 0


def _check_journal(connection: sqlite3.Connection, path: Path, *, logged: bool) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application == APPLICATION_ID:
        if not logged and not has_whole_pages(connection, path):  # nothing is being written
            raise damaged(path, "it was cut")
        return
    if path.lstat().st_size == 0:
        raise damaged(path, "it is empty")
    raise BatchError(f"{path} is not a journal.", advice="Use another output, or move that file away.")


def make_durable(connection: sqlite3.Connection) -> None:
    """Has every commit of a connection survive a power failure. The last two settings matter on macOS only."""
    for pragma in ("synchronous = FULL", "fullfsync = 1", "checkpoint_fullfsync = 1"):
        connection.execute(f"PRAGMA {pragma}")


def create(path: Path, first_rows: tuple[tuple[str, tuple[object, ...]], ...]) -> None:
    """Creates a journal, completely or not at all, which only its owner can read.

    Args:
        path: Where it is to be; nothing may be there.
        first_rows: Statements, with their parameters, that insert its first rows.

    Raises:
        OSError: If it cannot be created.
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
            create_schema(connection)
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


@frozen
class JournalState:
    """What a run needs to know of the journal that it continues.

    Attributes:
        identity: Of the run.
        resumed: Whether it was there before.
        started_at: When the run first began, in Unix seconds.
        session: Number of the session that begins.
        ledger: What it holds.
        samples: Points of its time series.
        sample_interval: Seconds between two of them.
        last_command: Number of the last command to earlier sessions, which this one ignores.
        last_entry: Index of the last entry with a record; -1 without one.
        wrote_output: Whether an earlier session finished an output file.
    """

    identity: RunIdentity
    resumed: bool
    started_at: float
    session: int
    ledger: Ledger
    samples: int
    sample_interval: float
    last_command: int
    last_entry: int
    wrote_output: bool


Reconcile = Callable[[sqlite3.Connection, RunIdentity], None]
"""Has the records follow an input that may have changed since the journal of that identity was written."""


class _NothingAtStakeError(Exception):
    """Inside this file only: a journal without an answer and without money at risk."""


def open_journal(
    path: Path,
    lock: JournalLock,
    identity: RunIdentity,
    *,
    force: bool,
    settings: JSON,
    reconcile: Reconcile | None = None,
) -> JournalState:
    """Creates a journal, or checks the existing one, and begins a session.

    One that holds neither answers nor money at risk binds to nothing: it is replaced where it is of another run.

    Args:
        path: Of the journal.
        lock: The right to write it.
        identity: Of the run.
        force: Start over and discard an existing journal.
        settings: Of this session.
        reconcile: Takes a changed input; without it, a journal of another input is of another run.

    Raises:
        BatchError: If it is not one, or of another run, or damaged; and what `reconcile` raises.
        OSError: If the system cannot open or write it.
        sqlite3.Error: If SQLite cannot.
    """
    text = dump_json(settings).decode()
    resumed, logged = check_regular(path), has_log(path)
    if resumed and force:
        _check_replaceable(path)
        resumed = False
    if not resumed:
        _check_no_remains(path, force=force)
        remove(path)
        begin = "INSERT INTO run (id, identity, started_at) VALUES (1, ?, ?)"
        create(path, ((begin, (dump_json(identity.as_json()).decode(), time.time())),))
    try:
        return _begin(path, lock, identity, text, resumed=resumed, logged=logged, reconcile=reconcile)
    except _NothingAtStakeError:
        return open_journal(path, lock, identity, force=True, settings=settings)
    except BaseException:
        if not resumed:
            with suppress(OSError):
                remove(path)
        raise


def _begin(
    path: Path,
    lock: JournalLock,
    identity: RunIdentity,
    settings: str,
    *,
    resumed: bool,
    logged: bool,
    reconcile: Reconcile | None,
) -> JournalState:
    with closing(connect(path)) as connection:
        migrate(connection, str(path))
        earlier = read_identity(connection, path)
        if resumed:
            _check_whole(connection, path, lock, logged=logged)
            _check_same(connection, path, earlier, identity, follows=reconcile is not None)
        make_durable(connection)
        if resumed and reconcile is not None and not identity.has_input_of(earlier):
            reconcile(connection, earlier)
            earlier = identity
        session = connection.execute(
            "INSERT INTO sessions (started_at, version, settings) VALUES (?, ?, ?)", (time.time(), _version(), settings)
        ).lastrowid
        connection.execute("UPDATE run SET complete = 0")
        started_at, interval = connection.execute("SELECT started_at, sample_interval FROM run").fetchone()
        (samples,) = connection.execute("SELECT count(*) FROM samples WHERE id > 0").fetchone()
        (last_command,) = connection.execute("SELECT coalesce(max(id), 0) FROM commands").fetchone()
        (last_entry,) = connection.execute("SELECT coalesce(max(entry), -1) FROM intents").fetchone()
        (wrote_output,) = connection.execute("SELECT output_bytes IS NOT NULL FROM run").fetchone()
        ledger = read_ledger(connection)
        # The main file then shows that the session has not ended, even without its log.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    lock.note(ledger.writes)
    return JournalState(
        earlier,
        resumed,
        started_at,
        session or 0,
        ledger,
        samples,
        interval,
        last_command,
        last_entry,
        bool(wrote_output),
    )


def write_identity(connection: sqlite3.Connection, identity: RunIdentity) -> None:
    """Makes `identity` that of a journal. Bad lines belong to the input before, and are forgotten."""
    connection.execute("UPDATE run SET identity = ?", (dump_json(identity.as_json()).decode(),))
    connection.execute("DELETE FROM bad_lines")


def read_identity(connection: sqlite3.Connection, path: Path) -> RunIdentity:
    """The identity that a journal holds.

    Raises:
        BatchError: If it holds none.
        sqlite3.Error: If it cannot be read.
    """
    found = connection.execute("SELECT identity FROM run").fetchone()
    if found is None or not isinstance(found[0], str):
        raise damaged(path, "it does not name its run")
    try:
        return RunIdentity.from_json(parse_json(found[0].encode()))
    except ValueError:
        raise damaged(path, "the identity of its run cannot be read") from None


LOG_MISSING = "its last session was killed, and neither its -wal file nor its .lock file is beside it"
"""The sign of a journal that was moved or copied without its log."""


def ended_cleanly(connection: sqlite3.Connection) -> bool:
    """Whether the last session ended. One that was killed has its newest records in the log alone."""
    last = connection.execute("SELECT ended_at FROM sessions ORDER BY id DESC LIMIT 1").fetchone()
    return last is not None and last[0] is not None


def _check_replaceable(path: Path) -> None:
    """Refuses to replace a file that is not a journal. A damaged journal may be replaced."""
    try:
        connect(path).close()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
    except BatchError:
        if path.lstat().st_size:
            raise


def _check_no_remains(path: Path, *, force: bool) -> None:
    log = path.with_name(path.name + "-wal")
    if not force and check_regular(log) and log.lstat().st_size:
        raise damaged(path, f"it is gone, but {log.name} is there")


def _check_whole(connection: sqlite3.Connection, path: Path, lock: JournalLock, *, logged: bool) -> None:
    (written,) = connection.execute("SELECT writes FROM totals").fetchone()
    if lock.before is not None and written < lock.before.writes:
        found = (
            f"it holds {written:,} of {lock.before.writes:,} steps that were written; its -wal file is missing or cut"
        )
        raise log_lost(path, found)
    ended = ended_cleanly(connection)
    if not (ended or logged or lock.existed):
        raise log_lost(path, LOG_MISSING)
    if lock.before is not None or not ended:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(path, verdict)


def _check_same(
    connection: sqlite3.Connection, path: Path, earlier: RunIdentity, identity: RunIdentity, *, follows: bool
) -> None:
    if differences := identity.changed_options(earlier) if follows else identity.differences(earlier):
        if not read_ledger(connection).counts.holds_value:
            raise _NothingAtStakeError
        raise BatchError(
            f"{path} belongs to another run: {'; '.join(differences)}.",
            advice="Give the same input and options to resume that run. Or use another output, or force=True to "
            "discard its answers.",
        )


def _version() -> str:
    try:
        return version("onellm-async")
    except PackageNotFoundError:
        return "unknown"
