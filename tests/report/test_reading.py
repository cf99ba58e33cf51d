from collections.abc import AsyncIterator
from datetime import UTC
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from journals import HOSTILE, START, answered, ask, intent, killed_and_resumed, sample, session, time_of_day

from onellm_async.batch.journal.reader import JournalReader
from onellm_async.report.model import Report, RunStatus
from onellm_async.report.page import render_page
from onellm_async.report.reading import read_report
from onellm_async.report.tables import make_tables


def report_of(path: Path, now: float = START + 9999) -> Report:
    with JournalReader.open(path) as journal:
        return read_report(journal, now=now)


@pytest_asyncio.fixture
async def resumed(tmp_path: Path) -> AsyncIterator[Report]:
    yield report_of(await killed_and_resumed(tmp_path))


async def test_the_counts_are_those_of_both_sessions(resumed: Report) -> None:
    totals = resumed.totals
    counts = totals.counts
    assert (totals.total, counts.answered, counts.failed, totals.bad_lines) == (204, 200, 2, 2)
    assert (counts.in_flight, totals.remaining) == (0, 0)
    assert counts.cost == pytest.approx(200 * 0.0002)
    assert (counts.input_tokens, counts.output_tokens) == (10_000, 20_000)
    assert totals.budget == 0.05
    assert counts.rate_limited == 4


async def test_what_was_under_way_at_the_kill_stays_possibly_billed_with_its_money(resumed: Report) -> None:
    assert resumed.totals.counts.possibly_billed == 3
    assert resumed.totals.counts.at_risk == pytest.approx(3 * 0.0004)


async def test_a_killed_session_ends_with_its_last_sign_of_life(resumed: Report) -> None:
    first, second = resumed.sessions
    assert (first.started, first.session.end_reason, first.is_running) == (START, None, False)
    assert first.ended == pytest.approx(START + 119.5, abs=2)
    assert (second.started, second.ended, second.session.end_reason) == (START + 3720, START + 3795, "all answered")
    assert [each.requests_per_minute for each in resumed.sessions] == [40, 40]
    assert [each.burst for each in resumed.sessions] == [40, 40]
    assert resumed.status is RunStatus.COMPLETE
    assert resumed.resumed == 1


async def test_every_outcome_is_in_the_slice_of_its_time(resumed: Report) -> None:
    assert sum(part.answered for part in resumed.slices) == 200
    assert sum(part.failed for part in resumed.slices) == 2
    assert sum(part.width for part in resumed.slices) == pytest.approx(resumed.duration)
    in_first = sum(part.answered + part.failed for part in resumed.slices if part.session == 0)
    assert in_first == 117
    burst = sum(part.answered + part.failed for part in resumed.slices if part.start < 8)
    assert 40 <= burst <= 46


async def test_queue_limit_refusals_and_money_are_those_of_the_samples(resumed: Report) -> None:
    first = resumed.slices[0]
    assert (first.queued, first.in_flight, first.limit) == ({"batch": 157}, 2, 40)
    assert {span.limit_found for span in resumed.sessions} == {"40 requests in any 60 s"}
    assert sum(part.rate_limited for part in resumed.slices if part.session == 0) == 1
    assert sum(part.retries for part in resumed.slices) == 1
    costs = [part.cost for part in resumed.slices]
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(costs))
    assert costs[-1] == pytest.approx(0.04)


async def test_the_verdict_is_that_of_both_sessions_without_the_break(resumed: Report) -> None:
    assert resumed.bottlenecks is not None
    shares = resumed.bottlenecks.shares
    assert shares.keys() == {"rate", "service"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["service"] == pytest.approx(8 / 193, abs=0.02)
    assert "the rate limit of 40.0 requests per minute was" in resumed.bottlenecks.summary
    assert "retries" not in resumed.bottlenecks.summary


async def test_goodput_is_what_became_of_the_bursts_and_what_was_refilled(resumed: Report) -> None:
    possible = 40 * 2 + resumed.duration * 40 / 60
    assert resumed.totals.allowed == pytest.approx(possible)
    assert resumed.totals.goodput == pytest.approx(200 / possible)


async def test_latencies_and_the_slowest_are_those_of_the_rows(resumed: Report) -> None:
    latency = resumed.latency
    assert sum(latency.counts) == 200
    assert (latency.p50, latency.p99) == (pytest.approx(4, abs=0.1), pytest.approx(5.92, abs=0.05))
    assert latency.edges[0] <= 2
    assert latency.edges[-1] >= 5.96
    assert len(resumed.slowest) == 20
    assert resumed.slowest[0].latency == pytest.approx(2 + 4 * 100 / 101)
    assert resumed.slowest[0].elapsed >= (resumed.slowest[0].latency or 0)


async def test_failures_and_bad_lines_are_listed_with_what_they_say(resumed: Report) -> None:
    assert [failure.line for failure in resumed.failures] == [8, 81]
    failures = next(section for section in make_tables(resumed, UTC) if section.key == "failures")
    assert [row[1:3] for row in failures.table.rows] == [(f"BadRequestError: {HOSTILE}", "400")] * 2
    assert resumed.failures[0].custom_id == HOSTILE
    assert [bad.line for bad in resumed.bad_lines] == [100, 150]


async def test_the_identity_is_told_without_what_was_not_given(resumed: Report) -> None:
    assert resumed.name == "answers.jsonl"
    assert resumed.subtitle == "questions.jsonl, sent to GPT-5-Nano"
    names = dict(resumed.parameters)
    assert names["Lines, blank ones not counted"] == "204"
    assert names["max_tokens"] == "100"
    assert "Field of the prompt" not in names


async def test_the_page_of_a_real_journal_tells_the_truth_and_escapes_it(resumed: Report) -> None:
    page = render_page(resumed, zone=UTC)
    assert "resumed once" in page
    assert "59 min" in page or "1 h" in page
    assert "<script>window.hacked" not in page


async def test_a_run_that_was_interrupted_says_how_and_what_is_left(tmp_path: Path) -> None:
    report = report_of(await killed_and_resumed(tmp_path, finished=False))
    assert report.status is RunStatus.INTERRUPTED
    assert report.sessions[-1].session.end_reason == "interrupted by Ctrl-C"


async def test_a_run_that_is_under_way_goes_on_until_now_and_has_lost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl.journal"
    with time_of_day() as clock:
        async with session(path) as journal:
            await ask(journal, 0, 10, START)
            for index in (10, 11):
                await journal.record_intent(intent(index, START + 6))
            journal.sample(START + 6, sample(190, 2))
            await journal.record_outcome(answered(11, START + 6, 1))
            clock.now = START + 8
            report = report_of(path, now=clock.now)
    assert report.status is RunStatus.RUNNING
    (span,) = report.sessions
    assert (span.started, span.ended, span.is_running) == (START, START + 8, True)
    assert (span.requests_per_minute, span.burst) == (40.0, 40)
    assert (report.totals.counts.in_flight, report.totals.counts.possibly_billed) == (1, 0)
    assert report.totals.counts.at_risk == pytest.approx(0.0004)
    assert "In flight" in render_page(report, zone=UTC)


async def test_a_run_that_has_only_just_begun_has_a_report(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl.journal"
    with time_of_day():
        async with session(path):
            report = report_of(path, now=START)
    assert report.slices == ()
    assert report.totals.counts.answered == 0
    assert "Answered" in render_page(report, zone=UTC)
