"""Making a journal or going on with one: what is checked before anything is sent."""

import sqlite3
import time
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from attrs import frozen

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.file import (
    connect,
    create,
    damaged,
    demand_regular,
    has_log,
    log_lost,
    make_durable,
    remove,
)
from onellm_async.batch.journal.lock import JournalLock
from onellm_async.batch.journal.schema import migrate
from onellm_async.batch.journal.writer import TOTALS, Totals
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json, parse_json

__all__ = ["LOG_MISSING", "JournalState", "ended_cleanly", "open_journal", "read_identity"]


@frozen
class JournalState:
    """What a journal tells to a run that continues it.

    Attributes:
        identity: Of the run.
        resumed: Whether it was there before.
        started_at: When the run first began, in Unix seconds.
        session: Number of the session that begins.
        totals: Its row of totals.
        samples: Points of its time series.
        sample_interval: Seconds between two of them.
        last_command: Number of the last command to earlier sessions, which are none of this one's business.
    """

    identity: RunIdentity
    resumed: bool
    started_at: float
    session: int
    totals: Totals
    samples: int
    sample_interval: float
    last_command: int


def open_journal(path: Path, lock: JournalLock, identity: RunIdentity, *, force: bool, settings: JSON) -> JournalState:
    """Makes a journal, or checks the one that is there, and begins a session.

    Args:
        path: Where it is, or is to be.
        lock: The right to write it.
        identity: Of the run.
        force: Begin anew, whatever an earlier journal there holds.
        settings: Of this session.

    Raises:
        BatchError: If it is not one, or of another run, or damaged.
        OSError: If the system refuses.
        sqlite3.Error: If SQLite does.
    """
    text = dump_json(settings).decode()
    resumed, logged = demand_regular(path), has_log(path)
    if resumed and force:
        _demand_replaceable(path)
        resumed = False
    if not resumed:
        _demand_no_remains(path, force=force)
        remove(path)
        begin = "INSERT INTO run (id, identity, started_at) VALUES (1, ?, ?)"
        create(path, ((begin, (dump_json(identity.as_json()).decode(), time.time())),))
    try:
        return _begin(path, lock, identity, text, resumed=resumed, logged=logged)
    except BaseException:
        if not resumed:
            with suppress(OSError):
                remove(path)
        raise


def _begin(
    path: Path, lock: JournalLock, identity: RunIdentity, settings: str, *, resumed: bool, logged: bool
) -> JournalState:
    with closing(connect(path)) as connection:
        migrate(connection, str(path))
        earlier = read_identity(connection, path)
        if resumed:
            _demand_whole(connection, path, lock, logged=logged)
            _demand_same(path, earlier, identity)
        make_durable(connection)
        session = connection.execute(
            "INSERT INTO sessions (started_at, version, settings) VALUES (?, ?, ?)", (time.time(), _version(), settings)
        ).lastrowid
        connection.execute("UPDATE run SET complete = 0")
        started_at, interval = connection.execute("SELECT started_at, sample_interval FROM run").fetchone()
        (samples,) = connection.execute("SELECT count(*) FROM samples WHERE id > 0").fetchone()
        (last_command,) = connection.execute("SELECT coalesce(max(id), 0) FROM commands").fetchone()
        totals = connection.execute(TOTALS).fetchone()
        # So that the file itself tells of a session that has not ended, should it be parted from its log.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    lock.note(int(totals[-1]))
    return JournalState(earlier, resumed, started_at, session or 0, totals, samples, interval, last_command)


def read_identity(connection: sqlite3.Connection, path: Path) -> RunIdentity:
    """The identity that a journal holds.

    Raises:
        BatchError: If it holds none.
        sqlite3.Error: If it cannot be read.
    """
    found = connection.execute("SELECT identity FROM run").fetchone()
    if found is None or not isinstance(found[0], str):
        raise damaged(path, "it does not tell of which run")
    try:
        return RunIdentity.from_json(parse_json(found[0].encode()))
    except ValueError:
        raise damaged(path, "the identity of its run cannot be read") from None


LOG_MISSING = "its last session was killed, and neither its -wal file nor its .lock file is beside it"
"""How it is noticed that a journal was moved or copied without its log."""


def ended_cleanly(connection: sqlite3.Connection) -> bool:
    """Whether the last session came to its end; one that was killed has its newest rows in the log alone."""
    last = connection.execute("SELECT ended_at FROM sessions ORDER BY id DESC LIMIT 1").fetchone()
    return last is not None and last[0] is not None


def _demand_replaceable(path: Path) -> None:
    """Refuses to replace what is not a journal; a damaged one may go."""
    try:
        connect(path).close()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
    except BatchError:
        if path.lstat().st_size:
            raise


def _demand_no_remains(path: Path, *, force: bool) -> None:
    log = path.with_name(path.name + "-wal")
    if not force and demand_regular(log) and log.lstat().st_size:
        raise damaged(path, f"it is gone, but {log.name} is there")


def _demand_whole(connection: sqlite3.Connection, path: Path, lock: JournalLock, *, logged: bool) -> None:
    (written,) = connection.execute("SELECT writes FROM totals").fetchone()
    if lock.before is not None and written < lock.before.writes:
        found = (
            f"it holds {written:,} of {lock.before.writes:,} rows that were written; its -wal file is missing or cut"
        )
        raise log_lost(path, found)
    ended = ended_cleanly(connection)
    if not (ended or logged or lock.existed):
        raise log_lost(path, LOG_MISSING)
    if lock.before is not None or not ended:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(path, verdict)


def _demand_same(path: Path, earlier: RunIdentity, identity: RunIdentity) -> None:
    if differences := identity.differences(earlier):
        raise BatchError(
            f"{path} is of another run: {'; '.join(differences)}.",
            advice="Give it the same input and options to go on with that run; or begin another one with another "
            "output, or with --force, which drops the earlier run's answers.",
        )


def _version() -> str:
    try:
        return version("onellm-async")
    except PackageNotFoundError:
        return "unknown"
