"""What a run remembers: an intent before each request leaves, a result before anybody sees it.

After any crash every entry of the input is *done*, *never sent* or *possibly billed*, and the same command goes on
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
from onellm_async.batch.journal.binding import bind_number, bind_text
from onellm_async.batch.journal.disk_reserve import DiskReserve
from onellm_async.batch.journal.downsampling import Downsampler
from onellm_async.batch.journal.file import connect, journal_path, translate_errors
from onellm_async.batch.journal.gathering import GroupCommit
from onellm_async.batch.journal.lock import JournalLock
from onellm_async.batch.journal.opening import JournalState, open_journal
from onellm_async.batch.journal.record import Command, Intent, JournalRecord, RecordState, RunCounts, Settled
from onellm_async.batch.journal.selection import counts_of, failure_causes, one_row, rows_between
from onellm_async.batch.journal.writer import JournalWriter
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json, parse_json

__all__ = ["Command", "Intent", "Journal", "JournalRecord", "RecordState", "RunCounts", "Settled", "journal_path"]

_BAD_LINES_KEPT = 10_000


class Journal:
    """The journal of a run, open for writing. Use `Journal.open`.

    Its methods are for one event loop; a writer thread does the waiting for the disk.

    Attributes:
        path: Where it is.
        identity: Of the run.
        resumed: Whether it was there before.
        started_at: When the run first began, in Unix seconds.

    Example:
        .. code-block:: python

            async with Journal.open("answers.jsonl.journal", identity) as journal:
                await journal.record_intent(intent)  # durable: now the request may leave
                await journal.record_outcome(settled)  # durable: now the answer may be shown
                journal.finish("done", complete=True)
    """

    def __init__(self, path: Path, opened: JournalState, writer: JournalWriter) -> None:
        self.path: Path = path
        self.identity: RunIdentity = opened.identity
        self.resumed: bool = opened.resumed
        self.started_at: float = opened.started_at
        self._session = opened.session
        self._thinning = Downsampler(opened.sample_interval, opened.samples)
        self._last_command = opened.last_command
        self._gathering = GroupCommit(path, writer, opened.totals)
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
    ) -> "Journal":
        """Makes a journal, or goes on with the one that is there. Blocks for the disk.

        Args:
            path: Where it is, or is to be.
            identity: Of the run.
            force: Begin anew, whatever an earlier journal there holds.
            settings: Limits and the like of this session, for the report. It is kept in the clear.

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
                    opened = open_journal(where, lock, identity, force=force, settings=settings)
                except BaseException:
                    reserve.release()
                    raise
                return cls(where, opened, JournalWriter(where, lock, reserve))
            except BaseException:
                lock.release(clean=not lock.existed)
                raise

    async def record_intent(self, intent: Intent) -> None:
        """Returns when it is durable that a request is about to leave.

        Raises:
            BatchError: If it cannot be written, or the disk is so full that only outcomes can; the request must not
                leave then. It is an `UnstorableRowError` where others can still be written.
        """
        batch = self._gathering.batch(beginning=True)
        batch.intend(
            self._gathering.owner,
            (
                intent.index,
                intent.line,
                intent.digest,
                bind_text(intent.custom_id),
                intent.request_digest,
                bind_number(intent.reserved),
                bind_number(intent.reserved_tokens),
                intent.at,
                intent.possibly_billed,
                self._session,
            ),
        )
        await self._gathering.durable()

    async def record_outcome(self, settled: Settled) -> None:
        """Returns when an outcome is durable. The first one of an entry stays.

        Safe to cancel: it is written nevertheless.

        Raises:
            BatchError: If it cannot be written; an `UnstorableRowError` where others still can.
        """
        batch, owner = self._gathering.batch(beginning=settled.copy_of is not None), self._gathering.owner
        if settled.copy_of is not None or settled.request_digest:  # it was never to leave
            batch.intend(
                owner,
                (
                    settled.index,
                    settled.line,
                    settled.digest,
                    bind_text(settled.custom_id),
                    settled.request_digest,
                    *(None, None, None, 0, self._session),
                ),
            )
        batch.settle(
            owner,
            (
                settled.index,
                int(settled.state),
                settled.at,
                settled.attempts,
                settled.possibly_billed,
                settled.rate_limited,
                bind_number(settled.cost),
                bind_number(settled.input_tokens),
                bind_number(settled.output_tokens),
                bind_number(settled.elapsed) or 0.0,
                bind_number(settled.latency),
                settled.copy_of,
                settled.result if settled.copy_of is None else b"",
            ),
        )
        await self._gathering.durable()

    async def retract_intent(self, index: int) -> None:
        """Returns when it is durable that the last intent of an entry was not sent after all.

        The entry is then as it was before; where it had failed before, it counts as never sent.

        Raises:
            BatchError: If it cannot be written.
        """
        self._gathering.batch().forget(self._gathering.owner, index)
        await self._gathering.durable()

    def bad_line(self, error: LineError) -> None:
        """Keeps a bad line for the report: the first 10,000 of a session."""
        self._bad_lines += 1
        if self._bad_lines <= _BAD_LINES_KEPT:
            self._gathering.later(
                "INSERT INTO bad_lines (line, source, message) VALUES (?, ?, ?) ON CONFLICT (line) DO UPDATE SET "
                "source = excluded.source, message = excluded.message",
                (error.line, bind_text(error.source), bind_text(error.message)),
            )

    def sample(self, at: float, sample: JSON) -> None:
        """Keeps a point of the time series: the latest one, and of the others so many as a report can draw.

        Args:
            at: Unix seconds.
            sample: Any JSON value.
        """
        if self._gathering.full is not None:
            return
        for statement, parameters in self._thinning.take(at, dump_json(sample).decode()):
            self._gathering.later(statement, parameters)

    @property
    def commits(self) -> int:
        """Transactions of this session so far, the last one at its end left out."""
        return self._gathering.commits

    def counts(self) -> RunCounts:
        """What is durable by now, all sessions together."""
        return counts_of(self._gathering.totals)

    def records(self, first: int, last: int) -> list[JournalRecord]:
        """The durable rows of the entries from index `first` to `last`, both included, in order.

        Raises:
            BatchError: If it cannot be read.
        """
        with translate_errors(self.path):
            return rows_between(self._reader(), first, last)

    def record(self, index: int) -> JournalRecord | None:
        """The durable row of one entry; None where there is none.

        Raises:
            BatchError: If it cannot be read.
        """
        with translate_errors(self.path):
            return one_row(self._reader(), index)

    def commands(self) -> list[Command]:
        """What other terminals have asked for since the last call, in order; each is handed out once.

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
            self._gathering.later(taken, (time.time(), self._last_command))
        return [Command(name, parse_json(argument.encode()), id_, at) for name, argument, id_, at in found]

    def refuse(self, command: Command, reason: str) -> None:
        """Tells the terminal that asked for `command` that nothing changes."""
        refusal = dump_json({"refused": reason}).decode()
        self._gathering.later("UPDATE commands SET argument = ? WHERE id = ?", (refusal, command.id))

    def failure_causes(self) -> list[tuple[str, int]]:
        """What failures say and how many there are, all sessions together, the most frequent cause first.

        Raises:
            BatchError: If it cannot be read.
        """
        with translate_errors(self.path):
            return failure_causes(self._reader())

    def finish(self, end_reason: str, complete: bool) -> None:
        """Notes how the session ended; durable when the journal is closed.

        Args:
            end_reason: In a few words.
            complete: Whether every entry of the input has an outcome.
        """
        self._finished = True
        self._gathering.later(
            "UPDATE sessions SET ended_at = ?, end_reason = ? WHERE id = ?",
            (time.time(), bind_text(end_reason), self._session),
        )
        self._gathering.later("UPDATE run SET complete = ?", (complete,))

    async def aclose(self) -> None:
        """Writes what is left and closes the journal; callers that still wait are answered first.

        Raises:
            BatchError: If what was left cannot be written.
        """
        self._note_that_it_was_left()
        try:
            await self._gathering.aclose()
        finally:
            self._stop_reading()

    def close(self, *, discard: bool = False) -> None:
        """Like `aclose`, but blocks for the disk.

        Args:
            discard: Remove it, while no other process can have it. For a run that could not begin.

        Raises:
            BatchError: If what was left cannot be written.
        """
        self._note_that_it_was_left()
        try:
            self._gathering.close(discard=discard)
        finally:
            self._stop_reading()

    def _note_that_it_was_left(self) -> None:
        if not self._finished:
            self.finish("left early", complete=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it. An error of the journal does not hide the one that ended the block."""
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
            if self._gathering.closed:
                raise BatchError(f"{self.path} was closed.")
            self._reading = connect(self.path)
            self._reading.execute("PRAGMA query_only = 1")
        return self._reading

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None
