"""The charts of a report as values, each with the table of its numbers. Pure: the page draws them."""

from collections.abc import Callable, Sequence
from datetime import tzinfo
from itertools import pairwise

from attrs import field, frozen

from onellm_async.formatting import (
    format_clock,
    format_count,
    format_duration,
    format_number,
    format_percent,
    format_seconds,
    format_usd,
    pluralize,
)
from onellm_async.report.model import Latency, Report, TimeSlice
from onellm_async.report.tables import Table

_FAST = 10.0
"""Answers per second from which rates are shown per second."""


@frozen(kw_only=True)
class Curve:
    """A line or area of a plot.

    Attributes:
        label: Its name.
        values: One for each x; None where there is nothing to draw.
        color: Name of a color of the page, such as ``blue``.
        style: ``steps`` is filled below, ``line`` is stepped and not filled, ``slope`` goes straight from point to
            point, ``limit`` is dashed.
        axis: ``left`` or ``right``.
    """

    label: str
    values: tuple[float | None, ...]
    color: str
    style: str = "steps"
    axis: str = "left"


@frozen
class ChartMarker:
    """A dashed line across a plot, at x."""

    x: float
    label: str


@frozen(kw_only=True)
class Chart:
    """A plot.

    Attributes:
        key: Its name in the page's addresses.
        title: What it shows.
        summary: The same in a sentence, also for screen readers.
        x: Places on the x axis: seconds of work, or numbers of bins.
        x_kind: ``time`` or ``bins``.
        curves: What is drawn.
        markers: Lines across.
        ticks: Labels of the edges of bins.
        left: What the left axis counts.
        left_unit: ``count``, ``whole`` (a count without fractions) or ``usd``.
        right: What the right axis counts; None without one.
        table: The same in numbers.
    """

    key: str
    title: str
    summary: str
    x: tuple[float, ...]
    x_kind: str = "time"
    curves: tuple[Curve, ...]
    markers: tuple[ChartMarker, ...] = ()
    ticks: tuple[str, ...] = field(factory=tuple[str, ...])
    left: str
    left_unit: str = "count"
    right: str | None = None
    table: Table


def make_charts(report: Report, zone: tzinfo) -> tuple[Chart, ...]:
    """The charts of a report: those for which it has numbers.

    Args:
        report: The run.
        zone: Time zone of the times in tables.
    """
    latency = [_latency(report.latency)] if any(report.latency.counts) else []
    if not report.slices:
        return tuple(latency)
    axis = _TimeAxis(report, zone)
    sampled = any(part.in_flight is not None for part in report.slices)
    queue = [_queue(report, axis)] if sampled else []
    return (_throughput(report, axis), *latency, *queue, _trouble(report, axis), _spending(report, axis))


class _TimeAxis:
    """Seconds of work, with a gap and a marker where one session ended and the next began."""

    def __init__(self, report: Report, zone: tzinfo) -> None:
        self.slices = report.slices
        self._zone = zone
        following = [*(part.session for part in report.slices[1:]), -1]
        self._closing = [part.session != session for part, session in zip(report.slices, following, strict=True)]
        places: list[float] = []
        for part, closing in zip(self.slices, self._closing, strict=True):
            end = part.start + part.width
            places += [part.start, end, end] if closing else [part.start]
        self.x: tuple[float, ...] = tuple(places)
        breaks = [after.started - before.ended for before, after in pairwise(report.sessions)]
        first_of = {part.session: part.start for part in reversed(self.slices)}
        self.markers: tuple[ChartMarker, ...] = tuple(
            ChartMarker(first_of[place], f"{format_duration(max(0.0, length))} break")
            for place, length in enumerate(breaks, 1)
            if place in first_of
        )

    def column(self, value: Callable[[TimeSlice], float | None]) -> tuple[float | None, ...]:
        """A value for each x: a step lasts until its slice ends, and nothing is drawn across a break."""
        values: list[float | None] = []
        for part, closing in zip(self.slices, self._closing, strict=True):
            values += [value(part), value(part), None] if closing else [value(part)]
        return tuple(values)

    def table(self, caption: str, headings: Sequence[str], cells: Callable[[TimeSlice], tuple[str, ...]]) -> Table:
        """A row for each slice."""
        return Table(
            caption=caption,
            headings=("After", "Clock", *headings),
            rows=tuple(
                (format_duration(part.start), format_clock(part.clock, self._zone), *cells(part))
                for part in self.slices
            ),
            words=frozenset({0, 1}),
        )


def _throughput(report: Report, axis: _TimeAxis) -> Chart:
    fastest = max(part.answered / part.width for part in axis.slices)
    usual = sum(part.answered for part in axis.slices) / sum(part.width for part in axis.slices)
    unit, period = ("second", 1.0) if usual >= _FAST else ("minute", 60.0)

    def limit(part: TimeSlice) -> float | None:
        return None if part.limit is None else part.limit / 60 * period

    curves = [
        Curve(label="answered", values=axis.column(lambda part: part.answered / part.width * period), color="blue"),
        Curve(label="failed", values=axis.column(lambda part: part.failed / part.width * period), color="red"),
    ]
    if any(part.limit is not None for part in axis.slices):
        curves.append(Curve(label="limit", values=axis.column(limit), color="ink", style="limit"))
    if not report.totals.counts.failed:
        del curves[1]
    goodput = report.totals.goodput
    share = "" if goodput is None else f", {format_percent(goodput)} of what the limit allowed"
    mean = report.totals.counts.answered / report.duration * period if report.duration else 0.0
    return Chart(
        key="throughput",
        title="Throughput",
        summary=f"On average {format_number(mean)} answers per {unit}{share}; "
        f"at most {format_number(fastest * period)} per {unit}.",
        x=axis.x,
        curves=tuple(curves),
        markers=axis.markers,
        left=f"per {unit}",
        table=axis.table(
            "Throughput over time",
            ("Answered", "Failed", f"Answers per {unit}", f"Limit per {unit}"),
            lambda part: (
                format_count(part.answered),
                format_count(part.failed),
                format_number(part.answered / part.width * period),
                _or_dash(limit(part), format_number),
            ),
        ),
    )


def _latency(latency: Latency) -> Chart:
    total = sum(latency.counts)
    markers = tuple(
        ChartMarker(_place(value, latency.edges), f"{name} {format_seconds(value)}")
        for name, value in (("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99))
        if value is not None
    )
    reached, rows = 0, []
    for (low, high), answers in zip(pairwise(latency.edges), latency.counts, strict=True):
        reached += answers
        rows.append(
            (f"{format_seconds(low)} to {format_seconds(high)}", format_count(answers), format_percent(reached / total))
        )
    told = [
        f"{share} within {format_seconds(value)}"
        for share, value in (("half of the answers came", latency.p50), ("90 %", latency.p90), ("99 %", latency.p99))
        if value is not None
    ]
    summary = ", ".join(told)
    return Chart(
        key="latency",
        title="Latency",
        summary=f"{summary[:1].upper()}{summary[1:]}; from sending to the reply, without the queue.",
        x=tuple(range(len(latency.edges))),
        x_kind="bins",
        curves=(Curve(label="answers", values=(*latency.counts, latency.counts[-1]), color="blue"),),
        markers=markers,
        ticks=tuple(format_seconds(edge) for edge in latency.edges),
        left="answers",
        left_unit="whole",
        table=Table(caption="Latency", headings=("Latency", "Answers", "Up to here"), rows=tuple(rows)),
    )


def _place(value: float, edges: Sequence[float]) -> float:
    """Where a value stands among the bins, as a number of bins with its fraction."""
    for place, (low, high) in enumerate(pairwise(edges)):
        if value <= high:
            return place + max(0.0, (value - low) / (high - low))
    return float(len(edges) - 1)


_LANE_COLORS = {"interactive": "green", "default": "violet", "batch": "amber"}


def _queue(report: Report, axis: _TimeAxis) -> Chart:
    seen = {lane for part in axis.slices for lane, waiting in part.queued.items() if waiting}
    lanes = [lane for lane in _LANE_COLORS if lane in seen] + sorted(seen - _LANE_COLORS.keys())

    def waiting(part: TimeSlice, lane: str) -> float | None:
        return part.queued.get(lane, 0.0) if part.in_flight is not None else None

    curves = [
        Curve(
            label=f"queued, {lane}",
            values=axis.column(lambda part, lane=lane: waiting(part, lane)),  # type: ignore[misc]
            color=_LANE_COLORS.get(lane, "ink"),
        )
        for lane in lanes
    ]
    flying = axis.column(lambda part: part.in_flight)
    curves.append(
        Curve(label="in flight", values=flying, color="blue", style="line", axis="right" if lanes else "left")
    )
    most = max(part.in_flight or 0 for part in axis.slices)
    longest = max(sum(part.queued.values()) for part in axis.slices)
    return Chart(
        key="queue",
        title="Queue and requests in flight",
        summary=f"At most {pluralize(round(longest), 'prompt')} queued "
        f"and {pluralize(round(most), 'request')} in flight.",
        x=axis.x,
        curves=tuple(curves),
        markers=axis.markers,
        left_unit="whole",
        left="queued" if lanes else "in flight",
        right="in flight" if lanes else None,
        table=axis.table(
            "Queue and requests in flight over time",
            (*(f"Queued, {lane}" for lane in lanes), "In flight"),
            lambda part: (
                *(_or_dash(waiting(part, lane), format_count) for lane in lanes),
                _or_dash(part.in_flight, format_count),
            ),
        ),
    )


def _trouble(report: Report, axis: _TimeAxis) -> Chart:
    totals = report.totals
    return Chart(
        key="trouble",
        title="429s and retries",
        summary=f"{pluralize(totals.counts.rate_limited, 'request')} rate-limited, which costs nothing; "
        f"{format_count(totals.retries)} retried after a failure.",
        x=axis.x,
        curves=(
            Curve(label="rate-limited", values=axis.column(lambda part: part.rate_limited), color="amber"),
            Curve(label="retried", values=axis.column(lambda part: part.retries), color="red"),
        ),
        markers=axis.markers,
        left_unit="whole",
        left=f"in {format_duration(axis.slices[0].width)}",
        table=axis.table(
            "429s and retries over time",
            ("Rate-limited", "Retried"),
            lambda part: (format_count(part.rate_limited), format_count(part.retries)),
        ),
    )


def _spending(report: Report, axis: _TimeAxis) -> Chart:
    counts, budget = report.totals.counts, report.totals.budget
    priced = counts.cost > 0 or budget is not None
    curves = []
    if priced:
        curves.append(Curve(label="cost", values=axis.column(lambda part: part.cost), color="green", style="slope"))
        if budget is not None:
            curves.append(Curve(label="budget", values=axis.column(lambda part: budget), color="ink", style="limit"))
    side = "right" if priced else "left"
    for label, color in (("input", "violet"), ("output", "blue")):
        values = axis.column(lambda part, label=label: getattr(part, f"{label}_tokens"))  # type: ignore[misc]
        curves.append(Curve(label=f"{label} tokens", values=values, color=color, style="slope", axis=side))
    cap = "" if budget is None else f" of {format_usd(budget, exact=True)} budget"
    return Chart(
        key="spending",
        title="Tokens and cost, accumulated",
        summary=f"{format_usd(counts.cost)}{cap} by list price, "
        f"for {format_count(counts.input_tokens)} input and {format_count(counts.output_tokens)} output tokens.",
        x=axis.x,
        curves=tuple(curves),
        markers=axis.markers,
        left="USD" if priced else "tokens",
        left_unit="usd" if priced else "whole",
        right="tokens" if priced else None,
        table=axis.table(
            "Tokens and cost over time",
            ("Cost, USD", "Input tokens", "Output tokens"),
            lambda part: (format_usd(part.cost), format_count(part.input_tokens), format_count(part.output_tokens)),
        ),
    )


def _or_dash(value: float | None, written: Callable[[float], str]) -> str:
    return "-" if value is None else written(value)
