import asyncio
import csv
import io
import json

import pytest

from onellm_async.batch import Journal, JournalReader, RunIdentity
from onellm_async.cli import main

FAST = ("--rpm", 60_000, "--burst", 1000)


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
async def running(start, at, prompts, backend, journal_has):
    """A run at work, with p8 and p9 under way and everything else answered and counted in a sample."""
    backend.held = {"p8", "p9"}
    command = await start("run", "in.txt", "-o", "out.jsonl", "--max-tokens", 10, *FAST, **at)
    await journal_has("out.jsonl", lambda journal: journal.counts().answered == 8 and journal.latest_sample())
    return command


@pytest.fixture
def status(onellm):
    async def status(*arguments):
        return json.loads((await onellm("status", "out.jsonl", "--json", *arguments)).out)

    return status


async def test_status_tells_how_a_running_run_stands(running, onellm, status, backend):
    ended = await onellm("status", "out.jsonl")
    lines = ended.out.splitlines()

    assert (ended.code, ended.err) == (1, "")
    assert lines[0] == "in.txt: running, 8 of 10 completed in 1 session"
    assert "  answered         8" in lines
    assert "  failed           0" in lines
    assert "  in flight        2" in lines
    assert any(line.startswith("  rate             ") and " of 1000.0 requests/s" in line for line in lines)
    found = await status()
    assert (found["state"], found["end_reason"], found["lines"], found["sessions"]) == ("running", None, 10, 1)
    assert (found["counts"]["answered"], found["counts"]["in_flight"]) == (8, 2)
    assert found["sample"]["snapshot"]["max_concurrency"] == 48


async def test_status_of_a_complete_run_and_of_its_journal(running, onellm, status, backend):
    await backend.release()
    assert (await running.ended()).code == 0
    ended = await onellm("status", "out.jsonl.journal")

    assert ended.code == 0
    assert ended.out.startswith("in.txt: complete, 10 of 10 completed in 1 session\n")
    assert "  in flight        0\n" in ended.out
    assert (await status())["state"] == "complete"


async def test_status_of_a_killed_run_says_what_may_be_billed_and_how_to_go_on(running, onellm, status, backend):
    await running.killed()
    ended = await onellm("status", "out.jsonl")

    assert ended.code == 1
    assert ended.out.startswith("in.txt: interrupted, 8 of 10 completed in 1 session\n")
    assert "  in flight        0\n  possibly billed  2 (2 in flight at its end), " in ended.out
    assert "at most $" in ended.out  # --max-tokens bounds it
    assert (await status())["counts"]["at_risk"] > 0
    assert "  ended            killed. Run its `run` command again to resume." in ended.out
    assert (await status())["state"] == "interrupted"


async def test_stop_ends_a_run_in_good_order_with_the_exit_code_of_an_interrupted_one(
    start, onellm, at, prompts, backend, journal_has
):
    backend.held = {"p0"}
    command = await start("run", "in.txt", "-o", "out.jsonl", "--concurrency", 1, *FAST, **at)
    await backend.until_asked(1)
    await journal_has("out.jsonl", lambda journal: journal.counts().in_flight == 1)
    asked = await onellm("stop", "out.jsonl")
    assert (asked.code, asked.out) == (0, "")
    assert asked.err == "Stopping. Requests in flight finish. Run its `run` command again to resume.\n"
    await journal_has("out.jsonl", lambda journal: not journal.pending_commands())
    await backend.release()
    ended = await command.ended()

    assert ended.code == 130
    assert "From another terminal: stop." in ended.err
    assert "1 answered, 0 failed" in ended.err
    assert "not sent yet: 9 prompts." in ended.err
    assert "stopped by a signal or a command" in (await onellm("status", "out.jsonl")).out


async def test_a_paused_run_sends_nothing_until_it_is_resumed_and_keeps_to_new_limits(
    start, onellm, at, prompts, backend, status, journal_has, tmp_path
):
    backend.held = set(prompts)
    command = await start("run", "in.txt", "-o", "out.jsonl", "--concurrency", 2, *FAST, **at)
    await backend.until_asked(2)
    assert (await onellm("pause", "out.jsonl")).err == "Paused. Continue with `onellm-async resume out.jsonl`.\n"
    with JournalReader.open(tmp_path / "out.jsonl") as journal:
        assert journal.pending_commands() == []  # it is said when the run has the command
    await journal_has("out.jsonl", lambda journal: sampled(journal)["paused"])
    await backend.release()
    await journal_has("out.jsonl", lambda journal: journal.counts().answered == 2)
    assert "  bottleneck       pause; continue with `resume`" in (await onellm("status", "out.jsonl")).out

    retuned = await onellm("retune", "out.jsonl", "--rpm", 30_000, "--concurrency", 5)
    assert (retuned.code, retuned.err) == (0, "Limits updated: 30,000 requests per minute, at most 5 in flight.\n")
    await journal_has("out.jsonl", lambda journal: sampled(journal)["max_concurrency"] == 5)
    found = await status()
    assert found["sample"]["snapshot"]["declared_rate"] == 30_000
    assert found["counts"]["answered"] == len(backend.asked) == 2

    assert (await onellm("resume", "out.jsonl")).err == "Resumed.\n"
    ended = await command.ended()
    assert ended.code == 0, ended.err
    assert "From another terminal: retune." in ended.err
    assert len(backend.asked) == 10


@pytest.fixture
async def busy(tmp_path):
    """The journal of a run that reads no commands, as on a machine that is suspended."""
    identity = RunIdentity(input="in.txt", input_digest="aa", max_tokens=100)
    async with Journal.open(tmp_path / "out.jsonl.journal", identity) as journal:
        yield journal


async def test_a_command_that_a_run_does_not_read_is_told_so(busy, onellm):
    ended = await onellm("pause", "out.jsonl")
    assert ended.code == 0
    assert ended.err == "Sent. The run has not replied yet; `onellm-async status out.jsonl` shows its state.\n"


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [("pause", 2, "onellm-async: The run ended before it read the command."), ("stop", 0, "The run had ended before.")],
)
async def test_a_run_that_ends_before_it_reads_a_command_is_told_so(busy, onellm, journal_has, name, code, told):
    asking = asyncio.create_task(onellm(name, "out.jsonl"))
    await journal_has("out.jsonl", lambda journal: journal.pending_commands())
    await busy.aclose()
    ended = await asking
    assert (ended.code, ended.err) == (code, f"{told}\n")


def sampled(journal):
    sample = journal.latest_sample()
    return {"paused": False, "max_concurrency": 0} if sample is None else sample.sample["snapshot"]


async def test_export_writes_what_is_settled_while_the_run_is_at_work(running, onellm, tmp_path):
    ended = await onellm("export", "out.jsonl", "-o", "so-far.jsonl")
    assert (ended.code, ended.err) == (0, "10 records written to so-far.jsonl.\n")
    found = records((tmp_path / "so-far.jsonl").read_text())
    assert [record["response"]["content"] for record in found[:8]] == [f"p{number}" for number in range(8)]
    assert {record["error"]["type"] for record in found[8:]} == {"PossiblyBilled"}

    piped = await onellm("export", "out.jsonl.journal")
    assert piped.out == (tmp_path / "so-far.jsonl").read_text()


async def test_export_writes_any_format_and_the_same_bytes_as_the_run(running, onellm, backend, tmp_path):
    await backend.release()
    await running.ended()
    await onellm("export", "out.jsonl", "-o", "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()

    await onellm("export", "out.jsonl", "-o", "out.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["content"] for row in rows] == [f"p{number}" for number in range(10)]
    batch = records((await onellm("export", "out.jsonl", "--format", "openai-batch")).out)
    assert batch[3]["response"]["body"]["choices"][0]["message"]["content"] == "p3"


async def test_export_replaces_a_file_only_by_force(running, onellm, tmp_path):
    (tmp_path / "there.csv").write_text("precious")
    refused = await onellm("export", "out.jsonl", "-o", "there.csv")
    assert refused.code == 2
    assert "there.csv already exists. Move it away, or replace it with --force." in refused.err
    assert (tmp_path / "there.csv").read_text() == "precious"

    assert (await onellm("export", "out.jsonl", "-o", "there.csv", "--force")).code == 0
    assert (tmp_path / "there.csv").read_text().startswith("index,custom_id,sample,content")


@pytest.mark.parametrize("command", ["status", "pause", "resume", "stop", "export"])
def test_a_run_that_is_not_there_is_named(monkeypatch, tmp_path, capfd, command):
    monkeypatch.chdir(tmp_path)

    assert main([command, "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl.journal" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "pause", "export"])
def test_a_file_that_is_no_journal_is_refused(monkeypatch, tmp_path, capfd, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.journal").write_text("Dear diary,")

    assert main([command, "a.journal"]) == 2
    assert "a.journal is not a journal" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
async def test_a_run_that_nobody_works_on_cannot_be_controlled(running, onellm, backend, command):
    await backend.release()
    await running.ended()
    ended = await onellm(command, "out.jsonl")

    assert ended.code == 2
    assert "No active run for out.jsonl.journal. Start or resume it with its `run` command." in ended.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "No limit to change is given. Give --rpm, --rate, --burst, --tpm or --concurrency."),
        (("--rpm", "0"), "requests_per_minute is 0.0"),
        (("--concurrency", "0"), "max_concurrency is 0"),
    ],
)
def test_new_limits_are_checked_where_somebody_reads_it(capfd, flags, message):
    assert main(["retune", "out.jsonl", *flags]) == 2
    assert message in capfd.readouterr().err
