"""The report over all shards of an input, from journals that several processes wrote at the same time."""

from collections.abc import Mapping
from datetime import UTC
from pathlib import Path

import pytest
from journals import START, answered, failed, intent, sample, session, time_of_day

from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.file import journal_path
from onellm_async.batch.shard_split import split_input
from onellm_async.batch.shards import default_output
from onellm_async.errors import BatchError
from onellm_async.report import render_report, report_path
from onellm_async.report.model import Report, RunStatus
from onellm_async.report.page import render_page
from onellm_async.report.shards import read_shards_report
from onellm_async.report.tables import make_tables

PROMPTS = 40


def with_quota(sample_of_one: Mapping[str, object], quota: str) -> dict[str, object]:
    snapshot = sample_of_one["snapshot"]
    assert isinstance(snapshot, dict)
    return {**sample_of_one, "snapshot": {**snapshot, "quota": quota}}


async def worked(shard: Path, begun: float, *, fail: int | None = None, quota: str = "host") -> None:
    """A shard's 40 prompts from `begun` on, one in 1.5 s, each answered after a second; a 429 in the middle."""
    with time_of_day() as clock:
        clock.now = begun
        async with session(journal_path(default_output(shard))) as journal:
            for index in range(PROMPTS):
                clock.now = begun + index * 1.5
                await journal.record_intent(intent(index, clock.now))
                outcome = failed(index, clock.now, "too odd") if index == fail else answered(index, clock.now, 1.0)
                await journal.record_outcome(outcome)
                told = sample(200 - index - 1, 1, refused=int(index > 20))  # 200 is what this sample counts from
                journal.sample(clock.now + 1, with_quota(told, quota))
            clock.now += 1
            journal.finish("all answered", complete=True)


def shards_of(folder: Path, number: int) -> list[Path]:
    (folder / "in.txt").write_text("".join(f"prompt {line}\n" for line in range(number * PROMPTS)))
    return split_input(folder / "in.txt", folder / "shards", prompts=PROMPTS)


def report_of(folder: Path) -> Report:
    return read_shards_report(folder / "shards", now=START + 9999)


async def test_the_totals_are_those_of_all_shards_and_their_common_time_counts_once(tmp_path: Path) -> None:
    for number, shard in enumerate(shards_of(tmp_path, 3)):
        await worked(shard, START + 10 * number)
    report = report_of(tmp_path)
    assert report.status is RunStatus.COMPLETE
    assert (report.totals.total, report.totals.counts.answered, report.totals.remaining) == (120, 120, 0)
    assert report.totals.counts.cost == pytest.approx(120 * 0.0002)
    assert report.duration == pytest.approx(20 + 39 * 1.5, abs=2)
    assert sum(part.answered for part in report.slices) == 120
    assert report.slices[-1].cost == pytest.approx(120 * 0.0002)
    assert report.totals.counts.rate_limited == 3
    assert sum(report.latency.counts) == 120
    assert report.latency.p50 == pytest.approx(1.0, rel=0.13)


@pytest.mark.parametrize(("quota", "limits"), [("host", {40.0}), ("off", {40.0, 80.0})])
async def test_the_limit_that_a_quota_shares_counts_once(tmp_path: Path, quota: str, limits: set[float]) -> None:
    for shard in shards_of(tmp_path, 2):
        await worked(shard, START if shard.stem.endswith("0") else START + 30, quota=quota)
    report = report_of(tmp_path)
    assert {part.limit for part in report.slices} == limits
    assert report.totals.goodput is not None


async def test_a_time_without_an_active_shard_is_a_break(tmp_path: Path) -> None:
    first, second = shards_of(tmp_path, 2)
    await worked(first, START)
    await worked(second, START + 1000)
    report = report_of(tmp_path)
    assert [period.started for period in report.sessions] == [START, START + 1000]
    assert report.duration == pytest.approx(2 * 39 * 1.5, abs=3)
    assert sum(part.rate_limited for part in report.slices) == 2


async def test_what_failed_is_named_with_its_shard_and_what_needs_attention_comes_first(tmp_path: Path) -> None:
    first, second, _ = shards_of(tmp_path, 3)
    await worked(first, START)
    await worked(second, START, fail=4)
    report = report_of(tmp_path)
    assert report.status is RunStatus.INTERRUPTED
    assert report.totals.remaining == PROMPTS
    tables = {section.key: section.table.rows for section in make_tables(report, UTC)}
    assert [row[0] for row in tables["failures"]] == ["shard-00001.txt:5"]
    assert tables["failures"][0][-1] == str(PROMPTS + 4)
    assert [row[:3] for row in tables["shards"]] == [
        ("shard-00001.txt", "complete", "39"),
        ("shard-00002.txt", "not started", "0"),
        ("shard-00000.txt", "complete", "40"),
    ]
    assert "sessions" not in tables
    page = render_page(report, zone=UTC)
    assert "Run the shards that are not complete to resume." in page
    assert "1 failed: 1 × too odd" in page


async def test_bad_lines_are_named_with_their_shard(tmp_path: Path) -> None:
    (shard,) = shards_of(tmp_path, 1)
    async with session(journal_path(default_output(shard))) as journal:
        await journal.record_intent(intent(0, START))
        await journal.record_outcome(answered(0, START, 1.0))
        journal.bad_line(LineError("elsewhere/shard-00000.txt", 3, "It is empty."))
    tables = {section.key: section.table.rows for section in make_tables(report_of(tmp_path), UTC)}
    assert tables["bad-lines"] == (("shard-00000.txt:3", "It is empty."),)


async def test_shards_that_never_ran_and_a_directory_without_shards(tmp_path: Path) -> None:
    shards_of(tmp_path, 2)
    report = report_of(tmp_path)
    assert (report.sessions, report.slices, report.totals.remaining) == ((), (), 2 * PROMPTS)
    page, place = render_report(tmp_path / "shards")
    assert "2 not started." in page
    assert report_path(place) == tmp_path / "shards.report.html"
    with pytest.raises(BatchError, match="has no shards"):
        render_report(tmp_path)
