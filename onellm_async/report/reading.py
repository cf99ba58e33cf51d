"""The report of a run, from its journal. The journal's database sums: no record of a run is read by itself."""

from collections.abc import Collection, Mapping, Sequence

from attrs import asdict, evolve

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import JournalRecord, RunCounts
from onellm_async.chat import JSON
from onellm_async.report.bottlenecks import analyze_sessions
from onellm_async.report.latency import build_histogram
from onellm_async.report.model import ProgressSample, Report, RunStatus, RunTotals, SessionSpan, TimeSlice
from onellm_async.report.timeline import allowed_answers, bucket_width, cut_slices

SLOWEST = 20
FAILED = 50
BAD_LINES = 50
"""Rows of the lists: enough to find the reason, few enough to read."""
_ACTIVITY_PARTS = 2000
"""Parts of a run's time; the last one with an outcome tells when a killed session ended."""


def read_report(journal: JournalReader, *, now: float) -> Report:
    """The report of a run as its journal is now.

    Args:
        journal: Of the run, which may be active.
        now: Unix seconds.

    Raises:
        BatchError: If the journal cannot be read.
    """
    running = journal.running
    raw = read_samples(journal)
    samples = [parse_sample(at, sample) for at, sample in raw]
    sessions = read_sessions(journal, samples, running=running, now=now)
    counts = journal.counts()
    outcomes = counts.answered + counts.failed
    buckets = journal.throughput(bucket_width(sum(span.duration for span in sessions), outcomes))
    slices = with_final_totals(cut_slices(sessions, samples, buckets, outcomes), counts)
    return Report(
        name=journal.path.name.removesuffix(".journal"),
        subtitle=_subtitle(journal.identity),
        created_at=now,
        status=status_of(running=running, complete=journal.complete),
        warning=journal.warning,
        parameters=tuple(list_parameters(journal.identity)),
        sessions=sessions,
        totals=_totals(journal, samples, sessions, slices, running=running),
        bottlenecks=analyze_sessions(sessions, raw),
        slices=slices,
        latency=build_histogram(
            ((each.low, each.high, each.count) for each in journal.latency_histogram()),
            journal.latency_percentiles([0.5, 0.9, 0.99]),
        ),
        slowest=with_input_index(journal.slowest(SLOWEST), journal.identity),
        failures=with_input_index(journal.failed(FAILED), journal.identity),
        bad_lines=tuple(journal.bad_lines(BAD_LINES)),
        causes=tuple(journal.failure_causes()),
        notable=read_notable(raw),
        waits_for=_waits_for(raw) if running else None,
    )


def read_notable(samples: Sequence[tuple[float, JSON]]) -> tuple[tuple[str, int], ...]:
    """What is unusual about the answers, and how many are, the most frequent first."""
    counted = _part(_part(samples[-1][1], "progress"), "notable") if samples else {}
    whole = [(flaw, number) for flaw, number in counted.items() if isinstance(number, int)]
    return tuple(sorted(whole, key=lambda each: -each[1]))


def _waits_for(samples: Sequence[tuple[float, JSON]]) -> str | None:
    told = json_object(samples[-1][1]).get("waits_for") if samples else None
    return told if isinstance(told, str) else None


def read_samples(journal: JournalReader) -> list[tuple[float, JSON]]:
    """The time series with its last point: Unix seconds and samples, in order."""
    latest = journal.latest_sample()
    found = {each.at: each.sample for each in (*journal.samples(), *([latest] if latest is not None else []))}
    return sorted(found.items(), key=lambda each: each[0])


def status_of(*, running: bool, complete: bool) -> RunStatus:
    """The state of a run."""
    if running:
        return RunStatus.RUNNING
    return RunStatus.COMPLETE if complete else RunStatus.INTERRUPTED


def read_sessions(
    journal: JournalReader, samples: Sequence[ProgressSample], *, running: bool, now: float
) -> tuple[SessionSpan, ...]:
    """The sessions of a journal with their ends. The last activity ends one that was killed."""
    found = journal.sessions()
    activity = _activity_times(journal, samples)
    spans = []
    for place, session in enumerate(found):
        last = place == len(found) - 1
        is_running = last and running
        until = max(now, session.started_at) + 1 if last else found[place + 1].started_at
        ended = session.ended_at
        if is_running:
            ended = now
        elif ended is None:
            ended = max((at for at in activity if session.started_at <= at < until), default=session.started_at)
        own = [sample for sample in samples if session.started_at <= sample.at <= ended]
        limits = _part(session.settings, "limits") or json_object(session.settings)
        spans.append(
            SessionSpan(
                session=session,
                ended=max(ended, session.started_at),
                is_running=is_running,
                requests_per_minute=own[-1].declared if own else _number(limits.get("requests_per_minute")),
                burst=_whole(_number(limits.get("burst")) or (own[-1].burst if own else None)),
                limit_found=own[-1].limit_found if own else None,
            )
        )
    return tuple(spans)


def _activity_times(journal: JournalReader, samples: Sequence[ProgressSample]) -> list[float]:
    """Moments at which a process surely worked on the run."""
    times = [sample.at for sample in samples]
    if (span := journal.time_span()) is not None and span[1] > span[0]:
        width = (span[1] - span[0]) / _ACTIVITY_PARTS
        times += [min(bucket.at + width, span[1]) for bucket in journal.throughput(width)]
    return times


def with_final_totals(slices: tuple[TimeSlice, ...], counts: RunCounts) -> tuple[TimeSlice, ...]:
    """The last sample is up to a second older than the end, so the last slice gets the totals of the journal."""
    if not slices:
        return slices
    last = slices[-1]
    return (
        *slices[:-1],
        evolve(last, cost=counts.cost, input_tokens=counts.input_tokens, output_tokens=counts.output_tokens),
    )


def _totals(
    journal: JournalReader,
    samples: Sequence[ProgressSample],
    sessions: Sequence[SessionSpan],
    slices: Sequence[TimeSlice],
    *,
    running: bool,
) -> RunTotals:
    budget = _part(sessions[-1].session.settings, "budget") if sessions else {}
    answers = journal.identity.answers
    told = next((sample.total for sample in reversed(samples) if sample.total is not None), None)
    return evolve(
        sum_up(
            journal.counts(),
            sessions,
            slices,
            running=running,
            answers=told if answers is None else answers,
            samples=1 if answers is None else journal.identity.samples or 1,
            bad_lines=max(journal.bad_line_count(), *(each.bad_lines for each in samples[-1:]), 0),
            retried=journal.retried(),
        ),
        budget=_number(budget.get("max_cost")),
    )


def sum_up(
    counts: RunCounts,
    sessions: Sequence[SessionSpan],
    slices: Sequence[TimeSlice],
    *,
    running: bool,
    answers: int | None,
    samples: int,
    bad_lines: int,
    retried: int,
) -> RunTotals:
    """The totals of a run or of many shards, without a budget.

    Args:
        counts: What is durable.
        sessions: In order.
        slices: Of these sessions.
        running: Whether a process works on it. Without one, nothing is in flight any more.
        answers: Answers that it has when it is complete, bad lines included as often as they would be asked.
        samples: How often each prompt is asked.
        bad_lines: Lines without a usable prompt. Each is one, however often it would be asked.
        retried: Retries that the journals know of.
    """
    return RunTotals(
        counts=evolve(
            counts,
            in_flight=counts.in_flight if running else 0,
            possibly_billed=counts.possibly_billed + (0 if running else counts.in_flight),
            rate_limited=max(counts.rate_limited, sum(part.rate_limited for part in slices)),
        ),
        total=None if answers is None else answers - bad_lines * (samples - 1),
        bad_lines=bad_lines,
        retries=max(retried, sum(part.retries for part in slices)),
        allowed=allowed_answers(sessions, slices),
    )


def with_input_index(records: Sequence[JournalRecord], identity: RunIdentity) -> tuple[JournalRecord, ...]:
    """The records with the index of their prompt in the input, as the output has it."""
    samples = identity.samples or 1
    return tuple(evolve(record, index=record.index // samples) for record in records)


def _subtitle(identity: RunIdentity) -> str:
    model = identity.model or identity.fallback_model
    return f"{identity.input}, sent to {model}" if model else identity.input


_NAMES = {
    "input": "Input",
    "input_digest": "Digest of the input",
    "lines": "Lines, blank ones not counted",
    "format": "Format",
    "field": "Field of the prompt",
    "template_digest": "Digest of the template",
    "model": "Model",
    "fallback_model": "Fallback model",
    "system_digest": "Digest of the system prompt",
    "samples": "Samples of each prompt",
    "base_url": "API URL",
    "dialect": "Dialect",
    "endpoints": "Endpoints",
}


def list_parameters(identity: RunIdentity, omitted: Collection[str] = ()) -> list[tuple[str, str]]:
    """What makes a run this run: names and values, but for fields that are to be omitted."""
    parts = asdict(identity).items()
    return [
        (_NAMES.get(name, name), f"{value:,}" if name == "lines" else str(value))
        for name, value in parts
        if value is not None and name not in omitted
    ]


def parse_sample(at: float, sample: JSON) -> ProgressSample:
    """The values of a sample: a client's snapshot, and the progress of the run. Another version may lack some."""
    sample = json_object(sample)
    progress = json_object(sample.get("progress"))
    counts = json_object(progress.get("counts"))
    limiter = json_object(sample.get("snapshot")) or sample
    queued = {str(lane): count for lane, text in json_object(limiter.get("queued")).items() if (count := _number(text))}
    retries = _number(limiter.get("retried"))
    total = _number(progress.get("total", sample.get("total")))
    return ProgressSample(
        at=at,
        queued=queued,
        in_flight=_number(limiter.get("in_flight")),
        limit=_number(limiter.get("rate")),
        declared=_number(limiter.get("declared_rate")),
        burst=_number(limiter.get("burst")),
        limit_found=found if isinstance(found := limiter.get("limit_found"), str) else None,
        rate_limited=int(_number(limiter.get("rate_limited")) or 0),
        retries=int(retries if retries is not None else _number(progress.get("retries")) or 0),
        total=None if total is None else int(total),
        bad_lines=int(_number(progress.get("bad_lines")) or 0),
        cost=_number(counts.get("cost")) or 0.0,
        input_tokens=int(_number(counts.get("input_tokens")) or 0),
        output_tokens=int(_number(counts.get("output_tokens")) or 0),
    )


def json_object(value: JSON) -> Mapping[str, JSON]:
    """The value, if it is an object; otherwise an empty one."""
    return value if isinstance(value, Mapping) else {}


def _part(value: JSON, name: str) -> Mapping[str, JSON]:
    return json_object(json_object(value).get(name))


def _number(value: JSON) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
