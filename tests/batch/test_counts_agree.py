"""Several keep count of a run: its journal, its progress, and whoever reads the rows. They agree."""

import random
from collections import Counter

import pytest

from onellm_async import AsyncOneLLM, ChatRequest, Limits, RetryPolicy
from onellm_async.batch import (
    Budget,
    Entry,
    HealthPolicy,
    Journal,
    JournalReader,
    NullJournal,
    ParsedEntry,
    RunCounts,
    RunIdentity,
    output_format_named,
)
from onellm_async.batch.engine import RunEngine
from onellm_async.errors import APIConnectionError
from onellm_async.testing import FakeTransport, failure

JSONL = output_format_named("jsonl")


def mixed():
    """Answers, refuses, fails for a while and loses replies: by the prompt, so that every order gives the same."""
    asked = Counter()

    def reply(request):
        kind, times = request.prompt.split()[0], asked[request.prompt]
        asked[request.prompt] += 1
        if kind == "lost" and times < 2:
            return APIConnectionError("reset")
        if kind == "bad":
            return failure(400, "no")
        if kind == "unstable" and times == 0:
            return failure(500, "no")
        usage = {"input_tokens": 7, "output_tokens": 20, "total_tokens": 27}
        return {"content": request.prompt, "usage": None if kind == "bare" else usage}

    return FakeTransport(reply)


class Prompts:
    source = "prompts"

    def __init__(self, prompts):
        self.prompts = prompts

    def read(self, raw, *, line, index):
        return ParsedEntry(index, line, ChatRequest("GPT-5", raw.decode(), max_tokens=10))

    async def __aiter__(self):
        for index, prompt in enumerate(self.prompts):
            yield Entry(index, index + 1, prompt.encode(), self)

    def reserve_custom_id(self, custom_id):
        pass


class Nowhere:
    async def write(self, lines):
        pass


async def report_of(prompts, journal, *, seen=None):
    def encode(row):
        if seen is not None:
            seen.append(row)
        return JSONL.encode(row)

    retry = RetryPolicy(backoff_cap=0.001, retry_budget=1000, breaker_failures=0)
    async with AsyncOneLLM(transport=mixed(), limits=Limits.unlimited(4), retry=retry) as client:
        return await RunEngine(
            client,
            Prompts(prompts),
            journal=journal,
            sink=Nowhere(),
            encode=encode,
            budget=Budget(max_cost=100.0),
            health=HealthPolicy(max_failure_share=1.0),
        ).run()


def folded(records) -> RunCounts:
    """What the records of a journal add up to."""
    return RunCounts().replacing_all((None, record) for record in records)


def prompts_of(seed):
    draw = random.Random(seed)
    kinds = ("fine", "fine", "bad", "lost", "unstable", "bare")
    return [f"{draw.choice(kinds)} {draw.randint(0, 20)}" for _ in range(60)]


@pytest.mark.parametrize("seed", range(3))
async def test_all_that_count_a_run_count_the_same(seed, tmp_path):
    prompts, path = prompts_of(seed), tmp_path / "out.journal"
    async with Journal.open(path, RunIdentity(input="prompts")) as journal:
        report = await report_of(prompts, journal)
    async with Journal.open(path, RunIdentity(input="prompts")) as journal:
        resumed = await report_of(prompts, journal)
    with JournalReader.open(path) as reader:
        rows = list(reader.records())
    unjournaled = await report_of(prompts, NullJournal())

    counts = report.counts
    assert folded(rows) == counts
    assert resumed.counts == counts
    assert unjournaled.counts.answered + unjournaled.counts.failed == counts.answered + counts.failed
    for progress in (report.progress, resumed.progress):
        assert (progress.answered, progress.failed, progress.completed) == (
            counts.answered,
            counts.failed,
            len(prompts),
        )
        assert (progress.input_tokens, progress.output_tokens) == (counts.input_tokens, counts.output_tokens)
        assert progress.cost == pytest.approx(counts.cost)
        assert (progress.deduplicated, progress.unpriced) == (counts.deduplicated, counts.unpriced)


@pytest.mark.parametrize("seed", range(3))
async def test_the_rows_of_a_run_at_work_are_those_that_its_journal_gives_back(seed, tmp_path):
    seen = []
    async with Journal.open(tmp_path / "out.journal", RunIdentity(input="prompts")) as journal:
        await report_of(prompts_of(seed), journal, seen=seen)
        assert sorted(seen, key=lambda record: record.index) == journal.records(0, 1000)
