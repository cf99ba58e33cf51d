"""The one thread that writes a journal: whatever has queued up becomes one transaction.

While it writes a batch the next one gathers in the event loop, so the load makes the batches: one row alone does not
wait for others, and two hundred share one synchronisation of the disk. Many rows go into one statement, as a thread
hands the interpreter back and forth with every statement, not with every row.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from onellm_async.batch.journal.binding import UnstorableRowError
from onellm_async.batch.journal.disk_reserve import DiskReserve, lacks_space
from onellm_async.batch.journal.file import connect, make_durable, remove, to_batch_error
from onellm_async.batch.journal.lock import JournalLock
from onellm_async.errors import BatchError

__all__ = ["TOTALS", "Batch", "JournalWriter", "Totals"]

Totals: TypeAlias = tuple[float, ...]
"""A row of the table ``totals``: the fields of `RunCounts`, then the number of rows ever written."""

TOTALS = (
    "SELECT answered, failed, in_flight, deduplicated, possibly_billed, rate_limited, cost, unpriced, input_tokens, "
    "output_tokens, at_risk, at_risk_tokens, writes FROM totals"
)
_LARGEST = 256
"""Rows of one statement; a batch is cut into powers of two, so that few statements need to be prepared."""
_CHECKPOINT_BYTES = 16_000_000
"""The log goes into the main file so often. SQLite's own 1,000 pages of 4 KiB are full every few commits under load."""
_LOG_KEPT = 64 * 2**20
"""Bytes that the log may keep on the disk when it is empty again."""

_INTENT_WIDTH, _RESULT_WIDTH = 10, 13
_INTENTS = "INSERT INTO intents (entry, line, line_digest, custom_id, request_digest, reserved, reserved_tokens, \
sent_at, possibly_billed, session) VALUES "
_INTENDED_AGAIN = """ ON CONFLICT (entry) DO UPDATE SET
    line = excluded.line, line_digest = excluded.line_digest, custom_id = excluded.custom_id,
    request_digest = excluded.request_digest, reserved = coalesce(excluded.reserved, reserved),
    reserved_tokens = coalesce(excluded.reserved_tokens, reserved_tokens),
    sent_at = excluded.sent_at, possibly_billed = excluded.possibly_billed, session = excluded.session,
    earlier_possibly_billed = earlier_possibly_billed + coalesce(
        (SELECT possibly_billed FROM outcomes WHERE outcomes.entry = excluded.entry),
        CASE WHEN session = excluded.session THEN 0 ELSE 1 + possibly_billed END)"""
_OUTCOMES = "INSERT INTO outcomes (entry, state, completed_at, attempts, possibly_billed, rate_limited, cost, \
input_tokens, output_tokens, elapsed, latency, copy_of, result) VALUES "
_SETTLED_AGAIN = " ON CONFLICT (entry) DO NOTHING"
_STEP_BACK = """UPDATE intents
    SET earlier_possibly_billed = earlier_possibly_billed + possibly_billed - 1, possibly_billed = 0, session = 0
    WHERE entry = :entry AND earlier_possibly_billed + possibly_billed > 0
        AND entry NOT IN (SELECT entry FROM outcomes WHERE entry = :entry)"""
"""Where earlier attempts may have been billed, the last of these takes the place of the one that was not sent."""
_FORGET = "DELETE FROM intents WHERE entry = :entry AND entry NOT IN (SELECT entry FROM outcomes WHERE entry = :entry)"


class Batch:
    """What becomes durable together, and what is to be done then.

    Attributes:
        intents: The values of rows of ``intents``, one after another.
        outcomes: The values of rows of ``outcomes``, one after another.
        forgotten: Entries whose intents go.
        statements: Others, with their parameters.
    """

    __slots__ = ("_forgetters", "_intenders", "_settlers", "forgotten", "intents", "outcomes", "statements")

    def __init__(self) -> None:
        self.intents: list[object] = []
        self.outcomes: list[object] = []
        self.forgotten: list[int] = []
        self.statements: list[Statement] = []
        self._intenders: list[int] = []
        self._settlers: list[int] = []
        self._forgetters: list[int] = []

    def intend(self, owner: int, values: tuple[object, ...]) -> None:
        """Adds a row of ``intents``.

        Args:
            owner: Number of the caller that waits for it.
            values: Of the row.
        """
        self._intenders.append(owner)
        self.intents += values

    def settle(self, owner: int, values: tuple[object, ...]) -> None:
        """Adds a row of ``outcomes``, likewise."""
        self._settlers.append(owner)
        self.outcomes += values

    def forget(self, owner: int, entry: int) -> None:
        """Adds an entry whose intent goes, likewise."""
        self._forgetters.append(owner)
        self.forgotten.append(entry)

    def by_owner(self) -> "dict[int, _Rows]":
        """The same rows, apart for each caller, in the order of the callers."""
        rows = {owner: _Rows() for owner in sorted({*self._intenders, *self._settlers, *self._forgetters})}
        for place, owner in enumerate(self._intenders):
            rows[owner].intent = self.intents[place * _INTENT_WIDTH : (place + 1) * _INTENT_WIDTH]
        for place, owner in enumerate(self._settlers):
            rows[owner].result = self.outcomes[place * _RESULT_WIDTH : (place + 1) * _RESULT_WIDTH]
        for owner, entry in zip(self._forgetters, self.forgotten, strict=True):
            rows[owner].forgotten = entry
        return rows


class _Rows:
    """What one caller waits for."""

    __slots__ = ("forgotten", "intent", "result")

    def __init__(self) -> None:
        self.intent: list[object] | None = None
        self.result: list[object] | None = None
        self.forgotten: int | None = None

    def write(self, execute: "Execute") -> None:
        if self.intent is not None:
            execute(_INTENT_STATEMENTS[1], self.intent)
        if self.result is not None:
            execute(_RESULT_STATEMENTS[1], self.result)
        if self.forgotten is not None:
            _forget(execute, self.forgotten)


Statement: TypeAlias = tuple[str, tuple[object, ...]]
Execute: TypeAlias = Callable[..., sqlite3.Cursor]
Unstorable: TypeAlias = dict[int, UnstorableRowError]
"""What became of the rows that SQLite cannot store, by the number of the caller that waits for them."""

Answer: TypeAlias = Callable[[Totals | None, BatchError | None, Unstorable], None]

_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What a value raises that cannot be bound or breaks a rule of its table. Everything else is the disk's fault."""


class JournalWriter:
    """Writes batches to a journal, in a thread of its own with a connection of its own.

    Args:
        path: Of the journal.
        lock: The right to write it; released when the writer ends.
        reserve: Given up when the disk is full.

    Attributes:
        discard: Whether the journal is removed in the end.
    """

    def __init__(self, path: Path, lock: JournalLock, reserve: DiskReserve) -> None:
        self.discard: bool = False
        self._path = path
        self._lock = lock
        self._reserve = reserve
        self._full: BatchError | None = None
        self._queue: SimpleQueue[tuple[Sequence[Batch] | None, Answer]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="onellm-async-journal", daemon=True)
        self._thread.start()

    def write(self, batches: Sequence[Batch], answer: Answer) -> None:
        """Commits `batches` in their order, then calls `answer`, in the writer's thread.

        It gets the totals, or the error after which nothing is written any more; or both, which means that all was
        written, but only because the reserve was given up. Rows that cannot be stored are left out, and told.
        """
        self._queue.put((batches, answer))

    def end(self, answer: Answer) -> None:
        """Ends when everything is written: the log goes into the main file, the lock is released; then `answer`."""
        self._queue.put((None, answer))

    def join(self) -> None:
        """Waits for the end of the thread."""
        self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        failure: BatchError | None = None
        totals: Totals | None = None
        while True:
            unstorable: Unstorable = {}
            batches, answer = self._queue.get()
            if batches is None:
                self._close(connection, failed=failure is not None)
                answer(totals, failure, unstorable)
                return
            if failure is None:
                try:
                    if connection is None:
                        connection = self._connect()
                    totals, unstorable = self._commit_somehow(connection, batches)
                except Exception as error:  # whatever it is, no caller may believe that it was written
                    totals, failure = None, to_batch_error(error, self._path)
            answer(totals, failure or self._full, unstorable)

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._path)
        make_durable(connection)
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_BYTES // page}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT}")
        connection.execute("PRAGMA cache_size = -16000")
        return connection

    def _commit_somehow(self, connection: sqlite3.Connection, batches: Sequence[Batch]) -> tuple[Totals, Unstorable]:
        try:
            return self._commit_what_can_be(connection, batches)
        except sqlite3.Error as error:
            if not (lacks_space(error) and self._reserve.release()):
                raise
            self._full = to_batch_error(error, self._path)
            return self._commit_what_can_be(connection, batches)

    def _commit_what_can_be(
        self, connection: sqlite3.Connection, batches: Sequence[Batch]
    ) -> tuple[Totals, Unstorable]:
        """Many rows a statement; where one of them cannot be stored, all once more, each caller's for itself."""
        unstorable: Unstorable = {}
        try:
            return self._commit(connection, lambda: _write_all(connection.execute, batches)), unstorable
        except _ROW_ERRORS:
            totals = self._commit(connection, lambda: self._write_apart(connection.execute, batches, unstorable))
            return totals, unstorable

    def _write_apart(self, execute: Execute, batches: Sequence[Batch], unstorable: Unstorable) -> None:
        unstorable.clear()
        for batch in batches:
            for owner, rows in batch.by_owner().items():
                if (error := _attempt(execute, rows.write)) is not None:
                    unstorable[owner] = UnstorableRowError(f"{self._path} cannot store it: {error}.")
            for statement in batch.statements:
                _attempt(execute, partial(_run, statement))

    def _commit(self, connection: sqlite3.Connection, write: Callable[[], None]) -> Totals:
        execute = connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            write()
            totals: Totals = execute(TOTALS).fetchone()
            execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.rollback()
            raise
        self._lock.note(int(totals[-1]))
        return totals

    def _close(self, connection: sqlite3.Connection | None, *, failed: bool) -> None:
        clean = not failed
        self._reserve.release()
        if connection is not None:
            try:
                if clean:
                    busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    clean = not busy
            except sqlite3.Error:
                clean = False
            finally:
                connection.close()
        if self.discard:
            with suppress(OSError):
                remove(self._path)
        with suppress(OSError):
            self._lock.release(clean=clean)


def _write_all(execute: Execute, batches: Sequence[Batch]) -> None:
    for batch in batches:
        for statement, values in _in_pieces(batch.intents, _INTENT_WIDTH, _INTENT_STATEMENTS):
            execute(statement, values)
        for statement, values in _in_pieces(batch.outcomes, _RESULT_WIDTH, _RESULT_STATEMENTS):
            execute(statement, values)
        for entry in batch.forgotten:
            _forget(execute, entry)
        for statement, parameters in batch.statements:
            execute(statement, parameters)


def _run(statement: Statement, execute: Execute) -> None:
    execute(*statement)


def _forget(execute: Execute, entry: int) -> None:
    named = {"entry": entry}
    if not execute(_STEP_BACK, named).rowcount:
        execute(_FORGET, named)


def _attempt(execute: Execute, write: Callable[[Execute], object]) -> Exception | None:
    """Writes all of something or nothing of it, and tells what made it impossible."""
    execute("SAVEPOINT attempt")
    try:
        write(execute)
    except _ROW_ERRORS as error:
        execute("ROLLBACK TO attempt")
        execute("RELEASE attempt")
        return error
    execute("RELEASE attempt")
    return None


def _statements(head: str, width: int, tail: str) -> dict[int, str]:
    row = f"({', '.join('?' * width)})"
    sizes = [2**power for power in range(_LARGEST.bit_length())]
    return {size: head + ", ".join([row] * size) + tail for size in sizes}


_INTENT_STATEMENTS = _statements(_INTENTS, _INTENT_WIDTH, _INTENDED_AGAIN)
_RESULT_STATEMENTS = _statements(_OUTCOMES, _RESULT_WIDTH, _SETTLED_AGAIN)


def _in_pieces(values: list[object], width: int, statements: dict[int, str]) -> Iterator[tuple[str, Sequence[object]]]:
    """Statements of a power of two of rows each, and their values."""
    start, rows = 0, len(values) // width
    while rows:
        size = min(_LARGEST, 1 << rows.bit_length() - 1)
        yield statements[size], values[start : start + size * width]
        start += size * width
        rows -= size
