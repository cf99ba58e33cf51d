import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_examples import IDENTITY, answer, duplicate, failure, intent

from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.commands import Command, send_command
from onellm_async.batch.journal.downsampling import MAX_SAMPLES, Downsampler
from onellm_async.batch.journal.file import journal_path
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.reader import Bucket, JournalReader, Sample
from onellm_async.batch.journal.record import RecordState
from onellm_async.errors import BatchError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


async def written(path: Path) -> Journal:
    """A run at work: answers of 0.5 to 9.5 s, every tenth entry failed, one under way, one a copy."""
    journal = Journal.open(path, IDENTITY, settings={"requests_per_minute": 40})
    for index in range(10):
        await journal.record_intent(intent(index))
        await journal.record_outcome(failure(index) if index == 4 else answer(index, attempts=1 + index % 2))
    await journal.record_intent(intent(10))
    await journal.record_outcome(duplicate(11, answer(1)))
    return journal


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.journal"])
async def test_a_run_at_work_can_be_read_by_the_name_of_its_output_or_its_journal(path: Path, name: str) -> None:
    async with await written(path):
        with JournalReader.open(path.with_name(name)) as reader:
            assert reader.path == path
            assert reader.running
            assert not reader.complete
            assert reader.identity == IDENTITY
            assert (reader.counts().answered, reader.counts().failed, reader.counts().in_flight) == (10, 1, 1)
            (session,) = reader.sessions()
            assert (session.ended_at, session.settings) == (None, {"requests_per_minute": 40})


async def test_figures_of_a_report_come_from_the_rows(path: Path) -> None:
    async with await written(path) as journal:
        journal.bad_line(LineError("in.jsonl", 40, "no prompt"))
        journal.finish("done", complete=True)
    with JournalReader.open(path) as reader:
        assert not reader.complete  # one has no outcome, whatever was said of the end
        assert not reader.running
        assert reader.time_span() == (1000.0, 1012.0)
        assert reader.throughput(5.0) == [Bucket(1000.0, 4, 0), Bucket(1005.0, 4, 1), Bucket(1010.0, 1, 0)]
        assert [row.index for row in reader.slowest(3)] == [9, 8, 7]
        assert [row.index for row in reader.failed(3)] == [4]
        assert [row.index for row in reader.possibly_billed(3)] == [10]
        assert reader.latency_percentiles([0.0, 0.5, 0.99, 1.0]) == [0.5, 5.5, 9.5, 9.5]
        assert reader.retried() == 5
        assert reader.bad_lines(5) == [LineError("in.jsonl", 40, "no prompt")]
        bins = reader.latency_histogram()
        assert sum(each.count for each in bins) == 9
        assert all(each.low < each.high == pytest.approx(each.low * 10 ** (1 / 20)) for each in bins)
        for latency in (0.5, 9.5):
            assert any(each.low <= latency < each.high for each in bins)


async def test_rows_are_streamed_in_the_order_of_the_input(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await asyncio.gather(*(journal.record_intent(intent(index)) for index in range(5000, -1, -1)))
        with JournalReader.open(path) as reader:
            assert [row.index for row in reader.records()] == list(range(5001))


def test_a_new_journal_has_nothing_to_tell(path: Path) -> None:
    Journal.open(path, IDENTITY).close()
    with JournalReader.open(path) as reader:
        assert reader.latest_sample() is None
        assert reader.latency_percentiles([0.5]) is None
        assert (reader.time_span(), reader.samples(), reader.throughput(60), reader.latency_histogram()) == (
            None,
            [],
            [],
            [],
        )


def test_a_missing_journal_is_told_of(path: Path) -> None:
    with pytest.raises(BatchError, match="There is no journal at"):
        JournalReader.open(path)
    assert not path.exists()


async def test_samples_are_kept_and_the_latest_is_always_there(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        for at in (1.0, 2.0, 2.4, 3.0, 3.2):
            journal.sample(at, {"level": at})
        await journal.record_intent(intent(0))
        with JournalReader.open(path) as reader:
            assert [sample.at for sample in reader.samples()] == [1.0, 2.0, 3.0]
            assert reader.latest_sample() == Sample(3.2, {"level": 3.2})


async def test_a_run_of_days_keeps_a_bounded_series_over_all_of_its_time(path: Path) -> None:
    seconds = 12_000
    for first in (0, seconds // 2):
        async with Journal.open(path, IDENTITY) as journal:
            for at in range(first, first + seconds // 2):
                journal.sample(float(at), at)
    with JournalReader.open(path) as reader:
        times = [sample.at for sample in reader.samples()]
    assert MAX_SAMPLES // 2 <= len(times) <= MAX_SAMPLES
    assert times[0] == 0
    assert times[-1] > seconds - 10
    assert max(late - early for early, late in pairwise(times)) <= 8


@given(st.lists(st.floats(0, 1e7), max_size=300).map(sorted), st.integers(2, 20))
def test_a_series_never_grows_beyond_its_bound(times: list[float], most: int) -> None:
    thinning = Downsampler(1.0, 0, most=most)
    for at in times:
        writes = list(thinning.take(at, "1"))
        assert writes
        assert thinning.kept <= most


async def test_commands_of_another_terminal_are_handed_out_once_and_in_order(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        assert journal.commands() == []
        send_command(path, Command("pause"))
        number = send_command(path.with_name("out.jsonl"), Command("retune", {"requests_per_minute": 120}))
        with JournalReader.open(path) as reader:
            assert [command.name for command in reader.pending_commands()] == ["pause", "retune"]
            pause, retune = journal.commands()
            assert (pause.name, pause.argument) == ("pause", None)
            assert (retune.name, retune.argument, retune.id) == ("retune", {"requests_per_minute": 120}, number)
            assert retune.at > 0
            assert journal.commands() == []
            await journal.record_intent(intent(0))
            assert reader.pending_commands() == []


async def test_a_command_to_an_earlier_session_does_not_concern_a_later_one(path: Path) -> None:
    async with Journal.open(path, IDENTITY):
        send_command(path, Command("stop"))
    async with Journal.open(path, IDENTITY) as journal:
        assert journal.commands() == []


def test_a_command_needs_a_run_that_is_at_work_and_a_name_that_it_knows(path: Path) -> None:
    with pytest.raises(BatchError, match="There is no journal"):
        send_command(path, Command("stop"))
    Journal.open(path, IDENTITY).close()
    with pytest.raises(BatchError, match="No active run for"):
        send_command(path, Command("stop"))
    with pytest.raises(BatchError, match="no command 'jump'; a run knows pause, resume, retune, stop"):
        send_command(path, Command("jump"))


def size(path: Path) -> int:
    return path.stat().st_size


async def test_readers_do_not_keep_the_log_from_being_emptied(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        with JournalReader.open(path) as reader:
            rows = None
            for start in range(0, 24_000, 2000):
                await asyncio.gather(*(journal.record_intent(intent(index)) for index in range(start, start + 2000)))
                await asyncio.gather(
                    *(journal.record_outcome(answer(index, result=b"x" * 2000)) for index in range(start, start + 2000))
                )
                rows = rows or reader.records()
                assert next(rows).state is RecordState.ANSWERED
                journal.records(start, start + 5)
        assert size(path) > 40_000_000
        assert size(path.with_name(path.name + "-wal")) < 40_000_000


@pytest.mark.parametrize(
    ("name", "found"), [("a", "a.journal"), ("a.jsonl", "a.jsonl.journal"), ("a.journal", "a.journal")]
)
def test_the_journal_of_an_output_lies_beside_it(name: str, found: str) -> None:
    assert journal_path(f"d/{name}") == Path("d", found)


async def test_bad_lines_of_several_files_with_one_number_are_told_apart(tmp_path):
    async with Journal.open(tmp_path / "out.journal", IDENTITY) as journal:
        journal.bad_line(LineError("a.jsonl", 2, "x"))
        journal.bad_line(LineError("b.jsonl", 2, "y"))
        journal.bad_line(LineError("a.jsonl", 2, "z"))
    with JournalReader.open(tmp_path / "out.journal") as reader:
        assert reader.bad_lines(5) == [LineError("a.jsonl", 2, "z"), LineError("b.jsonl", 2, "y")]
