"""Out of a journal, a report: everything is summed by the journal's database, nothing reads a run's rows one by one."""

from collections.abc import Mapping, Sequence

from attrs import asdict, evolve

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import JournalRecord
from onellm_async.chat import JSON
from onellm_async.report.latency import latency_of
from onellm_async.report.looks import ProgressSample, looks_of
from onellm_async.report.model import (
    BadLine,
    FailedPrompt,
    Figures,
    Report,
    RunSession,
    RunStatus,
    SlowPrompt,
    TimeSlice,
)
from onellm_async.report.timeline import bucket_width, possible_answers, slices_of
from onellm_async.report.verdict import verdict_of
from onellm_async.wire import parse_json

__all__ = ["read_report"]

_SLOWEST = 20
_FAILED = 50
_BAD_LINES = 50
"""How many are listed: enough to find out why, few enough to read."""
_LONGEST_MESSAGE = 300
_SIGNS = 2000
"""Parts of a run's time in which signs of life are looked for."""
_ALL_BAD_LINES = 1_000_000


def read_report(journal: JournalReader, *, now: float) -> Report:
    """The report of a run as its journal tells it now.

    Args:
        journal: Of the run, which may be active.
        now: Unix seconds.

    Raises:
        BatchError: If the journal cannot be read.
    """
    running = journal.running
    samples = _samples(journal)
    looks = looks_of(samples)
    sessions = _sessions(journal, looks, running=running, now=now)
    buckets = journal.throughput(bucket_width(sum(session.duration for session in sessions)))
    slices = _settled_up(slices_of(sessions, looks, buckets), journal)
    return Report(
        name=journal.path.name.removesuffix(".journal"),
        subtitle=_subtitle(journal.identity),
        made_at=now,
        standing=_standing(running=running, complete=journal.complete),
        warning=journal.warning,
        identity=tuple(_identity(journal.identity)),
        sessions=sessions,
        figures=_figures(journal, looks, sessions, slices, running=running),
        verdict=verdict_of(sessions, samples),
        slices=slices,
        latency=latency_of(
            ((each.low, each.high, each.count) for each in journal.latency_histogram()),
            journal.latency_percentiles([0.5, 0.9, 0.99]),
        ),
        slowest=tuple(map(_slow, journal.slowest(_SLOWEST))),
        failures=tuple(map(_failure, journal.failed(_FAILED))),
        bad_lines=tuple(BadLine(bad.line, _short(bad.message)) for bad in journal.bad_lines(_BAD_LINES)),
        causes=tuple(journal.failure_causes()),
        notable=_notable(samples),
        waits_for=_waits_for(samples) if running else None,
    )


def _notable(samples: Sequence[tuple[float, JSON]]) -> tuple[tuple[str, int], ...]:
    counted = _part(_part(samples[-1][1], "progress"), "notable") if samples else {}
    whole = [(flaw, number) for flaw, number in counted.items() if isinstance(number, int)]
    return tuple(sorted(whole, key=lambda each: -each[1]))


def _waits_for(samples: Sequence[tuple[float, JSON]]) -> str | None:
    told = _object(samples[-1][1]).get("waits_for") if samples else None
    return told if isinstance(told, str) else None


def _samples(journal: JournalReader) -> list[tuple[float, JSON]]:
    latest = journal.latest_sample()
    found = {each.at: each.sample for each in (*journal.samples(), *([latest] if latest is not None else []))}
    return sorted(found.items(), key=lambda each: each[0])


def _standing(*, running: bool, complete: bool) -> RunStatus:
    if running:
        return RunStatus.RUNNING
    return RunStatus.COMPLETE if complete else RunStatus.INTERRUPTED


def _sessions(
    journal: JournalReader, looks: Sequence[ProgressSample], *, running: bool, now: float
) -> tuple[RunSession, ...]:
    found = journal.sessions()
    signs = _signs_of_life(journal, looks)
    made = []
    for place, session in enumerate(found):
        last = place == len(found) - 1
        goes_on = last and running
        until = max(now, session.started_at) + 1 if last else found[place + 1].started_at
        ended = session.ended_at
        if goes_on:
            ended = now
        elif ended is None:
            ended = max((sign for sign in signs if session.started_at <= sign < until), default=session.started_at)
        own = [look for look in looks if session.started_at <= look.at <= ended]
        limits = _part(session.settings, "limits") or _object(session.settings)
        made.append(
            RunSession(
                started=session.started_at,
                ended=max(ended, session.started_at),
                end_reason=session.end_reason,
                goes_on=goes_on,
                version=session.version,
                requests_per_minute=own[-1].declared if own else _number(limits.get("requests_per_minute")),
                burst=_whole(_number(limits.get("burst")) or (own[-1].burst if own else None)),
            )
        )
    return tuple(made)


def _signs_of_life(journal: JournalReader, looks: Sequence[ProgressSample]) -> list[float]:
    """Moments at which a process surely worked on the run."""
    signs = [look.at for look in looks]
    if (span := journal.time_span()) is not None and span[1] > span[0]:
        width = (span[1] - span[0]) / _SIGNS
        signs += [min(bucket.at + width, span[1]) for bucket in journal.throughput(width)]
    return signs


def _settled_up(slices: tuple[TimeSlice, ...], journal: JournalReader) -> tuple[TimeSlice, ...]:
    """The last sample comes a second before the end; at the end stands what the rows add up to."""
    if not slices:
        return slices
    counts, last = journal.counts(), slices[-1]
    return (
        *slices[:-1],
        evolve(last, cost=counts.cost, input_tokens=counts.input_tokens, output_tokens=counts.output_tokens),
    )


def _figures(
    journal: JournalReader,
    looks: Sequence[ProgressSample],
    sessions: Sequence[RunSession],
    slices: Sequence[TimeSlice],
    *,
    running: bool,
) -> Figures:
    counts, raw = journal.counts(), journal.sessions()
    budget = _part(raw[-1].settings, "budget") if raw else {}
    total = journal.identity.lines
    if total is None:
        total = next((look.total for look in reversed(looks) if look.total is not None), None)
    return Figures(
        total=total,
        answered=counts.answered,
        failed=counts.failed,
        deduplicated=counts.deduplicated,
        bad_lines=max(len(journal.bad_lines(_ALL_BAD_LINES)), *(look.bad_lines for look in looks[-1:]), 0),
        unsettled=counts.in_flight,
        possibly_billed=counts.possibly_billed + (0 if running else counts.in_flight),
        at_risk=counts.at_risk,
        cost=counts.cost,
        unpriced=counts.unpriced,
        budget=_number(budget.get("max_cost")),
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        rate_limited=max(counts.rate_limited, sum(part.rate_limited for part in slices)),
        retries=max(journal.retried(), sum(part.retries for part in slices)),
        possible=possible_answers(sessions, slices),
    )


def _subtitle(identity: RunIdentity) -> str:
    model = identity.model or identity.fallback_model
    return f"{identity.input}, asked of {model}" if model else identity.input


_NAMES = {
    "input": "Input",
    "input_digest": "Digest of the input",
    "lines": "Lines that are not blank",
    "format": "Format",
    "field": "Field of the prompt",
    "template_digest": "Digest of the template",
    "model": "Model",
    "fallback_model": "Fallback model",
    "system_digest": "Digest of the system prompt",
    "base_url": "Address",
    "dialect": "Dialect",
    "endpoints": "Endpoints",
}


def _identity(identity: RunIdentity) -> list[tuple[str, str]]:
    parts = asdict(identity).items()
    return [
        (_NAMES.get(name, name), f"{value:,}" if name == "lines" else str(value))
        for name, value in parts
        if value is not None
    ]


def _slow(row: JournalRecord) -> SlowPrompt:
    return SlowPrompt(
        index=row.index,
        line=row.line,
        custom_id=row.custom_id,
        elapsed=row.elapsed or 0.0,
        latency=row.latency,
        attempts=row.attempts,
    )


def _failure(row: JournalRecord) -> FailedPrompt:
    error = _object(parse_json(row.result)) if row.result else {}
    status = error.get("status_code")
    return FailedPrompt(
        index=row.index,
        line=row.line,
        custom_id=row.custom_id,
        kind=str(error.get("type") or "Error"),
        message=_short(str(error.get("message") or "")),
        status_code=status if isinstance(status, int) else None,
        attempts=row.attempts,
        possibly_billed=row.possibly_billed,
    )


def _short(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"


def _object(value: JSON) -> Mapping[str, JSON]:
    return value if isinstance(value, Mapping) else {}


def _part(value: JSON, name: str) -> Mapping[str, JSON]:
    return _object(_object(value).get(name))


def _number(value: JSON) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
