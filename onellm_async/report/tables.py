"""Tables, and the lists of a report: totals, slow and failed prompts, bad lines, sessions, parameters. Pure."""

from collections import Counter
from collections.abc import Mapping
from datetime import tzinfo

from attrs import frozen

from onellm_async.batch.journal.record import TOTALS, JournalRecord
from onellm_async.chat import JSON
from onellm_async.formatting import (
    format_count,
    format_duration,
    format_number,
    format_seconds,
    format_time,
    format_usd,
)
from onellm_async.report.model import Report
from onellm_async.wire import parse_json

_MAX_MESSAGE = 300
"""Characters of a message that are shown."""
_MAX_SHARDS = 1000
"""Rows of the list of shards."""


@frozen(kw_only=True)
class Table:
    """A table; the first column names the row.

    Attributes:
        caption: Its name.
        headings: Of the columns, with units.
        rows: Each has a cell for each heading.
        words: Columns, from 0, that hold words and are set flush left; all others hold numbers.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


@frozen(kw_only=True)
class TableSection:
    """A table with its heading and a sentence."""

    key: str
    title: str
    summary: str = ""
    table: Table


def make_tables(report: Report, zone: tzinfo) -> tuple[TableSection, ...]:
    """The lists that have something to show."""
    sections = (
        _shards(report),
        _slowest(report),
        _failures(report),
        _bad_lines(report),
        _totals(report),
        _sessions(report, zone),
        _parameters(report),
    )
    return tuple(section for section in sections if section.table.rows)


def _shards(report: Report) -> TableSection:
    """The shards; those that need attention come first."""
    shown = sorted(report.shards, key=lambda shard: shard.state == "complete" and not shard.counts.failed)[:_MAX_SHARDS]
    states = Counter(shard.state for shard in report.shards)
    return TableSection(
        key="shards",
        title="Shards",
        summary=", ".join(f"{format_count(number)} {state}" for state, number in states.items())
        + (f". The first {format_count(len(shown))} are listed." if len(shown) < len(report.shards) else "."),
        table=Table(
            caption="Shards",
            headings=(
                "Shard",
                "State",
                "Answered",
                "Entries",
                "Failed",
                "Bad lines",
                "Possibly billed",
                "Cost",
                "Time",
            ),
            rows=tuple(
                (
                    shard.name,
                    shard.state,
                    format_count(shard.counts.answered),
                    format_count(shard.entries),
                    format_count(shard.counts.failed),
                    format_count(shard.bad_lines),
                    format_count(shard.counts.possibly_billed + shard.counts.in_flight),
                    format_usd(shard.counts.cost),
                    "-" if shard.time_span is None else format_duration(shard.time_span[1] - shard.time_span[0]),
                )
                for shard in shown
            ),
            words=frozenset({0, 1}),
        ),
    )


def _totals(report: Report) -> TableSection:
    """Every total of the journal, also one that no other part of the report shows."""
    rows = [
        (total.label.capitalize(), format_usd(value) if total.unit == "usd" else format_count(value))
        for total, value in ((TOTALS[name], value) for name, value in report.totals.counts.to_dict().items())
        if value
    ]
    return TableSection(
        key="totals",
        title="Total",
        summary="All sessions together.",
        table=Table(caption="Total", headings=("Count", "Total"), rows=tuple(rows)),
    )


def _slowest(report: Report) -> TableSection:
    return TableSection(
        key="slowest",
        title="Slowest answers",
        summary="By their last attempt. The total includes the queue and every earlier attempt.",
        table=Table(
            caption="Slowest answers",
            headings=("Line", "Last attempt", "Total", "Attempts", "custom_id", "Index"),
            rows=tuple(
                (
                    report.place_of(record),
                    "-" if record.latency is None else format_seconds(record.latency),
                    format_seconds(record.elapsed or 0.0),
                    format_count(record.attempts),
                    record.custom_id or "-",
                    format_count(record.index),
                )
                for record in report.slowest
            ),
            words=frozenset({4}),
        ),
    )


def _failures(report: Report) -> TableSection:
    return TableSection(
        key="failures",
        title="Failed prompts",
        summary=_first(len(report.failures), report.totals.counts.failed, "with their errors"),
        table=Table(
            caption="Failed prompts",
            headings=("Line", "Error", "Status", "Attempts", "Possibly billed", "custom_id", "Index"),
            rows=tuple(_failure_row(record, report.place_of(record)) for record in report.failures),
            words=frozenset({1, 5}),
        ),
    )


def _failure_row(record: JournalRecord, place: str) -> tuple[str, ...]:
    found: JSON = parse_json(record.result) if record.result else {}
    error = found if isinstance(found, Mapping) else {}
    status = error.get("status_code")
    return (
        place,
        f"{error.get('type') or 'Error'}: {_shortened(str(error.get('message') or ''))}",
        str(status) if isinstance(status, int) else "-",
        format_count(record.attempts),
        format_count(record.possibly_billed),
        record.custom_id or "-",
        format_count(record.index),
    )


def _bad_lines(report: Report) -> TableSection:
    return TableSection(
        key="bad-lines",
        title="Bad lines",
        summary=_first(len(report.bad_lines), report.totals.bad_lines, "for which nothing was sent"),
        table=Table(
            caption="Bad lines",
            headings=("Line", "What is wrong"),
            rows=tuple(
                (f"{bad.source}:{bad.line}" if report.shards else format_count(bad.line), _shortened(bad.message))
                for bad in report.bad_lines
            ),
            words=frozenset({1}),
        ),
    )


def _first(shown: int, number: int, what: str) -> str:
    if shown < number:
        return f"The first {format_count(shown)} of {format_count(number)}, {what}."
    return f"All {format_count(shown)}, {what}." if shown > 1 else f"One, {what}."


def _shortened(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}…"


def _sessions(report: Report, zone: tzinfo) -> TableSection:
    return TableSection(
        key="sessions",
        title="Sessions",
        summary="Each invocation of the run.",
        table=Table(
            caption="Sessions",
            headings=("Session", "Started", "Ended", "Duration", "Limit per minute", "Limit found", "End", "Version"),
            rows=tuple(
                (
                    format_count(place),
                    format_time(span.started, zone),
                    format_time(span.ended, zone),
                    format_duration(span.duration),
                    "-" if span.requests_per_minute is None else format_number(span.requests_per_minute),
                    span.limit_found or "-",
                    span.session.end_reason or ("running" if span.is_running else "killed; end = last activity"),
                    span.session.version or "-",
                )
                for place, span in enumerate(() if report.shards else report.sessions, 1)
            ),
            words=frozenset({1, 2, 5, 6, 7}),
        ),
    )


def _parameters(report: Report) -> TableSection:
    return TableSection(
        key="parameters",
        title="Run parameters",
        table=Table(
            caption="Run parameters",
            headings=("Parameter", "Value"),
            rows=report.parameters,
            words=frozenset({0, 1}),
        ),
    )
