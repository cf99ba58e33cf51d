"""What a reply holds is in the journal and in every output, the same after a resume; copies cost nothing."""

import asyncio
import json

import pytest

from onellm_async import AsyncOneLLM, ChatRequest, Limits
from onellm_async.batch import Entry, Journal, JournalReader, ParsedEntry, RunIdentity, output_format_named
from onellm_async.batch.config import RunPolicy
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.outputs.formats import FORMATS as OUTPUT_FORMATS
from onellm_async.testing import FakeTransport

JSONL, OPENAI_BATCH = map(output_format_named, ("jsonl", "openai-batch"))

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
USAGE = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110, "cached_tokens": 64}
REPLIES = {
    "plain": {"content": "Hello", "usage": USAGE},
    "tool": {"content": None, "finish_reason": "tool_calls", "tool_calls": [CALL], "usage": USAGE},
    "refused": {"content": None, "refusal": "No.", "usage": USAGE},
    "cut": {"content": None, "finish_reason": "length", "usage": USAGE},
    "probable": {"content": "x", "logprobs": {"content": [{"token": "x", "logprob": -0.1}]}, "reasoning": "\ud800"},
    "parts": {"content": [{"type": "text", "text": "a"}, {"type": "image", "url": "u"}], "usage": USAGE},
}


class Service(FakeTransport):
    """Gives the reply that the prompt names; sets `stop` at request number `stop_at`."""

    def __init__(self, stop_at=None):
        super().__init__(self._reply_to)
        self.stop_at = stop_at
        self.stop = asyncio.Event()

    async def _reply_to(self, request):
        if request.number == self.stop_at:
            self.stop.set()
            await asyncio.sleep(0.01)
        return REPLIES[request.prompt]


class Prompts:
    source = "prompts"

    def __init__(self, prompts):
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
        self.text = b""

    async def write(self, lines):
        self.text += lines


@pytest.fixture
def run(tmp_path):
    async def run(prompts, service, shape=JSONL):
        sink = Sink()
        async with (
            AsyncOneLLM(transport=service, limits=Limits.unlimited(1)) as client,
            Journal.open(tmp_path / "out.journal", RunIdentity(input="prompts")) as journal,
        ):
            report = await RunEngine(
                client,
                Prompts(prompts),
                journal=journal,
                sink=sink,
                encode=shape.encode,
                stop=service.stop,
                policy=RunPolicy(deduplicate=True),
            ).run()
        return report, sink.text

    return run


@pytest.mark.parametrize("shape", OUTPUT_FORMATS, ids=str)
async def test_the_whole_reply_is_written_and_is_the_same_after_a_resume_and_from_an_export(run, tmp_path, shape):
    prompts = [*REPLIES, "tool"]
    stopped, _ = await run(prompts, Service(stop_at=3), shape)
    assert stopped.interrupted
    service = Service()
    report, resumed = await run(prompts, service, shape)
    assert (report.complete, report.counts.answered) == (True, len(prompts))
    with JournalReader.open(tmp_path / "out.journal") as journal:
        assert b"".join(map(shape.encode, journal.records())) == resumed
    (tmp_path / "out.journal").unlink()
    _, at_once = await run(prompts, Service(), shape)
    if shape is OPENAI_BATCH:  # which has the time of each answer
        records = [[json.loads(line) for line in text.splitlines()] for text in (resumed, at_once)]
        for record in (*records[0], *records[1]):
            record["response"]["body"]["created"] = 0
        assert records[0] == records[1]
    else:
        assert at_once == resumed


async def test_nothing_of_a_reply_is_lost_and_each_is_asked_once(run):
    service = Service()
    _, text = await run(list(REPLIES), service)
    records = [json.loads(line)["response"] for line in text.splitlines()]
    assert service.prompts == list(REPLIES)
    assert [record["content"] for record in records] == ["Hello", "", "", "", "x", "a"]
    assert records[0]["extra"] == {"usage": USAGE}
    assert records[1]["extra"]["tool_calls"] == [CALL]
    assert (records[1]["finish_reason"], records[3]["finish_reason"]) == ("tool_calls", "length")
    assert records[2]["extra"]["refusal"] == "No."
    assert records[4]["extra"] == {name: REPLIES["probable"][name] for name in ("logprobs", "reasoning")}
    assert records[5]["extra"]["content"] == REPLIES["parts"]["content"]
    assert all(record["cost"] for record in records if record["usage"])


async def test_the_costs_of_all_records_add_up_to_what_was_spent(run):
    report, text = await run(["plain"] * 3 + ["tool"] * 2, Service())
    records = [json.loads(line) for line in text.splitlines()]
    assert sum(record["response"]["cost"] for record in records) == pytest.approx(report.counts.cost)
    assert [record.get("copy_of") for record in records] == [None, 0, 0, None, 3]
    assert report.counts.cost == pytest.approx(report.progress.cost)
