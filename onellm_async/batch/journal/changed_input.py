"""An input that has changed since a journal was written: which record belongs to which entry now.

Theory of operation. An answer belongs to its request, wherever that stands, so a record goes to the entry that asks the
same. Records are keyed by the position of their entry, so a changed order is a changed key::

    compared   while line and digest of each entry are those of its record, it is neither parsed nor touched
    staged     what follows is parsed into a temporary table, and so are entries without a record before it
    matched    first by id and request digest; then by request digest alone, first come, first served. Within a common
               beginning each entry keeps its record this way
    copied     where identical requests are sent once, an entry without a match copies the answer to its request
    set aside  a record without an entry goes below 0 if it has an answer, or money at risk; else it is deleted. An
               answer whose duplicates are still there goes to the first of these instead

`match` changes temporary tables only, so a plan can be made of it. `apply` rekeys the records, folds what was set aside
or came back into the totals, and must be in one transaction with the new identity of the run: after a crash the journal
is the old one or the new one. Everything large is in SQLite's temporary file; memory stays bounded.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any, TypeAlias

from attrs import evolve, frozen

from onellm_async.batch.inputs.entry import Entry, ParsedEntry
from onellm_async.batch.journal.record import (
    JournalRecord,
    RecordState,
    RunCounts,
    bind_text,
    insert_head,
    insert_tail,
    intent_values,
    outcome_values,
    read_text,
    records_from,
    select_records,
    table_names,
)
from onellm_async.batch.journal.schema import Ledger, read_ledger, write_ledger
from onellm_async.chat import ChatRequest

_TABLES = """
CREATE TEMP TABLE staged (entry INTEGER PRIMARY KEY, line INTEGER, line_digest INTEGER, request_digest BLOB,
    custom_id, sample INTEGER, kept BLOB, shared INTEGER);
CREATE TEMP TABLE old (record INTEGER PRIMARY KEY, request_digest BLOB, custom_id, state INTEGER, copied INTEGER);
CREATE TEMP TABLE pairs (entry INTEGER PRIMARY KEY, record INTEGER UNIQUE);
CREATE TEMP TABLE copies (entry INTEGER PRIMARY KEY, original INTEGER, place INTEGER);
CREATE TEMP TABLE gone (record INTEGER PRIMARY KEY);
"""
_AWAY = 2**61
"""Where records are between their old and their new places, so that no two are in one place meanwhile."""
_PIECE = 500
"""Rows that are held in memory at once."""
_OLD = """INSERT INTO old SELECT i.entry, i.request_digest, i.custom_id, coalesce(o.state, 1), o.copy_of IS NOT NULL
    FROM intents i LEFT JOIN outcomes o ON o.entry = i.entry
    WHERE {} AND i.request_digest IN (SELECT request_digest FROM staged)"""
_MOVED_COPIES = "SELECT entry FROM outcomes WHERE copy_of >= :first AND entry >= 0 AND entry < :first"
"""Duplicates within the common beginning whose original stands behind it."""
_STAGE_MOVED_COPIES = f"""INSERT OR IGNORE INTO staged
    SELECT entry, line, line_digest, request_digest, custom_id, sample, kept, 1 FROM intents
    WHERE entry IN ({_MOVED_COPIES})"""  # noqa: S608
_PAIRS = """INSERT INTO pairs SELECT new.entry, earlier.record FROM
    (SELECT entry, {same}, row_number() OVER (PARTITION BY {same} ORDER BY entry) AS place
        FROM staged WHERE entry NOT IN (SELECT entry FROM pairs) {known}) new
    JOIN (SELECT record, {same}, row_number() OVER (PARTITION BY {same}
            ORDER BY copied, state != 2, state = 1, record < 0, record) AS place
        FROM old WHERE record NOT IN (SELECT record FROM pairs) {known}) earlier
    USING ({same}, place)"""
_HEIRS = """SELECT o.copy_of, min(p.entry) FROM pairs p JOIN outcomes o ON o.entry = p.record
    WHERE o.copy_of IN (SELECT record FROM old) AND o.copy_of NOT IN (SELECT record FROM pairs) GROUP BY o.copy_of"""
_COPIES = """INSERT INTO copies SELECT s.entry, answer.record, coalesce(p.entry, answer.record) FROM staged s
    JOIN (SELECT i.request_digest AS request_digest, min(i.entry) AS record
        FROM intents i JOIN outcomes o ON o.entry = i.entry WHERE o.state = 2 AND o.copy_of IS NULL AND
        i.request_digest IN (SELECT request_digest FROM staged WHERE entry NOT IN (SELECT entry FROM pairs))
        GROUP BY i.request_digest) answer ON answer.request_digest = s.request_digest
    LEFT JOIN pairs p ON p.record = answer.record WHERE s.shared AND s.entry NOT IN (SELECT entry FROM pairs)"""
_GONE = """INSERT INTO gone SELECT entry FROM intents WHERE entry >= :first AND entry NOT IN (SELECT record FROM pairs)
    UNION SELECT record FROM old WHERE record >= 0 AND record NOT IN (SELECT record FROM pairs)"""
_MOVE_INTENTS = """UPDATE intents SET (entry, line, line_digest, custom_id, kept) =
    (SELECT s.entry + :away, s.line, s.line_digest, s.custom_id, s.kept
        FROM pairs p JOIN staged s ON s.entry = p.entry WHERE p.record = intents.entry)
    WHERE entry IN (SELECT record FROM pairs)"""
_MOVE_OUTCOMES = """UPDATE outcomes SET entry = :away + (SELECT p.entry FROM pairs p WHERE p.record = outcomes.entry)
    WHERE entry IN (SELECT record FROM pairs WHERE record != entry)"""
_POINT_COPIES = """UPDATE outcomes SET copy_of = (SELECT p.entry FROM pairs p WHERE p.record = outcomes.copy_of)
    WHERE copy_of IN (SELECT record FROM pairs WHERE record != entry)"""


_Change: TypeAlias = tuple[JournalRecord | None, JournalRecord | None]
"""A record before and after; None stands for no record."""
_COPY_ROWS = """SELECT c.entry, s.line, s.line_digest, s.request_digest, s.custom_id, s.sample, s.kept, c.place
    FROM copies c JOIN staged s ON s.entry = c.entry WHERE c.entry > ? ORDER BY c.entry LIMIT ?"""
_INSERTS = tuple(
    insert_head(table) + f"({', '.join('?' * len(table_names(table)))})" + insert_tail(table)
    for table in ("intents", "outcomes")
)


@frozen
class InputChanges:
    """What became of the prompts of a journal.

    Attributes:
        changed: Whether anything is new, gone or elsewhere.
        entries: Entries of the input now, each as often as it is sampled.
        before: The same when it was last read, as far as the journal knows.
        new: Entries of which the journal has nothing; bad lines are left out as far as they were read.
        kept: Answers with a place in the input, those of duplicates included.
        gone: Answers that were paid for and have no place any more.
        complete: Whether the run was complete before.
    """

    changed: bool
    entries: int
    before: int
    new: int
    kept: int
    gone: int
    complete: bool


class ChangedInput:
    """The entries of an input, matched with the records of a journal. Blocks; use it in one thread.

    Args:
        connection: To the journal, in autocommit mode; a read-only one will do if nothing is applied.
        deduplicates: Whether a request is sent once, and requests identical to it share its answer.
    """

    def __init__(self, connection: sqlite3.Connection, deduplicates: Callable[[ChatRequest], bool]) -> None:
        self._deduplicates = deduplicates
        self._connection = connection
        self._execute = connection.execute
        self._ledger = read_ledger(connection)
        self._complete = bool(self._one("SELECT complete FROM run")[0])
        self._last = int(self._one("SELECT coalesce(max(entry), -1) FROM intents")[0])
        self._set_aside = bool(self._one("SELECT EXISTS (SELECT 1 FROM intents WHERE entry < 0)")[0])
        self._first = self._entries = self._bad = 0
        self._same = True
        connection.executescript(_TABLES)

    def stage(self, entries: Iterable[Entry], reserve_custom_id: Callable[[str], object]) -> None:
        """Reads the input.

        Args:
            entries: All of them.
            reserve_custom_id: Takes the id of an entry that is not parsed.
        """
        self._execute("BEGIN")
        try:
            self._connection.executemany(
                "INSERT INTO staged VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._to_stage(entries, reserve_custom_id)
            )
        finally:
            self._execute("COMMIT")

    def _to_stage(
        self, entries: Iterable[Entry], reserve_custom_id: Callable[[str], object]
    ) -> Iterator[tuple[object, ...]]:
        records = self._execute(
            "SELECT entry, line, line_digest, custom_id FROM intents WHERE entry >= 0 ORDER BY entry"
        )
        record = records.fetchone()
        for entry in entries:
            self._entries = entry.index + 1
            if self._same and record is not None and record[0] == entry.index:
                self._same = record[1:3] == (entry.line, entry.digest)
                self._first = entry.index + self._same
                if self._same:
                    if record[3] is not None:
                        reserve_custom_id(read_text(record[3]) or "")
                    record = records.fetchone()
                    continue
            if self._same and entry.index > self._last and not (self._set_aside or self._complete):
                continue  # it was not sent yet, and no record can be its own
            item = entry.item()
            if isinstance(item, ParsedEntry):
                custom_id = bind_text(item.custom_id)
                shared = self._deduplicates(item.request)
                yield (
                    *(entry.index, entry.line, entry.digest, item.request_digest),
                    *(custom_id, item.sample, item.kept, shared),
                )
            else:
                self._bad += 1

    def match(self, *, before: int | None) -> InputChanges:
        """Finds the entry of each record.

        Args:
            before: Entries of the input when it was last read; None if unknown.
        """
        first: dict[str, int] = {"first": self._first}
        self._execute(_STAGE_MOVED_COPIES, first)
        for which in ("i.entry < 0", "i.entry >= :first", f"i.entry IN ({_MOVED_COPIES})"):
            self._execute(_OLD.format(which), first)
        self._execute(_PAIRS.format(same="request_digest, custom_id", known="AND custom_id IS NOT NULL"))
        self._execute(_PAIRS.format(same="request_digest", known=""))
        self._connection.executemany("UPDATE pairs SET record = ? WHERE entry = ?", self._execute(_HEIRS).fetchall())
        self._execute(_COPIES)
        self._execute(_GONE, first)
        return self._changes(before)

    def _changes(self, before: int | None) -> InputChanges:
        gone, gone_answers, gone_copies = self._one(
            "SELECT count(*), coalesce(sum(o.state = 2 AND o.copy_of IS NULL), 0), count(o.copy_of) "
            "FROM gone g LEFT JOIN outcomes o ON o.entry = g.record"
        )
        back, back_answers = self._one(
            "SELECT count(*), coalesce(sum(o.state = 2), 0) FROM pairs p LEFT JOIN outcomes o ON o.entry = p.record "
            "WHERE p.record < 0"
        )
        (copies,) = self._one("SELECT count(*) FROM copies")
        counts = self._ledger.counts
        known = counts.answered + counts.failed + counts.in_flight - gone + back + copies
        before = self._last + 1 if before is None else before
        new = max(0, self._entries - self._bad - known)
        moved = not self._same or bool(gone or back) or self._entries != before
        return InputChanges(
            changed=moved or (self._complete and new > 0),
            entries=self._entries,
            before=before,
            new=new,
            kept=counts.answered - gone_answers - gone_copies + back_answers + copies,
            gone=gone_answers,
            complete=self._complete,
        )

    def records(self) -> Iterator[JournalRecord]:
        """The records as they are after `apply`, without their results, in the order of the entries."""
        return merge(self._untouched(), self._matched(), self._copied(), key=attrgetter("index"))

    def _untouched(self) -> Iterator[JournalRecord]:
        select = select_records(
            "WHERE i.entry >= ? AND i.entry < ? AND i.entry NOT IN (SELECT entry FROM staged) ORDER BY i.entry LIMIT ?",
            results=False,
        )
        start = 0
        while found := records_from(self._execute(select, (start, self._first, _PIECE)).fetchall()):
            yield from found
            start = found[-1].index + 1

    def _matched(self) -> Iterator[JournalRecord]:
        for some in self._pieces("SELECT entry, record FROM pairs WHERE entry > ? ORDER BY entry LIMIT ?"):
            records = self._records([record for _, record in some])
            yield from (evolve(records[record], index=entry) for entry, record in some)

    def _copied(self) -> Iterator[JournalRecord]:
        now = time.time()
        for some in self._pieces(_COPY_ROWS):
            for index, line, line_digest, request_digest, custom_id, sample, kept, place in some:
                yield JournalRecord(
                    index=index,
                    line=line,
                    line_digest=line_digest,
                    request_digest=request_digest,
                    custom_id=read_text(custom_id),
                    state=RecordState.ANSWERED,
                    completed_at=now,
                    cost=0.0,
                    input_tokens=0,
                    output_tokens=0,
                    elapsed=0.0,
                    copy_of=place,
                    kept=kept,
                    sample=sample,
                )

    def apply(self) -> None:
        """Rekeys the records and folds what has changed into the totals. To be called in a transaction."""
        counts, writes = self._ledger.counts, self._ledger.writes + 1
        for changes in (self._put_aside(), self._brought_back()):
            counts, writes = _folded(counts, writes, changes)
        away = {"away": _AWAY}
        self._execute(_MOVE_INTENTS, away)
        self._execute(_MOVE_OUTCOMES, away)
        for table in ("intents", "outcomes"):
            self._execute(f"UPDATE {table} SET entry = entry - :away WHERE entry >= :away", away)  # noqa: S608
        self._execute(_POINT_COPIES)
        counts, writes = _folded(counts, writes, self._add_copies())
        write_ledger(self._execute, Ledger(counts, writes))

    def _put_aside(self) -> Iterator[_Change]:
        """Takes the records that have no entry any more out of the way."""
        lowest = min(0, int(self._one("SELECT coalesce(min(entry), 0) FROM intents")[0]))
        for some in self._pieces("SELECT record FROM gone WHERE record > ? ORDER BY record LIMIT ?"):
            for record in self._records([record for (record,) in some]).values():
                place = (record.index,)
                if after := _without_place(record, lowest - 1):
                    lowest = after.index
                    values = (lowest, after.possibly_billed, record.index)
                    self._execute("UPDATE intents SET entry = ?, possibly_billed = ? WHERE entry = ?", values)
                    if after.completed:
                        self._execute("UPDATE outcomes SET entry = ? WHERE entry = ?", (lowest, record.index))
                    else:
                        self._execute("DELETE FROM outcomes WHERE entry = ?", place)
                else:
                    self._execute("DELETE FROM intents WHERE entry = ?", place)
                    self._execute("DELETE FROM outcomes WHERE entry = ?", place)
                yield record, after

    def _brought_back(self) -> Iterator[_Change]:
        for some in self._pieces(
            "SELECT entry, record FROM pairs WHERE entry > ? AND record < 0 ORDER BY entry LIMIT ?"
        ):
            records = self._records([record for _, record in some])
            yield from ((records[record], evolve(records[record], index=entry)) for entry, record in some)

    def _add_copies(self) -> Iterator[_Change]:
        for record in self._copied():
            for statement, values in zip(_INSERTS, (intent_values(record), outcome_values(record)), strict=True):
                self._execute(statement, values)
            yield None, record

    def _one(self, statement: str) -> Sequence[int]:
        found: Sequence[int] = self._execute(statement).fetchone()
        return found

    def _pieces(self, select: str) -> Iterator[list[tuple[Any, ...]]]:
        """What `select` finds beyond its first column's last value, some rows at a time."""
        last = -(2**63)
        while found := self._execute(select, (last, _PIECE)).fetchall():
            yield found
            last = found[-1][0]

    def _records(self, indices: Sequence[int]) -> dict[int, JournalRecord]:
        select = select_records(f"WHERE i.entry IN ({', '.join('?' * len(indices))})", results=False)
        return {record.index: record for record in records_from(self._execute(select, indices))}


def _without_place(record: JournalRecord, index: int) -> JournalRecord | None:
    """What stays of a record whose entry is gone; None where nothing was paid, or may have been."""
    if record.copy_of is None and (record.state is RecordState.ANSWERED or record.is_paid):
        return evolve(record, index=index)
    if not record.possibly_billed:
        return None
    return evolve(
        record,
        index=index,
        state=RecordState.IN_FLIGHT,
        completed_at=None,
        attempts=0,
        rate_limited=0,
        cost=None,
        input_tokens=None,
        output_tokens=None,
        copy_of=None,
    )


def _folded(counts: RunCounts, writes: int, changes: Iterator[_Change]) -> tuple[RunCounts, int]:
    while some := list(islice(changes, _PIECE)):
        counts = counts.replacing_all(some)
        writes += len(some)
    return counts, writes
