"""The tables of a journal, and how a file of an earlier version becomes one of this version.

``intents`` and ``outcomes`` hold the records of a run, ``totals`` their sums; `record.py` defines these three. The
writer updates the totals in the transaction of the records, so no reader has to count a million rows.
"""

import sqlite3
from collections.abc import Callable

from attrs import astuple, frozen

from onellm_async.batch.journal.record import BOTH, COUNTS, MAX_STORED, RunCounts, create_tables, table_names
from onellm_async.errors import BatchError

APPLICATION_ID = 0x4F6E4A6C
"""Marks the file as a journal: "OnJl"."""

_TABLES = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    identity TEXT NOT NULL,                     -- JSON
    started_at REAL NOT NULL,                   -- Unix seconds, as every time here
    complete INTEGER NOT NULL DEFAULT 0,
    output_bytes INTEGER,                       -- of the output that was finished last; NULL: none
    sample_interval REAL NOT NULL DEFAULT 1.0   -- seconds between two points of the time series
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    started_at REAL NOT NULL,
    ended_at REAL,                              -- NULL: active, or killed
    end_reason TEXT,
    version TEXT NOT NULL,
    settings TEXT NOT NULL                      -- JSON
);
CREATE TABLE bad_lines (source TEXT NOT NULL, line INTEGER NOT NULL, message TEXT NOT NULL, PRIMARY KEY (source, line));
CREATE TABLE samples (id INTEGER PRIMARY KEY, at REAL NOT NULL, sample TEXT NOT NULL);  -- id 0: the latest
CREATE TABLE commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    name TEXT NOT NULL,
    argument TEXT NOT NULL,                     -- JSON
    received_at REAL                            -- NULL: the run has not read it yet
);
"""

_FIRST_VERSION = 2
"""The version of the first release. Earlier files have other tables and were never released."""
_MIGRATIONS: tuple[str, ...] = ()
"""Each makes a file of the version before it one of the next. `create_schema` makes the newest at once."""

VERSION = _FIRST_VERSION + len(_MIGRATIONS)


@frozen
class Ledger:
    """What a journal holds: its row of the table ``totals``.

    Attributes:
        counts: The totals of its records.
        writes: Steps ever written. It only grows, which tells a journal from an older state of itself.
    """

    counts: RunCounts
    writes: int


def read_ledger(connection: sqlite3.Connection) -> Ledger:
    """The ledger of a journal.

    Raises:
        sqlite3.Error: If it cannot be read.
    """
    *counts, writes = connection.execute(f"SELECT {', '.join(COUNTS)}, writes FROM totals").fetchone()  # noqa: S608
    return Ledger(RunCounts(*counts), writes)


_SET_TOTALS = f"UPDATE totals SET {', '.join(f'{name} = ?' for name in (*COUNTS, 'writes'))}"  # noqa: S608


def write_ledger(execute: Callable[..., object], ledger: Ledger) -> None:
    """Writes the ledger of a journal. A total beyond the integers of SQLite stays at the largest of them."""
    execute(_SET_TOTALS, (*(min(count, MAX_STORED) for count in astuple(ledger.counts)), ledger.writes))


def create_schema(connection: sqlite3.Connection) -> None:
    """Creates the tables of the newest version in an empty file."""
    _run_script(connection, f"{_TABLES}\n{create_tables()}", VERSION)


def check_version(
    connection: sqlite3.Connection, name: str, *, min_version: int = 0, max_version: int = VERSION
) -> int:
    """The version of a journal.

    Args:
        connection: To it.
        name: Of the journal, as shown to the user.
        min_version: The first one that the caller can use.
        max_version: The last one.

    Raises:
        BatchError: If it is another one.
        sqlite3.Error: If it cannot be read.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < _FIRST_VERSION or (version == VERSION and not _has_every_column(connection)):
        raise BatchError(
            f"{name} was written by a version of this package before 0.1.0 (journal version {version}, now {VERSION}) "
            "and cannot be read.",
            advice="Use another output, or force=True to discard its answers; or read it with the version that wrote "
            "it.",
        )
    if version > max_version:
        raise BatchError(
            f"{name} was written by a later version of this package (journal version {version}; "
            f"this one reads up to {max_version}).",
            advice="Upgrade onellm-async, or start over with another output.",
        )
    if version < min_version:
        raise BatchError(
            f"{name} was written by an earlier version of this package (journal version {version}, now {max_version}).",
            advice="Run its `run` command again to bring it up to date.",
        )
    return int(version)


def _has_every_column(connection: sqlite3.Connection) -> bool:
    """Whether the tables are those of this version: unreleased layouts had the same number."""

    def columns(table: str) -> set[str]:
        return {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}

    return "output_bytes" in columns("run") and all(columns(table) == set(table_names(table)) for table in BOTH)


def migrate(connection: sqlite3.Connection, name: str, migrations: tuple[str, ...] = _MIGRATIONS) -> None:
    """Brings the tables to the newest version, each step in a transaction of its own.

    Args:
        connection: To a journal, in autocommit mode.
        name: Of the journal, as shown to the user.
        migrations: The steps.

    Raises:
        BatchError: If a later version of this package wrote it, or one before the first release.
        sqlite3.Error: If it cannot be changed; what was not completed is undone.
    """
    version = check_version(connection, name, max_version=_FIRST_VERSION + len(migrations))
    for step, script in enumerate(migrations[version - _FIRST_VERSION :], version + 1):
        _run_script(connection, script, step)


def _run_script(connection: sqlite3.Connection, script: str, version: int) -> None:
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script}\n"
            f"PRAGMA user_version = {version};\nPRAGMA application_id = {APPLICATION_ID};\nCOMMIT;"
        )
    except sqlite3.Error:
        if connection.in_transaction:
            connection.rollback()
        raise
