"""The tables of a journal, and how a file of an earlier version becomes one of this version.

``intents`` and ``outcomes`` are the run; both only grow while all goes well. ``totals`` is kept by triggers, so that
what a run has can be told at any time without counting a million rows, and never differs from the rows.
"""

import sqlite3

from onellm_async.errors import BatchError

__all__ = ["APPLICATION_ID", "VERSION", "demand_version", "migrate"]

APPLICATION_ID = 0x4F6E4A6C
"""Marks the file as a journal: "OnJl"."""

_TABLES = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    identity TEXT NOT NULL,                     -- JSON
    started_at REAL NOT NULL,                   -- Unix seconds, as every time here
    complete INTEGER NOT NULL DEFAULT 0,
    sample_interval REAL NOT NULL DEFAULT 1.0   -- seconds between two points of the time series
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    started_at REAL NOT NULL,
    ended_at REAL,                              -- NULL: it goes on, or was killed
    end_reason TEXT,
    version TEXT NOT NULL,
    settings TEXT NOT NULL                      -- JSON
);
CREATE TABLE intents (
    entry INTEGER PRIMARY KEY,
    line INTEGER NOT NULL,
    line_digest INTEGER NOT NULL,
    custom_id TEXT,
    request_digest BLOB NOT NULL,
    reserved REAL,                              -- USD, the most that one attempt can cost
    reserved_tokens INTEGER,
    sent_at REAL,                               -- NULL: it has the outcome of an identical request
    session INTEGER NOT NULL,
    possibly_billed INTEGER NOT NULL,           -- of this session, before its last attempt
    earlier_possibly_billed INTEGER NOT NULL DEFAULT 0  -- of earlier sessions
);
CREATE TABLE outcomes (
    entry INTEGER PRIMARY KEY,
    state INTEGER NOT NULL,
    completed_at REAL NOT NULL,
    attempts INTEGER NOT NULL,
    possibly_billed INTEGER NOT NULL,
    rate_limited INTEGER NOT NULL,
    cost REAL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    elapsed REAL NOT NULL,
    latency REAL,
    copy_of INTEGER,
    result BLOB NOT NULL                        -- JSON; last, so that nothing else lies behind a long answer
);
CREATE INDEX failures ON outcomes (entry) WHERE state = 3;
CREATE TABLE totals (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    answered INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    in_flight INTEGER NOT NULL DEFAULT 0,
    deduplicated INTEGER NOT NULL DEFAULT 0,
    possibly_billed INTEGER NOT NULL DEFAULT 0,
    rate_limited INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0,
    unpriced INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    at_risk REAL NOT NULL DEFAULT 0,
    at_risk_tokens INTEGER NOT NULL DEFAULT 0,
    writes INTEGER NOT NULL DEFAULT 0           -- rows ever written: tells a journal from an older state of itself
);
INSERT INTO totals (id) VALUES (1);
CREATE TABLE bad_lines (line INTEGER PRIMARY KEY, source TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE samples (id INTEGER PRIMARY KEY, at REAL NOT NULL, sample TEXT NOT NULL);  -- id 0: the latest
CREATE TABLE commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    name TEXT NOT NULL,
    argument TEXT NOT NULL,                     -- JSON
    received_at REAL                            -- NULL: the run has not seen it yet
);
"""

_TRIGGERS = """
CREATE TRIGGER intent_added AFTER INSERT ON intents BEGIN
    UPDATE totals SET
        in_flight = in_flight + 1,
        possibly_billed = possibly_billed + NEW.possibly_billed,
        at_risk = at_risk + coalesce(NEW.reserved, 0) * (1 + NEW.possibly_billed),
        at_risk_tokens = at_risk_tokens + coalesce(NEW.reserved_tokens, 0) * (1 + NEW.possibly_billed),
        writes = writes + 1;
END;

-- Sent once more, in this session or a later one; or an attempt was withdrawn that had others before it.
CREATE TRIGGER intent_updated AFTER UPDATE ON intents BEGIN
    UPDATE totals SET
        in_flight = in_flight + (before.state IS NOT NULL),
        answered = answered - (before.state IS 2),
        failed = failed - (before.state IS 3),
        deduplicated = deduplicated - (before.copy_of IS NOT NULL),
        possibly_billed = totals.possibly_billed + NEW.earlier_possibly_billed + NEW.possibly_billed
            - OLD.earlier_possibly_billed - coalesce(before.possibly_billed, OLD.possibly_billed),
        at_risk = at_risk + coalesce(NEW.reserved, 0) * (1 + NEW.possibly_billed + NEW.earlier_possibly_billed)
            - coalesce(OLD.reserved, 0) * (
                OLD.earlier_possibly_billed + coalesce(before.possibly_billed, 1 + OLD.possibly_billed)),
        at_risk_tokens = at_risk_tokens
            + coalesce(NEW.reserved_tokens, 0) * (1 + NEW.possibly_billed + NEW.earlier_possibly_billed)
            - coalesce(OLD.reserved_tokens, 0) * (
                OLD.earlier_possibly_billed + coalesce(before.possibly_billed, 1 + OLD.possibly_billed)),
        writes = writes + 1
    FROM (SELECT max(state) AS state, max(copy_of) AS copy_of, max(possibly_billed) AS possibly_billed
          FROM outcomes WHERE entry = NEW.entry) AS before;
    DELETE FROM outcomes WHERE entry = NEW.entry;
END;

CREATE TRIGGER intent_retracted AFTER DELETE ON intents BEGIN
    UPDATE totals SET
        in_flight = in_flight - 1,
        at_risk = at_risk - coalesce(OLD.reserved, 0),
        at_risk_tokens = at_risk_tokens - coalesce(OLD.reserved_tokens, 0),
        writes = writes + 1;
END;

-- Until here one attempt without an outcome was at risk, and those before it; now it is those that had none.
CREATE TRIGGER outcome_added AFTER INSERT ON outcomes BEGIN
    UPDATE totals SET
        in_flight = in_flight - 1,
        answered = answered + (NEW.state = 2),
        failed = failed + (NEW.state = 3),
        deduplicated = deduplicated + (NEW.copy_of IS NOT NULL),
        possibly_billed = totals.possibly_billed + NEW.possibly_billed - intent.possibly_billed,
        rate_limited = rate_limited + NEW.rate_limited,
        cost = cost + coalesce(NEW.cost, 0),
        unpriced = unpriced + (NEW.state = 2 AND NEW.cost IS NULL AND NEW.copy_of IS NULL),
        input_tokens = input_tokens + coalesce(NEW.input_tokens, 0),
        output_tokens = output_tokens + coalesce(NEW.output_tokens, 0),
        at_risk = at_risk + coalesce(intent.reserved, 0)
            * (NEW.possibly_billed - 1 - intent.possibly_billed + (NEW.state = 2 AND NEW.cost IS NULL)),
        at_risk_tokens = at_risk_tokens + coalesce(intent.reserved_tokens, 0)
            * (NEW.possibly_billed - 1 - intent.possibly_billed
               + (NEW.state = 2 AND NEW.input_tokens IS NULL AND NEW.output_tokens IS NULL)),
        writes = writes + 1
    FROM (SELECT possibly_billed, reserved, reserved_tokens FROM intents WHERE entry = NEW.entry) AS intent;
END;
"""

_MIGRATIONS = (_TABLES + _TRIGGERS,)
"""Each makes a file of the version before it one of the next; the first starts from an empty file."""

_FIRST_VERSION = 2
"""What the first of `_MIGRATIONS` makes. Version 1 had other names and was never released."""

VERSION = _FIRST_VERSION - 1 + len(_MIGRATIONS)


def demand_version(connection: sqlite3.Connection, name: str, *, least: int = 0, most: int = VERSION) -> int:
    """The version of a journal.

    Args:
        connection: To it.
        name: Of the journal, as shown to the user.
        least: The first version that will do.
        most: The last one.

    Raises:
        BatchError: If it is another one.
        sqlite3.Error: If it cannot be read.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if 0 < version < _FIRST_VERSION:
        raise BatchError(
            f"{name} was written by a version of this package before 0.1.0 (journal version {version}, now {VERSION}) "
            "and cannot be read.",
            advice="Use another output, or --force to discard its answers; or read it with the version that wrote it.",
        )
    if version > most:
        raise BatchError(
            f"{name} was written by a later version of this package (journal version {version}; "
            f"this one reads up to {most}).",
            advice="Upgrade onellm-async, or begin anew with another output.",
        )
    if version < least:
        raise BatchError(
            f"{name} was written by an earlier version of this package (journal version {version}, now {most}).",
            advice="Its own `run` command, given again, brings it up to date.",
        )
    return int(version)


def migrate(connection: sqlite3.Connection, name: str, migrations: tuple[str, ...] = _MIGRATIONS) -> None:
    """Brings the tables to the present version, each step in a transaction of its own.

    Args:
        connection: To an empty file or a journal, in autocommit mode.
        name: Of the journal, as shown to the user.
        migrations: The steps.

    Raises:
        BatchError: If a later version of this package wrote it.
        sqlite3.Error: If it cannot be changed; what was not completed is undone.
    """
    empty = _FIRST_VERSION - 1
    version = max(empty, demand_version(connection, name, most=empty + len(migrations)))
    for step, script in enumerate(migrations[version - empty :], version + 1):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\n"
                f"PRAGMA user_version = {step};\nPRAGMA application_id = {APPLICATION_ID};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.rollback()
            raise
