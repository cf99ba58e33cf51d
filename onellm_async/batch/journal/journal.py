"""What a run remembers: an intent before each request is sent, an outcome before any caller sees it.

After any crash every entry of the input is *completed*, *never sent* or *possibly billed*, and the same command resumes
from there. The records live in an SQLite file in WAL mode; a caller of `Journal.record_intent` or
`Journal.record_outcome` continues when the record is on the disk.
"""

import os
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.commands import Command
from onellm_async.batch.journal.disk_reserve import DiskReserve
from onellm_async.batch.journal.downsampling import Downsampler
from onellm_async.batch.journal.file import JournalState, Reconcile, connect, open_journal, translate_errors
from onellm_async.batch.journal.lock import JournalLock
from onellm_async.batch.journal.reader import failure_causes, records_between
from onellm_async.batch.journal.record import JournalRecord, RunCounts, Step, bind_text
from onellm_async.batch.journal.writer import GroupCommit, JournalWriter
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json, parse_json

_BAD_LINES_KEPT = 10_000


class Journal:
    """The journal of a run, open for writing. Use `Journal.open`.

    Its methods are for one event loop; a writer thread does the waiting for the disk.

    Attributes:
        path: Where it is.
        identity: Of the run.
        resumed: Whether it was there before.
        started_at: When the run first began, in Unix seconds.
        wrote_output: Whether an earlier session finished an output file.
        last_entry: Index of the last entry that earlier sessions have a record of; -1 without one.

    Example:
        .. code-block:: python

            async with Journal.open("answers.jsonl.journal", identity) as journal:
                await journal.record_intent(record)  # durable: now the request may be sent
                await journal.record_outcome(record)  # durable: now the answer may be shown
                journal.finish("done", complete=True)
    """

    def __init__(self, path: Path, opened: JournalState, writer: JournalWriter) -> None:
        self.path: Path = path
        self.identity: RunIdentity = opened.identity
        self.resumed: bool = opened.resumed
        self.started_at: float = opened.started_at
        self.wrote_output: bool = opened.wrote_output
        self.last_entry: int = opened.last_entry
        self._session = opened.session
        self._downsampler = Downsampler(opened.sample_interval, opened.samples)
        self._last_command = opened.last_command
        self._commits = GroupCommit(path, writer, opened.ledger)
        self._reading: sqlite3.Connection | None = None
        self._bad_lines = 0
        self._finished = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        identity: RunIdentity,
        *,
        force: bool = False,
        settings: JSON = None,
        reconcile: Reconcile | None = None,
    ) -> "Journal":
        """Creates a journal, or resumes the existing one. Blocks for the disk.

        Args:
            path: Of the journal.
            identity: Of the run.
            force: Start over and discard an existing journal.
            settings: Limits and the like of this session, for the report. It is kept in the clear.
            reconcile: Takes an input that has changed; without it, another input is another run.

        Raises:
            BatchError: If it belongs to another run, another process uses it, it is not a journal, was written by a
                later version, is damaged, or cannot be written.
        """
        where = Path(path)
        with translate_errors(where):
            lock = JournalLock(where)
            try:
                reserve = DiskReserve(where)
                try:
                    opened = open_journal(where, lock, identity, force=force, settings=settings, reconcile=reconcile)
                except BaseException:
                    reserve.release()
                    raise
                return cls(where, opened, JournalWriter(where, lock, reserve, opened.ledger))
            except BaseException:
                lock.release(clean=not lock.existed)
                raise

    async def record_intent(self, record: JournalRecord) -> None:
        """Returns when it is durable that a request is about to be sent.

        Args:
            record: In flight, with the attempt that is about to be sent among its possibly billed ones.

        Raises:
            BatchError: If it cannot be written, or the disk is so full that only outcomes can; the request must not
                be sent then. It is an `UnstorableRowError` where others can still be written.
        """
        await self._commits.write(Step.INTENT, record.index, record, begins=True)

    async def record_outcome(self, record: JournalRecord) -> None:
        """Returns when an outcome is durable. An answer stays; a failure gives way to a later outcome.

        An entry that was not sent, such as a duplicate, needs no intent before it. Safe to cancel: the outcome is
        written nevertheless.

        Args:
            record: Answered or failed.

        Raises:
            BatchError: If it cannot be written; an `UnstorableRowError` where others still can.
        """
        await self._commits.write(Step.OUTCOME, record.index, record, begins=record.copy_of is not None)

    async def retract_intent(self, index: int) -> None:
        """Returns when it is durable that the last attempt of an entry was not sent.

        The entry is then as it was before; where it had failed before, it counts as never sent.

        Raises:
            BatchError: If it cannot be written.
        """
        await self._commits.write(Step.RETRACT, index)

    def bad_line(self, error: LineError) -> None:
        """Keeps a bad line for the report; the first 10,000 of a session."""
        self._bad_lines += 1
        if self._bad_lines <= _BAD_LINES_KEPT:
            self._commits.write_later(
                "INSERT INTO bad_lines (line, source, message) VALUES (?, ?, ?) ON CONFLICT (source, line) DO UPDATE "
                "SET message = excluded.message",
                (error.line, bind_text(error.source), bind_text(error.message)),
            )

    def sample(self, at: float, sample: JSON) -> None:
        """Keeps a point of the time series: the latest one, and as many others as a report can draw.

        Args:
            at: Unix seconds.
            sample: Any JSON value.
        """
        if self._commits.full is not None:
            return
        for statement, parameters in self._downsampler.take(at, dump_json(sample).decode()):
            self._commits.write_later(statement, parameters)

    @property
    def commits(self) -> int:
        """Transactions of this session so far, without the one that ends it."""
        return self._commits.commits

    def counts(self) -> RunCounts:
        """What is durable by now, all sessions together."""
        return self._commits.ledger.counts

    def records(self, first: int, last: int) -> list[JournalRecord]:
        """The durable records of the entries from index `first` to `last`, both included, in order.

        Raises:
            BatchError: If they cannot be read.
        """
        with translate_errors(self.path):
            return records_between(self._reader(), first, last)

    def record(self, index: int) -> JournalRecord | None:
        """The durable record of one entry; None where there is none.

        Raises:
            BatchError: If it cannot be read.
        """
        found = self.records(index, index)
        return found[0] if found else None

    def commands(self) -> list[Command]:
        """The commands of other terminals since the last call, in order. Each is returned once.

        Raises:
            BatchError: If it cannot be read.
        """
        with translate_errors(self.path):
            found = (
                self._reader()
                .execute("SELECT name, argument, id, at FROM commands WHERE id > ? ORDER BY id", (self._last_command,))
                .fetchall()
            )
        if found:
            self._last_command = found[-1][2]
            taken = "UPDATE commands SET received_at = ? WHERE id <= ? AND received_at IS NULL"
            self._commits.write_later(taken, (time.time(), self._last_command))
        return [Command(name, parse_json(argument.encode()), id_, at) for name, argument, id_, at in found]

    def refuse(self, command: Command, reason: str) -> None:
        """Rejects a command; the terminal that sent it shows the reason."""
        refusal = dump_json({"refused": reason}).decode()
        self._commits.write_later("UPDATE commands SET argument = ? WHERE id = ?", (refusal, command.id))

    def sent_since(self, at: float) -> list[float]:
        """When the last attempts of entries were about to be sent, in Unix seconds, from `at` on, in order.

        Raises:
            BatchError: If they cannot be read.
        """
        with translate_errors(self.path):
            return [
                sent
                for (sent,) in self._reader().execute(
                    "SELECT sent_at FROM intents WHERE sent_at >= ? ORDER BY sent_at", (at,)
                )
            ]

    def failure_causes(self) -> list[tuple[str, int]]:
        """Causes of failures and their numbers, all sessions together, the most frequent cause first.

        Raises:
            BatchError: If it cannot be read.
        """
        with translate_errors(self.path):
            return failure_causes(self._reader())

    def finish(self, end_reason: str, complete: bool, output_bytes: int | None = None) -> None:
        """Records how the session ended; durable when the journal is closed.

        Args:
            end_reason: A few words.
            complete: Whether every entry of the input has an outcome.
            output_bytes: Size of the output, where a file was written and is whole; None keeps that of an earlier one.
        """
        self._finished = True
        self._commits.write_later(
            "UPDATE sessions SET ended_at = ?, end_reason = ? WHERE id = ?",
            (time.time(), bind_text(end_reason), self._session),
        )
        self._commits.write_later(
            "UPDATE run SET complete = ?, output_bytes = coalesce(?, output_bytes)", (complete, output_bytes)
        )

    def claim_output(self) -> None:
        """Records that later sessions may replace the output, too: this one began over."""
        self._commits.write_later("UPDATE run SET output_bytes = coalesce(output_bytes, 0)", ())

    async def aclose(self) -> None:
        """Writes the rest and closes the journal. Callers that still wait resume first.

        Raises:
            BatchError: If the rest cannot be written.
        """
        self._finish_early()
        try:
            await self._commits.aclose()
        finally:
            self._stop_reading()

    def close(self, *, discard: bool = False) -> None:
        """Like `aclose`, but blocks for the disk.

        Args:
            discard: Remove it while it is locked. For a run that could not begin.

        Raises:
            BatchError: If the rest cannot be written.
        """
        self._finish_early()
        try:
            self._commits.close(discard=discard)
        finally:
            self._stop_reading()

    def _finish_early(self) -> None:
        if not self._finished:
            self.finish("left early", complete=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it. An error of the journal does not hide the error that ended the block."""
        try:
            await self.aclose()
        except BatchError:
            if error is None:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it, blocking. An error of the journal does not hide the one that ended the block."""
        try:
            self.close()
        except BatchError:
            if error is None:
                raise

    def _reader(self) -> sqlite3.Connection:
        if self._reading is None:
            if self._commits.closed:
                raise BatchError(f"{self.path} was closed.")
            self._reading = connect(self.path)
            self._reading.execute("PRAGMA query_only = 1")
        return self._reading

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None
