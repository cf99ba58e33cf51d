"""Reading rows out of a journal."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from onellm_async.batch.causes import CauseCounts, cause_key, cause_of
from onellm_async.batch.journal.binding import read_text
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts
from onellm_async.batch.journal.writer import Totals

__all__ = ["counts_of", "every_row", "failure_causes", "one_row", "rows_between", "rows_of", "select"]

_COLUMNS = """i.entry, i.line, i.line_digest, i.custom_id, i.request_digest, coalesce(r.state, 1),
    coalesce(r.attempts, 0), i.earlier_possibly_billed + coalesce(r.possibly_billed, i.possibly_billed + 1),
    coalesce(r.rate_limited, 0), i.reserved, i.reserved_tokens,
    r.cost, r.input_tokens, r.output_tokens, i.sent_at, r.completed_at, r.elapsed, r.latency,
    CASE WHEN r.copy_of IS NULL THEN coalesce(r.result, x'')
         ELSE coalesce((SELECT o.result FROM outcomes o WHERE o.entry = r.copy_of AND o.state = r.state), x'') END,
    r.copy_of"""
_ROWS = f"SELECT {_COLUMNS} FROM intents i LEFT JOIN outcomes r ON r.entry = i.entry"  # noqa: S608
_BETWEEN = f"{_ROWS} WHERE i.entry BETWEEN ? AND ? ORDER BY i.entry"
_PIECE = 2000
_FAILURE = "CASE WHEN copy_of IS NULL THEN result ELSE (SELECT o.result FROM outcomes o WHERE o.entry = r.copy_of) END"
_CAUSES = f"""SELECT result, count(*) FROM (SELECT coalesce({_FAILURE}, x'') AS result FROM outcomes r WHERE state = 3)
    GROUP BY failure_cause(result) ORDER BY 2 DESC LIMIT 1000"""  # noqa: S608

_STATES: Sequence[RecordState] = (RecordState.IN_FLIGHT, *RecordState)
_CUSTOM_ID = JournalRecord._fields.index("custom_id")
_STATE = JournalRecord._fields.index("state")  # two places on


def select(condition: str) -> str:
    """The statement that selects rows of intents ``i`` and outcomes ``r``, if there are any."""
    return f"{_ROWS} {condition}"


def rows_of(found: Sequence[Sequence[Any]]) -> list[JournalRecord]:
    """The rows that a statement of `select` found."""
    make, states = JournalRecord._make, _STATES
    return [
        make(
            (
                *row[:_CUSTOM_ID],
                row[_CUSTOM_ID] if type(row[_CUSTOM_ID]) is not bytes else read_text(row[_CUSTOM_ID]),
                row[_CUSTOM_ID + 1],
                states[row[_STATE]],
                *row[_STATE + 1 :],
            )
        )
        for row in found
    ]


def rows_between(connection: sqlite3.Connection, first: int, last: int) -> list[JournalRecord]:
    """Rows in the order of the input, both ends included."""
    return rows_of(connection.execute(_BETWEEN, (first, last)).fetchall())


def one_row(connection: sqlite3.Connection, entry: int) -> JournalRecord | None:
    """The row of an entry; None where there is none."""
    found = rows_between(connection, entry, entry)
    return found[0] if found else None


def every_row(connection: sqlite3.Connection) -> Iterator[JournalRecord]:
    """All rows in the order of the input.

    A piece at a time: a reader that stays in one place keeps the log of a running writer from being emptied.
    """
    first = -(2**63)
    statement = select("WHERE i.entry >= ? ORDER BY i.entry LIMIT ?")
    while found := connection.execute(statement, (first, _PIECE)).fetchall():
        yield from rows_of(found)
        first = found[-1][0] + 1


def failure_causes(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """What failures say and how many there are, the most frequent cause first."""
    connection.create_function("failure_cause", 1, lambda result: cause_key(cause_of(result)), deterministic=True)
    found = connection.execute(_CAUSES).fetchall()
    return CauseCounts((cause_of(result), number) for result, number in found).ranked()


def counts_of(totals: Totals) -> RunCounts:
    """What the table ``totals`` tells. Sums of what was added and taken away again are rounded to nano-dollars."""
    *counts, at_risk, at_risk_tokens, _ = totals
    return RunCounts(*counts, max(0.0, round(at_risk, 9)), at_risk_tokens)  # type: ignore[arg-type, call-arg]
