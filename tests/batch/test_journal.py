import asyncio
import os
import stat
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_examples import IDENTITY, answer, failure, intent

from onellm_async import ApiKey
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.journal import Journal, RecordState, RunCounts
from onellm_async.batch.journal.reader import JournalReader
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


async def test_a_settled_entry_is_not_forgotten_and_its_first_outcome_stays(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0))
        await journal.retract_intent(0)
        await journal.record_outcome(failure(0))
        (row,) = journal.records(0, 0)
        assert row.state is RecordState.ANSWERED
        assert (journal.counts().answered, journal.counts().failed) == (1, 0)


async def test_an_entry_sent_again_by_a_later_session_keeps_the_first_one_at_risk(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_intent(intent(0, possibly_billed=1))
        assert journal.counts().at_risk == pytest.approx(0.02)
        assert journal.counts().possibly_billed == 1
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        assert journal.counts().at_risk == pytest.approx(0.03)
        await journal.record_outcome(answer(0, possibly_billed=1))
        assert journal.counts() == RunCounts(
            answered=1,
            possibly_billed=3,
            cost=0.002,
            input_tokens=10,
            output_tokens=20,
            at_risk=pytest.approx(0.03),
            at_risk_tokens=150,
        )
        assert journal.records(0, 0)[0].possibly_billed == 3


async def test_a_failure_that_is_asked_again_is_under_way_and_its_risk_stays(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(failure(0, possibly_billed=2))
        assert journal.counts() == RunCounts(failed=1, possibly_billed=2, at_risk=0.02, at_risk_tokens=100)
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        assert journal.records(0, 0)[0].state is RecordState.IN_FLIGHT
        assert journal.counts() == RunCounts(in_flight=1, possibly_billed=2, at_risk=0.03, at_risk_tokens=150)
        await journal.retract_intent(0)
        assert journal.counts() == RunCounts(in_flight=1, possibly_billed=1, at_risk=0.02, at_risk_tokens=100)
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0))
        assert (journal.counts().answered, journal.counts().failed, journal.counts().at_risk) == (1, 0, 0.02)


async def test_an_answer_of_unknown_cost_is_at_risk(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0, cost=None, input_tokens=None, output_tokens=None))
        assert journal.counts() == RunCounts(answered=1, unpriced=1, at_risk=0.01, at_risk_tokens=50)


async def test_an_identical_request_has_the_answer_of_the_first_one_and_costs_nothing(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0))
        same = answer(1, copy_of=0, result=b"", cost=0.0, attempts=0, latency=None, input_tokens=0, output_tokens=0)
        await journal.record_outcome(evolve(same, line=2, digest=-5, custom_id="twin", request_digest=b"r"))
        row = journal.record(1)
        assert row is not None
        assert (row.result, row.copy_of, row.line, row.digest, row.custom_id) == (b'{"content":"0"}', 0, 2, -5, "twin")
        assert row.sent_at is None
        counts = journal.counts()
        assert (counts.answered, counts.deduplicated, counts.in_flight, counts.cost, counts.at_risk) == (
            2,
            1,
            0,
            0.002,
            0,
        )


async def test_a_million_and_sixty_four_bits_come_back(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(
            intent(10**12, digest=-(2**63), reserved=None, reserved_tokens=None, custom_id=None)
        )
        (row,) = journal.records(0, 2**62)
        assert (row.index, row.digest, row.reserved, row.custom_id) == (10**12, -(2**63), None, None)


async def test_the_totals_never_differ_from_the_rows(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        for index in range(60):
            await journal.record_intent(intent(index))
            if index % 3 == 0:
                await journal.record_outcome(answer(index))
            elif index % 3 == 1:
                await journal.record_outcome(failure(index, possibly_billed=index % 2))
            if index % 7 == 0:
                await journal.retract_intent(index)
            if index % 5 == 1:
                await journal.record_intent(intent(index))
        rows, counts = journal.records(0, 99), journal.counts()
        by_state = {state: [row for row in rows if row.state is state] for state in RecordState}
        assert counts.answered == len(by_state[RecordState.ANSWERED])
        assert counts.failed == len(by_state[RecordState.FAILED])
        assert counts.in_flight == len(by_state[RecordState.IN_FLIGHT])
        assert counts.at_risk == pytest.approx(sum(row.possibly_billed * 0.01 for row in rows))
        assert counts.possibly_billed == sum(row.possibly_billed for row in rows) - counts.in_flight


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


def test_another_run_is_refused_naming_each_difference(path: Path) -> None:
    Journal.open(path, IDENTITY).close()
    with pytest.raises(BatchError) as caught:
        Journal.open(path, evolve(IDENTITY, max_tokens=200, input_digest="bb"))
    assert "the input has changed; max_tokens was 100 and is now 200" in str(caught.value)
    assert "--force" in str(caught.value)
    assert "another output" in str(caught.value)


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


STEPS = ("intend", "answer", "unknown", "fail", "forget", "crash")
steps = st.lists(
    st.tuples(st.sampled_from(["intend", "answer", "unknown", "fail", "forget", "crash"]), st.integers(0, 4)),
    max_size=25,
)


@given(steps)
@settings(max_examples=25)
def test_no_order_of_steps_and_crashes_parts_the_totals_from_the_rows(steps: list[tuple[str, int]]) -> None:
    async def walk(path: Path) -> None:
        journal = Journal.open(path, IDENTITY)
        for step, index in steps:
            row = journal.record(index)
            sent = row is not None and row.state is RecordState.IN_FLIGHT
            if step == "crash":
                await journal.aclose()
                journal = Journal.open(path, IDENTITY)
            elif step == "intend":
                if row is None or row.state is not RecordState.ANSWERED:
                    await journal.record_intent(intent(index))
            elif sent and step == "answer":
                await journal.record_outcome(answer(index, possibly_billed=1))
            elif sent and step == "unknown":
                await journal.record_outcome(answer(index, cost=None))
            elif sent and step == "fail":
                await journal.record_outcome(failure(index, possibly_billed=2))
            elif step == "forget":
                await journal.retract_intent(index)
        rows, counts = journal.records(0, 9), journal.counts()
        await journal.aclose()
        unpriced = sum(row.state is RecordState.ANSWERED and row.cost is None for row in rows)
        billed = sum(row.possibly_billed for row in rows)
        states = [row.state for row in rows]
        assert [counts.answered, counts.failed, counts.in_flight] == [
            states.count(state) for state in (RecordState.ANSWERED, RecordState.FAILED, RecordState.IN_FLIGHT)
        ]
        assert (counts.unpriced, counts.possibly_billed) == (unpriced, billed - counts.in_flight)
        assert counts.at_risk == pytest.approx(0.01 * (billed + unpriced))
        assert counts.at_risk_tokens == 50 * billed
        assert counts.cost == pytest.approx(sum(row.cost or 0.0 for row in rows))

    with TemporaryDirectory() as directory:
        asyncio.run(walk(Path(directory, "out.journal")))


def test_the_journal_of_a_run_that_could_not_begin_is_removed_with_everything_beside_it(path: Path) -> None:
    Journal.open(path, IDENTITY).close(discard=True)
    assert list(path.parent.iterdir()) == []
