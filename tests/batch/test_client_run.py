"""`AsyncOneLLM.run` does from Python what the command does."""

import asyncio
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onellm_async import AsyncOneLLM, InvalidRequestError, Limits, OneLLMError, RateState, RetryPolicy
from onellm_async.batch import JournalReader
from onellm_async.batch.journal.commands import Command, send_command
from onellm_async.batch.journal.writer import GroupCommit
from onellm_async.errors import BatchError, ConfigurationError
from onellm_async.server import Faults, LocalServer, ServerSettings

QUICK = Limits(requests_per_minute=60_000, burst=1000)


def server(**faults: object) -> LocalServer:
    return LocalServer(ServerSettings(requests_per_minute=60_000, burst=1000, faults=Faults(**faults)))


def client(local: LocalServer, **options: object) -> AsyncOneLLM:
    return AsyncOneLLM("k", base_url=local.url, limits=QUICK, **options)


def answers(path: Path) -> list[str]:
    return [json.loads(line)["response"]["content"] for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text("name,city\n" + "".join(f"name {n},city {n}\n" for n in range(40)), "utf-8")
    return path


async def test_a_file_with_template_and_cap_is_answered_in_its_order(people: Path, tmp_path: Path) -> None:
    output, seen = tmp_path / "letters.jsonl", []
    async with server() as local, client(local) as one:
        report = await one.run(
            people, output, template="Write to {{ name }}.", max_cost=5, max_tokens=300, on_progress=seen.append
        )
    assert report.complete
    assert report.counts.answered == 40
    assert answers(output) == [f"Write to name {n}." for n in range(40)]
    assert seen[-1].completed == 40


async def test_it_writes_what_the_command_writes(people: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    async with server() as local:
        async with client(local) as one:
            await one.run(people, ours, model="GPT-5", template="Greet {{ name }}.", max_tokens=50, temperature=0.5)
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onellm_async", "run", str(people), "-o", str(theirs), "-m", "GPT-5"),
            *("--template", "Greet {{ name }}.", "--max-tokens", "50", "--temperature", "0.5", "--rpm", "60000"),
            env={"ONELLM_API_KEY": "k", "ONELLM_BASE_URL": local.url, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await command.wait() == 0
        assert ours.read_bytes() == theirs.read_bytes()
        identities = []
        for output in (ours, theirs):
            with JournalReader.open(Path(f"{output}.journal")) as journal:
                identities.append(journal.identity)
        assert not identities[0].differences(identities[1])
        async with client(local) as one:
            resumed = await one.run(
                people, theirs, model="GPT-5", template="Greet {{ name }}.", max_tokens=50, temperature=0.5
            )
        assert resumed.complete
        assert local.ledger.billed == 80, "the run of the command is not asked again"


async def test_a_run_that_was_stopped_goes_on_where_it_ended(tmp_path: Path) -> None:
    source, output, stop = tmp_path / "in.txt", tmp_path / "out.jsonl", asyncio.Event()
    source.write_text("".join(f"p {n}\n" for n in range(60)), "utf-8")
    async with server(latency=0.4) as local, client(local) as one:
        asyncio.get_running_loop().call_later(0.1, stop.set)
        first = await one.run(source, output, stop=stop)
        assert not first.complete
        assert first.interrupted
        assert not output.exists()
        second = await one.run(source, output)
        assert second.complete
        assert local.ledger.billed == 60
    assert answers(output) == [f"p {n}" for n in range(60)]


async def test_the_first_entries_alone_are_a_run_that_the_next_call_completes(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    prompts = [f"p {n}" for n in range(20)]
    async with server() as local, client(local) as one:
        first = await one.run(prompts, output, limit=5)
        assert (first.complete, first.counts.answered) == (False, 5)
        assert (await one.run(prompts, output)).complete
        assert local.ledger.billed == 20
    assert answers(output) == prompts


@pytest.mark.parametrize("kind", ["list", "generator", "async generator", "named"])
async def test_prompts_in_memory_are_a_source(kind: str, tmp_path: Path) -> None:
    prompts = [f"p {n}" for n in range(10)]

    async def slowly():
        for prompt in prompts:
            yield prompt

    sources = {
        "list": prompts,
        "generator": (prompt for prompt in prompts),
        "async generator": slowly(),
        "named": [(f"id {n}", prompt) for n, prompt in enumerate(prompts)],
    }
    output = tmp_path / "out.jsonl"
    async with server() as local, client(local) as one:
        assert (await one.run(sources[kind], output)).complete
    assert answers(output) == prompts
    ids = [json.loads(line).get("custom_id") for line in output.read_text("utf-8").splitlines()]
    assert ids == ([f"id {n}" for n in range(10)] if kind == "named" else [None] * 10)


async def test_hold_never_sends_twice_what_may_have_been_billed(tmp_path: Path) -> None:
    source = tmp_path / "one.txt"
    source.write_text("one prompt\n", "utf-8")
    async with server(reset_after_rate=1.0) as local:
        async with client(local, retry=RetryPolicy(ambiguous="retry")) as one:
            report = await one.run(source, tmp_path / "hold.jsonl", ambiguous="hold")
        assert local.ledger.billed == 1
    assert not report.complete or report.counts.failed == 1


async def test_a_hook_of_a_run_is_gone_when_the_run_is(tmp_path: Path) -> None:
    async with server() as local, client(local) as one:
        await one.run(["a"], tmp_path / "out.jsonl")
        assert one._sender._hooks == ()


async def test_a_progress_callback_that_raises_ends_no_run(tmp_path: Path) -> None:
    async with server() as local, client(local) as one:
        report = await one.run(["a", "b"], tmp_path / "out.jsonl", on_progress=lambda progress: 1 / 0)
    assert report.complete


async def test_what_a_callback_raises_is_logged_once_and_then_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["a", *[""] * 4]
    async with server() as local, client(local) as one:
        await one.run(prompts, tmp_path / "out.jsonl", on_bad_line=lambda error: 1 / 0)
    first, last = caplog.records
    assert (first.getMessage(), bool(first.exc_info)) == ("on_bad_line raised; the run continues.", True)
    assert last.getMessage() == "on_bad_line raised 4 times in this run; the first is logged above."
    assert not last.exc_info


async def test_what_cannot_be_run_is_refused_by_name_and_unsent(people: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    async with server() as local, client(local) as one:
        with pytest.raises(InvalidRequestError, match="run has no option 'max_price'"):
            await one.run(people, output, max_price=3)  # type: ignore[call-arg]
        with pytest.raises(InvalidRequestError, match="field says how a file is read"):
            await one.run(["a"], output, field="question")
        with pytest.raises(BatchError, match="is the input itself"):
            await one.run(people, people, template="{{ name }}")
        with pytest.raises(InvalidRequestError, match="max_tokens"):
            await one.run(["a"], output, max_cost=1)
        assert local.ledger.billed == 0
    assert not output.exists()


async def test_a_run_of_400_is_answered_by_a_service_with_four_places_in_its_database(tmp_path: Path) -> None:
    settings = ServerSettings(
        dialect="backend",
        requests_per_minute=60_000,
        burst=1000,
        faults=Faults(latency=0.03, database_places=4, database_wait=0.1),
    )
    output = tmp_path / "out.jsonl"
    async with LocalServer(settings) as local, client(local, dialect="backend") as one:
        report = await one.run([f"p {n}" for n in range(400)], output, model="GPT-5-Mini")
        assert local.ledger.billed == 400
    assert report.complete
    assert (report.counts.answered, report.counts.failed) == (400, 0)
    assert answers(output) == [f"p {n}" for n in range(400)]


@pytest.mark.parametrize("left", [0, 100])
async def test_an_output_that_was_cut_is_written_again_without_asking(tmp_path: Path, left: int) -> None:
    output, prompts = tmp_path / "out.jsonl", tmp_path / "in.txt"
    prompts.write_text("".join(f"p {n}\n" for n in range(5)), "utf-8")
    async with server() as local, client(local) as one:
        await one.run(prompts, output)
        before = output.read_bytes()
        assert (await one.run(prompts, output)).already_complete
        output.write_bytes(before[:left])
        assert (await one.run(prompts, output)).complete
        assert local.ledger.billed == 5
    assert output.read_bytes() == before


async def test_the_estimate_after_the_first_prompts_knows_what_would_not_be_sent(
    tmp_path: Path,
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    lines = [*(f"p {n}" for n in range(60)), *["the same"] * 40]
    source.write_text("\n".join(lines), "utf-8")
    async with server() as local, client(local) as one:
        await one.run(source, output, limit=24, deduplicate=True)
        first = await one.run(source, output, limit=10, deduplicate=True)
        assert first.limit_reached
        assert local.ledger.billed == 24
        estimate = first.estimate
        assert estimate is not None
        assert (estimate.based_on, estimate.left, estimate.requests) == (10, 76, 37)
        assert estimate.cost is not None
        before = first.counts.cost
        rest = await one.run(source, output, deduplicate=True)
    assert rest.complete
    assert rest.estimate is None
    assert local.ledger.billed == 61
    assert estimate.cost.expected == pytest.approx(rest.counts.cost - before, rel=0.2)


class Lines:
    def __init__(self) -> None:
        self.text = b""

    async def write(self, lines: bytes) -> None:
        self.text += lines


async def test_lines_go_to_an_object_with_an_async_write_and_a_journal_resumes_it(tmp_path: Path) -> None:
    prompts, journal = [("a", "one"), ("b", "two")], tmp_path / "run.journal"
    async with server() as local, client(local) as one:
        first, again, unjournaled = Lines(), Lines(), Lines()
        assert (await one.run(prompts, first, journal=journal)).complete
        assert (await one.run(prompts, again, journal=journal)).complete
        assert local.ledger.billed == 2
        assert (await one.run(prompts, unjournaled)).complete
        assert local.ledger.billed == 4
    assert first.text == again.text == unjournaled.text
    assert [json.loads(line)["custom_id"] for line in first.text.splitlines()] == ["a", "b"]


@pytest.mark.parametrize("shape", ["csv", "tsv"])
async def test_an_object_is_given_the_header_and_the_columns_that_a_file_has(
    shape: str, people: Path, tmp_path: Path
) -> None:
    options = {"template": "Greet {{ name }}.", "output_format": shape, "keep": ["city"], "limit": 3}
    file, journal = tmp_path / f"answers.{shape}", tmp_path / "run.journal"
    async with server() as local, client(local) as one:
        await one.run(people, file, **options)
        once, first, again = Lines(), Lines(), Lines()
        await one.run(people, once, **options)
        await one.run(people, first, journal=journal, **options)
        await one.run(people, again, journal=journal, **options)
    partial = file.with_name(file.name + ".partial").read_bytes()
    assert once.text.splitlines()[0].startswith(b"index")
    assert once.text.splitlines()[0].endswith(b"city")
    assert first.text == again.text
    for text in (once.text, first.text, partial):
        assert len(text.splitlines()) == 4
        assert text.splitlines()[0] == once.text.splitlines()[0]


async def test_a_header_that_cannot_be_written_ends_the_run_with_a_report() -> None:
    class Gone:
        async def write(self, lines: bytes) -> None:
            raise ConnectionResetError("gone")

    async with server(latency=0.2) as local, client(local) as one:
        report = await one.run([f"q{n}" for n in range(200)], Gone(), output_format="csv")
    assert "The output cannot be written" in str(report.stopped_by)
    assert local.ledger.billed < 200


@pytest.mark.parametrize("journal", [None, "run.journal"])
@pytest.mark.parametrize("stream", [Lines(), "-"])
async def test_parquet_for_a_stream_is_refused_before_anything_is_sent(
    stream: "Lines | str", journal: str | None, tmp_path: Path
) -> None:
    options = {} if journal is None or stream == "-" else {"journal": tmp_path / journal}
    async with server() as local, client(local) as one:
        with pytest.raises(ConfigurationError, match="output_format is 'parquet'; a stream cannot hold it"):
            await one.run(["a"], stream, output_format="parquet", **options)
        assert local.ledger.billed == 0


async def test_a_journal_that_cannot_record_its_end_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: GroupCommit) -> None:
        raise BatchError("out.jsonl.journal cannot grow: the disk is full.")

    output = tmp_path / "out.jsonl"
    async with server() as local, client(local) as one:
        with monkeypatch.context() as patched:
            patched.setattr(GroupCommit, "_raise_unreported", refuse)
            report = await one.run(["a", "b"], output)
        assert (report.complete, report.counts.answered) == (False, 2)
        assert "the disk is full" in str(report.stopped_by)
        assert (await one.run(["a", "b"], output)).complete
        assert local.ledger.billed == 2


async def test_a_model_of_the_environment_is_that_of_the_command_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONELLM_MODEL", "Haiku-3.5")
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("Hi\n", "utf-8")
    async with server() as local:
        monkeypatch.setenv("ONELLM_BASE_URL", local.url)
        monkeypatch.setenv("ONELLM_API_KEY", "k")
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onellm_async", "run", str(source), "-o", str(output))
        )
        assert await command.wait() == 0
        async with client(local) as one:
            with pytest.raises(BatchError, match=r"the fallback model was Haiku-3\.5 and is now GPT-5-Nano"):
                await one.run(source, output)
            assert (await one.run(source, output, fallback_model="Haiku-3.5")).already_complete
        assert local.ledger.billed == 1


async def test_a_journal_without_a_file_for_the_answers_is_refused(tmp_path: Path) -> None:
    async with server() as local, client(local) as one:
        with pytest.raises(ConfigurationError, match="A journal needs an output"):
            await one.run(["a"], "-", journal=tmp_path / "run.journal")
        assert local.ledger.billed == 0


async def test_a_run_says_that_it_resumes_and_starts_from_the_rate_that_was_discovered(tmp_path: Path) -> None:
    source, output, said = tmp_path / "in.txt", tmp_path / "out.jsonl", []
    source.write_text("".join(f"p {n}\n" for n in range(6)), "utf-8")
    state = RateState(rate=200.0, burst=10.0)
    async with server() as local:
        automatic = {"base_url": local.url, "limits": Limits(requests_per_minute="auto")}
        async with AsyncOneLLM("k", **automatic, rate_state=state) as one:
            await one.run(source, output, limit=3)
        async with AsyncOneLLM("k", **automatic) as one:
            report = await one.run(source, output, on_message=said.append)
            assert one.rate_state is not None
            assert one.rate_state.rate == pytest.approx(state.rate, rel=0.5)
    assert report.complete
    assert said[0].startswith("Resuming: 3 answered, 0 failed, 0 possibly billed, 3 remaining. Spent: $")


async def test_opening_a_pipe_whose_writer_never_comes_ends_with_stop(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    stop = asyncio.Event()
    async with server() as local, client(local) as one:
        asyncio.get_running_loop().call_later(0.1, stop.set)
        report = await one.run(tmp_path / "pipe", tmp_path / "out.jsonl", stop=stop)
    assert report.interrupted
    os.close(os.open(tmp_path / "pipe", os.O_WRONLY))  # ends the thread that opens it


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"template": 5}, "template is 5; it must be a string."),
        ({"force": "no"}, "force is 'no'; it must be a bool."),
        ({"journal": 5}, "journal is 5; it must be a path."),
        ({"cache": [5]}, r"cache is \[5\]; it must be a sequence of paths."),
        ({"cache": 5}, "cache is 5; it must be a sequence of paths."),
        ({"limit": "5"}, r"limit|first"),
        ({"output_format": "xml"}, "output format is 'xml'"),
        ({"max_failure_share": 2}, "max_failure_share is 2"),
    ],
)
async def test_an_option_of_another_kind_is_refused_by_its_name(tmp_path: Path, options: dict, named: str) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    async with server() as local, client(local) as one:
        with pytest.raises(OneLLMError, match=named):
            await one.run(tmp_path / "in.txt", tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl.journal").exists()


@pytest.mark.parametrize("output", [5, None, io.BytesIO()])
async def test_an_output_that_cannot_be_awaited_is_refused_before_anything_is_sent(output: object) -> None:
    async with server() as local, client(local) as one:
        with pytest.raises(ConfigurationError, match=r"output is .*; it must be a path"):
            await one.run(["one"], output)  # type: ignore[arg-type]
        assert local.ledger.billed == 0


async def test_an_output_that_raises_stops_the_run_and_the_answers_in_flight_are_kept(tmp_path: Path) -> None:
    class Broken:
        async def write(self, lines: bytes) -> None:
            raise ZeroDivisionError

    async with server(latency=0.2) as local, client(local) as one:
        report = await one.run([f"p {n}" for n in range(100)], Broken(), journal=tmp_path / "run.journal")
    assert str(report.stopped_by) == "The output cannot be written: ZeroDivisionError()."
    assert (report.counts.answered, report.counts.in_flight) == (local.ledger.billed, 0)


async def test_a_source_that_raises_stops_the_run_gracefully_and_it_can_be_resumed(tmp_path: Path) -> None:
    def prompts() -> Iterator[str]:
        yield from ("one", "two", "three")
        raise ZeroDivisionError

    async with server(latency=0.1) as local, client(local) as one:
        report = await one.run(prompts(), tmp_path / "out.jsonl")
        assert str(report.stopped_by) == "The input cannot be read any further: ZeroDivisionError()."
        assert isinstance(report.stopped_by.__cause__, ZeroDivisionError)
        assert not report.complete
        assert report.counts.in_flight == 0
        assert report.counts.answered == local.ledger.billed
        again = await one.run(["one", "two", "three", "four"], tmp_path / "out.jsonl")
    assert again.complete
    assert local.ledger.billed == 4


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_what_commands_changed_in_the_client_ends_with_the_run(tmp_path: Path) -> None:
    source, output, stop = tmp_path / "in.txt", tmp_path / "out.jsonl", asyncio.Event()
    source.write_text("".join(f"prompt {n}\n" for n in range(5000)), "utf-8")
    async with server(latency=0.3) as local, client(local) as one:
        limits = one.limits
        run = asyncio.create_task(one.run(source, output, stop=stop))
        await until(lambda: one.snapshot().answered > 0)
        send_command(output, Command("retune", {"max_concurrency": 2}))
        await until(lambda: one.limits.max_concurrency == 2)
        send_command(output, Command("pause"))
        await until(lambda: one.snapshot().paused)
        stop.set()
        assert (await run).interrupted
        assert not one.snapshot().paused
        assert one.limits == limits
        assert await one.chat("Hello?", model="GPT-5", deadline=20)


@pytest.mark.parametrize("stop", ["END", threading.Event()], ids=["text", "thread"])
async def test_a_stop_that_is_no_event_of_asyncio_is_refused(tmp_path: Path, stop: object) -> None:
    async with server() as local, client(local) as one:
        with pytest.raises(ConfigurationError, match=r"stop is .*; it must be an asyncio\.Event"):
            await one.run(["a"], tmp_path / "out.jsonl", stop=stop)
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240


@pytest.mark.parametrize("output", ["", ".", "/"])
async def test_an_output_without_a_name_is_refused(output: str) -> None:
    async with server() as local, client(local) as one:
        with pytest.raises(BatchError, match="is no name of a file"):
            await one.run(["a"], output)
