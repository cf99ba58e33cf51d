"""The lists at the end of a report: sessions, slow and failed prompts, bad lines, what the run was."""

from datetime import tzinfo

from attrs import frozen

from onellm_async.report.drawing import Table
from onellm_async.report.model import Report
from onellm_async.report.wording import count, duration, moment, number, seconds

__all__ = ["Listing", "listings"]


@frozen(kw_only=True)
class Listing:
    """A table with its heading and a sentence."""

    key: str
    title: str
    summary: str = ""
    table: Table


def listings(report: Report, zone: tzinfo) -> tuple[Listing, ...]:
    """The lists that have something to show."""
    lists = (_slowest(report), _failures(report), _bad_lines(report), _sessions(report, zone), _identity(report))
    return tuple(listing for listing in lists if listing.table.rows)


def _slowest(report: Report) -> Listing:
    return Listing(
        key="slowest",
        title="Slowest answers",
        summary="By their last attempt; in all, with the queue and every attempt before it.",
        table=Table(
            caption="Slowest answers",
            headings=("Line", "Last attempt", "In all", "Attempts", "custom_id", "Index"),
            rows=tuple(
                (
                    count(prompt.line),
                    "-" if prompt.latency is None else seconds(prompt.latency),
                    seconds(prompt.elapsed),
                    count(prompt.attempts),
                    prompt.custom_id or "-",
                    count(prompt.index),
                )
                for prompt in report.slowest
            ),
            words=frozenset({4}),
        ),
    )


def _failures(report: Report) -> Listing:
    return Listing(
        key="failures",
        title="Failed prompts",
        summary=_first(len(report.failures), report.figures.failed, "with their errors"),
        table=Table(
            caption="Failed prompts",
            headings=("Line", "Error", "Status", "Attempts", "Possibly billed", "custom_id", "Index"),
            rows=tuple(
                (
                    count(prompt.line),
                    f"{prompt.kind}: {prompt.message}",
                    "-" if prompt.status_code is None else str(prompt.status_code),
                    count(prompt.attempts),
                    count(prompt.possibly_billed),
                    prompt.custom_id or "-",
                    count(prompt.index),
                )
                for prompt in report.failures
            ),
            words=frozenset({1, 5}),
        ),
    )


def _bad_lines(report: Report) -> Listing:
    return Listing(
        key="bad-lines",
        title="Bad lines",
        summary=_first(len(report.bad_lines), report.figures.bad_lines, "for which nothing was sent"),
        table=Table(
            caption="Bad lines",
            headings=("Line", "What is wrong"),
            rows=tuple((count(bad.line), bad.message) for bad in report.bad_lines),
            words=frozenset({1}),
        ),
    )


def _first(shown: int, all_of_them: int, what: str) -> str:
    if shown < all_of_them:
        return f"The first {count(shown)} of {count(all_of_them)}, {what}."
    return f"All {count(shown)}, {what}." if shown > 1 else f"One, {what}."


def _sessions(report: Report, zone: tzinfo) -> Listing:
    return Listing(
        key="sessions",
        title="Sessions",
        summary="Each time the command ran.",
        table=Table(
            caption="Sessions",
            headings=("RunSession", "Started", "Ended", "Duration", "Limit per minute", "How it ended", "Version"),
            rows=tuple(
                (
                    count(place),
                    moment(session.started, zone),
                    moment(session.ended, zone),
                    duration(session.duration),
                    "-" if session.requests_per_minute is None else number(session.requests_per_minute),
                    session.end_reason or ("goes on" if session.goes_on else "killed; end = last activity"),
                    session.version or "-",
                )
                for place, session in enumerate(report.sessions, 1)
            ),
            words=frozenset({1, 2, 5, 6}),
        ),
    )


def _identity(report: Report) -> Listing:
    return Listing(
        key="identity",
        title="What was run",
        table=Table(
            caption="What was run",
            headings=("Part", "Value"),
            rows=report.identity,
            words=frozenset({0, 1}),
        ),
    )
