import asyncio
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_examples import IDENTITY, answer, duplicate, failure, intent

from onellm_async import AsyncOneLLM, ChatRequest, Limits
from onellm_async.batch import (
    Entry,
    Journal,
    JournalReader,
    LineError,
    ParsedEntry,
    RequestDefaults,
    entries_from,
    output_format_named,
)
from onellm_async.batch.config import RunPolicy
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.journal.record import RecordState, UnstorableRowError, bind_number, bind_text, read_text
from onellm_async.testing import FakeTransport

JSONL = output_format_named("jsonl")

HALVES = ["\ud800", "a\udfffb", "\udce9.jsonl", "n\0l", "ä\ud83d", ""]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


@given(st.text(st.characters()))
def test_any_text_is_read_back_as_it_was(text: str) -> None:
    bound = bind_text(text)
    if isinstance(bound, str):
        bound.encode()
    assert read_text(bound) == text


@pytest.mark.parametrize(
    ("number", "bound"),
    [(0.5, 0.5), (7, 7), (None, None), (math.inf, None), (-math.inf, None), (math.nan, None), (2**63, None)],
)
def test_a_number_that_no_sum_can_hold_counts_as_unknown(number: float | None, bound: float | None) -> None:
    assert bind_number(number) == bound


async def test_a_custom_id_with_half_a_character_is_kept_and_written_as_the_same_escape(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await asyncio.gather(
            *(journal.record_intent(intent(index, custom_id=name)) for index, name in enumerate(HALVES))
        )
        await asyncio.gather(
            *(journal.record_outcome(answer(index, custom_id=name)) for index, name in enumerate(HALVES))
        )
    with JournalReader.open(path) as reader:
        rows = list(reader.records())
    assert [row.custom_id for row in rows] == HALVES
    lines = list(map(JSONL.encode, rows))
    assert b'"custom_id":"\\ud800"' in lines[0]
    assert [json.loads(line)["custom_id"] for line in lines] == HALVES


async def test_bad_lines_and_endings_with_half_a_character_are_told_as_they_were(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        journal.bad_line(LineError("in\udce9.jsonl", 3, "odd \ud800"))
        journal.finish("stopped: in\udce9.jsonl:3", complete=False)
    with JournalReader.open(path) as reader:
        assert reader.bad_lines(9) == [LineError("in\udce9.jsonl", 3, "odd \ud800")]
        assert reader.sessions()[-1].end_reason == "stopped: in\udce9.jsonl:3"


async def test_a_row_that_cannot_be_stored_fails_alone(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        outcomes = await asyncio.gather(
            *(journal.record_intent(intent(index, line=2**70 if index == 150 else 1)) for index in range(300)),
            return_exceptions=True,
        )
        assert [index for index, outcome in enumerate(outcomes) if outcome is not None] == [150]
        assert isinstance(outcomes[150], UnstorableRowError)
        assert "out.jsonl.journal cannot store it: " in str(outcomes[150])
        await asyncio.gather(
            *(journal.record_outcome(answer(index, result=None if index == 7 else b"{}")) for index in range(100)),
            return_exceptions=True,
        )
        assert (journal.counts().answered, journal.counts().in_flight) == (99, 200)
    with JournalReader.open(path) as reader:
        assert sum(row.state is RecordState.ANSWERED for row in reader.records()) == 99


async def test_what_cannot_be_stored_leaves_nothing_behind(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0))
        await journal.record_outcome(answer(0))
        copied, other = await asyncio.gather(
            journal.record_outcome(duplicate(1, answer(0))),
            journal.record_outcome(duplicate(2, answer(0), attempts=None)),
            return_exceptions=True,
        )
        assert copied is None
        assert isinstance(other, UnstorableRowError)
        assert [row.index for row in journal.records(0, 9)] == [0, 1]
        assert (journal.counts().answered, journal.counts().in_flight) == (2, 0)


async def test_numbers_beyond_all_bounds_leave_the_totals_usable(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        await journal.record_intent(intent(0, reserved=math.inf, reserved_tokens=10**30))
        await journal.record_outcome(
            answer(0, reserved=math.inf, cost=math.nan, input_tokens=2**70, elapsed=math.inf, latency=math.nan)
        )
        await journal.record_intent(intent(1))
        await journal.record_outcome(failure(1, possibly_billed=1))
        counts = journal.counts()
        assert (counts.answered, counts.failed, counts.unpriced) == (1, 1, 1)
        assert (counts.cost, counts.input_tokens, counts.at_risk) == (0.0, 0, 0.01)


def shout(request):
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    return {"content": request.prompt.upper(), "usage": usage}


class Prompts:
    source = "prompts.txt"

    def __init__(self, *prompts):
        self.prompts = prompts

    def read(self, raw, *, line, index):
        return ParsedEntry(index, line, ChatRequest("GPT-5", raw.decode()))

    async def __aiter__(self):
        for index, prompt in enumerate(self.prompts):
            yield Entry(index, index + 1, prompt.encode(), self)

    def reserve_custom_id(self, custom_id):
        pass


class Sink:
    def __init__(self):
        self.lines = []

    async def write(self, lines):
        self.lines += map(json.loads, lines.splitlines())


async def run_with(journal, *prompts):
    service, sink, bad = FakeTransport(shout), Sink(), []
    async with AsyncOneLLM(transport=service, limits=Limits.unlimited(8)) as client:
        report = await RunEngine(
            client,
            Prompts(*prompts),
            journal=journal,
            sink=sink,
            encode=JSONL.encode,
            on_bad_line=bad.append,
            policy=RunPolicy(deduplicate=True),
        ).run()
    return report, service, sink.lines, bad


async def test_an_entry_whose_intent_cannot_be_stored_is_a_bad_line_and_its_duplicate_is_asked(path, monkeypatch):
    async with Journal.open(path, IDENTITY) as journal:
        record_intent = journal.record_intent
        monkeypatch.setattr(
            journal, "record_intent", lambda made: record_intent(intent(2**70) if made.index == 1 else made)
        )
        report, service, lines, bad = await run_with(journal, "a", "b", "b", "b", "c")
    assert report.complete
    assert sorted(service.prompts) == ["a", "b", "c"]
    assert [(line["index"], line["response"]["content"]) for line in lines] == [(0, "A"), (2, "B"), (3, "B"), (4, "C")]
    (error,) = bad
    assert (error.line, "cannot store it" in error.message) == (2, True)
    assert (report.progress.answered, report.progress.bad_lines) == (4, 1)


async def test_an_answer_that_cannot_be_stored_is_a_failure_of_its_entry_alone(path, monkeypatch):
    async with Journal.open(path, IDENTITY) as journal:
        record_outcome = journal.record_outcome

        async def refuse_one(settled):
            if settled.index == 1 and settled.state is RecordState.ANSWERED:
                raise UnstorableRowError("It cannot be stored.")
            await record_outcome(settled)

        monkeypatch.setattr(journal, "record_outcome", refuse_one)
        report, _, lines, bad = await run_with(journal, "a", "b", "c")
    assert (report.complete, report.progress.failed, bad) == (True, 1, [])
    assert [line["index"] for line in lines if line["response"]] == [0, 2]
    assert lines[1]["error"] == {"type": "UnstorableRowError", "message": "It cannot be stored.", "status_code": None}


async def test_a_length_beyond_all_numbers_ends_no_run(tmp_path):
    prompts = [ChatRequest("GPT-5", "a", max_tokens=10**400), ChatRequest("GPT-5", "b", max_tokens=2**63), "c"]
    limits = Limits(requests_per_minute=60_000, burst=100, tokens_per_minute=10**6)
    sink = Sink()
    async with (
        AsyncOneLLM(transport=FakeTransport(shout), limits=limits) as client,
        Journal.open(tmp_path / "out.journal", IDENTITY) as journal,
    ):
        report = await RunEngine(
            client,
            entries_from(prompts, defaults=RequestDefaults(max_tokens=5)),
            journal=journal,
            sink=sink,
            encode=JSONL.encode,
        ).run()
    assert report.complete
    assert [line["response"]["content"] for line in sink.lines] == ["A", "B", "C"]
