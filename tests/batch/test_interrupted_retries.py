"""Runs of duplicates that are interrupted, killed and retried in any order: every exported line is its own entry's."""

import asyncio
import csv
import io
import json
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_examples import IDENTITY

from onellm_async import AsyncOneLLM, ChatRequest, Limits, RetryPolicy
from onellm_async.batch import Entry, HealthPolicy, Journal, JournalReader, ParsedEntry, RunPolicy, output_format_named
from onellm_async.batch.engine import RunEngine
from onellm_async.testing import FakeTransport
from onellm_async.testing import failure as refusal

CSV, JSONL, OPENAI_BATCH = map(output_format_named, ("csv", "jsonl", "openai-batch"))

PROMPTS = ["a", "b", "a", "c", "a", "b", "d", "a"]


def service(well, until, interrupt):
    """Answers what is in `well` and refuses the rest. At request number `until` it calls `interrupt`."""

    async def reply(request):
        if request.number == until:
            interrupt()
            await asyncio.sleep(0.005)
        if request.prompt in well:
            return {"content": request.prompt.upper()}
        return refusal(400, f"no {request.prompt}")

    return FakeTransport(reply)


class Prompts:
    source = "prompts"

    def read(self, raw, *, line, index):
        return ParsedEntry(index, line, ChatRequest("GPT-5", raw.decode()))

    async def __aiter__(self):
        for index, prompt in enumerate(PROMPTS):
            yield Entry(index, index + 1, prompt.encode(), self)

    def reserve_custom_id(self, custom_id):
        pass


class Sink:
    def __init__(self):
        self.text = b""

    async def write(self, lines):
        self.text += lines


@frozen
class RunSession:
    well: frozenset
    retry_failed: bool
    hold: bool
    deduplicate: bool
    end: str
    until: int
    concurrency: int


SESSIONS = st.builds(
    RunSession,
    well=st.frozensets(st.sampled_from("abcd")),
    retry_failed=st.booleans(),
    hold=st.booleans(),
    deduplicate=st.sampled_from([True, True, False]),
    end=st.sampled_from(["kill", "cancel", "stop", "input"]),
    until=st.integers(1, 5),
    concurrency=st.integers(1, 4),
)


async def sit(path: Path, session: RunSession) -> bytes:
    stop, killed = asyncio.Event(), path.parent.with_name("killed")

    def interrupt():
        if session.end == "kill":
            shutil.copytree(path.parent, killed, ignore=shutil.ignore_patterns("*.reserve"))
        if session.end in {"kill", "cancel"}:
            running.cancel()
        elif session.end == "stop":
            stop.set()

    sink, limits = Sink(), Limits.unlimited(session.concurrency)
    transport = service(session.well, session.until, interrupt)
    async with (
        AsyncOneLLM(transport=transport, limits=limits, retry=RetryPolicy(max_attempts=1)) as client,
        Journal.open(path, IDENTITY) as journal,
    ):
        running = asyncio.create_task(
            RunEngine(
                client,
                Prompts(),
                journal=journal,
                sink=sink,
                encode=JSONL.encode,
                policy=RunPolicy(
                    retry_failed=session.retry_failed,
                    ambiguous="hold" if session.hold else "retry",
                    deduplicate=session.deduplicate,
                ),
                health=HealthPolicy(max_failure_share=1.0),
                stop=stop,
            ).run()
        )
        with suppress(asyncio.CancelledError):
            await running
    if killed.exists():  # the disk is as it was at the kill
        shutil.rmtree(path.parent)
        killed.rename(path.parent)
    return sink.text


def check(index, content, kind, message):
    """One of an answer and a failure, and that of this very entry."""
    assert (content is None) != (kind is None)
    if content is not None:
        assert content == PROMPTS[index].upper()
    elif kind == "BadRequestError":
        assert f"no {PROMPTS[index]}" in message
    else:
        assert kind == "PossiblyBilled"


def check_lines(text):
    for record in map(json.loads, text.splitlines()):
        response, error = record["response"] or {}, record["error"] or {}
        check(record["index"], response.get("content"), error.get("type"), error.get("message"))


def check_exports(path):
    with JournalReader.open(path) as journal:
        rows = list(journal.records())
    assert len({row.index for row in rows}) == len(rows)
    check_lines(b"".join(map(JSONL.encode, rows)))
    table = CSV
    text = (table.header(()) + b"".join(map(table.encode, rows))).decode()
    for cells in csv.DictReader(io.StringIO(text, newline=""), strict=True):
        check(int(cells["index"]), cells["content"] or None, cells["error_type"] or None, cells["error_message"])
    for line in map(OPENAI_BATCH.encode, rows):
        record = json.loads(line)
        index, body = int(record["id"].removeprefix("batch_req_")), (record["response"] or {}).get("body", {})
        error = body.get("error") or {}
        choices = body.get("choices")
        content = choices[0]["message"]["content"] if choices else None
        kind = error.get("type") or (record["error"] or {}).get("code")
        check(index, content, kind, error.get("message"))


@settings(max_examples=30)
@given(st.lists(SESSIONS, min_size=1, max_size=4))
def test_every_exported_line_is_the_answer_or_the_failure_of_its_own_entry(sessions: list[RunSession]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run" / "out.journal"
        path.parent.mkdir()
        for session in sessions:
            check_lines(asyncio.run(sit(path, session)))
            check_exports(path)
        last = RunSession(frozenset("abcd"), True, False, True, "input", 0, 2)
        asyncio.run(sit(path, last))
        with JournalReader.open(path) as journal:
            assert (journal.counts().answered, journal.counts().failed) == (len(PROMPTS), 0)
