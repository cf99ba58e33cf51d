"""``onellm-async shard``: split, run, show and merge."""

import asyncio
import json
import signal

import pytest

from onellm_async.cli import main


@pytest.fixture
def shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("".join(f"p{number}\n" for number in range(5)))
    assert main(["shard", "in.txt", "-d", "shards", "--prompts", "3"]) == 0
    return capsys.readouterr().out.split()


def test_an_input_is_split_run_and_merged(shards, tmp_path, capsys):
    assert shards == ["shards/shard-00000.txt", "shards/shard-00001.txt"]
    assert main(["shard", "status", "shards"]) == 1
    assert "2 shards: 2 not started" in capsys.readouterr().out
    assert main(["shard", "merge", "shards", "-o", "all.jsonl"]) == 2
    assert "--partial" in capsys.readouterr().err
    for shard in shards:
        assert main(["shard", "run", shard, "--local", "-m", "GPT-5-Nano", "--max-tokens", "20"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["complete"], row["error"], row["shard"]) == (True, "", shard)
    assert main(["shard", "status", "shards", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["entries"], found["complete"], found["counts"]["answered"]) == (5, 2, 5)
    assert main(["report", "shards"]) == 0
    assert "2 complete." in (tmp_path / "shards.report.html").read_text()
    assert main(["shard", "merge", "shards", "-o", "all.jsonl"]) == 0
    answers = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(each["index"], each["response"]["content"]) for each in answers] == [(n, f"p{n}") for n in range(5)]


async def test_the_status_sums_up_costs_and_causes_of_all_shards(onellm, backend, at, prompts):
    backend.failing = {"p1", "p8"}
    assert (await onellm("shard", "in.txt", "-d", "shards", "--prompts", "6")).code == 0
    for number in range(2):
        flags = ("--rpm", "60000", "--burst", "1000", "--max-tokens", "9")
        assert (await onellm("shard", "run", f"shards/shard-0000{number}.txt", *flags, **at)).code == 1
    shown = (await onellm("shard", "status", "shards")).out
    assert "2 shards: 2 complete" in shown
    assert "8 of 10 answered, 2 failed" in shown
    assert "failed           2 × 500 It fails." in shown
    found = json.loads((await onellm("shard", "status", "shards", "--json")).out)
    assert list(found["failures"].values()) == [2]
    assert [shard["counts"]["failed"] for shard in found["shards"]] == [1, 1]


def test_bad_lines_of_a_shard_are_counted_and_end_it_as_they_end_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"x": 1}\n')
    assert main(["shard", "in.jsonl", "-d", "shards", "--prompts", "2"]) == 0
    for _ in range(2):  # the second time nothing is left to do
        capsys.readouterr()
        assert main(["shard", "run", "shards/shard-00000.jsonl", "--local"]) == 1
        row = json.loads(capsys.readouterr().out)
        assert (row["complete"], row["answered"], row["failed"], row["bad_lines"]) == (True, 1, 0, 1)
    assert main(["shard", "status", "shards"]) == 0
    shown = capsys.readouterr().out
    assert "  bad lines        1\n" in shown
    assert "  shard-00000.jsonl  complete: 1 of 2 answered, 1 bad line" in shown


def test_a_cap_that_is_reached_stops_a_shard_and_is_told(shards, capsys):
    assert main(["shard", "run", shards[0], "--local", "--max-tokens", "100000", "--max-cost", "0.001"]) == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["complete"] is False
    assert "cap" in shown.err or "budget" in shown.err


@pytest.mark.parametrize(
    "flags",
    [
        ["run", "none.txt", "--local"],
        ["status", "none"],
        ["merge", "none", "-o", "all.jsonl"],
        ["in.txt"],
        ["in.txt", "-d", "shards", "--prompts", "0"],
        ["in.txt", "-d", "shards", "--prompts", "4"],
        ["in.txt", "-d", "other", "--format", "xml"],
    ],
)
def test_what_cannot_be_used_is_refused(shards, flags, capsys):
    assert main(["shard", *flags]) == 2
    assert "Traceback" not in capsys.readouterr().err


async def test_a_killed_shard_is_repeated_and_only_what_was_in_flight_is_sent_again(
    start, onellm, backend, at, prompts, journal_has
):
    assert (await onellm("shard", "in.txt", "-d", "shards", "--prompts", "10")).code == 0
    flags = ("shard", "run", "shards/shard-00000.txt", "--rpm", "60000", "--burst", "1000", "--max-tokens", "9")
    backend.held = {"p7"}
    command = await start(*flags, **at)
    await journal_has("shards/shard-00000.answers.jsonl", lambda journal: journal.counts().answered == 9)
    await command.killed()
    await backend.release()
    ended = await onellm(*flags, **at)
    row = json.loads(ended.out)
    assert (ended.code, row["answered"], row["complete"], row["possibly_billed"]) == (0, 10, True, 1)
    assert sorted(backend.asked) == sorted([*prompts, "p7"])


async def test_two_signals_end_a_shard_at_once_with_what_to_do(start, onellm, backend, at, prompts):
    assert (await onellm("shard", "in.txt", "-d", "shards")).code == 0
    backend.held = set(prompts)
    command = await start("shard", "run", "shards/shard-00000.txt", "--max-tokens", "9", **at)
    await backend.until_asked(1)
    command.interrupt(signal.SIGTERM)
    await command.says("Stopping")
    await asyncio.sleep(0.3)  # sooner, it would be the same
    command.interrupt(signal.SIGTERM)
    ended = await command.ended()
    assert (ended.code, ended.out, "Traceback" in ended.err) == (143, "", False)
    assert "same command again" in ended.err
