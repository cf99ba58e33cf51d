"""The one thread that writes a journal, and what gathers for it in the event loop.

Everything that one turn of the loop brings becomes one transaction, and so does what comes while a transaction is being
written. So the load makes the batches: one record alone does not wait for others, and two hundred share one
synchronization of the disk. Many rows go into one statement, as a thread hands the interpreter back and forth with
every statement, not with every row.

For each batch the thread looks up the records that its steps replace, applies the steps (`after_step`), writes what has
changed, and folds the changes into the totals: records and totals are in one transaction. It keeps the records of what
is in flight in memory, and knows the last entry of the journal, so that most look-ups need no read.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from attrs import field, frozen

from onellm_async.batch.journal.disk_reserve import DiskReserve, lacks_space
from onellm_async.batch.journal.file import connect, make_durable, remove, to_batch_error
from onellm_async.batch.journal.lock import JournalLock
from onellm_async.batch.journal.record import (
    JournalRecord,
    Step,
    Table,
    UnstorableRowError,
    after_step,
    insert_head,
    insert_tail,
    intent_values,
    outcome_values,
    records_from,
    same_intent_fields,
    select_records,
    table_names,
)
from onellm_async.batch.journal.schema import Ledger, write_ledger
from onellm_async.errors import BatchError

_MAX_ROWS = 256
"""Rows of one statement. A batch is cut into powers of two, so that few statements need to be prepared."""
_CHECKPOINT_BYTES = 16_000_000
"""The log goes into the main file so often. SQLite's own 1,000 pages of 4 KiB are full every few commits under load."""
_CACHE_KIB = 4000
"""Pages that SQLite keeps. Records are appended, so more of them only take memory."""
_LOG_KEPT = 64 * 2**20
"""Bytes that the log may keep on the disk when it is empty again."""
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

_SIZES = tuple(2**power for power in range(_MAX_ROWS.bit_length()))


def _inserts(table: Table) -> dict[int, str]:
    row = f"({', '.join('?' * len(table_names(table)))})"
    return {size: insert_head(table) + ", ".join([row] * size) + insert_tail(table) for size in _SIZES}


def _with_entries(statement: str) -> dict[int, str]:
    return {size: f"{statement} IN ({', '.join('?' * size)})" for size in _SIZES}


_INSERT_INTENTS, _INSERT_OUTCOMES = _inserts("intents"), _inserts("outcomes")
_DELETE_INTENTS = _with_entries("DELETE FROM intents WHERE entry")
_DELETE_OUTCOMES = _with_entries("DELETE FROM outcomes WHERE entry")
_SELECT = _with_entries(select_records("WHERE i.entry", results=False))

Change: TypeAlias = tuple[Step, int, JournalRecord | None]
"""What happens, to which entry, and the record that comes with it."""
Statement: TypeAlias = tuple[str, tuple[object, ...]]
"""One that no caller waits for, and its parameters."""
Execute: TypeAlias = Callable[..., sqlite3.Cursor]


@frozen
class Written:
    """What became of a batch.

    Attributes:
        ledger: What the journal holds now; None where nothing could be written.
        failure: Why nothing is written any more. With a ledger: all was written, but into the last reserve.
        unstorable: What became of records that cannot be stored, by the place of their step in the batch.
    """

    ledger: Ledger | None = None
    failure: BatchError | None = None
    unstorable: dict[int, UnstorableRowError] = field(factory=dict)


Answer: TypeAlias = Callable[[Written], None]


class JournalWriter:
    """Writes batches to a journal, in a thread of its own with a connection of its own.

    Args:
        path: Of the journal.
        lock: The right to write it; released when the writer ends.
        reserve: Given up when the disk is full.
        ledger: What the journal holds.

    Attributes:
        discard: Whether the journal is removed in the end.
    """

    def __init__(self, path: Path, lock: JournalLock, reserve: DiskReserve, ledger: Ledger) -> None:
        self.discard: bool = False
        self._path = path
        self._lock = lock
        self._reserve = reserve
        self._ledger = ledger
        self._in_flight: dict[int, JournalRecord] = {}
        self._last_entry = -1
        self._full: BatchError | None = None
        self._queue: SimpleQueue[tuple[Sequence[Change], Sequence[Statement], Answer] | Answer] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="onellm-async-journal", daemon=True)
        self._thread.start()

    def write(self, changes: Sequence[Change], statements: Sequence[Statement], answer: Answer) -> None:
        """Commits a batch, then calls `answer`, in the writer's thread."""
        self._queue.put((changes, statements, answer))

    def end(self, answer: Answer) -> None:
        """Ends when everything is written: the log goes into the main file, the lock is released; then `answer`."""
        self._queue.put(answer)

    def join(self) -> None:
        """Waits for the end of the thread."""
        self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        failure: BatchError | None = None
        while True:
            batch = self._queue.get()
            if callable(batch):
                self._close(connection, failed=failure is not None)
                batch(Written(None if failure else self._ledger, failure))
                return
            changes, statements, answer = batch
            written = Written(None, failure)
            if failure is None:
                try:
                    if connection is None:
                        connection = self._connect()
                    unstorable = self._commit_with_reserve(connection, changes, statements)
                    written = Written(self._ledger, self._full, unstorable)
                except Exception as error:  # whatever it is, no caller may believe that it was written
                    failure = to_batch_error(error, self._path)
                    written = Written(None, failure)
            answer(written)

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._path)
        make_durable(connection)
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_BYTES // page}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        (self._last_entry,) = connection.execute("SELECT coalesce(max(entry), -1) FROM intents").fetchone()
        return connection

    def _commit_with_reserve(
        self, connection: sqlite3.Connection, changes: Sequence[Change], statements: Sequence[Statement]
    ) -> dict[int, UnstorableRowError]:
        try:
            return self._commit_what_can_be(connection, changes, statements)
        except sqlite3.Error as error:
            if not (lacks_space(error) and self._reserve.release()):
                raise
            self._full = to_batch_error(error, self._path)
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # the space is for outcomes, not for a copy of the log
            return self._commit_what_can_be(connection, changes, statements)

    def _commit_what_can_be(
        self, connection: sqlite3.Connection, changes: Sequence[Change], statements: Sequence[Statement]
    ) -> dict[int, UnstorableRowError]:
        """Many rows a statement; where one of them cannot be stored, all once more, each step by itself."""
        try:
            return self._commit(connection, changes, statements, _write_together)
        except _ROW_ERRORS:
            return self._commit(connection, changes, statements, self._write_apart)

    def _commit(
        self,
        connection: sqlite3.Connection,
        changes: Sequence[Change],
        statements: Sequence[Statement],
        write: "Callable[[_Transaction, Sequence[Change], Sequence[Statement]], None]",
    ) -> dict[int, UnstorableRowError]:
        execute = connection.execute
        transaction = _Transaction(execute, self._ledger, self._in_flight, self._last_entry)
        execute("BEGIN IMMEDIATE")
        try:
            write(transaction, changes, statements)
            write_ledger(execute, transaction.ledger)
            execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.rollback()
            raise
        self._ledger = transaction.ledger
        self._last_entry = max(self._last_entry, *transaction.written, -1)
        for index, record in transaction.written.items():
            if record is None or record.completed:
                self._in_flight.pop(index, None)
            else:
                self._in_flight[index] = record
        self._lock.note(self._ledger.writes)
        return transaction.unstorable

    def _write_apart(
        self, transaction: "_Transaction", changes: Sequence[Change], statements: Sequence[Statement]
    ) -> None:
        for place, change in enumerate(changes):
            ledger, written = transaction.ledger, dict(transaction.written)
            if (error := _attempt(transaction.execute, lambda: transaction.apply([change], place))) is not None:  # noqa: B023
                transaction.ledger, transaction.written = ledger, written
                transaction.unstorable[place] = UnstorableRowError(f"{self._path} cannot store it: {error}.")
        for statement, parameters in statements:
            _attempt(transaction.execute, lambda: transaction.execute(statement, parameters))  # noqa: B023

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


class _Transaction:
    """Applies steps within a transaction of SQLite.

    Attributes:
        execute: Of the connection.
        ledger: What the journal holds after the steps so far.
        written: The records that differ after the steps so far, by their entries; None stands for no record.
        unstorable: As `Written.unstorable`.
    """

    def __init__(
        self, execute: Execute, ledger: Ledger, in_flight: Mapping[int, JournalRecord], last_entry: int
    ) -> None:
        self.execute = execute
        self.ledger = ledger
        self.written: dict[int, JournalRecord | None] = {}
        self._in_flight = in_flight
        self._last_entry = last_entry
        self.unstorable: dict[int, UnstorableRowError] = {}

    def apply(self, changes: Sequence[Change], first: int = 0) -> None:
        """Reads the records of `changes`, and writes those that differ afterwards.

        Args:
            changes: In their order.
            first: The place of the first one in the batch.
        """
        before = self._look_up({index for _, index, _ in changes})
        after = dict(before)
        for place, (step, index, record) in enumerate(changes, first):
            try:
                after[index] = after_step(step, after[index], record)
            except UnstorableRowError as error:
                self.unstorable[place] = error
        pairs = [(old, new) for old, new in zip(before.values(), after.values(), strict=True) if old is not new]
        self._write(pairs)
        self.written.update(after)
        self.ledger = Ledger(self.ledger.counts.replacing_all(pairs), self.ledger.writes + len(changes))

    def _look_up(self, entries: set[int]) -> dict[int, JournalRecord | None]:
        """What the journal has of each of `entries`; None where it has nothing."""
        found = dict[int, JournalRecord | None]()
        unknown = list[int]()
        for index in entries:
            if index in self.written:
                found[index] = self.written[index]
            else:
                found[index] = record = self._in_flight.get(index)
                if record is None and index <= self._last_entry:
                    unknown.append(index)
        for statement, values in _in_pieces(unknown, 1, _SELECT):
            for record in records_from(self.execute(statement, values).fetchall()):
                found[record.index] = record
        return found

    def _write(self, pairs: Sequence[tuple[JournalRecord | None, JournalRecord | None]]) -> None:
        intents, outcomes = list[object](), list[object]()
        retracted, reopened = list[int](), list[int]()
        for before, after in pairs:
            if after is None:
                if before is not None:
                    retracted.append(before.index)
                    if before.completed:
                        reopened.append(before.index)
                continue
            completed = after.completed
            if before is None or not completed or same_intent_fields(before) != same_intent_fields(after):
                intents += intent_values(after)
            if completed:
                outcomes += outcome_values(after)
            elif before is not None and before.completed:
                reopened.append(before.index)
        self._execute_many(_DELETE_INTENTS, retracted, 1)
        self._execute_many(_DELETE_OUTCOMES, reopened, 1)
        self._execute_many(_INSERT_INTENTS, intents, len(table_names("intents")))
        self._execute_many(_INSERT_OUTCOMES, outcomes, len(table_names("outcomes")))

    def _execute_many(self, statements: dict[int, str], values: Sequence[object], width: int) -> None:
        for statement, piece in _in_pieces(values, width, statements):
            self.execute(statement, piece)


def _write_together(transaction: _Transaction, changes: Sequence[Change], statements: Sequence[Statement]) -> None:
    if changes:
        transaction.apply(changes)
    for statement, parameters in statements:
        transaction.execute(statement, parameters)


def _attempt(execute: Execute, write: Callable[[], object]) -> Exception | None:
    """Writes all of something or nothing of it, and returns what made it impossible."""
    execute("SAVEPOINT attempt")
    try:
        write()
    except _ROW_ERRORS as error:
        execute("ROLLBACK TO attempt")
        execute("RELEASE attempt")
        return error
    execute("RELEASE attempt")
    return None


def _in_pieces(
    values: Sequence[object], width: int, statements: dict[int, str]
) -> Iterator[tuple[str, Sequence[object]]]:
    """Statements of a power of two of rows each, and their values."""
    start, rows = 0, len(values) // width
    while rows:
        size = min(_MAX_ROWS, 1 << rows.bit_length() - 1)
        yield statements[size], values[start : start + size * width]
        start += size * width
        rows -= size


class GroupCommit:
    """Between the callers that write into a journal and the thread that does it.

    The callers that wait for one batch all resume in one turn of the event loop.

    Args:
        path: Of the journal.
        writer: The thread.
        ledger: What the journal holds.

    Attributes:
        ledger: What is durable by now.
        commits: How many batches became durable.
        closed: Whether nothing more is taken.
        full: Set when the disk is full. Only outcomes of requests in flight are still accepted.
    """

    def __init__(self, path: Path, writer: JournalWriter, ledger: Ledger) -> None:
        self.ledger: Ledger = ledger
        self.commits: int = 0
        self.closed: bool = False
        self.full: BatchError | None = None
        self._path = path
        self._writer = writer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changes: list[Change] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._statements: list[Statement] = []
        self._handing_over = False
        self._failure: BatchError | None = None
        self._unwritten: BatchError | None = None

    def write(
        self, step: Step, index: int, record: JournalRecord | None = None, *, begins: bool = False
    ) -> "asyncio.Future[None]":
        """Has a step written; the future is done when it is on the disk, or could not be written.

        It ends with `UnstorableRowError` where only this record could not.

        Args:
            step: What happens.
            index: Of the entry.
            record: That comes with it.
            begins: Whether the step begins something, instead of ending what is in flight.

        Raises:
            BatchError: If nothing can be written any more, or nothing may be begun.
        """
        if self._failure is not None or (begins and self.full is not None):
            raise self._failed()
        if (loop := self._loop) is None:
            loop = self._loop = asyncio.get_running_loop()
        if not self._handing_over:
            self._handing_over = True
            loop.call_soon(self._hand_over)
        waiter = loop.create_future()
        self._changes.append((step, index, record))
        self._waiters.append(waiter)
        return waiter

    def write_later(self, statement: str, parameters: tuple[object, ...]) -> None:
        """Has something written that no caller waits for; outside of an event loop at the end."""
        if self._failure is not None:
            return
        self._statements.append((statement, parameters))
        if self._loop is None:
            with suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()
        if self._loop is not None and not self._handing_over:
            self._handing_over = True
            self._loop.call_soon(self._hand_over)

    async def aclose(self) -> None:
        """Has everything written, and the thread ended.

        Raises:
            BatchError: If something could not be written, and no caller knows.
        """
        if self.closed:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def on_end(_: Written) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_resolve, ended)

        self._end(on_end)
        await ended
        self._raise_unreported()

    def close(self, *, discard: bool = False) -> None:
        """Like `aclose`, but blocks; with `discard` the journal is removed."""
        if self.closed:
            return
        self._writer.discard = discard
        self._end(lambda _: None)
        self._writer.join()
        self._raise_unreported()

    def _raise_unreported(self) -> None:
        if self._unwritten is not None:
            raise self._unwritten

    def _take(self) -> tuple[list[Change], list[Statement], "list[asyncio.Future[None]]"]:
        taken = self._changes, self._statements, self._waiters
        self._changes, self._statements, self._waiters = [], [], []
        return taken

    def _hand_over(self) -> None:
        if self.closed:
            return
        loop = asyncio.get_running_loop()
        changes, statements, waiters = self._take()

        def answer(written: Written) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: no caller waits any more
                loop.call_soon_threadsafe(self._written, waiters, written)

        self._writer.write(changes, statements, answer)

    def _written(self, waiters: "list[asyncio.Future[None]]", written: Written) -> None:
        if written.ledger is None:
            self._failure = written.failure or self._failure
            for waiter in (*waiters, *self._waiters):
                if not waiter.done():
                    waiter.set_exception(self._failed())
            self._changes, self._waiters = [], []
            return
        self.ledger, self.full = written.ledger, written.failure
        self.commits += 1
        for place, waiter in enumerate(waiters):
            _resolve(waiter, written.unstorable.get(place))
        if self._waiters or self._statements:
            # Those just woken have their turn before it, and may have more to write.
            asyncio.get_running_loop().call_soon(self._hand_over)
        else:
            self._handing_over = False

    def _failed(self) -> BatchError:
        """The failure for one more caller: an error object collects the tracebacks of all that raise it."""
        failure = self._failure or self.full or BatchError(f"{self._path} cannot be written.")
        return BatchError(failure.message, advice=failure.advice)

    def _end(self, on_end: Answer) -> None:
        loop, failed_before, self.closed = self._loop, self._failure is not None, True
        changes, statements, waiters = self._take()

        def answer(written: Written) -> None:
            self._unwritten = None if failed_before or written.ledger is not None else written.failure
            if written.ledger is not None:
                self.ledger = written.ledger
            if loop is not None and waiters:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._written, waiters, written)

        self._writer.write(changes, statements, answer)
        self._failure = self._failure or BatchError(f"{self._path} was closed.")
        self._writer.end(on_end)


def _resolve(waiter: "asyncio.Future[None]", error: BatchError | None = None) -> None:
    if waiter.done():  # cancelled, but written
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
