import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onellm_async.cli import main

ROOT = Path(__file__).parents[2]
FAST = ("--rpm", 60_000, "--burst", 1000)


def contents(text):
    return [record["response"] and record["response"]["content"] for record in map(json.loads, text.splitlines())]


async def test_two_hundred_prompts_are_answered_in_order_by_the_servers_own_local_service(onellm, tmp_path):
    prompts = [f"Prompt {number}" for number in range(200)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    ended = await onellm("run", "prompts.txt", "-o", "answers.jsonl", "--local", "--rpm", 12_000, "--burst", 100)

    assert ended.code == 0, ended.err
    assert ended.out == ""
    assert contents((tmp_path / "answers.jsonl").read_text()) == prompts
    assert "200 answered, 0 failed in " in ended.err
    assert "0 rate-limited, 0 retries. Written to answers.jsonl." in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.journal",
        "prompts.txt",
    ]


async def test_a_pipe_in_and_a_pipe_out(onellm, at):
    ended = await onellm("run", "-", *FAST, stdin="one\ntwo\n", **at)

    assert ended.code == 0, ended.err
    assert contents(ended.out) == ["one", "two"]
    assert json.loads(ended.out.splitlines()[1])["index"] == 1


async def test_a_named_field_and_the_flags_reach_the_service(onellm, at, tmp_path, server):
    (tmp_path / "questions.jsonl").write_text('{"question": "Why?", "custom_id": "q1"}\n')
    ended = await onellm(
        "run", "questions.jsonl", "--field", "question", "--model", "GPT-5", "--system", "Be brief",
        "--max-tokens", 9, "--temperature", 0.5, "--tpm", 100_000, "--concurrency", 3, "--timeout", 9, *FAST, **at,
    )  # fmt: skip

    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert record["custom_id"] == "q1"
    assert record["response"]["content"] == "Why?"
    assert server.ledger.rows[0].model == "GPT-5"


async def test_the_environment_names_the_model_where_no_flag_does(onellm, at, server):
    await onellm("run", "-", *FAST, stdin="one\n", ONELLM_MODEL="GPT-5-Mini", **at)

    assert server.ledger.rows[0].model == "GPT-5-Mini"


async def test_an_openai_batch_comes_back_in_openais_shape(onellm, at, tmp_path):
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": {"model": "GPT-5", "messages": [
            {"role": "user", "content": f"Prompt {name}"}]}}
        for name in "ab"
    ]  # fmt: skip
    (tmp_path / "batch.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ended = await onellm("run", "batch.jsonl", "-o", "results.jsonl", *FAST, **at)

    assert ended.code == 0, ended.err
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [result["custom_id"] for result in results] == ["a", "b"]
    assert results[0]["response"]["body"]["choices"][0]["message"]["content"] == "Prompt a"


async def test_bad_lines_are_named_with_file_and_number_and_the_others_answered(onellm, at, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "one", "custom_id": "a"}\n\n{"prompt"\n{"prompt": "four", "custom_id": "a"}\n"five"\n'
    )
    ended = await onellm("run", "in.jsonl", *FAST, **at)

    assert ended.code == 1
    assert contents(ended.out) == ["one", "five"]
    assert "in.jsonl:3: Not JSON" in ended.err
    assert "in.jsonl:4: custom_id 'a' was used in line 1 already." in ended.err
    assert "2 answered, 0 failed, 2 bad lines" in ended.err


async def test_a_strict_run_of_a_file_with_a_bad_line_sends_nothing(onellm, at, tmp_path, server):
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": 2}\n')
    ended = await onellm("run", "in.jsonl", "-o", "out.jsonl", "--strict", *FAST, **at)

    assert ended.code == 2
    assert "in.jsonl:2: prompt is a number, not a string. Nothing was sent (--strict)." in ended.err
    assert server.ledger.received == 0
    assert not (tmp_path / "out.jsonl").exists()


async def test_a_strict_run_of_a_pipe_stops_at_the_bad_line_and_keeps_what_was_sent(start, at, backend):
    backend.held = {"one"}
    command = await start("run", "-", "--strict", *FAST, stdin=asyncio.subprocess.PIPE, **at)
    command.process.stdin.write(b'{"prompt": "one"}\n')
    await backend.until_asked(1)
    command.process.stdin.write(b'{"prompt": 2}\n"three"\n')
    assert b"<stdin>:2: prompt is a number" in await command.process.stderr.readline()
    await backend.release()
    ended = await command.ended()

    assert ended.code == 2
    assert contents(ended.out) == ["one"]
    assert "stopped at a bad line (--strict): <stdin>:2: prompt is a number" in ended.err
    assert "onellm-async: not sent yet: what was not read.\n" in ended.err


async def test_a_prompt_that_fails_is_in_the_output_and_the_exit_code_says_so(onellm, at):
    lines = '{"custom_id": "a", "body": {"model": "Nonesuch-9", "messages": "Hi"}}\n'
    ended = await onellm("run", "-", "--dialect", "backend", *FAST, stdin=lines, **at)

    assert ended.code == 1
    assert json.loads(ended.out)["error"]["code"] == "InvalidRequestError"
    assert "0 answered, 1 failed" in ended.err


@pytest.mark.parametrize("key", ["unknown", "poor"])
async def test_a_wrong_key_or_a_spent_balance_stops_the_run_and_what_met_it_counts_as_never_sent(
    onellm, at, tmp_path, server, key
):
    (tmp_path / "in.txt").write_text("".join(f"Prompt {number}\n" for number in range(300)))
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at | {"ONELLM_API_KEY": key})

    assert ended.code == 3
    assert "stopped early: " in ended.err
    assert server.ledger.received < 60
    assert "0 answered, 0 failed" in ended.err
    assert "not sent yet: 300 prompts. Run the same command again to resume." in ended.err
    assert "Possibly billed" not in ended.err
    assert (tmp_path / "out.jsonl.partial").read_text() == ""
    assert not (tmp_path / "out.jsonl").exists()

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert ended.code == 0, ended.err
    assert len(contents((tmp_path / "out.jsonl").read_text())) == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.txt"), "nowhere.txt cannot be read: No such file or directory."),
        (("run", "."), ". cannot be read: it is a directory."),
        (("run", "in.txt", "-o", "old.jsonl"), "old.jsonl already exists."),
        (("run", "in.txt", "-o", "in.txt", "--force"), "in.txt is the input itself."),
        (("run", "in.txt", "-o", "no/where.jsonl"), "cannot be written: No such file or directory."),
        (("run", "in.txt", "-o", "link.jsonl", "--force"), "link.jsonl is a symbolic link"),
        (
            ("run", "in.txt", "--field", "q", "--format", "text"),
            "can be named only in JSON lines and tables",
        ),
        (("run", "in.txt", "--temperature", "3"), "--temperature is 3.0"),
        (("run", "in.txt", "--concurrency", "0"), "max_concurrency is 0"),
        (("run", "in.txt", "--burst", "0"), "burst is 0"),
        (("run", "in.txt", "--timeout", "0"), "Timeout.total is 0.0"),
        (("run", "in.txt", "--base-url", "ftp://x"), "'ftp://x' is not an http or https URL"),
        (("run", "in.txt", "--base-url", "http://x", "--local"), "--local and --base-url exclude each other"),
        (("run", "in.txt", "--format", "xml"), "xml"),
        (("run", "in.txt", "--ambiguous", "maybe"), "maybe"),
        (("run", "in.txt", "--max-cost", "0"), "--max-cost is 0.0"),
        (("run", "in.txt", "--max-tokens-total", "0"), "--max-tokens-total is 0"),
        (("run", "in.txt", "--stall-after", "0"), "--stall-after is 0.0"),
        (("run", "in.txt", "--journal", "x.journal"), "A journal needs an output file (-o)"),
        (("run", "in.txt", "-o", "out.jsonl", "--journal", "x.db"), "its name must end with .journal"),
        (("run", "in.txt", "--preflight", "5"), "an input file and an output file (-o)"),
        (("run", "in.txt", "-o", "out.jsonl", "--preflight", "1"), "preflight is 1; it needs at least 2 prompts"),
        (("run", "in.txt", "--template", "{{"), "template is not a template"),
        (("run", "in.txt", "--template", "nowhere.txt"), "The template nowhere.txt cannot be read"),
        (("run",), "INPUT"),
        (("fly",), "fly"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_sent(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONELLM_API_KEY", "good")
    monkeypatch.setenv("ONELLM_BASE_URL", "http://127.0.0.1:9/nobody-is-there")
    Path("in.txt").write_text("Hi\n")
    Path("old.jsonl").write_text("precious")
    Path("link.jsonl").symlink_to("old.jsonl")

    assert main(arguments) == 2
    assert message in capfd.readouterr().err
    assert Path("old.jsonl").read_text() == "precious"
    assert Path("in.txt").read_text() == "Hi\n"


async def test_a_refusal_is_an_exit_code_and_a_line_without_a_traceback(onellm):
    ended = await onellm("run", "nowhere.txt")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "onellm-async: nowhere.txt cannot be read: No such file or directory.\n"


async def test_without_a_key_the_message_says_where_it_is_taken_from(onellm, tmp_path):
    (tmp_path / "in.txt").write_text("Hi\n")
    ended = await onellm("run", "in.txt", "-o", "out.jsonl")

    assert ended.code == 2
    assert "ONELLM_API_KEY" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


async def test_force_replaces_an_existing_output(onellm, at, tmp_path):
    (tmp_path / "in.txt").write_text("Hi\n")
    (tmp_path / "out.jsonl").write_text("old")
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--force", *FAST, **at)

    assert ended.code == 0, ended.err
    assert contents((tmp_path / "out.jsonl").read_text()) == ["Hi"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_run_when_what_is_under_way_is_answered_and_the_command_goes_on_from_there(
    start, onellm, at, server, backend, tmp_path, number
):
    prompts = [f"p{position}" for position in range(30)]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    backend.held = {"p1", "p2"}
    command = await start("run", "in.txt", "-o", "out.jsonl", "--rpm", 1, "--burst", 3, **at)
    await backend.until_asked(1)
    command.interrupt(number)
    await command.says("Stopping: nothing more is sent")
    await backend.release()
    ended = await command.ended()

    assert ended.code == 128 + number, ended.err
    answered = contents((tmp_path / "out.jsonl.partial").read_text())
    assert answered == backend.asked
    assert f"{len(answered)} answered, 0 failed in " in ended.err
    left = 30 - len(answered)
    assert f"not sent yet: {left} prompts. Run the same command again to resume." in ended.err
    assert server.ledger.billed == len(answered) < 10
    assert not (tmp_path / "out.jsonl").exists()

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert ended.code == 0, ended.err
    assert f"Resuming: {len(answered)} answered, 0 failed, 0 possibly billed, " in ended.err
    assert f"30 answered, 0 failed ({len(answered)} in earlier sessions)" in ended.err
    assert contents((tmp_path / "out.jsonl").read_text()) == prompts
    assert sorted(backend.asked) == sorted(prompts)
    assert not (tmp_path / "out.jsonl.partial").exists()


async def test_a_second_interrupt_ends_at_once_and_keeps_the_partial_output(start, at, tmp_path, backend):
    (tmp_path / "in.txt").write_text("p0\nheld\np2\n")
    backend.held = {"held"}
    command = await start("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    await backend.until_asked(3)
    command.interrupt()
    await command.says("Stopping: nothing more is sent")
    command.interrupt()
    ended = await command.ended()

    assert ended.code == 130
    assert "ended at once; requests in flight may be billed. Run the same command again to resume." in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out.jsonl").exists()
    assert set(contents((tmp_path / "out.jsonl.partial").read_text())) <= {"p0", "p2"}


async def test_an_interrupt_ends_a_run_that_waits_for_its_input(start, at):
    command = await start("run", "-", *FAST, stdin=asyncio.subprocess.PIPE, **at)
    command.process.stdin.write(b"one\n")
    await command.process.stdout.readline()
    command.interrupt()
    await command.process.wait()
    ended = await command.ended()

    assert ended.code == 130
    assert "1 answered, 0 failed" in ended.err


async def test_when_the_reader_of_the_output_goes_the_run_stops(start, at, tmp_path):
    (tmp_path / "in.txt").write_text("Hi\n" * 3000)
    command = await start("run", "in.txt", *FAST, **at)
    await command.process.stdout.readline()
    command.process._transport.get_pipe_transport(1).close()
    err = await command.process.stderr.read()

    assert await command.process.wait() == 141
    assert b"standard output cannot be written: Broken pipe" in err
    assert b"Traceback" not in err


async def test_progress_is_plain_lines_where_it_is_no_terminal(start, at, tmp_path, backend):
    (tmp_path / "in.txt").write_text("one\nheld\n")
    backend.held = {"held"}
    command = await start("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    line = (await command.process.stderr.readline()).decode()
    await backend.release()
    ended = await command.ended()

    assert line.startswith("1/2 done, ")
    assert "1 in flight, 2 tokens, $0.00000047, 0 rate-limited, 0 retries, 0 failed, ETA " in line
    assert ended.code == 0


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
async def test_progress_is_live_on_a_terminal(start, at, tmp_path, backend, environment):
    (tmp_path / "in.jsonl").write_text('"one"\nbroken\n"held"\n')
    backend.held = {"held"}
    ours, theirs = os.openpty()
    command = await start(
        "run", "in.jsonl", "-o", "out.jsonl", *FAST, stderr=theirs, **at, TERM="xterm-256color", **environment
    )
    os.close(theirs)
    await backend.until_asked(2)
    shown = ""
    while "1 in flight" not in shown or "2 tokens" not in shown.replace("1 input + 1 output", "2"):
        shown += await asyncio.to_thread(lambda: os.read(ours, 4096).decode(errors="replace"))
    await backend.release()
    while "answered" not in shown:
        shown += await asyncio.to_thread(lambda: os.read(ours, 4096).decode(errors="replace"))
    assert await command.process.wait() == 1
    os.close(ours)

    assert "1/3" in shown
    assert "in.jsonl:2: Not JSON" in shown
    assert "1 bad line" in shown
    assert "2 answered, 0 failed, 1 bad line " in shown
    assert ("\x1b[31m" in shown) == (not environment)


async def test_an_automatic_rate_and_the_backend_dialect_work_with_the_local_service(onellm):
    ended = await onellm("run", "-", "--local", "--rpm", "auto", "--dialect", "backend", stdin="one\n")

    assert ended.code == 0, ended.err
    assert contents(ended.out) == ["one"]


async def test_an_empty_input_is_refused_and_replaces_no_output(onellm, at, tmp_path):
    (tmp_path / "in.txt").write_text("\n\n")
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", **at)
    await onellm("run", "-", "-o", "piped.jsonl", *FAST, stdin="one\n", **at)
    before = (tmp_path / "piped.jsonl").read_bytes()
    failed = await onellm("run", "-", "-o", "piped.jsonl", *FAST, stdin="", **at)
    for command in (["plan", "in.txt"], ["plan", "-"], ["run", "in.txt", "-o", "out.jsonl", "--estimate"]):
        refused = await onellm(*command, stdin="", **at)
        assert (refused.code, refused.err) in {(2, ended.err), (2, "onellm-async: <stdin> holds no prompts.\n")}

    assert (ended.code, ended.err) == (2, "onellm-async: in.txt holds no prompts.\n")
    assert (failed.code, failed.err) == (2, "onellm-async: <stdin> holds no prompts.\n")
    assert not (tmp_path / "out.jsonl.journal").exists()
    assert (tmp_path / "piped.jsonl").read_bytes() == before


@pytest.mark.parametrize(("text", "shape"), [("id,prompt\n1,Hi\n", "csv"), ('["one",\n"two"]\n', "json")])
async def test_a_pipe_that_looks_like_another_format_is_refused_before_anything_is_opened(
    onellm, at, tmp_path, text, shape
):
    refused = await onellm("run", "-", "-o", "out.jsonl", *FAST, stdin=text, **at)
    told = await onellm("run", "-", "--format", shape, "-o", "out.jsonl", *FAST, stdin=text, **at)

    assert refused.code == 2
    assert f"Say --format {shape}; or --format text" in refused.err
    assert told.code == 0, told.err


def test_ctrl_c_ends_the_wait_for_the_writer_of_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "onellm_async", "run", str(tmp_path / "pipe"), "--local"],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        # The last import before the pipe is opened.
        while b"onellm_async.batch.work_list" not in (line := process.stderr.readline()):
            assert line, "it ended before it opened the pipe"
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
