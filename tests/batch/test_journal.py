import asyncio
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_examples import IDENTITY, answer, duplicate, failure, intent

from onellm_async import ApiKey
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.null_journal import NullJournal
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import COUNTS, JournalRecord, RecordState, RunCounts, UnstorableRowError
from onellm_async.errors import BatchError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


async def test_what_was_settled_is_there_when_the_run_goes_on(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        assert not journal.resumed
        await journal.record_intent(intent(0))
        await journal.record_intent(intent(1))
        await journal.record_outcome(answer(0))
        journal.finish("stopped", complete=False)
        started_at = journal.started_at
    async with Journal.open(path, IDENTITY) as journal:
        assert journal.resumed
        assert journal.started_at == started_at
        first, second = journal.records(0, 9)
        assert first.state is RecordState.ANSWERED
        assert (first.index, first.line, first.custom_id, first.result) == (0, 1, "id-0", b'{"content":"0"}')
        assert (first.sent_at, first.completed_at, first.latency, first.cost) == (1000.0, 1001.0, 0.5, 0.002)
        assert second.state is RecordState.IN_FLIGHT
        assert (second.result, second.completed_at, second.possibly_billed) == (b"", None, 1)
        assert journal.record(1) == second
        assert journal.record(2) is None
        assert journal.counts() == RunCounts(
            answered=1, in_flight=1, cost=0.002, input_tokens=10, output_tokens=20, at_risk=0.01, at_risk_tokens=50
        )


async def test_a_clean_end_leaves_one_file_that_only_its_owner_can_read(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        assert {entry.name for entry in path.parent.iterdir()} > {path.name, path.name + ".lock"}
        for entry in path.parent.iterdir():
            assert stat.S_IMODE(entry.stat().st_mode) == 0o600, entry
        journal.records(0, 0)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_rows_that_gather_while_one_is_written_are_all_durable(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await asyncio.gather(*(journal.record_intent(intent(index)) for index in range(999)))
        await asyncio.gather(*(journal.record_outcome(answer(index)) for index in range(0, 999, 2)))
        rows = journal.records(0, 999)
        assert [row.index for row in rows] == list(range(999))
        assert all((row.state is RecordState.ANSWERED) is (row.index % 2 == 0) for row in rows)
        assert (journal.counts().answered, journal.counts().in_flight) == (500, 499)


async def test_a_cancelled_settle_is_written_nevertheless(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        task = asyncio.create_task(journal.record_outcome(answer(0)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await journal.record_intent(intent(1))
        row = journal.record(0)
        assert row is not None
        assert row.state is RecordState.ANSWERED


async def test_a_forgotten_intent_was_never_sent(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.retract_intent(0)
        assert journal.records(0, 9) == []
        assert journal.counts() == RunCounts()


async def test_intents_after_a_withdrawal_of_the_same_turn_of_the_loop_stay(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await asyncio.gather(
            journal.retract_intent(0), journal.record_intent(intent(0)), journal.record_intent(intent(1))
        )
        assert [row.index for row in journal.records(0, 9)] == [0, 1]
        assert journal.counts().in_flight == 2


async def test_an_answer_stays_and_a_failure_gives_way_to_a_later_outcome(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0))
        await journal.retract_intent(0)
        await journal.record_outcome(failure(0))
        assert journal.records(0, 0) == [answer(0)]
        assert (journal.counts().answered, journal.counts().failed) == (1, 0)
        await journal.record_outcome(failure(1))
        await journal.retract_intent(1)
        assert journal.record(1) == failure(1)
        await journal.record_outcome(duplicate(1, answer(0)))
        assert journal.record(1) == duplicate(1, answer(0))
        assert (journal.counts().answered, journal.counts().failed) == (2, 0)


async def test_possibly_billed_attempts_stay_at_risk_in_later_sessions(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_intent(intent(0, possibly_billed=2))
        assert journal.counts() == RunCounts(in_flight=1, possibly_billed=1, at_risk=0.02, at_risk_tokens=100)
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0, possibly_billed=3))
        assert journal.counts().at_risk == 0.03
        await journal.record_outcome(answer(0, possibly_billed=3))
        assert journal.counts() == RunCounts(
            answered=1,
            possibly_billed=3,
            cost=0.002,
            input_tokens=10,
            output_tokens=20,
            at_risk=0.03,
            at_risk_tokens=150,
        )
        assert journal.records(0, 0) == [answer(0, possibly_billed=3)]


async def test_a_failure_that_is_retried_is_in_flight_and_its_risk_stays(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(failure(0, possibly_billed=2))
        assert journal.counts() == RunCounts(failed=1, possibly_billed=2, at_risk=0.02, at_risk_tokens=100)
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0, possibly_billed=3))
        assert journal.records(0, 0)[0].state is RecordState.IN_FLIGHT
        assert journal.counts() == RunCounts(in_flight=1, possibly_billed=2, at_risk=0.03, at_risk_tokens=150)
        await journal.retract_intent(0)
        assert journal.counts() == RunCounts(in_flight=1, possibly_billed=1, at_risk=0.02, at_risk_tokens=100)
        await journal.record_intent(intent(0, possibly_billed=3))
        await journal.record_outcome(answer(0, possibly_billed=2))
        assert (journal.counts().answered, journal.counts().failed, journal.counts().at_risk) == (1, 0, 0.02)


async def test_a_failure_is_never_sent_when_its_retry_is_retracted(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(failure(0))
        await asyncio.gather(journal.record_intent(intent(0)), journal.retract_intent(0))
        assert (journal.record(0), journal.counts()) == (None, RunCounts())
        await journal.record_outcome(failure(0))
        assert journal.record(0) == failure(0)


async def test_an_answered_entry_is_not_sent_again(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0))
        with pytest.raises(UnstorableRowError, match="Entry 0 has an answer already"):
            await journal.record_intent(intent(0, possibly_billed=2))
        assert journal.record(0) == answer(0)
        await journal.record_intent(intent(1))


async def test_all_steps_of_an_entry_in_one_transaction_have_their_order(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await asyncio.gather(
            journal.record_intent(intent(0)),
            journal.record_outcome(failure(0)),
            journal.record_intent(intent(0)),
            journal.record_outcome(answer(0)),
            journal.record_outcome(failure(0)),
        )
        assert journal.record(0) == answer(0)
        assert journal.counts() == RunCounts().replacing(None, answer(0))


async def test_an_answer_of_unknown_cost_is_at_risk(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0, cost=None, input_tokens=None, output_tokens=None))
        assert journal.counts() == RunCounts(answered=1, unpriced=1, at_risk=0.01, at_risk_tokens=50)


async def test_a_duplicate_has_the_answer_of_the_original_and_costs_nothing(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0))
        before = journal.counts()
        copy = duplicate(1, answer(0), line_digest=-5, custom_id="twin")
        await journal.record_outcome(copy)
        assert journal.record(1) == copy
        assert journal.counts() == evolve(before, answered=2, deduplicated=1)


async def test_a_million_and_sixty_four_bits_come_back(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(
            intent(10**12, line_digest=-(2**63), reserved=None, reserved_tokens=None, custom_id=None)
        )
        (row,) = journal.records(0, 2**62)
        assert (row.index, row.line_digest, row.reserved, row.custom_id) == (10**12, -(2**63), None, None)


async def test_nothing_is_written_after_the_end_and_that_is_said(path: Path) -> None:
    journal = Journal.open(path, IDENTITY)
    await journal.aclose()
    await journal.aclose()
    with pytest.raises(BatchError, match="was closed"):
        await journal.record_intent(intent(0))
    with pytest.raises(BatchError, match="was closed"):
        journal.records(0, 0)


async def test_who_awaits_while_it_closes_is_answered(path: Path) -> None:
    journal = Journal.open(path, IDENTITY)
    tasks = [asyncio.create_task(journal.record_intent(intent(index))) for index in range(5)]
    await asyncio.sleep(0)
    await journal.aclose()
    await asyncio.gather(*tasks)
    with JournalReader.open(path) as reader:
        assert reader.counts().in_flight == 5


def test_a_journal_is_closed_without_an_event_loop(path: Path) -> None:
    with Journal.open(path, IDENTITY) as journal:
        journal.sample(5.0, {"level": 1})
        journal.finish("nothing to do", complete=True)
    with JournalReader.open(path) as reader:
        assert reader.complete
        assert reader.sessions()[0].end_reason == "nothing to do"


def test_the_writer_thread_ends_with_the_journal(path: Path) -> None:
    Journal.open(path, IDENTITY).close()
    assert "onellm-async-journal" not in {thread.name for thread in threading.enumerate()}


async def test_an_error_of_the_block_is_not_hidden_and_the_session_says_that_it_was_left(path: Path) -> None:
    with pytest.raises(LookupError):
        async with Journal.open(path, IDENTITY):
            raise LookupError
    with JournalReader.open(path) as reader:
        assert reader.sessions()[0].end_reason == "left early"


async def test_only_the_first_ten_thousand_bad_lines_are_kept_and_repeats_are_no_news(path: Path) -> None:
    for _ in range(2):
        async with Journal.open(path, IDENTITY) as journal:
            for line in range(1, 10_050):
                journal.bad_line(LineError("in.jsonl", line, "not JSON"))
    with JournalReader.open(path) as reader:
        assert len(reader.bad_lines(20_000)) == 10_000
        assert reader.bad_lines(1) == [LineError("in.jsonl", 1, "not JSON")]


def test_settings_that_are_no_json_such_as_a_key_are_refused(path: Path) -> None:
    with pytest.raises(TypeError):
        Journal.open(path, IDENTITY, settings={"key": ApiKey("sk-canary-0d9f5e")})
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("ending", ["", ".lock"])
def test_symbolic_links_are_not_followed(path: Path, ending: str) -> None:
    target = path.with_name("target")
    path.with_name(path.name + ending).symlink_to(target)
    with pytest.raises(BatchError, match="symbolic link"):
        Journal.open(path, IDENTITY)
    assert not target.exists()


async def test_another_run_is_refused_naming_each_difference(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
    with pytest.raises(BatchError) as caught:
        Journal.open(path, evolve(IDENTITY, max_tokens=200, input_digest="bb"))
    assert "the input has changed; max_tokens was 100 and is now 200" in str(caught.value)
    assert "force=True" in str(caught.value)
    assert "another output" in str(caught.value)


async def test_a_journal_without_an_answer_or_money_at_risk_binds_no_later_run(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_outcome(failure(0, possibly_billed=0))
    async with Journal.open(path, evolve(IDENTITY, max_tokens=200)) as journal:
        assert (journal.resumed, journal.counts()) == (False, RunCounts())


async def test_force_begins_anew(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
    other = evolve(IDENTITY, max_tokens=200)
    async with Journal.open(path, other, force=True) as journal:
        assert not journal.resumed
        assert journal.counts() == RunCounts()
        assert journal.records(0, 9) == []
    with JournalReader.open(path) as reader:
        assert reader.identity == other


amounts = st.one_of(st.none(), st.integers(0, 10**9).map(lambda millionths: millionths / 1e6))
tokens = st.one_of(st.none(), st.integers(0, 10**6))


@st.composite
def records_of(draw: st.DrawFn, index: int) -> JournalRecord:
    """Any record of an entry, as a run could write it."""
    state = draw(st.sampled_from(RecordState))
    made = intent(
        index,
        state=state,
        reserved=draw(amounts),
        reserved_tokens=draw(tokens),
        custom_id=draw(st.sampled_from([None, "id", "\ud800"])),
        possibly_billed=draw(st.integers(state is RecordState.IN_FLIGHT, 3)),
    )
    if state is RecordState.IN_FLIGHT:
        return made
    return evolve(
        made,
        completed_at=draw(st.floats(0, 2e9)),
        attempts=draw(st.integers(0, 5)),
        rate_limited=draw(st.integers(0, 5)),
        cost=draw(amounts),
        input_tokens=draw(tokens),
        output_tokens=draw(tokens),
        elapsed=draw(st.floats(0, 1e6)),
        latency=draw(st.none() | st.floats(0, 1e6)),
        result=b"{}",
    )


steps = st.lists(
    st.one_of(
        st.just("crash"),
        st.integers(0, 4),  # retracted
        st.integers(0, 4).flatmap(records_of),
        st.lists(st.integers(0, 4).flatmap(records_of), min_size=2, max_size=4),  # in one transaction
    ),
    max_size=20,
)


@given(steps)
@settings(max_examples=40, deadline=None)
def test_after_any_order_of_steps_and_crashes_the_totals_are_the_fold_over_the_records(steps: list[object]) -> None:
    async def write(journal: Journal, record: JournalRecord) -> None:
        with suppress(UnstorableRowError):  # the entry has an answer
            await (journal.record_outcome if record.completed else journal.record_intent)(record)

    async def walk(path: Path) -> None:
        journal, null = Journal.open(path, IDENTITY), NullJournal()
        held, folded = dict[int, JournalRecord](), RunCounts()
        for step in steps:
            if step == "crash":
                await journal.aclose()
                journal = Journal.open(path, IDENTITY)
            elif isinstance(step, int):
                await journal.retract_intent(step)
            else:
                made = step if isinstance(step, list) else [step]
                await asyncio.gather(*(write(journal, record) for record in made))
            held = {record.index: record for record in journal.records(0, 9)}
            folded = RunCounts()
            for record in held.values():
                folded = folded.replacing(None, record)
            assert journal.counts() == folded
        await journal.aclose()
        with JournalReader.open(path) as reader:
            assert reader.counts() == folded
            assert list(reader.records()) == list(held.values())
        for record in held.values():
            await write(null, record)
        assert null.counts() == RunCounts().replacing_all((None, record) for record in held.values())

    with TemporaryDirectory() as directory:
        asyncio.run(walk(Path(directory, "out.journal")))


@given(st.integers(0, 4).flatmap(records_of))
@settings(max_examples=40, deadline=None)
def test_a_record_is_read_back_field_by_field(record: JournalRecord) -> None:
    async def walk(path: Path) -> None:
        async with Journal.open(path, IDENTITY) as journal:
            await (journal.record_outcome if record.completed else journal.record_intent)(record)
            assert journal.record(record.index) == record

    with TemporaryDirectory() as directory:
        asyncio.run(walk(Path(directory, "out.journal")))


def test_type_checkers_know_every_total_of_a_record() -> None:
    assert set(RunCounts.__annotations__) == set(COUNTS)
    assert set(RunCounts().to_dict()) == set(COUNTS)


def test_the_journal_of_a_run_that_could_not_begin_is_removed_with_everything_beside_it(path: Path) -> None:
    Journal.open(path, IDENTITY).close(discard=True)
    assert list(path.parent.iterdir()) == []
