"""Reads a journal from any process, also while a run writes it: for ``status``, ``report`` and ``export``.

Everything is read in short pieces or summed by SQLite. No more than a piece is in memory, and no read blocks the
checkpoint of a running writer for longer than one statement takes.
"""

import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from onellm_async.batch.causes import CauseCounts, cause_key, cause_of
from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.commands import Command
from onellm_async.batch.journal.file import (
    LOG_MISSING,
    connect,
    damaged,
    ended_cleanly,
    has_log,
    has_whole_pages,
    journal_path,
    read_identity,
    translate_errors,
)
from onellm_async.batch.journal.lock import LockOwner, lock_owner, lock_path
from onellm_async.batch.journal.record import JournalRecord, RunCounts, read_text, records_from, select_records
from onellm_async.batch.journal.schema import VERSION, check_version, read_ledger
from onellm_async.chat import JSON
from onellm_async.wire import parse_json

_BINS_PER_DECADE = 20
"""Bounds 12 % apart: finer than a plot shows."""
_PIECE = 2000
"""Records read at once: a reader that stays in one place keeps the log of a running writer from being emptied."""
_BETWEEN = select_records("WHERE i.entry BETWEEN ? AND ? ORDER BY i.entry")
_FROM = select_records("WHERE i.entry >= ? ORDER BY i.entry LIMIT ?")
_CAUSES = """SELECT result, count(*) FROM outcomes WHERE state = 3 AND entry >= 0
    GROUP BY failure_cause(result) ORDER BY 2 DESC LIMIT 1000"""


def records_between(connection: sqlite3.Connection, first: int, last: int) -> list[JournalRecord]:
    """Records in the order of the input, both ends included."""
    return records_from(connection.execute(_BETWEEN, (first, last)))


def every_record(connection: sqlite3.Connection) -> Iterator[JournalRecord]:
    """All records of the input in its order, a piece at a time."""
    first = 0
    while found := records_from(connection.execute(_FROM, (first, _PIECE)).fetchall()):
        yield from found
        first = found[-1].index + 1


def failure_causes(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Causes of failures and their numbers, the most frequent cause first."""
    connection.create_function("failure_cause", 1, lambda result: cause_key(cause_of(result)), deterministic=True)
    found = connection.execute(_CAUSES).fetchall()
    return CauseCounts((cause_of(result), number) for result, number in found).ranked()


@frozen
class RunSession:
    """One invocation of a run.

    Attributes:
        started_at: Unix seconds.
        ended_at: Unix seconds; None while it runs, and if it was killed.
        end_reason: How it ended; None with `ended_at`.
        version: Version of the package.
        settings: The settings given to `Journal.open`.
    """

    started_at: float
    ended_at: float | None
    end_reason: str | None
    version: str
    settings: JSON


@frozen
class Sample:
    """A point of the time series.

    Attributes:
        at: Unix seconds.
        sample: The value given to `Journal.sample`.
    """

    at: float
    sample: JSON


@frozen
class Bucket:
    """Outcomes within a span of time.

    Attributes:
        at: Its beginning, in Unix seconds.
        answered: Answers, without those of duplicates.
        failed: Failures, likewise.
    """

    at: float
    answered: int
    failed: int


@frozen
class LatencyBin:
    """Answers by their latency.

    Attributes:
        low: Seconds, included.
        high: Seconds, excluded; 12 % above `low`.
        count: Answers.
    """

    low: float
    high: float
    count: int


class JournalReader:
    """A journal, open for reading.

    Args:
        path: Of the output or of its journal.

    Attributes:
        path: Of the journal.
        identity: Of the run.
        started_at: When it first began, in Unix seconds.
        log_missing: Whether it was moved or copied without its log after its run was killed. Answers are then missing.

    Raises:
        BatchError: If there is none, it is not a journal, of a later version, or damaged. So does every method.

    Example:
        .. code-block:: python

            with JournalReader.open("answers.jsonl") as journal:
                print(journal.counts(), journal.running)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = journal_path(path)
        with translate_errors(self.path):
            guarded = self._guarded()
            self._connection = _reading(self.path)
            try:
                check_version(self._connection, str(self.path), min_version=VERSION)
                self.identity: RunIdentity = read_identity(self._connection, self.path)
                self.started_at: float = self._one("SELECT started_at FROM run")
                # Checked before and after, as a run may begin or end at this moment.
                self.log_missing: bool = not (guarded or ended_cleanly(self._connection) or self.running)
            except BaseException:
                self._connection.close()
                raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The journal at `path`, or that of the output at `path`."""
        return cls(path)

    def close(self) -> None:
        """Closes it; not to be used afterwards."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def warning(self) -> str | None:
        """What its totals lack; None where they are complete."""
        if not self.log_missing:
            return None
        return f"{self.path} lacks answers: {LOG_MISSING}. Restore {self.path.name}-wal from where the run was."

    @property
    def complete(self) -> bool:
        """Whether every entry of the input has an outcome."""
        return bool(self._one("SELECT run.complete AND NOT totals.in_flight FROM run, totals"))

    @property
    def output_bytes(self) -> int:
        """Size of the output that was finished last; 0 where there is none."""
        return int(self._one("SELECT coalesce(output_bytes, 0) FROM run"))

    @property
    def lock_owner(self) -> LockOwner | None:
        """The process that works on the run right now; None without one."""
        return lock_owner(self.path)

    @property
    def running(self) -> bool:
        """Whether a process works on the run right now."""
        return self.lock_owner is not None

    def sessions(self) -> list[RunSession]:
        """The invocations of the run, in order."""
        found = self._all("SELECT started_at, ended_at, end_reason, version, settings FROM sessions ORDER BY id")
        return [
            RunSession(started, ended, read_text(end_reason), version, parse_json(settings.encode()))
            for started, ended, end_reason, version, settings in found
        ]

    def counts(self) -> RunCounts:
        """What is durable, all sessions together."""
        with translate_errors(self.path):
            return read_ledger(self._connection).counts

    def latest_sample(self) -> Sample | None:
        """The last point of the time series; None where there is none."""
        found = self._samples("id = 0")
        return found[0] if found else None

    def samples(self) -> list[Sample]:
        """The time series, some thousands of points at most, in order."""
        return self._samples("id > 0 ORDER BY id")

    def time_span(self) -> tuple[float, float] | None:
        """When the first request was sent and the last outcome came, in Unix seconds; None while there is neither."""
        first, last = self._all("SELECT (SELECT min(sent_at) FROM intents), (SELECT max(completed_at) FROM outcomes)")[
            0
        ]
        return None if first is None or last is None else (first, max(first, last))

    def throughput(self, width: float) -> list[Bucket]:
        """Outcomes over time, in order; empty buckets are omitted.

        Args:
            width: Seconds of a bucket; its bounds are multiples of it.
        """
        found = self._all(
            "SELECT CAST(completed_at / ? AS INTEGER) * ?, sum(state = 2), sum(state = 3) FROM outcomes "
            "WHERE copy_of IS NULL GROUP BY 1 ORDER BY 1",
            width,
            width,
        )
        return [Bucket(*bucket) for bucket in found]

    def latency_histogram(self) -> list[LatencyBin]:
        """Answers by the latency of their last attempts. The bounds are logarithmic, and empty bins are omitted."""
        self._connection.create_function("latency_bin", 1, _bin, deterministic=True)
        found = self._all(f"SELECT latency_bin(latency), count(*) FROM outcomes WHERE {_TIMED} GROUP BY 1 ORDER BY 1")  # noqa: S608
        return [LatencyBin(_bound(place), _bound(place + 1), count) for place, count in found]

    def latency_percentiles(self, shares: Sequence[float]) -> list[float] | None:
        """The latency within which that share of the answers came, for each share; None where there are no answers.

        Args:
            shares: From 0 to 1, for example ``[0.5, 0.99]``.
        """
        number = self._one(f"SELECT count(*) FROM outcomes WHERE {_TIMED}")  # noqa: S608
        if not number:
            return None
        places = [min(number, max(1, math.ceil(share * number))) for share in shares]
        found: dict[int, float] = dict(
            self._all(
                f"SELECT place, latency FROM (SELECT latency, row_number() OVER (ORDER BY latency) AS place "  # noqa: S608
                f"FROM outcomes WHERE {_TIMED}) WHERE place IN ({', '.join('?' * len(places))})",
                *places,
            )
        )
        return [found[place] for place in places]

    def slowest(self, number: int) -> list[JournalRecord]:
        """The answers whose last attempts took longest, the slowest first."""
        return self._records(f"WHERE {_TIMED} AND o.entry >= 0 ORDER BY o.latency DESC, o.entry LIMIT ?", number)

    def failed(self, number: int) -> list[JournalRecord]:
        """The first failures in the order of the input."""
        return self._records("WHERE o.state = 3 AND o.entry >= 0 ORDER BY o.entry LIMIT ?", number)

    def failure_causes(self) -> list[tuple[str, int]]:
        """Causes of failures and their numbers, the most frequent cause first."""
        with translate_errors(self.path):
            return failure_causes(self._connection)

    def possibly_billed(self, number: int) -> list[JournalRecord]:
        """The first entries that were sent and have no outcome."""
        open_entries = "WHERE o.entry IS NULL AND i.entry >= 0 AND i.possibly_billed > 0"
        return self._records(f"{open_entries} ORDER BY i.entry LIMIT ?", number)

    def retried(self) -> int:
        """Attempts beyond the first of each entry."""
        return int(self._one("SELECT coalesce(sum(attempts - 1), 0) FROM outcomes WHERE attempts > 1"))

    def bad_lines(self, number: int) -> list[LineError]:
        """The first lines of the input without a usable prompt."""
        found = self._all("SELECT source, line, message FROM bad_lines ORDER BY rowid LIMIT ?", number)
        return [LineError(read_text(source) or "", line, read_text(message) or "") for source, line, message in found]

    def bad_line_count(self) -> int:
        """The number of lines of the input without a usable prompt; a running session adds its own every second."""
        kept, sample = int(self._one("SELECT count(*) FROM bad_lines")), self.latest_sample()
        progress = sample.sample.get("progress") if sample is not None and isinstance(sample.sample, dict) else None
        met = progress.get("bad_lines") if isinstance(progress, dict) else None
        return max(kept, met if isinstance(met, int) else 0)

    def scratch(self) -> sqlite3.Connection:
        """Its connection, from now on open for temporary tables beside it; nothing else may be written."""
        with translate_errors(self.path):
            self._connection.execute("PRAGMA query_only = 0")
        return self._connection

    def records(self) -> Iterator[JournalRecord]:
        """All records of the input in its order, a piece at a time."""
        with translate_errors(self.path):
            yield from every_record(self._connection)

    def record(self, index: int) -> JournalRecord | None:
        """The record of one entry; None without one."""
        with translate_errors(self.path):
            found = records_between(self._connection, index, index)
            return found[0] if found else None

    def pending_commands(self) -> list[Command]:
        """Commands that the run has not read yet."""
        found = self._all("SELECT name, argument, id, at FROM commands WHERE received_at IS NULL ORDER BY id")
        return [Command(name, parse_json(argument.encode()), number, at) for name, argument, number, at in found]

    def _guarded(self) -> bool:
        return has_log(self.path) or lock_path(self.path).exists()

    def _samples(self, which: str) -> list[Sample]:
        found = self._all(f"SELECT at, sample FROM samples WHERE {which}")  # noqa: S608
        return [Sample(at, parse_json(sample.encode())) for at, sample in found]

    def _records(self, condition: str, *parameters: object) -> list[JournalRecord]:
        return records_from(self._all(select_records(condition), *parameters))

    def _all(self, statement: str, *parameters: object) -> list[tuple[JSON, ...]]:
        with translate_errors(self.path):
            return self._connection.execute(statement, parameters).fetchall()

    def _one(self, statement: str) -> JSON:
        found = self._all(statement)
        return found[0][0] if found else None


_TIMED = "state = 2 AND latency IS NOT NULL AND copy_of IS NULL"


def _reading(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing; the file and its directory may be read-only.

    The log of a killed run stays. The last connection that may write would empty it into the file and remove it, and
    nothing would show that a file was moved without its log.
    """
    if path.with_name(path.name + "-wal").exists():
        modes = ["ro", "rw"] if lock_owner(path) is None else ["rw", "ro"]
    else:
        modes = ["rw", "ro", "ro&immutable=1"]
    connection = _first_that_opens(path, modes)
    try:
        connection.execute("PRAGMA query_only = 1")
        if not has_whole_pages(connection, path) and lock_owner(path) is None:  # else it is being written
            _check_sound(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _first_that_opens(path: Path, modes: Sequence[str]) -> sqlite3.Connection:
    for mode in modes[:-1]:
        with suppress(sqlite3.OperationalError):
            return connect(path, mode=mode)
    return connect(path, mode=modes[-1])


def _check_sound(connection: sqlite3.Connection, path: Path) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise damaged(path, verdict)


def _bin(latency: float) -> int:
    return math.floor(math.log10(max(latency, 1e-6)) * _BINS_PER_DECADE)


def _bound(place: int) -> float:
    return float(10 ** (place / _BINS_PER_DECADE))
