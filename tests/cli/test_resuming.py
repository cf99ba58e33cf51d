import json
import re
import signal
from collections import Counter

import pytest

FAST = ("--rpm", 60_000, "--burst", 1000)
GPT5 = ("--model", "GPT-5", "--max-tokens", 1000)


def contents(path):
    records = map(json.loads, path.read_text().splitlines())
    return [record["response"] and record["response"]["content"] for record in records]


@pytest.fixture
def killed(start, at, prompts, backend, journal_has):
    """A run that was killed while p8 and p9 were under way."""

    async def killed(*flags):
        backend.held = {"p8", "p9"}
        command = await start("run", "in.txt", "-o", "out.jsonl", *GPT5, *FAST, *flags, **at)
        await backend.until_asked(10)
        await journal_has("out.jsonl", lambda journal: journal.counts().answered == 8)
        await command.killed()
        await backend.release()

    return killed


async def test_a_killed_run_tells_what_may_be_billed_and_for_how_much_and_asks_only_that_again(
    killed, onellm, at, prompts, backend, tmp_path
):
    await killed()
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *GPT5, *FAST, **at)

    assert ended.code == 0, ended.err
    resuming = re.search(
        r"Resuming: 8 answered, 0 failed, 2 possibly billed \(at most \$(0\.0\d+) at risk\), 2 remaining\. Spent: \$",
        ended.err,
    )
    assert 2 * 1000 * 10e-6 < float(resuming[1]) < 2 * 1100 * 11e-6
    assert "Possibly billed without an answer: 2 attempts, at most $0.02" in ended.err
    assert contents(tmp_path / "out.jsonl") == prompts
    assert Counter(backend.asked) == Counter([*prompts, "p8", "p9"])


async def test_what_may_be_billed_is_held_back_on_request_and_asked_by_a_later_session(
    killed, onellm, at, prompts, backend, tmp_path
):
    await killed()
    for _ in range(2):
        ended = await onellm("run", "in.txt", "-o", "out.jsonl", *GPT5, *FAST, "--ambiguous", "hold", **at)

        assert ended.code == 1
        assert len(backend.asked) == 10
        records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        kinds = [record["error"] and record["error"]["type"] for record in records]
        assert kinds == [None] * 8 + ["PossiblyBilled"] * 2
        assert "Possibly billed without an answer: 2 attempts" in ended.err
        assert "held, because they may have been billed: 2 prompts. --ambiguous retry sends them again." in ended.err
        assert "Nothing is left to do" not in ended.err
        status = await onellm("status", "out.jsonl")
        assert status.code == 1
        assert ": complete" not in status.out
        assert "ended            with 2 held back, which may be billed. " in status.out
        assert json.loads((await onellm("status", "out.jsonl", "--json")).out)["state"] != "complete"

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *GPT5, *FAST, **at)
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "out.jsonl") == prompts


async def test_an_interrupted_run_knows_for_certain_and_nothing_is_at_risk(
    start, onellm, at, prompts, backend, journal_has, tmp_path
):
    backend.held = {"p1"}
    command = await start("run", "in.txt", "-o", "out.jsonl", "--concurrency", 1, *FAST, **at)
    await backend.until_asked(2)
    command.interrupt(signal.SIGINT)
    await command.process.stderr.readline()
    await backend.release()
    ended = await command.ended()
    assert ended.code == 130
    assert contents(tmp_path / "out.jsonl.partial") == ["p0", "p1"]

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert "Resuming: 2 answered, 0 failed, 0 possibly billed, 8 remaining. Spent: $" in ended.err
    assert sorted(backend.asked) == prompts


async def test_what_failed_stays_failed_until_it_is_asked_for_again(onellm, at, prompts, backend, tmp_path):
    backend.failing = {"p3"}
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert ended.code == 1
    assert contents(tmp_path / "out.jsonl")[3] is None

    backend.failing = set()
    backend.asked.clear()
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert (ended.code, backend.asked) == (1, [])
    assert "Nothing is left to do: 9 prompts answered, 1 failed, " in ended.err
    assert "--retry-failed retries failed prompts." in ended.err

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--retry-failed", *FAST, **at)
    assert (ended.code, backend.asked) == (0, ["p3"])
    assert contents(tmp_path / "out.jsonl") == prompts


@pytest.mark.parametrize("left", [None, 0, 100])
async def test_an_output_that_was_lost_emptied_or_cut_is_written_again_without_asking(
    onellm, at, prompts, backend, tmp_path, left
):
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    before = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    if left is not None:
        (tmp_path / "out.jsonl").write_bytes(before[:left])
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)

    assert (ended.code, len(backend.asked)) == (0, 10)
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("flags", [("-o", "x.journal"), ("-o", "x.jsonl", "--journal", "x.jsonl")])
async def test_output_and_journal_cannot_be_one_file(onellm, at, prompts, backend, tmp_path, flags):
    there = sorted(tmp_path.iterdir())
    for _ in range(2):
        ended = await onellm("run", "in.txt", *flags, *FAST, **at)
        assert (ended.code, len(backend.asked), sorted(tmp_path.iterdir())) == (2, 0, there), ended.err


async def test_a_pipe_resumes_where_the_same_lines_come_again_and_others_are_refused(
    start, onellm, at, backend, journal_has, tmp_path
):
    backend.held = {"three"}
    lines = "one\ntwo\nthree\n"
    command = await start("run", "-", "-o", "out.jsonl", *FAST, stdin=-1, **at)
    command.process.stdin.write(lines.encode())
    await backend.until_asked(3)
    await journal_has("out.jsonl", lambda journal: journal.counts().answered == 2)
    await command.killed()
    await backend.release()
    ended = await onellm("run", "-", "-o", "out.jsonl", *FAST, stdin="one\nTWO\nthree\n", **at)
    assert ended.code == 3
    assert "<stdin>:2 is not what it was when this run began." in ended.err

    ended = await onellm("run", "-", "-o", "out.jsonl", *FAST, stdin=lines, **at)
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "out.jsonl") == ["one", "two", "three"]
    assert Counter(backend.asked) == Counter({"one": 1, "two": 1, "three": 2})


async def test_a_complete_run_of_a_pipe_compares_what_comes_before_it_says_that_nothing_is_left(onellm, at, backend):
    await onellm("run", "-", "-o", "out.jsonl", *FAST, stdin="one\ntwo\n", **at)
    same = await onellm("run", "-", "-o", "out.jsonl", *FAST, stdin="one\ntwo\n", **at)
    other = await onellm("run", "-", "-o", "out.jsonl", *FAST, stdin="one\nzwei\n", **at)

    assert (same.code, other.code) == (0, 3)
    assert "2 answered, 0 failed (2 in earlier sessions)" in same.err
    assert "<stdin>:2 is not what it was" in other.err
    assert sorted(backend.asked) == ["one", "two"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_a_retry_of_failures_that_is_ended_leaves_no_line_that_is_not_its_own(
    onellm, start, at, backend, tmp_path, number
):
    (tmp_path / "in.txt").write_text("E400\ngood\nE400\n")
    backend.failing.add("E400")
    run = ("run", "in.txt", "-o", "out.jsonl", "--keep-going", *FAST)
    assert (await onellm(*run, **at)).code == 1
    backend.failing.clear()
    backend.held.add("E400")
    retrying = await start(*run, "--retry-failed", **at)
    asked = len(backend.asked)
    await backend.until_asked(asked + 1)
    retrying.interrupt(number)
    if number == signal.SIGINT:
        await backend.release()
    await retrying.ended()
    for _ in range(2):
        exported = await onellm("export", "out.jsonl")
        records = [json.loads(line) for line in exported.out.splitlines()]
        for record in records:
            assert (record["response"] is None) != (record["error"] is None)
            if record["response"] is not None:
                assert record["response"]["content"] == ("good" if record["index"] == 1 else "E400")
            else:
                assert record["index"] != 1
                assert record["error"]["type"] in {"InternalServerError", "PossiblyBilled"}
        as_table = await onellm("export", "out.jsonl", "--format", "csv")
        assert (as_table.code, len(as_table.out.splitlines())) == (0, len(records) + 1)
        await backend.release()
        await onellm(*run, **at)


async def test_a_killed_run_that_was_moved_without_its_log_is_not_paid_once_more(
    killed, onellm, at, prompts, backend, tmp_path
):
    await killed()
    (tmp_path / "out.jsonl.journal").rename(tmp_path / "moved.jsonl.journal")
    asked = len(backend.asked)
    ended = await onellm("run", "in.txt", "-o", "moved.jsonl", *GPT5, *FAST, **at)

    assert ended.code == 2
    assert "moved.jsonl.journal lacks answers: its last session was killed, and neither" in ended.err
    assert "Restore moved.jsonl.journal-wal" in ended.err
    assert len(backend.asked) == asked
    for command in (("status",), ("export",), ("report", "-o", "-")):
        told = await onellm(command[0], "moved.jsonl", *command[1:])
        assert "moved.jsonl.journal lacks answers" in told.err + told.out
    assert json.loads((await onellm("status", "moved.jsonl", "--json")).out)["log_missing"] is True
    (tmp_path / "out.jsonl.journal-wal").rename(tmp_path / "moved.jsonl.journal-wal")
    ended = await onellm("run", "in.txt", "-o", "moved.jsonl", *GPT5, *FAST, **at)

    assert ended.code == 0, ended.err
    assert "Resuming: 8 answered" in ended.err
    assert contents(tmp_path / "moved.jsonl") == prompts
