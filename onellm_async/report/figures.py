"""The big figures at the top of a report, and the sentence about how the run stands."""

from datetime import tzinfo

from attrs import frozen

from onellm_async.batch.causes import outcome_lines
from onellm_async.formatting import format_usd
from onellm_async.report.model import Report, RunStatus
from onellm_async.report.wording import count, duration, moment, number, percent

__all__ = ["Figure", "figures", "outcome_sentences", "standing_sentence"]

_TIMES = ("", "once", "twice")


@frozen(kw_only=True)
class Figure:
    """A number that is read first.

    Attributes:
        label: What it counts.
        value: The number with its unit.
        unit: What stands small behind it.
        beside: What it is to be compared with.
        tone: ``bad`` or ``warn`` where it asks for attention.
    """

    label: str
    value: str
    unit: str = ""
    beside: str = ""
    tone: str = ""


def standing_sentence(report: Report, zone: tzinfo) -> str:
    """How the run stands, in a sentence."""
    sentences = []
    if report.sessions:
        first, last = report.sessions[0], report.sessions[-1]
        resumed = f", resumed {_times(report.resumed)}" if report.resumed else ""
        sentences.append(f"Started {moment(first.started, zone)}{resumed}, {_end(report, last.ended, zone)}.")
    left = report.figures.left
    if report.standing is RunStatus.INTERRUPTED:
        last_words = report.sessions[-1].end_reason if report.sessions else None
        if last_words:
            sentences.append(f"It ended: {last_words.removesuffix('.')}.")
        sentences.append(
            f"{count(left)} of {count(report.figures.total or 0)} prompts are left; the same command goes on."
            if left
            else "The same command goes on."
        )
    if report.warning is not None:
        sentences.append(report.warning)
    return " ".join(sentences)


def outcome_sentences(report: Report) -> tuple[str, ...]:
    """Why prompts failed, which answers want a look, and what a running run waits for; nothing while all is well."""
    sentences = outcome_lines(dict(report.causes), dict(report.notable))
    if report.waits_for is not None:
        sentences.append(report.waits_for)
    return tuple(map(str.strip, sentences))


def _times(number_: int) -> str:
    return _TIMES[number_] if number_ < len(_TIMES) else f"{number_} times"


def _end(report: Report, ended: float, zone: tzinfo) -> str:
    verb = {
        RunStatus.COMPLETE: "finished",
        RunStatus.RUNNING: "running still when this was made, last sign of life",
        RunStatus.INTERRUPTED: "last worked on",
    }[report.standing]
    return f"{verb} {moment(ended, zone)}"


def figures(report: Report) -> tuple[Figure, ...]:
    """What is read first, in the order of reading."""
    told = report.figures
    return (
        Figure(
            label="Answered",
            value=count(told.answered),
            beside=("prompts" if told.total is None else f"of {count(told.total)} prompts")
            + (f"; {count(told.deduplicated)} share the answer to an identical one" if told.deduplicated else ""),
        ),
        Figure(
            label="Failed",
            value=count(told.failed),
            beside=f"and {count(told.bad_lines)} bad lines" if told.bad_lines else "no bad lines",
            tone="bad" if told.failed or told.bad_lines else "",
        ),
        _possibly_billed(report),
        Figure(label="Duration", value=duration(report.duration), beside=_sessions(report)),
        _goodput(report),
        _cost(report),
        Figure(
            label="Tokens",
            value=_short(told.input_tokens + told.output_tokens),
            beside=f"{count(told.input_tokens)} in, {count(told.output_tokens)} out",
        ),
        Figure(
            label="Refused",
            value=count(told.rate_limited),
            beside=f"by rate limit, unbilled; {count(told.retries)} sent again after failures",
        ),
    )


def _possibly_billed(report: Report) -> Figure:
    told = report.figures
    running = report.standing is RunStatus.RUNNING
    at_risk = f"{format_usd(told.at_risk)} at risk" if told.at_risk else "nothing at risk"
    if running:
        beside = f"{format_usd(told.at_risk)} reserved or at risk"
        return Figure(label="In flight", value=count(told.unsettled), beside=beside)
    return Figure(
        label="Possibly billed",
        value=count(told.possibly_billed),
        unit="requests" if told.possibly_billed != 1 else "request",
        beside=at_risk,
        tone="warn" if told.possibly_billed else "",
    )


def _sessions(report: Report) -> str:
    if not report.resumed:
        return "in one session"
    whole = report.sessions[-1].ended - report.sessions[0].started
    return f"of work in {len(report.sessions)} sessions, {duration(whole)} in all"


def _goodput(report: Report) -> Figure:
    rate = report.figures.answered / report.duration if report.duration else 0.0
    told = f"{number(rate)} answers/s" if rate >= 10 else f"{number(rate * 60)} answers/min"
    if report.figures.goodput is None:
        value, _, unit = told.partition(" ")
        return Figure(label="Rate", value=value, unit=unit, beside="on average; no limit was declared or learned")
    return Figure(label="Goodput", value=percent(report.figures.goodput), beside=f"of what the limit allowed; {told}")


def _cost(report: Report) -> Figure:
    told = report.figures
    beside = (
        "by list price, no budget set" if told.budget is None else f"of {format_usd(told.budget, exact=True)} budget"
    )
    if told.unpriced:
        beside += f"; {count(told.unpriced)} answers of unknown price"
    tight = told.budget is not None and told.cost > 0.9 * told.budget
    return Figure(label="Cost", value=format_usd(told.cost), beside=beside, tone="warn" if tight else "")


def _short(value: int) -> str:
    for size, name in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if value >= size:
            return f"{number(value / size)} {name}"
    return count(value)
