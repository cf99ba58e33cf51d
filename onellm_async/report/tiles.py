"""The tiles at the top of a report, and the sentences about the state of the run. Pure."""

from datetime import tzinfo

from attrs import frozen

from onellm_async.batch.causes import outcome_lines
from onellm_async.batch.run_report import ENDED_AT_CAP, money_at_risk
from onellm_async.formatting import (
    format_count,
    format_duration,
    format_number,
    format_percent,
    format_time,
    format_usd,
    pluralize,
)
from onellm_async.report.model import Report, RunStatus

_TIMES = ("", "once", "twice")


@frozen(kw_only=True)
class StatTile:
    """A large figure.

    Attributes:
        label: What it counts.
        value: The number.
        unit: What stands small behind it.
        beside: A figure to compare it with.
        tone: ``bad`` or ``warn`` where it needs attention.
    """

    label: str
    value: str
    unit: str = ""
    beside: str = ""
    tone: str = ""


def describe_status(report: Report, zone: tzinfo) -> str:
    """The state of the run, in sentences."""
    sentences = []
    if report.sessions:
        first, last = report.sessions[0], report.sessions[-1]
        resumed = f", resumed {_times(report.resumed)}" if report.resumed and not report.shards else ""
        sentences.append(f"Started {format_time(first.started, zone)}{resumed}, {_end(report, last.ended, zone)}.")
    remaining = report.totals.remaining
    if report.status is RunStatus.INTERRUPTED:
        end_reason = report.sessions[-1].session.end_reason if report.sessions else None
        if end_reason:
            sentences.append(f"It ended: {end_reason.removesuffix('.')}.")
        if remaining:
            sentences.append(f"{format_count(remaining)} of {pluralize(report.totals.total or 0, 'prompt')} remain.")
        at_cap = end_reason is not None and end_reason.startswith(ENDED_AT_CAP)
        again = "with a higher cost cap" if at_cap else "again"
        same = "Run the shards that are not complete" if report.shards else f"Run the same command {again}"
        sentences.append(f"{same} to resume.")
    if report.warning is not None:
        sentences.append(report.warning)
    return " ".join(sentences)


def describe_outcomes(report: Report) -> tuple[str, ...]:
    """Why prompts failed, which answers to check, and what a running run waits for; empty while all is well."""
    sentences = outcome_lines(dict(report.causes), dict(report.notable))
    if report.waits_for is not None:
        sentences.append(report.waits_for)
    return tuple(map(str.strip, sentences))


def _times(number: int) -> str:
    return _TIMES[number] if number < len(_TIMES) else f"{number} times"


def _end(report: Report, ended: float, zone: tzinfo) -> str:
    verb = {
        RunStatus.COMPLETE: "finished",
        RunStatus.RUNNING: "still running when this report was created, last activity",
        RunStatus.INTERRUPTED: "last activity",
    }[report.status]
    return f"{verb} {format_time(ended, zone)}"


def make_tiles(report: Report) -> tuple[StatTile, ...]:
    """The tiles, in the order of reading."""
    totals, counts = report.totals, report.totals.counts
    return (
        StatTile(
            label="Answered",
            value=format_count(counts.answered),
            beside=("prompts" if totals.total is None else f"of {pluralize(totals.total, 'prompt')}")
            + (f"; {pluralize(counts.deduplicated, 'duplicate')}" if counts.deduplicated else ""),
        ),
        StatTile(
            label="Failed",
            value=format_count(counts.failed),
            beside=f"and {pluralize(totals.bad_lines, 'bad line')}" if totals.bad_lines else "no bad lines",
            tone="bad" if counts.failed or totals.bad_lines else "",
        ),
        _possibly_billed(report),
        StatTile(label="Duration", value=format_duration(report.duration), beside=_sessions(report)),
        _goodput(report),
        _cost(report),
        StatTile(
            label="Tokens",
            value=_short(counts.input_tokens + counts.output_tokens),
            beside=f"{format_count(counts.input_tokens)} input, {format_count(counts.output_tokens)} output",
        ),
        StatTile(
            label="Rate-limited",
            value=format_count(counts.rate_limited),
            beside=f"429s, not billed; {pluralize(totals.retries, 'retry')} after failures",
        ),
    )


def _possibly_billed(report: Report) -> StatTile:
    counts = report.totals.counts
    if report.status is RunStatus.RUNNING:
        return StatTile(label="In flight", value=format_count(counts.in_flight), beside=money_at_risk(counts))
    return StatTile(
        label="Possibly billed",
        value=format_count(counts.possibly_billed),
        unit="attempts" if counts.possibly_billed != 1 else "attempt",
        beside=money_at_risk(counts) if counts.possibly_billed or counts.at_risk else "nothing at risk",
        tone="warn" if counts.possibly_billed else "",
    )


def _sessions(report: Report) -> str:
    if report.shards:
        return f"in {pluralize(len(report.shards), 'shard')}, while any was active"
    if not report.resumed:
        return "in one session"
    whole = report.sessions[-1].ended - report.sessions[0].started
    return f"active in {len(report.sessions)} sessions, {format_duration(whole)} from start to end"


def _goodput(report: Report) -> StatTile:
    totals = report.totals
    rate = totals.counts.answered / report.duration if report.duration else 0.0
    average = f"{format_number(rate)} answers/s" if rate >= 10 else f"{format_number(rate * 60)} answers/min"
    if totals.goodput is None:
        value, _, unit = average.partition(" ")
        return StatTile(label="Rate", value=value, unit=unit, beside="on average; no limit was declared or discovered")
    return StatTile(
        label="Goodput", value=format_percent(totals.goodput), beside=f"of what the limit allowed; {average}"
    )


def _cost(report: Report) -> StatTile:
    cost, budget, unpriced = report.totals.counts.cost, report.totals.budget, report.totals.counts.unpriced
    beside = "by list price, no budget set" if budget is None else f"of {format_usd(budget, exact=True)} budget"
    if unpriced:
        beside += f"; {pluralize(unpriced, 'answer')} of unknown price"
    tight = budget is not None and cost > 0.9 * budget
    return StatTile(label="Cost", value=format_usd(cost), beside=beside, tone="warn" if tight else "")


def _short(value: int) -> str:
    for size, name in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if value >= size:
            return f"{format_number(value / size)} {name}"
    return format_count(value)
