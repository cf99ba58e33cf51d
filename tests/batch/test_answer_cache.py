import json

import pytest

from onellm_async import AsyncOneLLM, ChatRequest, Limits
from onellm_async.batch import AnswerCache, Journal, JournalReader, RunIdentity, RunPolicy, entries_from
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.journal.record import JournalRecord
from onellm_async.errors import BatchError
from onellm_async.testing import FakeTransport


def shout(request):
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    return {"content": request.prompt.upper(), "usage": usage}


class Collected:
    def __init__(self):
        self.lines = []

    async def write(self, lines):
        self.lines += lines.decode().splitlines()


def encode(row):
    return f"{row.index} {json.loads(row.result)['content']}\n".encode()


@pytest.fixture
def ask(tmp_path):
    """A run in a journal of its own; what it asked and what it wrote."""

    async def ask(name, *prompts, base_url="https://a.example", **options):
        service, sink = FakeTransport(shout), Collected()
        requests = [prompt if isinstance(prompt, ChatRequest) else ChatRequest("GPT-5", prompt) for prompt in prompts]
        identity = RunIdentity(input=name, base_url=base_url)
        async with (
            AsyncOneLLM(transport=service, limits=Limits.unlimited()) as client,
            Journal.open(tmp_path / f"{name}.journal", identity) as journal,
        ):
            report = await RunEngine(
                client, entries_from(requests), journal=journal, sink=sink, encode=encode, **options
            ).run()
        return service.prompts, sink.lines, report

    return ask


async def test_what_an_earlier_run_got_is_not_asked_again_and_costs_nothing(ask, tmp_path):
    await ask("monday", "a", "b")
    with AnswerCache([str(tmp_path / "monday.journal")]) as cache:
        asked, written, report = await ask("tuesday", "c", "b", "a", "a", cache=cache)

    assert asked == ["c"]
    assert written == ["0 C", "1 B", "2 A", "3 A"]
    assert cache.hits == 3
    assert report.counts.answered == 4
    with JournalReader.open(tmp_path / "tuesday.journal") as journal:
        rows = list(journal.records())
    assert [row.cost for row in rows][1:] == [0.0] * 3
    assert rows[0].cost > 0
    assert (rows[1].attempts, rows[1].copy_of, rows[1].sent_at) == (0, None, None)
    assert (report.counts.in_flight, report.counts.at_risk, report.counts.deduplicated) == (0, 0.0, 0)


async def test_another_question_is_no_hit(ask, tmp_path):
    await ask("monday", "a")
    others = (ChatRequest("GPT-5", "a", max_tokens=5), ChatRequest("GPT-5-Mini", "a"), "A")
    with AnswerCache([str(tmp_path / "monday.journal")]) as cache:
        asked, _, _ = await ask("tuesday", *others, cache=cache)

    assert asked == ["a", "a", "A"]
    assert cache.hits == 0


async def test_an_answer_from_a_cache_needs_no_cache_when_the_run_is_resumed_or_is_a_cache_itself(ask, tmp_path):
    await ask("monday", "a")
    with AnswerCache([str(tmp_path / "monday.journal")]) as cache:
        await ask("tuesday", "a", cache=cache)
    (tmp_path / "monday.journal").unlink()
    asked, written, _ = await ask("tuesday", "a")
    assert (asked, written) == ([], ["0 A"])

    with AnswerCache([str(tmp_path / "tuesday.journal")]) as cache:
        asked, written, _ = await ask("wednesday", "a", cache=cache)
    assert (asked, written) == ([], ["0 A"])


async def test_several_caches_are_one(ask, tmp_path):
    for name, prompt in (("monday", "a"), ("tuesday", "b"), ("wednesday", "c")):
        await ask(name, "x", prompt)
    names = [str(tmp_path / f"{name}.journal") for name in ("monday", "tuesday", "wednesday")]
    with AnswerCache(names) as cache:
        asked, written, _ = await ask("thursday", "c", "b", "a", "d", cache=cache)

    assert asked == ["d"]
    assert written == ["0 C", "1 B", "2 A", "3 D"]


async def test_a_copy_in_a_cache_leads_to_its_original(ask, tmp_path):
    await ask("monday", "a", "a", "b")
    with AnswerCache([str(tmp_path / "monday.journal")]) as cache:
        asked, written, _ = await ask("tuesday", "b", "a", cache=cache)

    assert (asked, written) == ([], ["0 B", "1 A"])


async def test_without_deduplication_each_is_found_by_itself(ask, tmp_path):
    await ask("monday", "a")
    with AnswerCache([str(tmp_path / "monday.journal")]) as cache:
        _, _, report = await ask("tuesday", "a", "a", cache=cache, policy=RunPolicy(deduplicate=False))

    assert cache.hits == 2
    assert report.counts.deduplicated == 0


async def test_answers_of_another_service_are_refused(ask, tmp_path):
    await ask("monday", "a", base_url="local")
    with pytest.raises(BatchError, match=r"came from local, and this run sends to https://a\.example"):
        AnswerCache([str(tmp_path / "monday.journal")], base_url="https://a.example")


async def test_a_cache_that_is_not_there_is_named(ask, tmp_path):
    await ask("monday", "a")
    with pytest.raises(BatchError, match="nowhere"):
        AnswerCache([str(tmp_path / "monday.journal"), str(tmp_path / "nowhere.jsonl")])


async def test_what_may_have_been_billed_in_a_crash_stays_at_risk_when_a_cache_has_the_answer(ask, tmp_path):
    await ask("monday", "a")
    (entry,) = [entry async for entry in entries_from([ChatRequest("GPT-5", "a")])]
    async with Journal.open(
        tmp_path / "tuesday.journal", RunIdentity(input="tuesday", base_url="https://a.example")
    ) as journal:
        await journal.record_intent(
            JournalRecord(0, 1, entry.digest, entry.item().request_digest, None, 0.5, 50, 1000.0, 1)
        )
    with AnswerCache([str(tmp_path / "monday.journal")]) as cache:
        asked, written, report = await ask("tuesday", "a", cache=cache)

    assert (asked, written) == ([], ["0 A"])
    assert (report.counts.answered, report.counts.possibly_billed) == (1, 1)
    assert (report.counts.at_risk, report.counts.at_risk_tokens) == (0.5, 50)
