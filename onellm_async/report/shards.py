"""The report over all shards of an input, from their journals, as if they were one run. One journal is open at a time.

A shard has sessions, and processes work on several shards at once. The sessions of this report are the times in which
any shard was active. They are cut into cells, and each shard adds to the cells what its samples say: sums of what each
shard has for itself, and the highest rate where a quota shares one.
"""

import heapq
import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path

from attrs import evolve, field, frozen

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.reader import Bucket, JournalReader, LatencyBin, RunSession
from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.shard_split import read_manifest
from onellm_async.batch.shards import ShardStatus, default_output, read_shard_statuses, sum_counts, sum_failures
from onellm_async.chat import JSON
from onellm_async.formatting import pluralize
from onellm_async.report.latency import build_histogram
from onellm_async.report.model import Latency, ProgressSample, Report, SessionSpan
from onellm_async.report.reading import (
    BAD_LINES,
    FAILED,
    SLOWEST,
    json_object,
    list_parameters,
    parse_sample,
    read_notable,
    read_samples,
    read_sessions,
    status_of,
    sum_up,
    with_final_totals,
    with_input_index,
)
from onellm_async.report.timeline import bucket_width, cut_slices

_BREAK = 60.0
"""Seconds without an active shard that count as a break: engines take some seconds to start the next shard."""
_BUCKETS_OF_A_CELL = 4
"""Four cells make a slice, so that what is in flight in it is a mean."""
_OF_ONE_SHARD = frozenset({"input", "input_digest", "lines"})
"""Parameters of a run that differ between shards."""


def read_shards_report(directory: str | os.PathLike[str], *, now: float) -> Report:
    """The report over all shards of a directory as they are now.

    Args:
        directory: The shards, as `split_input` wrote them.
        now: Unix seconds.

    Raises:
        BatchError: If the directory has no shards, or a journal cannot be read.
    """
    place = Path(directory)
    manifest, statuses = read_manifest(place), read_shard_statuses(place)
    firsts = accumulate((each.entries for each in statuses), initial=0)
    found = [
        _read(place, each, first, now=now)
        for each, first in zip(statuses, firsts, strict=False)
        if each.state != "not started"
    ]
    periods = merge_spans([span for part in found for span in part.sessions])
    counts = sum_counts(statuses)
    outcomes = counts.answered + counts.failed
    width = bucket_width(sum(period.duration for period in periods), outcomes)
    cells = Cells(periods, _BUCKETS_OF_A_CELL * width)
    buckets: Counter[float] = Counter()
    failed: Counter[float] = Counter()
    bursts: set[float] = set()
    for part in found:
        with JournalReader.open(part.output) as journal:
            bursts |= cells.add(read_samples(journal), part.sessions)
            for bucket in journal.throughput(width):
                buckets[bucket.at] += bucket.answered
                failed[bucket.at] += bucket.failed
    periods = tuple(evolve(period, burst=int(max(bursts)) if bursts else None) for period in periods)
    running = any(each.state == "running" for each in statuses)
    fine = [Bucket(at, buckets[at], failed[at]) for at in sorted(buckets)]
    slices = with_final_totals(cut_slices(periods, cells.samples(), fine, outcomes), counts)
    complete = all(each.state == "complete" for each in statuses)
    identity = found[0].identity if found else None
    model = identity and (identity.model or identity.fallback_model)
    samples = (identity and identity.samples) or 1
    return Report(
        name=place.resolve().name,
        subtitle=pluralize(len(statuses), "shard") + (f", sent to {model}" if model else ""),
        created_at=now,
        status=status_of(running=running, complete=complete),
        parameters=(
            ("Prompts of a shard", f"{manifest.prompts:,}"),
            *(list_parameters(identity, _OF_ONE_SHARD) if identity else ()),
        ),
        sessions=periods,
        totals=sum_up(
            counts,
            periods,
            slices,
            running=running,
            answers=manifest.entries * samples,
            samples=samples,
            bad_lines=sum(each.bad_lines for each in statuses),
            retried=sum(part.retried for part in found),
        ),
        slices=slices,
        latency=_latency(chain.from_iterable(part.latency for part in found)),
        slowest=tuple(
            heapq.nlargest(
                SLOWEST, (record for part in found for record in part.slowest), lambda each: each.latency or 0
            )
        ),
        failures=tuple(record for part in found for record in part.failures)[:FAILED],
        bad_lines=tuple(bad for part in found for bad in part.bad_lines)[:BAD_LINES],
        causes=tuple(sum_failures(statuses).items()),
        notable=tuple(sum((Counter(dict(part.notable)) for part in found), Counter[str]()).most_common()),
        shards=tuple(statuses),
    )


def _latency(bins: Iterable[LatencyBin]) -> Latency:
    """The histogram of all shards. Its percentiles are upper bounds of fine bins: at most 12 % too high."""
    counts: Counter[tuple[float, float]] = Counter()
    for each in bins:
        counts[each.low, each.high] += each.count
    ordered = sorted(counts.items())
    reached = list(accumulate(count for _, count in ordered))
    percentiles = [ordered[bisect_left(reached, share * reached[-1])][0][1] for share in (0.5, 0.9, 0.99) if reached]
    return build_histogram(((low, high, count) for (low, high), count in ordered), percentiles)


@frozen(kw_only=True)
class _Shard:
    """What is kept of a shard's journal; its samples are read again when the cells are known."""

    output: Path
    identity: RunIdentity
    sessions: tuple[SessionSpan, ...]
    latency: tuple[LatencyBin, ...]
    slowest: tuple[JournalRecord, ...]
    failures: tuple[JournalRecord, ...]
    bad_lines: tuple[LineError, ...]
    notable: tuple[tuple[str, int], ...]
    retried: int


def _read(directory: Path, status: ShardStatus, first: int, *, now: float) -> _Shard:
    """What is kept of the journal of a shard, whose first prompt has the index `first` in the whole input."""
    output = default_output(directory / status.name)
    with JournalReader.open(output) as journal:
        raw = read_samples(journal)
        samples = [parse_sample(at, sample) for at, sample in raw]

        def placed(records: Sequence[JournalRecord]) -> tuple[JournalRecord, ...]:
            records = with_input_index(records, journal.identity)
            return tuple(evolve(record, index=record.index + first) for record in records)

        return _Shard(
            output=output,
            identity=journal.identity,
            sessions=read_sessions(journal, samples, running=status.state == "running", now=now),
            latency=tuple(journal.latency_histogram()),
            slowest=placed(journal.slowest(SLOWEST)),
            failures=placed(journal.failed(FAILED)),
            bad_lines=tuple(evolve(bad, source=status.name) for bad in journal.bad_lines(BAD_LINES)),
            notable=read_notable(raw),
            retried=journal.retried(),
        )


def merge_spans(spans: Sequence[SessionSpan]) -> tuple[SessionSpan, ...]:
    """The times in which any of the sessions was active, in order. Pauses of up to a minute are part of them."""
    merged: list[SessionSpan] = []
    for span in sorted(spans, key=lambda each: each.started):
        if merged and span.started <= merged[-1].ended + _BREAK:
            last = merged[-1]
            merged[-1] = evolve(last, ended=max(last.ended, span.ended), is_running=last.is_running or span.is_running)
        else:
            session = RunSession(span.started, None, None, "", None)
            merged.append(SessionSpan(session=session, ended=span.ended, is_running=span.is_running))
    return tuple(merged)


@frozen(kw_only=True)
class _Cell:
    """What all shards together had at the end of a cell; counters since the first shard began."""

    at: float
    period: int
    queued: dict[str, float] = field(factory=dict[str, float])
    totals: dict[str, float] = field(factory=dict[str, float])
    rates: list[float] = field(factory=list[float])
    shared_rates: list[float] = field(factory=list[float])
    in_flight: list[float] = field(factory=list[float])


class Cells:
    """The periods, cut into cells of equal length.

    Args:
        periods: In order.
        width: Seconds of a cell.
    """

    def __init__(self, periods: Sequence[SessionSpan], width: float) -> None:
        self._cells = [
            _Cell(at=min(period.ended, period.started + step * width), period=number)
            for number, period in enumerate(periods)
            for step in range(1, 2 + int(period.duration / width))
        ]

    def add(self, raw: Sequence[tuple[float, JSON]], sessions: Sequence[SessionSpan]) -> set[float]:
        """Adds the samples of a shard, and returns the bursts of its limits that a quota shares."""
        samples = [parse_sample(at, sample) for at, sample in raw]
        times, starts = [sample.at for sample in samples], [span.started for span in sessions]
        shared = [
            json_object(json_object(sample).get("snapshot")).get("quota") not in {None, "off"} for _, sample in raw
        ]
        counters = list(_added_up(samples))
        for cell in self._cells:
            latest = bisect_right(times, cell.at) - 1
            if latest < 0:
                continue
            sample = samples[latest]
            _add(cell.totals, counters[latest])
            session = bisect_right(starts, cell.at) - 1
            if session < 0 or cell.at > sessions[session].ended or sample.at < sessions[session].started:
                continue
            _add(cell.queued, sample.queued)
            if sample.in_flight is not None:
                cell.in_flight.append(sample.in_flight)
            if sample.limit is not None:
                (cell.shared_rates if shared[latest] else cell.rates).append(sample.limit)
        return {sample.burst for sample, is_shared in zip(samples, shared, strict=True) if is_shared and sample.burst}

    def samples(self) -> list[ProgressSample]:
        """All shards as the samples of one run, whose counters of 429s and retries begin anew with each period."""
        made: list[ProgressSample] = []
        before: dict[str, float] = {}
        period = 0
        for number, (cell, limit) in enumerate(zip(self._cells, self._limits(), strict=True)):
            if cell.period != period:
                before, period = self._cells[number - 1].totals, cell.period
            totals = cell.totals
            made.append(
                ProgressSample(
                    at=cell.at,
                    queued=cell.queued,
                    in_flight=sum(cell.in_flight) if cell.in_flight else None,
                    limit=limit,
                    rate_limited=int(totals.get("rate_limited", 0) - before.get("rate_limited", 0)),
                    retries=int(totals.get("retries", 0) - before.get("retries", 0)),
                    cost=totals.get("cost", 0.0),
                    input_tokens=int(totals.get("input_tokens", 0)),
                    output_tokens=int(totals.get("output_tokens", 0)),
                )
            )
        return made

    def _limits(self) -> list[float | None]:
        """The limit at each cell; the nearest one where no shard tells it, as between the end of one and the next."""
        told = [
            sum(cell.rates) + max(cell.shared_rates, default=0.0) if cell.rates or cell.shared_rates else None
            for cell in self._cells
        ]
        places = range(len(told))
        for near, place in chain(pairwise(places), pairwise(reversed(places))):
            if told[place] is None and self._cells[place].period == self._cells[near].period:
                told[place] = told[near]
        return told


def _add(totals: dict[str, float], amounts: Mapping[str, float]) -> None:
    for name, amount in amounts.items():
        totals[name] = totals.get(name, 0) + amount


def _added_up(samples: Iterable[ProgressSample]) -> Iterator[dict[str, float]]:
    """The counters of a shard's samples over all of its sessions: 429s and retries begin anew with each of them."""
    rate_limited = retries = 0
    before = ProgressSample(at=0.0)
    for sample in samples:
        rate_limited += sample.rate_limited - (before.rate_limited if sample.rate_limited >= before.rate_limited else 0)
        retries += sample.retries - (before.retries if sample.retries >= before.retries else 0)
        before = sample
        yield {
            "rate_limited": rate_limited,
            "retries": retries,
            "cost": sample.cost,
            "input_tokens": sample.input_tokens,
            "output_tokens": sample.output_tokens,
        }
