from datetime import UTC

from sample_reports import START, a_report, slices

from onellm_async.batch.journal.record import RunCounts
from onellm_async.report.charts import Chart, make_charts
from onellm_async.report.model import Latency, Report, RunTotals, TimeSlice


def chart(report: Report, key: str) -> Chart:
    return next(chart for chart in make_charts(report, UTC) if chart.key == key)


def curve(drawn: Chart, label: str) -> tuple[float | None, ...]:
    return next(curve.values for curve in drawn.curves if curve.label == label)


def test_every_plot_has_a_value_of_each_curve_for_each_x_and_a_table_with_a_row_for_each_slice() -> None:
    report = a_report()
    drawn = make_charts(report, UTC)
    assert [chart.key for chart in drawn] == ["throughput", "latency", "queue", "trouble", "spending"]
    for one in drawn:
        assert {len(curve.values) for curve in one.curves} == {len(one.x)}
        assert list(one.x) == sorted(one.x)
        assert {len(row) for row in one.table.rows} == {len(one.table.headings)}
        assert len(one.table.rows) == (11 if one.key == "latency" else len(report.slices))


def test_a_break_is_a_gap_in_every_curve_and_a_mark_that_says_how_long_it_was() -> None:
    drawn = chart(a_report(), "throughput")
    assert [(marker.x, marker.label) for marker in drawn.markers] == [(900.0, "12 h break")]
    gaps = [x for x, value in zip(drawn.x, curve(drawn, "answered"), strict=True) if value is None]
    assert gaps == [900.0, 1947.0]
    assert drawn.x[-1] == 1947.0


def test_slow_runs_are_told_per_minute_and_fast_ones_per_second() -> None:
    slow = [TimeSlice(start=0, clock=START, width=30, answered=20, limit=40)]
    fast = [TimeSlice(start=0, clock=START, width=2, answered=10_000, limit=360_000)]
    per_minute = chart(a_report(slices=tuple(slow)), "throughput")
    per_second = chart(a_report(slices=tuple(fast)), "throughput")
    assert (per_minute.left, curve(per_minute, "answered")[0], curve(per_minute, "limit")[0]) == ("per minute", 40, 40)
    assert (per_second.left, curve(per_second, "answered")[0], curve(per_second, "limit")[0]) == (
        "per second",
        5000,
        6000,
    )
    assert per_second.table.rows[0][2:] == ("10,000", "0", "5,000", "6,000")


def test_a_slice_that_was_cut_short_is_told_at_its_own_rate() -> None:
    parts = (
        TimeSlice(start=0, clock=START, width=60, answered=40),
        TimeSlice(start=60, clock=START + 60, width=6, answered=4),
    )
    drawn = chart(a_report(slices=parts), "throughput")
    assert curve(drawn, "answered") == (40, 40, 40, None)
    assert "limit" not in {curve.label for curve in drawn.curves}


def test_percentiles_stand_where_they_lie_within_their_bin() -> None:
    latency = Latency(edges=(1.0, 2.0, 4.0), counts=(5, 5), p50=2.0, p90=3.5, p99=4.0)
    drawn = chart(a_report(latency=latency), "latency")
    assert [(marker.x, marker.label) for marker in drawn.markers] == [
        (1, "p50 2 s"),
        (1.75, "p90 3.5 s"),
        (2, "p99 4 s"),
    ]
    assert drawn.table.rows == (("1 s to 2 s", "5", "50 %"), ("2 s to 4 s", "5", "100 %"))


def test_lanes_in_which_nobody_waited_are_left_out() -> None:
    drawn = chart(a_report(), "queue")
    assert [curve.label for curve in drawn.curves] == ["queued, batch", "in flight"]
    assert [curve.axis for curve in drawn.curves] == ["left", "right"]


def test_a_run_without_samples_has_no_queue_and_one_without_answers_no_latency() -> None:
    blind = tuple(TimeSlice(start=part.start, clock=part.clock, width=part.width) for part in slices())
    drawn = make_charts(a_report(slices=blind, latency=Latency()), UTC)
    assert [chart.key for chart in drawn] == ["throughput", "trouble", "spending"]
    assert make_charts(a_report(slices=(), latency=Latency()), UTC) == ()


def test_the_budget_is_a_line_and_without_prices_there_are_tokens_only() -> None:
    assert set(curve(chart(a_report(), "spending"), "budget")) == {0.5, None}
    unpriced = chart(
        a_report(totals=RunTotals(counts=RunCounts(answered=10, input_tokens=5, output_tokens=7))), "spending"
    )
    assert [(curve.label, curve.axis) for curve in unpriced.curves] == [
        ("input tokens", "left"),
        ("output tokens", "left"),
    ]
    assert (unpriced.left, unpriced.right) == ("tokens", None)
