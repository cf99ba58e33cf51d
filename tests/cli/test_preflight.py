import asyncio
import json
import os
import signal

import pytest

from onellm_async.batch import Interval, RunEstimate
from onellm_async.cli.run_display import estimate_text

FAST = ("--rpm", 60_000, "--burst", 1000)


@pytest.fixture
def many(tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(f"p{number}" for number in range(40)))


class Terminal:
    """A command whose input and standard error are a terminal."""

    def __init__(self):
        self.ours, self.theirs = os.openpty()
        self.shown = ""

    async def until(self, text):
        while text not in self.shown:
            self.shown += await asyncio.to_thread(lambda: os.read(self.ours, 4096).decode(errors="replace"))

    def type(self, keys):
        os.write(self.ours, keys)

    async def ended(self, command):
        """Reads until the other side is closed."""
        os.close(self.theirs)
        while True:
            try:
                self.shown += await asyncio.to_thread(lambda: os.read(self.ours, 4096).decode(errors="replace"))
            except OSError:
                break
        os.close(self.ours)
        return await command.process.wait()


@pytest.fixture
def asked_on_a_terminal(start, at, many):
    """A run of 40 prompts that has asked 10 and wants to know whether to go on."""

    async def asked_on_a_terminal(*flags):
        terminal = Terminal()
        command = await start(
            "run", "in.txt", "-o", "out.jsonl", "--preflight", 10, *FAST, *flags,
            stdin=terminal.theirs, stderr=terminal.theirs, TERM="xterm", **at,
        )  # fmt: skip
        await terminal.until("Continue? [Y/n] ")
        return command, terminal

    return asked_on_a_terminal


async def test_without_a_terminal_the_projection_is_printed_and_the_run_goes_on(onellm, at, many, backend, tmp_path):
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--preflight", 10, *FAST, **at)

    assert ended.code == 0, ended.err
    assert (
        "Preflight: 10 prompts sent, $0.0000047 spent. The other 30 will cost about $0.000014 (95 %: $0.000014 to $"
        in ended.err
    )
    assert "and take about " in ended.err
    assert "Continue?" not in ended.err
    assert "Resuming" not in ended.err
    assert sorted(backend.asked) == sorted(f"p{number}" for number in range(40))
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize("keys", [b"\n", b"y\n", b"Yes\n"])
async def test_on_a_terminal_a_yes_goes_on(asked_on_a_terminal, backend, tmp_path, keys):
    command, terminal = await asked_on_a_terminal()
    assert sorted(backend.asked) == sorted(f"p{number}" for number in range(10))
    terminal.type(keys)

    assert await terminal.ended(command) == 0
    assert len(backend.asked) == 40
    assert "40 answered, 0 failed (10 in earlier sessions)" in terminal.shown


@pytest.mark.parametrize("keys", [b"n\n", b"what\n", b"\x04"])
async def test_anything_else_ends_the_run_and_keeps_what_was_answered(
    asked_on_a_terminal, onellm, at, backend, tmp_path, keys
):
    command, terminal = await asked_on_a_terminal()
    terminal.type(keys)

    assert await terminal.ended(command) == 0
    assert "Nothing more is sent; the answers are kept. Run the same command again to resume." in (
        terminal.shown.replace("\r\n", " ")
    )
    assert len(backend.asked) == 10
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert ended.code == 0
    assert "Resuming: 10 answered" in ended.err
    assert len(backend.asked) == 40


async def test_ctrl_c_at_the_question_ends_the_run(asked_on_a_terminal, backend):
    command, terminal = await asked_on_a_terminal()
    command.interrupt(signal.SIGINT)

    assert await terminal.ended(command) == 130
    assert "not sent yet: 30 prompts." in terminal.shown
    assert len(backend.asked) == 10


async def test_an_input_that_ends_within_the_preflight_is_complete(onellm, at, many, tmp_path):
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--preflight", 100, *FAST, **at)

    assert ended.code == 0
    assert "Preflight" not in ended.err
    assert (tmp_path / "out.jsonl").exists()


async def test_a_bad_line_within_the_preflight_is_told_once_and_counted_once(onellm, at, tmp_path):
    (tmp_path / "in.jsonl").write_text('"one"\nbroken\n"three"\n"four"\nbroken too\n')
    ended = await onellm("run", "in.jsonl", "-o", "out.jsonl", "--preflight", 3, *FAST, **at)

    assert ended.code == 1
    assert ended.err.count("in.jsonl:2: Not JSON") == 1
    assert ended.err.count("in.jsonl:5: Not JSON") == 1
    assert "3 answered, 0 failed, 2 bad lines" in ended.err


async def test_a_preflight_with_force_begins_anew_once(onellm, at, many, tmp_path, backend):
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    backend.asked.clear()
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--force", "--preflight", 10, *FAST, **at)

    assert ended.code == 0, ended.err
    assert len(backend.asked) == 40
    assert [json.loads(line)["index"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == list(range(40))


async def test_a_preflight_stops_for_a_wrong_key_before_it_projects_anything(onellm, at, many):
    ended = await onellm(
        "run", "in.txt", "-o", "out.jsonl", "--preflight", 10, *FAST, **at | {"ONELLM_API_KEY": "unknown"}
    )

    assert ended.code == 3
    assert "Preflight" not in ended.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
async def test_a_pipe_has_no_preflight(onellm, at, tmp_path):
    ended = await onellm("run", "/dev/stdin", "-o", "out.jsonl", "--preflight", 2, *FAST, stdin="one\n", **at)

    assert ended.code == 2
    assert "--preflight reads the input twice, so it needs a file and not a pipe." in ended.err
    assert list(tmp_path.iterdir()) == []


ESTIMATE = RunEstimate(
    based_on=50,
    left=950,
    requests=950,
    cost=Interval(0.475, 0.43, 0.52),
    seconds=Interval(1425.0, 1400.0, 1460.0),
    bound_by="rate",
)


def test_an_estimate_is_told_with_its_intervals():
    assert estimate_text(ESTIMATE, spent=0.025, most=None) == (
        "Preflight: 50 prompts sent, $0.025 spent. The other 950 will cost about $0.47 (95 %: $0.43 to $0.52) "
        "and take about 23:45 min (23:20 min to 24:20 min); the rate sets the pace."
    )


@pytest.mark.parametrize(
    ("most", "ending"),
    [
        (0.40, "It is likely to end before that at the cost cap of $0.40."),
        (0.53, "It may end before that at the cost cap of $0.53."),
        (0.60, "the rate sets the pace."),
    ],
)
def test_an_estimate_is_set_against_the_budget(most, ending):
    assert estimate_text(ESTIMATE, spent=0.025, most=most).endswith(ending)


def test_what_is_not_known_is_said_so():
    text = estimate_text(
        RunEstimate(based_on=1, left=9, requests=9, cost=None, seconds=None, bound_by="rate"), spent=0.0, most=1.0
    )

    assert text == (
        "Preflight: 1 prompt sent, $0.00 spent. The other 9 will cost an unknown amount "
        "(an answer without list price or usage) and take unknown time: too few were answered."
    )
