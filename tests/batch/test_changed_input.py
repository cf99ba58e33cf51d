"""A run whose input has changed since its journal was written: what is new is sent, what was answered is kept."""

import asyncio
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onellm_async import AsyncOneLLM, Limits
from onellm_async.batch import JournalReader
from onellm_async.batch.config import RunConfig
from onellm_async.batch.earlier_sessions import earlier_sessions
from onellm_async.batch.inputs import sources
from onellm_async.batch.inputs.sources import open_source
from onellm_async.batch.journal import changed_input, disk_reserve
from onellm_async.batch.work_list import WorkList
from onellm_async.errors import BatchError
from onellm_async.testing import FakeTransport, failure


class Service:
    """Answers with the prompt and a number, so that each answer is told from every other; ``bad`` fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.healed = False
        self.at_tenth: Callable[[], object] = lambda: None

    def transport(self) -> FakeTransport:
        return FakeTransport(self._reply_to)

    def _reply_to(self, request):
        if request.prompt.startswith("bad") and not self.healed:
            return failure(422, "no")
        self.asked.append(request.prompt)
        if len(self.asked) == 10:
            self.at_tenth()
        usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
        return {"content": f"{request.prompt} #{len(self.asked)}", "usage": usage}


class Run:
    """Sessions of one run in a folder, with what the last one said."""

    def __init__(self, folder: Path, name: str = "in.jsonl") -> None:
        self.folder, self.source, self.output = folder, folder / name, folder / "out.jsonl"
        self.service = Service()
        self.said: list[str] = []

    async def __call__(self, source=None, **options):
        self.service.asked.clear()
        self.said.clear()
        options = {"model": "GPT-5", "max_tokens": 5, "max_failure_share": 1.0} | options
        limits = Limits.unlimited(max_concurrency=8)
        async with AsyncOneLLM(transport=self.service.transport(), limits=limits) as client:
            return await client.run(
                self.source if source is None else source, self.output, on_message=self.said.append, **options
            )

    async def planned(self, deduplicate: bool) -> int:
        """How many requests a plan of the next session has."""
        options = {"max_tokens": 5, "deduplicate": deduplicate, "accept_removed": True}
        config = RunConfig.from_options(
            self.output, "GPT-5", options, limits=Limits(), base_url=None, dialect="documented", endpoints={}
        )
        async with open_source(str(self.source), defaults=config.defaults) as source:
            identity = config.identity(source, source.scan())
            with earlier_sessions(source, identity, config, self.said.append) as earlier:
                work = WorkList(source, config.policy, earlier=earlier)
                return len([request async for request in work])

    def write(self, *records) -> None:
        lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
        self.source.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    @property
    def records(self) -> list[dict[str, object]]:
        return list(map(json.loads, self.output.read_text("utf-8").splitlines()))

    @property
    def contents(self) -> list[str | None]:
        return [record["response"] and record["response"]["content"] for record in self.records]

    @property
    def prompts(self) -> list[str]:
        """The prompts whose answers the output has, in its order."""
        return [str(content).split(" #")[0] for content in self.contents]

    def journal(self) -> JournalReader:
        return JournalReader.open(self.output)


@pytest.fixture(autouse=True, scope="module")
def _small_reserve():
    """The disk is not the subject, and a reserve takes longer than a session."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk_reserve, "_BYTES", 1)
        yield


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def named(*names: str, **fields: object) -> list[dict[str, object]]:
    return [{"custom_id": name, "prompt": f"p {name}", **fields} for name in names]


async def test_appended_prompts_alone_are_sent_and_that_is_said_before(run: Run) -> None:
    run.write(*({"prompt": f"p {number}"} for number in range(100)))
    assert (await run()).complete
    before = run.contents
    run.write(*({"prompt": f"p {number}"} for number in range(101)))
    report = await run()
    assert run.service.asked == ["p 100"]
    assert run.contents[:100] == before
    assert run.said[0] == "The input has changed: 1 of 101 prompts is new; 100 keep their answers."
    assert run.said[1].startswith("Resuming: 100 answered, 0 failed, 0 possibly billed, 1 remaining.")
    assert (report.complete, report.counts.answered, report.progress.total) == (True, 101, 101)
    with run.journal() as journal:
        assert (journal.complete, journal.counts().answered, journal.identity.lines) == (True, 101, 101)
    again = await run()
    assert again.already_complete


async def test_a_bad_line_that_was_fixed_is_the_only_one_sent(run: Run) -> None:
    run.write({"prompt": "a"}, '{"prompt": "b"', {"prompt": "c"})
    assert (await run()).bad_lines == 1
    run.write({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    report = await run()
    assert (run.service.asked, run.prompts) == (["b"], ["a", "b", "c"])
    assert "1 of 3 prompts is new; 2 keep their answers." in run.said[0]
    with run.journal() as journal:
        assert journal.bad_line_count() == 0
    assert (report.bad_lines, report.complete) == (0, True)


@pytest.mark.parametrize("ids", [True, False])
async def test_a_line_inserted_in_the_middle_is_the_only_one_sent(run: Run, ids: bool) -> None:
    records = named("a", "b", "c", "d") if ids else [{"prompt": name} for name in "abcd"]
    run.write(*records)
    await run()
    before = run.contents
    new = {"custom_id": "new", "prompt": "p new"} if ids else {"prompt": "new"}
    run.write(*records[:2], new, *records[2:])
    await run()
    assert run.service.asked == [new["prompt"]]
    assert [*run.contents[:2], *run.contents[3:]] == before
    assert [record["index"] for record in run.records] == [0, 1, 2, 3, 4]
    if ids:
        assert [record["custom_id"] for record in run.records] == ["a", "b", "new", "c", "d"]


async def test_a_new_order_is_the_order_of_the_output_and_costs_nothing(run: Run) -> None:
    run.write(*named("a", "b", "c"))
    report = await run()
    before = {record["custom_id"]: record["response"] for record in run.records}
    run.write(*named("c", "a", "b"))
    again = await run()
    assert run.service.asked == []
    assert [(record["custom_id"], record["response"]) for record in run.records] == [
        (id_, before[id_]) for id_ in "cab"
    ]
    assert again.counts == report.counts
    assert run.said[0] == "The input has changed: 0 of 3 prompts are new; 3 keep their answers."


async def test_a_changed_prompt_under_its_old_id_is_sent(run: Run) -> None:
    run.write(*named("a", "b", "c"))
    first = await run()
    run.write(*named("a"), {"custom_id": "b", "prompt": "other"}, *named("c"))
    report = await run(max_cost=1.0)
    assert (run.service.asked, run.prompts) == (["other"], ["p a", "other", "p c"])
    assert "1 answer leaves the output and stays in the journal, as its prompt is gone." in run.said[0]
    assert report.counts.answered == 3
    assert report.counts.cost == pytest.approx(first.counts.cost * 4 / 3), "what was paid for stays in the totals"
    run.write(*named("a", "b", "c"))
    last = await run()
    assert run.service.asked == [], "an answer that was set aside comes back"
    assert (last.counts.cost, last.counts.answered) == (report.counts.cost, 3)


async def test_a_shorter_input_replaces_no_output_unless_that_is_meant(run: Run) -> None:
    run.write(*named("a", "b", "c", "d"))
    await run()
    before = run.output.read_bytes()
    run.write(*named("a", "c", "d"))
    with pytest.raises(BatchError, match=r"shorter.*it had 4 lines and has 3.*accept_removed=True"):
        await run()
    assert run.output.read_bytes() == before
    assert (await run(accept_removed=True)).complete
    assert (run.service.asked, run.prompts) == ([], ["p a", "p c", "p d"])
    with run.journal() as journal:
        assert journal.counts().answered == 3
        assert len(list(journal.records())) == 3


def _cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_PIECE", 64)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(""),
        lambda path: _cut(path, path.stat().st_size * 9 // 10 - 5),
        lambda path: path.write_text("a long line instead " * 1000),
    ],
    ids=["emptied", "cut within a line", "fewer and longer lines"],
)
async def test_a_file_that_becomes_shorter_while_it_is_read_is_not_complete(
    run: Run, change: Callable[[Path], object], samples: int
) -> None:
    run = Run(run.folder, "in.txt")
    prompts = [f"prompt {number}" for number in range(200)]
    run.write(*prompts)
    run.output.write_text("before")
    run.service.at_tenth = lambda: change(run.source)
    report = await run(samples=samples, force=True)
    assert not report.complete
    assert re.fullmatch(
        r".*in\.txt became shorter while it was read: 200 entries were counted in it, and 1?\d\d were read\. "
        r"Write the whole file and run the same command again\.",
        str(report.stopped_by),
    )
    assert report.counts.answered == len(run.service.asked) > 0
    assert run.output.read_text() == "before"


@pytest.mark.usefixtures("_small_pieces")
async def test_a_file_that_was_cut_within_a_line_is_continued_once_it_is_whole(run: Run) -> None:
    run = Run(run.folder, "in.txt")
    prompts = [f"prompt {number}" for number in range(200)]
    run.write(*prompts)
    whole = run.source.read_bytes()
    run.service.at_tenth = lambda: _cut(run.source, len(whole) * 9 // 10 - 5)
    assert not (await run()).complete
    asked = list(run.service.asked)
    assert set(asked) < set(prompts), "the half line is not sent"
    run.service.at_tenth = lambda: None
    run.source.write_bytes(whole)
    assert (await run()).complete
    assert (sorted(asked + run.service.asked), run.prompts) == (sorted(prompts), prompts)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize(("limit", "complete"), [(20, True), (190, False)])
async def test_a_limit_is_kept_within_a_file_that_becomes_shorter(run: Run, limit: int, complete: bool) -> None:
    run = Run(run.folder, "in.txt")
    run.write(*(f"prompt {number}" for number in range(200)))
    run.service.at_tenth = lambda: _cut(run.source, run.source.stat().st_size // 2)
    report = await run(limit=limit)
    assert (report.limit_reached, report.stopped_by is None) == (complete, complete)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("count", [200, 210])
async def test_a_file_that_is_rewritten_in_place_while_it_is_read_is_not_complete(run: Run, count: int) -> None:
    run = Run(run.folder, "in.txt")
    run.write(*(f"old {number:03}" for number in range(200)))
    run.output.write_text("before")
    new = [f"new {number:03}" for number in range(count)]
    run.service.at_tenth = lambda: _overwrite(run.source, "".join(f"{prompt}\n" for prompt in new).encode())
    report = await run(force=True)
    assert not report.complete
    assert "in.txt was rewritten while it was read" in str(report.stopped_by)
    assert run.output.read_text() == "before"
    before = set(run.service.asked)
    assert {prompt[:3] for prompt in before} == {"old", "new"}

    run.service.at_tenth = lambda: None
    assert (await run(accept_removed=True)).complete
    assert run.prompts == new
    assert before.isdisjoint(run.service.asked), "no answer is paid twice"


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("write", [os.utime, lambda path: _overwrite(path, path.read_bytes())])
async def test_a_file_that_is_written_as_it_was_is_complete(run: Run, write: Callable[[Path], object]) -> None:
    run = Run(run.folder, "in.txt")
    run.write(*(f"prompt {number}" for number in range(200)))
    run.service.at_tenth = lambda: write(run.source)
    assert (await run()).complete


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


@pytest.mark.usefixtures("_small_pieces")
async def test_lines_that_are_appended_while_a_file_is_read_are_sent(run: Run) -> None:
    run = Run(run.folder, "in.txt")
    prompts = [f"prompt {number}" for number in range(210)]
    run.write(*prompts[:200])
    run.service.at_tenth = lambda: run.write(*prompts)
    assert (await run()).complete
    assert run.prompts == prompts


@pytest.mark.parametrize("whole", [True, False], ids=["at the end", "interrupted"])
async def test_an_output_that_another_program_made_is_refused_until_it_is_moved_away(run: Run, whole: bool) -> None:
    run = Run(run.folder, "in.txt")
    prompts = [f"prompt {number}" for number in range(300)]
    run.write(*prompts)
    stop, foreign = asyncio.Event(), run.folder / "foreign"

    def intrude() -> None:
        run.output.write_text("theirs")
        if not whole:
            stop.set()

    run.service.at_tenth = intrude
    if whole:
        with pytest.raises(BatchError, match="came into being during the run"):
            await run()
    else:
        assert (await run(stop=stop)).interrupted
    asked = list(run.service.asked)
    partial = run.output.with_name("out.jsonl.partial").read_bytes()
    for _ in range(2):
        with pytest.raises(BatchError, match=r"came into being during the run.*Move it away and run.*export"):
            await run()
        assert (run.service.asked, run.output.read_text()) == ([], "theirs")
        assert run.output.with_name("out.jsonl.partial").read_bytes() == partial
    run.service.at_tenth = lambda: None
    run.output.rename(foreign)
    assert (await run()).complete
    assert (sorted(asked + run.service.asked), run.prompts) == (sorted(prompts), prompts)
    assert foreign.read_text() == "theirs"


async def test_an_output_of_an_earlier_session_is_replaced_after_one_that_was_interrupted(run: Run) -> None:
    names = [str(number) for number in range(300)]
    run.write(*named(*names[:2]))
    await run()
    run.write(*named(*names))
    stop = asyncio.Event()
    run.service.at_tenth = stop.set
    assert (await run(stop=stop)).interrupted
    assert run.prompts == ["p 0", "p 1"]
    assert (await run()).complete
    assert run.prompts == [f"p {name}" for name in names]


@pytest.mark.parametrize("linked", [True, False])
async def test_a_run_that_was_killed_when_its_output_had_its_place_is_completed(run: Run, linked: bool) -> None:
    run.write(*named("a", "b"))
    await run()
    before = run.output.read_bytes()
    with closing(sqlite3.connect(run.output.with_name("out.jsonl.journal"))) as connection, connection:
        connection.execute("UPDATE run SET complete = 0, output_bytes = NULL")
    if linked:
        run.output.with_name("out.jsonl.partial").hardlink_to(run.output)
    assert (await run()).complete
    assert (run.service.asked, run.output.read_bytes()) == ([], before)
    assert not run.output.with_name("out.jsonl.partial").exists()


async def test_another_input_altogether_is_another_run(run: Run) -> None:
    run.write(*named("a", "b", "c"))
    await run()
    run.write(*named("x", "y", "z", "c"))
    with pytest.raises(BatchError, match=r"belongs to another run.*lacks 2 of the 3 prompts that were answered"):
        await run()
    assert run.service.asked == []
    assert (await run(accept_removed=True)).counts.answered == 4


async def test_a_run_without_an_answer_binds_no_later_one(run: Run) -> None:
    run.write({"prompt": "bad"})
    assert (await run()).counts.failed == 1
    run.service.healed = True
    report = await run(model="GPT-5-Mini")
    assert (report.complete, run.prompts) == (True, ["bad"])


async def test_failures_keep_their_place_and_are_not_sent_again(run: Run) -> None:
    run.write({"prompt": "a"}, {"prompt": "bad"}, {"prompt": "b"})
    await run()
    run.write({"prompt": "bad"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    report = await run()
    assert (run.service.asked, report.counts.failed) == (["c"], 1)
    assert [record["error"] is not None for record in run.records] == [True, False, False, False]
    run.service.healed = True
    await run(retry_failed=True)
    assert (run.service.asked, run.prompts) == (["bad"], ["bad", "a", "b", "c"])


async def test_a_duplicate_inherits_the_answer_whose_first_place_is_gone(run: Run) -> None:
    run.write(*({"custom_id": name, "prompt": "same"} for name in "abc"), *named("d", "e"))
    first = await run(deduplicate=True)
    assert first.counts.deduplicated == 2
    run.write({"custom_id": "c", "prompt": "same"}, {"custom_id": "b", "prompt": "same"}, *named("d", "e", "f"))
    report = await run(deduplicate=True)
    assert run.service.asked == ["p f"]
    assert [record.get("copy_of") for record in run.records] == [None, 0, None, None, None]
    assert len(set(run.contents[:2])) == 1
    assert sum(record["response"]["cost"] for record in run.records) == pytest.approx(report.counts.cost)
    assert (report.counts.answered, report.counts.deduplicated) == (5, 1)


async def test_a_new_duplicate_copies_an_answer_that_stands_further_down(run: Run) -> None:
    run.write({"prompt": "a"}, "{", {"prompt": "b"})
    await run(deduplicate=True)
    run.write({"prompt": "a"}, {"prompt": "b"}, {"prompt": "b"})
    report = await run(deduplicate=True)
    assert (run.service.asked, run.prompts) == ([], ["a", "b", "b"])
    assert (report.counts.answered, report.counts.deduplicated) == (3, 1)


async def test_equal_requests_that_are_sampled_keep_one_answer_each(run: Run) -> None:
    run.write(*[{"prompt": "same"}] * 3)
    await run(deduplicate=False)
    before = run.contents
    run.write({"prompt": "first"}, *[{"prompt": "same"}] * 4)
    await run(deduplicate=False)
    assert sorted(run.service.asked) == ["first", "same"]
    assert run.contents[1:4] == before


async def test_each_sample_of_a_prompt_follows_it(run: Run) -> None:
    run.write({"prompt": "a"}, {"prompt": "b"})
    await run(samples=2)
    before = run.contents
    run.write({"prompt": "b"}, {"prompt": "new"}, {"prompt": "a"})
    report = await run(samples=2)
    assert run.service.asked == ["new", "new"]
    assert [*run.contents[4:], *run.contents[:2]] == before
    assert [(record["index"], record["sample"]) for record in run.records] == [(i, s) for i in range(3) for s in (1, 2)]
    assert run.said[0] == "The input has changed: 2 of 6 prompts are new; 4 keep their answers."
    run.write({"prompt": "b"}, {"prompt": "new"})
    with pytest.raises(BatchError, match="it had 3 lines and has 2"):
        await run(samples=2)
    assert report.complete


async def test_kept_fields_are_those_of_the_line_as_it_is_now(run: Run) -> None:
    run.write(*named("a", "b", note="old"))
    await run(keep=["note"])
    run.write(*named("a", note="old"), *named("b", note="new"), *named("c", note="newer"))
    await run(keep=["note"])
    assert (run.service.asked, [record["input"]["note"] for record in run.records]) == (
        ["p c"],
        ["old", "new", "newer"],
    )


async def test_files_tables_and_lists_follow_alike(run: Run, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    parts[0].write_text('{"prompt": "a"}\n{"prompt": "b"}\n', "utf-8")
    parts[1].write_text('{"prompt": "c"}\n', "utf-8")
    await run(parts)
    parts[0].write_text('{"prompt": "a"}\n{"prompt": "new"}\n{"prompt": "b"}\n', "utf-8")
    await run(parts)
    assert (run.service.asked, run.prompts) == (["new"], ["a", "new", "b", "c"])
    await run(["a", "new", "newer", "b", "c"])
    assert (run.service.asked, run.prompts) == (["newer"], ["a", "new", "newer", "b", "c"])
    await run(pyarrow.table({"prompt": ["c", "b", "newer", "new", "a", "last"]}))
    assert (run.service.asked, run.prompts) == (["last"], ["c", "b", "newer", "new", "a", "last"])


async def test_a_list_that_is_unchanged_says_nothing_of_changes(run: Run) -> None:
    await run(["a", "b", "c"], limit=2)
    await run(["a", "b", "c"])
    assert run.service.asked == ["c"]
    assert [text.split(":")[0] for text in run.said] == ["Resuming"]


async def test_a_generator_that_ends_early_replaces_no_output(run: Run) -> None:
    await run(prompt for prompt in ["a", "b", "c"])
    before = run.output.read_bytes()
    report = await run(prompt for prompt in ["a", "b"])
    assert "The input ended after 2 of the 3 prompts that it had." in str(report.stopped_by)
    assert "accept_removed=True" in str(report.stopped_by)
    assert run.output.read_bytes() == before
    assert (await run(prompt for prompt in ["a", "b", "c", "d"])).complete
    assert (run.service.asked, run.prompts) == (["d"], ["a", "b", "c", "d"])
    assert (await run(["a", "b"], accept_removed=True)).complete
    assert run.prompts == ["a", "b"]


async def test_a_crash_while_records_move_leaves_the_journal_as_it_was(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write(*named("a", "b", "c"))
    await run()
    place = run.output.with_name("out.jsonl.journal")

    def everything():
        with closing(sqlite3.connect(place)) as connection:
            return list(connection.iterdump())

    before = everything()
    run.write(*named("c", "new", "b", "a"))
    for name in ("write_ledger", "_folded"):
        with monkeypatch.context() as patched:
            patched.setattr(changed_input, name, _crash)
            with pytest.raises(ZeroDivisionError):
                await run()
        assert everything() == before
    await run()
    assert run.service.asked == ["p new"]


def _crash(*_: object) -> None:
    raise ZeroDivisionError


async def test_prompts_in_flight_of_a_killed_session_keep_their_risk_where_they_went(run: Run) -> None:
    run.write(*named("a", "b", "c"))
    await run(limit=2)
    place = run.output.with_name("out.jsonl.journal")
    with closing(sqlite3.connect(place)) as connection, connection:  # as if the second had been killed in flight
        connection.execute("DELETE FROM outcomes WHERE entry = 1")
        connection.execute("UPDATE intents SET possibly_billed = 1, reserved = 0.5 WHERE entry = 1")
        connection.execute("UPDATE totals SET answered = 1, in_flight = 1, at_risk = 0.5")
    run.write(*named("b", "a", "c", "d"))
    report = await run(limit=0)
    assert (report.counts.in_flight, report.counts.at_risk) == (1, 0.5)
    with run.journal() as journal:
        assert [(record.index, record.custom_id) for record in journal.possibly_billed(9)] == [(0, "b")]
    run.write(*named("a", "c", "d", "e"))
    report = await run()
    assert (report.counts.in_flight, report.counts.possibly_billed, report.counts.at_risk) == (0, 1, 0.5)


# Random edits.

prompts = st.sampled_from([f"p{number}" for number in range(6)])
edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "move", "repair", "spoil", "duplicate"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=5,
)


def edited(lines: list[tuple[str, str]], changes: list[tuple[str, int, int]], fresh: Counter[str]):
    """`lines` (id, prompt) after random edits; a prompt of ``?`` is a bad line."""
    lines = list(lines)
    for kind, place, other in changes:
        at = place % (len(lines) + 1)
        if kind == "insert" or not lines:
            fresh["n"] += 1
            lines.insert(at, (f"new{fresh['n']}", f"p{other}"))
            continue
        at = place % len(lines)
        good = sum(prompt != "?" for _, prompt in lines)
        if kind == "delete" and (good > 1 or lines[at][1] == "?"):
            del lines[at]
        elif kind == "move":
            lines.insert(other % len(lines), lines.pop(at))
        elif kind == "repair":
            lines[at] = (lines[at][0], f"p{other}")
        elif kind == "spoil" and good > 1:
            lines[at] = (lines[at][0], "?")
        elif kind == "duplicate":
            fresh["n"] += 1
            lines.append((f"new{fresh['n']}", lines[at][1]))
    return lines


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.lists(prompts, min_size=1, max_size=8),
    rounds=st.lists(edits, min_size=1, max_size=3),
    ids=st.booleans(),
    deduplicate=st.booleans(),
)
def test_any_edits_ask_what_was_never_answered_and_give_each_line_the_answer_of_its_request(
    tmp_path_factory: pytest.TempPathFactory, first, rounds, ids, deduplicate
) -> None:
    run, fresh = Run(tmp_path_factory.mktemp("edits")), Counter()
    lines = [(f"id{number}", prompt) for number, prompt in enumerate(first)]
    paid: Counter[str] = Counter()

    async def session(lines):
        def record(name: str, prompt: str):
            return {"other": 1} if prompt == "?" else {**({"custom_id": name} if ids else {}), "prompt": prompt}

        run.write(*(record(*line) for line in lines))
        planned = await run.planned(deduplicate)
        report = await run(accept_removed=True, deduplicate=deduplicate)
        assert report.complete
        assert planned == len(run.service.asked)
        good = [(index, name, prompt) for index, (name, prompt) in enumerate(lines) if prompt != "?"]
        wanted = Counter(prompt for _, _, prompt in good)
        for prompt, number in Counter(run.service.asked).items():
            assert number <= (1 if deduplicate else wanted[prompt]) - min(paid[prompt], wanted[prompt]), prompt
        paid.update(run.service.asked)
        assert run.prompts == [prompt for *_, prompt in good]
        assert [record["index"] for record in run.records] == [index for index, *_ in good]
        if ids:
            assert [record["custom_id"] for record in run.records] == [name for _, name, _ in good]
        assert report.counts.answered == len(good)
        assert report.counts.input_tokens == paid.total(), "all that was paid for, once"
        with run.journal() as journal:
            assert journal.counts() == report.counts

    async def sessions():
        nonlocal lines
        await session(lines)
        for changes in rounds:
            lines = edited(lines, changes, fresh)
            await session(lines)

    asyncio.run(sessions())
