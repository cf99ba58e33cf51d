"""Standard streams that are closed, full, stopped or gone, and the program at their other end."""

import asyncio
import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from onellm_async.batch import JournalReader
from onellm_async.cli import main
from tests.forks import CLOSED

ROOT = Path(__file__).parents[2]
FAST = ("--rpm", 60_000, "--burst", 1000)
RUN = ("run", "in.txt", "-o", "out.jsonl", *FAST)
FULL_CODE, CLOSED_CODE = 3, 2


def through(script):
    """Runs the command as ``"$@"`` of a shell script, in a process group of its own."""
    return {"without": ("setsid", "bash", "-c", f"trap : INT TERM HUP; {script}", "bash")}


def shell(script):
    return {"without": ("bash", "-c", script, "bash")}


@pytest.fixture
def streams():
    """What a shell makes of redirections, for commands that need no beginning of their own."""
    unread, abandoned = os.pipe()
    os.close(unread)
    null, empty = os.open(os.devnull, os.O_WRONLY), os.open(os.devnull, os.O_RDONLY)
    full = os.open("/dev/full", os.O_WRONLY)
    yield {
        "<&-": {"stdin": CLOSED},
        "0>/dev/null": {"stdin": null},
        ">&-": {"stdout": CLOSED},
        ">/dev/full": {"stdout": full},
        "2>&-": {"stderr": CLOSED},
        "2>/dev/full": {"stderr": full},
        "2</dev/null": {"stderr": empty},
        "| (exec <&-)": {"stdout": abandoned},
        "<&- 2>&-": {"stdin": CLOSED, "stderr": CLOSED},
        ">/dev/full 2>/dev/full": {"stdout": full, "stderr": full},
        "<&- >&- 2>&-": {"stdin": CLOSED, "stdout": CLOSED, "stderr": CLOSED},
    }
    for descriptor in (abandoned, null, empty, full):
        os.close(descriptor)


def write_prompts(folder, count, *, bad=0):
    """Prompts ``p0`` and so on; as many lines behind the first of them are no JSON."""
    first, *others = [json.dumps(f"p{number}") for number in range(count)]
    lines = [first, *["not JSON"] * bad, *others]
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "in.txt").write_text("".join(f"p{number}\n" for number in range(count)))


def answered(folder):
    with JournalReader.open(folder / "out.jsonl") as journal:
        counts = journal.counts()
    return counts.answered, counts.in_flight, counts.possibly_billed


@pytest.mark.parametrize("pipe", ["2>&1 | tee log", "2>&1 | tee log >/dev/null", "2> >(tee log >&2)"])
async def test_ctrl_c_that_also_ends_tee_keeps_all_that_is_in_flight(start, at, backend, tmp_path, pipe):
    write_prompts(tmp_path, 100)
    backend.held = {f"p{number}" for number in range(100)}
    command = await start(*RUN, **at, **through(f'"$@" {pipe}; echo "${{PIPESTATUS[0]}}" >code'))
    await backend.until_asked(48)
    command.interrupt_group()
    await asyncio.sleep(0.3)  # tee is gone by then
    await backend.release()
    await command.ended()

    assert (tmp_path / "code").read_text() == "130\n"
    assert answered(tmp_path) == (48, 0, 0)
    assert len(backend.asked) == 48


@pytest.fixture
def code_of(onellm, at, streams, tmp_path):
    """Runs a command with redirections, by a shell where one needs a pipe, and returns the code of the command, too."""

    async def code_of(*arguments, redirected, anew=False):
        if redirected in streams and not anew:
            ended = await onellm(*arguments, **at, **streams[redirected])
            return ended.code, ended
        ended = await onellm(*arguments, **at, **shell(f'"$@" {redirected}; echo "${{PIPESTATUS[0]}}" >code'))
        return int((tmp_path / "code").read_text()), ended

    return code_of


@pytest.mark.parametrize("stderr", ["2>&1 | head -1", "2>/dev/full", "2>&-", "2>&1 | true", "2</dev/null"])
async def test_a_run_with_bad_lines_outlives_its_standard_error(code_of, backend, tmp_path, stderr):
    write_prompts(tmp_path, 60, bad=40)
    code, _ = await code_of("run", "in.jsonl", "-o", "out.jsonl", *FAST, redirected=stderr)

    assert code == 1
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 60
    assert answered(tmp_path) == (60, 0, 0)


@pytest.mark.parametrize(
    ("redirected", "anew"),
    [(">&-", False), ("2>&-", False), ("<&- >&- 2>&-", True), (">/dev/full", False), ("| true", True)],
)
async def test_streams_that_a_run_into_a_file_does_not_need_may_be_closed_or_full(code_of, tmp_path, redirected, anew):
    write_prompts(tmp_path, 20)
    code, ended = await code_of(*RUN, redirected=redirected, anew=anew)

    assert code == 0
    assert [record["index"] for record in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())] == list(
        range(20)
    )
    assert "Traceback" not in ended.err
    assert answered(tmp_path) == (20, 0, 0)


async def test_standard_error_that_is_not_read_does_not_stop_a_run(start, at, tmp_path, journal_has):
    write_prompts(tmp_path, 20, bad=5000)
    command = await start("run", "in.jsonl", "-o", "out.jsonl", *FAST, **at)
    command.process._transport.get_pipe_transport(2).pause_reading()
    await journal_has("out.jsonl", lambda journal: journal.complete)
    command.process._transport.get_pipe_transport(2).resume_reading()
    ended = await command.ended()

    assert ended.code == 1
    assert ended.err.count(": Not JSON") == 11, "ten lines and the number of the others"
    assert "20 answered, 0 failed, 5,000 bad lines" in ended.err


async def test_ctrl_c_ends_a_run_whose_standard_error_is_not_read(start, at, backend, tmp_path, journal_has):
    write_prompts(tmp_path, 20, bad=5000)
    backend.held = {"p3"}
    reading, writing = os.pipe()
    command = await start("run", "in.jsonl", "-o", "out.jsonl", *FAST, stderr=writing, **at)
    os.close(writing)
    await journal_has("out.jsonl", lambda journal: journal.counts().answered == 19)
    command.interrupt()
    await backend.release()
    await journal_has("out.jsonl", lambda journal: not journal.running)
    while command.process.returncode is None:  # its last words are not read either
        command.interrupt()
        await asyncio.sleep(0.1)
    os.close(reading)

    assert command.process.returncode in {1, 130, -signal.SIGINT}
    assert answered(tmp_path) == (20, 0, 0)


@pytest.fixture
def terminal():
    """A pseudo-terminal: our end and theirs."""
    ours, theirs = os.openpty()
    left = [ours, theirs]

    def close(descriptor):
        left.remove(descriptor)
        os.close(descriptor)

    yield ours, theirs, close
    for descriptor in left:
        os.close(descriptor)


async def shown_on(ours, wanted):
    shown = ""
    while wanted not in shown:
        shown += await asyncio.to_thread(lambda: os.read(ours, 4096).decode(errors="replace"))
    return shown


@pytest.mark.parametrize("hurried", [False, True])
async def test_a_terminal_that_is_closed_ends_a_run_gracefully_with_129(
    start, at, backend, tmp_path, terminal, hurried
):
    ours, theirs, close = terminal
    write_prompts(tmp_path, 100)
    backend.held = {f"p{number}" for number in range(100)}
    session = ("setsid", "--ctty")
    command = await start(
        *RUN, stdin=theirs, stdout=theirs, stderr=theirs, without=session, TERM="xterm-256color", **at
    )
    close(theirs)
    await backend.until_asked(48)
    await shown_on(ours, "48 in flight")
    close(ours)  # the kernel sends a SIGHUP, and every write fails with EIO
    if hurried:  # and the shell sends one more
        await asyncio.sleep(0.5)
        command.interrupt(signal.SIGHUP)
        await asyncio.sleep(0.5)
    await asyncio.sleep(0.3)
    await backend.release()
    await command.ended()

    assert command.process.returncode == 129
    assert answered(tmp_path) == (48, 0, 0)


async def test_a_terminal_that_goes_without_a_signal_ends_nothing(start, at, backend, tmp_path, terminal):
    ours, theirs, close = terminal
    write_prompts(tmp_path, 20)
    backend.held = {"p3"}
    command = await start(*RUN, stderr=theirs, TERM="xterm-256color", **at)
    close(theirs)
    await shown_on(ours, "1 in flight")
    close(ours)
    await asyncio.sleep(0.3)
    await backend.release()
    await command.ended()

    assert command.process.returncode == 0
    assert answered(tmp_path) == (20, 0, 0)


async def test_a_terminal_that_is_stopped_by_ctrl_s_does_not_stop_the_run(
    start, at, backend, tmp_path, terminal, journal_has
):
    ours, theirs, close = terminal
    write_prompts(tmp_path, 20)
    backend.held = {"p3"}
    command = await start(*RUN, stderr=theirs, TERM="xterm-256color", **at)
    await shown_on(ours, "1 in flight")
    os.write(ours, b"\x13")
    await asyncio.sleep(0.5)
    await backend.release()
    await journal_has("out.jsonl", lambda journal: journal.complete)
    os.write(ours, b"\x11")
    shown = await shown_on(ours, "Written to out.jsonl.")
    await command.ended()

    assert command.process.returncode == 0
    assert "20 answered, 0 failed" in shown
    assert shown.count("in flight") < 4  # frames that could not be shown in time are not shown later
    close(theirs)


@pytest.mark.parametrize(
    ("redirected", "code"),
    [(">&-", CLOSED_CODE), (">/dev/full", FULL_CODE), ("| true", 141), ("| head -1", 141)],
)
async def test_answers_that_standard_output_does_not_take_end_the_run(code_of, tmp_path, backend, redirected, code):
    write_prompts(tmp_path, 3000)
    found, ended = await code_of("run", "in.txt", *FAST, redirected=redirected)

    assert found == code
    assert "Traceback" not in ended.err
    assert "standard output " in ended.err
    assert len(backend.asked) < 3000 if code == 141 else backend.asked == []


async def test_a_second_ctrl_c_ends_a_run_whose_answers_are_not_read(start, at, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{number} {'x' * 5000}\n" for number in range(200)))
    reading, writing = os.pipe()
    command = await start("run", "in.txt", *FAST, stdout=writing, **at)
    os.close(writing)
    await asyncio.to_thread(os.read, reading, 1)
    command.interrupt()
    await command.says("Stopping: nothing more is sent")
    command.interrupt()
    ended = await command.ended()
    os.close(reading)

    assert ended.code == 130
    assert "Traceback" not in ended.err


@pytest.fixture
async def finished(onellm, at, tmp_path):
    """A run of twenty prompts, one of which is bad, and what every command makes of it."""
    write_prompts(tmp_path, 20)
    assert (await onellm(*RUN, **at)).code == 0
    return {
        "chat": ("chat", "hello", *FAST),
        "run": ("run", "in.txt", *FAST),
        "plan": ("plan", "in.txt", "--latency", 0.1),
        "status": ("status", "out.jsonl"),
        "export": ("export", "out.jsonl"),
        "report": ("report", "out.jsonl", "-o", "-"),
        "models": ("models",),
        "help": ("--help",),
        "help of run": ("run", "--help"),
    }


@pytest.mark.parametrize(
    ("lost", "code", "told"),
    [
        (">&-", CLOSED_CODE, "onellm-async: standard output is closed."),
        (">/dev/full", FULL_CODE, "onellm-async: standard output cannot be written: No space left on device.\n"),
        ("| (exec <&-)", 141, None),
        ("<&- 2>&-", 0, None),
    ],
)
async def test_every_command_with_a_result_has_one_sentence_and_a_code_for_a_lost_stream(
    onellm, at, finished, streams, lost, code, told
):
    assert {name.partition(" ")[0] for name in finished} >= {"chat", "run", "plan", "status", "export", "report"}
    found = {}
    for name, arguments in finished.items():
        ended = await onellm(*arguments, **at, **streams[lost])
        found[name] = ended.code
        assert "Traceback" not in ended.err, (name, ended.err)
        assert "Exception" not in ended.err, (name, ended.err)
        if told is not None:
            assert ended.err.startswith(told), (name, ended.err)
            assert ended.err.count("\n") == 1, (name, ended.err)
    assert found == dict.fromkeys(finished, code)


@pytest.mark.parametrize(
    "lost", [">&-", ">/dev/full", "| (exec <&-; sleep 0.6)", "<&- 2>&-", "2>&-", "2>/dev/full", "2</dev/null"]
)
async def test_a_lost_stream_is_the_same_to_a_command_with_a_beginning_of_its_own(onellm, streams, tmp_path, lost):
    # The reader of a pipe is gone before the command begins.
    anew = await onellm("models", **shell(f'"$@" {lost}; echo "${{PIPESTATUS[0]}}" >code'))
    forked = await onellm("models", **streams[lost.replace("; sleep 0.6", "")])

    assert (int((tmp_path / "code").read_text()), anew.err) == (forked.code, forked.err)


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "retune"])
@pytest.mark.parametrize("lost", [">/dev/full 2>/dev/full", "<&- >&- 2>&-"])
async def test_the_commands_that_control_a_run_need_no_stream(
    start, onellm, at, backend, tmp_path, journal_has, command, streams, lost
):
    write_prompts(tmp_path, 3)
    backend.held = {"p0"}
    run = await start(*RUN, **at)
    await journal_has("out.jsonl", lambda journal: journal.counts().answered == 2)
    flags = ("--rpm", 100) if command == "retune" else ()
    ended = await onellm(command, "out.jsonl", *flags, **at, **streams[lost])

    assert ended.code == 0
    assert "Traceback" not in ended.err
    await journal_has("out.jsonl", lambda journal: not journal.pending_commands())
    await backend.release()
    await run.ended()


@pytest.mark.parametrize("streams", [">/dev/full", "<&- >&- 2>&-", "| head -0"])
async def test_serve_serves_without_standard_streams(start, tmp_path, unused_port, streams):
    command = await start("serve", "--port", unused_port, **through(f'"$@" {streams}; echo "${{PIPESTATUS[0]}}" >code'))
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", unused_port)
            break
        except OSError:
            assert command.process.returncode is None
            await asyncio.sleep(0.02)
    writer.close()
    await writer.wait_closed()
    command.interrupt_group(signal.SIGTERM)
    await command.ended()

    assert (tmp_path / "code").read_text() == "0\n"


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "anew"),
    [(("run", "-"), False), (("plan", "-"), False), (("chat", "-"), False), (("chat",), False), (("chat",), True)],
)
@pytest.mark.parametrize("stdin", ["<&-", "0>/dev/null"])
async def test_a_standard_input_that_cannot_be_read_is_told_in_one_sentence(
    onellm, at, backend, streams, arguments, stdin, anew
):
    ended = await onellm(*arguments, **at, **(shell(f'"$@" {stdin}') if anew else streams[stdin]))

    assert ended.code == 2
    assert ended.err.startswith("onellm-async: Standard input is closed.")
    assert ended.err.count("\n") == 1
    assert backend.asked == []


def opened_by(process):
    return {number: str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in (0, 1, 2)}


async def test_no_file_gets_the_number_of_a_closed_stream(start, at, backend, tmp_path):
    write_prompts(tmp_path, 3)
    backend.held = {"p1"}
    command = await start(*RUN, **at, **shell('exec "$@" <&- >&- 2>&-'))
    await backend.until_asked(3)
    assert set(opened_by(command.process).values()) == {"/dev/null"}
    await backend.release()
    assert (await command.ended()).code == 0


ODD = "naïve “日本” \U0001f600"
LOCALES = [
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "utf-16"},
    {"LC_ALL": "C", "PYTHONUTF8": 0, "PYTHONCOERCECLOCALE": 0},
    {"LC_ALL": "C"},
]


@pytest.mark.parametrize("locale", LOCALES, ids=str)
async def test_results_are_utf_8_where_they_do_not_go_to_a_terminal(onellm, at, locale):
    chat = await onellm("chat", "-", *FAST, stdin=ODD, **at, **locale)
    run = await onellm("run", "-", *FAST, stdin=ODD, **at, **locale)

    assert chat.out == ODD + "\n"
    assert json.loads(run.out)["response"]["content"] == ODD
    assert (chat.err, run.code) == ("", 0)


@pytest.mark.parametrize("locale", LOCALES[:2], ids=str)
async def test_a_message_that_standard_error_cannot_show_is_escaped(onellm, locale):
    ended = await onellm("run", "日本.txt", **locale)

    assert ended.code == 2
    assert ended.err == "onellm-async: \\u65e5\\u672c.txt cannot be read: No such file or directory.\n"


async def test_pipes_that_do_not_block_are_waited_for(onellm, at, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{number} {'x' * 5000}\n" for number in range(60)))
    script = tmp_path / "nonblocking.py"
    script.write_text(
        "import os, sys\n"
        "for number in range(3):\n"
        "    os.set_blocking(number, False)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    ended = await onellm(
        "run", "-", *FAST, **at, **shell(f'(sleep 0.5; cat in.txt) | python3 {script} "$@" | (sleep 1; cat)')
    )

    assert len(ended.out.splitlines()) == 60
    assert "60 answered, 0 failed" in ended.err


def test_a_program_may_call_the_command_line_with_streams_of_its_own(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    assert main(["models"]) == 0
    assert main(["status", "nowhere.jsonl"]) == 2
    assert (sys.stdout, sys.stderr) == (out, err)
    assert out.getvalue().startswith("GPT-5\topenai\t")
    assert "nowhere.jsonl" in err.getvalue()


def test_the_exit_codes_of_lost_streams_are_in_the_help(capfd):
    assert main(["run", "--help"]) == 0
    told = capfd.readouterr().out
    assert re.search(r"^  129 +terminal closed \(SIGHUP\)", told, re.MULTILINE)
    assert re.search(r"^  141 +the program that reads standard output has ended", told, re.MULTILINE)
