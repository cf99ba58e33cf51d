"""The plots of a report, each with the table that says the same in numbers. Pure: nothing is drawn here."""

from collections.abc import Callable, Sequence
from datetime import tzinfo
from itertools import pairwise

from onellm_async.formatting import format_usd
from onellm_async.report.drawing import Chart, Curve, Mark, Table
from onellm_async.report.model import Latency, Report, TimeSlice
from onellm_async.report.wording import clock, count, duration, number, percent, seconds

__all__ = ["charts"]

_FAST = 10.0
"""Answers per second from which rates are told per second."""


def charts(report: Report, zone: tzinfo) -> tuple[Chart, ...]:
    """The plots that the numbers of a report allow.

    Args:
        report: The run.
        zone: Time zone of the times in tables.
    """
    latency = [_latency(report.latency)] if any(report.latency.counts) else []
    if not report.slices:
        return tuple(latency)
    axis = _TimeAxis(report, zone)
    looked = any(part.in_flight is not None for part in report.slices)
    queue = [_queue(report, axis)] if looked else []
    return (_throughput(report, axis), *latency, *queue, _trouble(report, axis), _spending(report, axis))


class _TimeAxis:
    """Seconds of work, with a gap and a mark where one session ended and the next began."""

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
        self.marks: tuple[Mark, ...] = tuple(
            Mark(first_of[place], f"{duration(max(0.0, length))} break")
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
            rows=tuple((duration(part.start), clock(part.clock, self._zone), *cells(part)) for part in self.slices),
            words=frozenset({0, 1}),
        )


def _throughput(report: Report, axis: _TimeAxis) -> Chart:
    fastest = max(part.answered / part.width for part in axis.slices)
    usual = sum(part.answered for part in axis.slices) / sum(part.width for part in axis.slices)
    unit, period = ("second", 1.0) if usual >= _FAST else ("minute", 60.0)

    def limit(part: TimeSlice) -> float | None:
        return None if part.limit is None else part.limit / 60 * period

    curves = [
        Curve(label="answered", values=axis.column(lambda part: part.answered / part.width * period), colour="blue"),
        Curve(label="failed", values=axis.column(lambda part: part.failed / part.width * period), colour="red"),
    ]
    if any(part.limit is not None for part in axis.slices):
        curves.append(Curve(label="limit", values=axis.column(limit), colour="ink", style="limit"))
    if not report.figures.failed:
        del curves[1]
    goodput = report.figures.goodput
    share = "" if goodput is None else f", {percent(goodput)} of what the limit allowed"
    mean = report.figures.answered / report.duration * period if report.duration else 0.0
    return Chart(
        key="throughput",
        title="Throughput",
        summary=f"On average {number(mean)} answers per {unit}{share}; at most {number(fastest * period)} per {unit}.",
        x=axis.x,
        curves=tuple(curves),
        marks=axis.marks,
        left=f"per {unit}",
        table=axis.table(
            "Throughput over time",
            ("Answered", "Failed", f"Answers per {unit}", f"Limit per {unit}"),
            lambda part: (
                count(part.answered),
                count(part.failed),
                number(part.answered / part.width * period),
                _or_dash(limit(part), number),
            ),
        ),
    )


def _latency(latency: Latency) -> Chart:
    total = sum(latency.counts)
    marks = tuple(
        Mark(_place(value, latency.edges), f"{name} {seconds(value)}")
        for name, value in (("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99))
        if value is not None
    )
    reached, rows = 0, []
    for (low, high), answers in zip(pairwise(latency.edges), latency.counts, strict=True):
        reached += answers
        rows.append((f"{seconds(low)} to {seconds(high)}", count(answers), percent(reached / total)))
    told = [
        f"{share} within {seconds(value)}"
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
        curves=(Curve(label="answers", values=(*latency.counts, latency.counts[-1]), colour="blue"),),
        marks=marks,
        ticks=tuple(seconds(edge) for edge in latency.edges),
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


_LANE_COLOURS = {"interactive": "green", "default": "violet", "batch": "amber"}


def _queue(report: Report, axis: _TimeAxis) -> Chart:
    seen = {lane for part in axis.slices for lane, waiting in part.queued.items() if waiting}
    lanes = [lane for lane in _LANE_COLOURS if lane in seen] + sorted(seen - _LANE_COLOURS.keys())

    def waiting(part: TimeSlice, lane: str) -> float | None:
        return part.queued.get(lane, 0.0) if part.in_flight is not None else None

    curves = [
        Curve(
            label=f"queued, {lane}",
            values=axis.column(lambda part, lane=lane: waiting(part, lane)),  # type: ignore[misc]
            colour=_LANE_COLOURS.get(lane, "ink"),
        )
        for lane in lanes
    ]
    flying = axis.column(lambda part: part.in_flight)
    curves.append(
        Curve(label="in flight", values=flying, colour="blue", style="line", axis="right" if lanes else "left")
    )
    most = max(part.in_flight or 0 for part in axis.slices)
    longest = max(sum(part.queued.values()) for part in axis.slices)
    return Chart(
        key="queue",
        title="Queue and requests in flight",
        summary=f"At most {count(round(longest))} prompts waited for admission, "
        f"and {count(round(most))} requests were in flight.",
        x=axis.x,
        curves=tuple(curves),
        marks=axis.marks,
        left_unit="whole",
        left="queued" if lanes else "in flight",
        right="in flight" if lanes else None,
        table=axis.table(
            "Queue and requests in flight over time",
            (*(f"Queued, {lane}" for lane in lanes), "In flight"),
            lambda part: (*(_or_dash(waiting(part, lane), count) for lane in lanes), _or_dash(part.in_flight, count)),
        ),
    )


def _trouble(report: Report, axis: _TimeAxis) -> Chart:
    figures = report.figures
    return Chart(
        key="trouble",
        title="Refusals and retries",
        summary=f"{count(figures.rate_limited)} refused by rate limit, which costs nothing; "
        f"{count(figures.retries)} sent again after a failure.",
        x=axis.x,
        curves=(
            Curve(label="refused", values=axis.column(lambda part: part.rate_limited), colour="amber"),
            Curve(label="sent again", values=axis.column(lambda part: part.retries), colour="red"),
        ),
        marks=axis.marks,
        left_unit="whole",
        left=f"in {duration(axis.slices[0].width)}",
        table=axis.table(
            "Refusals and retries over time",
            ("Refused", "Sent again"),
            lambda part: (count(part.rate_limited), count(part.retries)),
        ),
    )


def _spending(report: Report, axis: _TimeAxis) -> Chart:
    figures = report.figures
    priced = figures.cost > 0 or figures.budget is not None
    curves = []
    if priced:
        curves.append(Curve(label="cost", values=axis.column(lambda part: part.cost), colour="green", style="slope"))
        if figures.budget is not None:
            budget = figures.budget
            curves.append(Curve(label="budget", values=axis.column(lambda part: budget), colour="ink", style="limit"))
    side = "right" if priced else "left"
    for label, colour in (("input", "violet"), ("output", "blue")):
        values = axis.column(lambda part, label=label: getattr(part, f"{label}_tokens"))  # type: ignore[misc]
        curves.append(Curve(label=f"{label} tokens", values=values, colour=colour, style="slope", axis=side))
    cap = "" if figures.budget is None else f" of {format_usd(figures.budget, exact=True)} allowed"
    return Chart(
        key="spending",
        title="Tokens and cost, accumulated",
        summary=f"{format_usd(figures.cost)}{cap} by list price, "
        f"for {count(figures.input_tokens)} input and {count(figures.output_tokens)} output tokens.",
        x=axis.x,
        curves=tuple(curves),
        marks=axis.marks,
        left="USD" if priced else "tokens",
        left_unit="usd" if priced else "whole",
        right="tokens" if priced else None,
        table=axis.table(
            "Tokens and cost over time",
            ("Cost, USD", "Input tokens", "Output tokens"),
            lambda part: (format_usd(part.cost), count(part.input_tokens), count(part.output_tokens)),
        ),
    )


def _or_dash(value: float | None, written: Callable[[float], str]) -> str:
    return "-" if value is None else written(value)
