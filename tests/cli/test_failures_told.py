"""Why prompts failed, what a run waits for and which answers want a look: on the terminal, in `status` and `report`."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import pytest
from attrs import evolve

from onellm_async.cli.status import _text
from onellm_async.server import LocalServer, ServerSettings
from onellm_async.server.backends import echo

ROOT = Path(__file__).parents[2]
FAST = ("--rpm", 60_000, "--burst", 1000)


def prompts(tmp_path, number, name="in.txt"):
    lines = [f"p{place}" for place in range(number)]
    (tmp_path / name).write_text("\n".join(lines))
    return lines


@pytest.fixture
def page_of(onellm):
    async def page_of(output):
        return (await onellm("report", output, "-o", "-")).out

    return page_of


async def test_a_model_that_is_not_known_is_told_everywhere(onellm, at, tmp_path, page_of):
    prompts(tmp_path, 3)
    command = ("run", "in.txt", "-o", "out.jsonl", "-m", "gpt-5", *FAST)
    ended = await onellm(*command, **at)
    cause = "422 Unknown model 'gpt-5'."

    assert ended.code == 1
    assert f"in.txt:1 failed: {cause}" in ended.err
    assert f"3 failed: 3 × {cause}" in ended.err
    assert "Did you mean 'GPT-5'?" in ended.err
    status = await onellm("status", "out.jsonl")
    assert f"  failed           3\n                   3 failed: 3 × {cause}" in status.out
    assert list(json.loads((await onellm("status", "out.jsonl", "--json")).out)["failures"].values()) == [3]
    assert "3 failed: 3 × 422 Unknown model &#39;gpt-5&#39;." in await page_of("out.jsonl")

    again = await onellm(*command, **at)
    assert again.code == 1
    assert "Nothing is left to do: 0 prompts answered, 3 failed" in again.err
    assert f"3 failed: 3 × {cause}" in again.err


async def test_what_failed_in_an_earlier_session_is_told_by_the_later_one_too(onellm, at, tmp_path, backend, server):
    prompts(tmp_path, 30)
    backend.failing = {"p3", "p4"}
    first = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, "--preflight", 10, **at)
    assert "2 failed: 2 × 500 It fails." in first.err
    (tmp_path / "out.jsonl").unlink()
    backend.asked.clear()
    second = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert backend.asked == []
    assert "2 failed: 2 × 500 It fails." in second.err
    assert (tmp_path / "out.jsonl").read_text().count('"response":null') == 2


async def test_sixty_good_and_seven_bad_prompts_end_with_exit_code_1_and_the_text_of_the_service(
    onellm, at, tmp_path, backend
):
    lines = prompts(tmp_path, 67)
    backend.failing = set(lines[60:])
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)

    assert ended.code == 1, ended.err
    assert "60 answered, 7 failed" in ended.err
    assert "7 failed: 7 × 500 It fails." in ended.err
    assert (tmp_path / "out.jsonl").read_text().count('"error":null') == 60


def closed_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


async def test_a_dead_address_ends_with_exit_code_3_and_its_cause(onellm, tmp_path, page_of):
    prompts(tmp_path, 20)
    port = closed_port()
    dead = {"ONELLM_BASE_URL": f"http://127.0.0.1:{port}/api", "ONELLM_API_KEY": "good"}
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **dead)

    assert ended.code == 3, ended.err
    stopped = next(line for line in ended.err.splitlines() if "stopped early: " in line)
    assert "No connection to 127.0.0.1: Connect call failed" in stopped
    assert str(port) in stopped
    assert "the service has never answered" in stopped
    assert "0 answered, 0 failed" in ended.err
    assert "not sent yet: 20 prompts." in ended.err
    status = await onellm("status", "out.jsonl")
    assert "  ended            stopped: No connection to 127.0.0.1: Connect call failed" in status.out
    assert ".;" not in status.out
    page = await page_of("out.jsonl")
    assert "It ended: stopped: No connection to 127.0.0.1: Connect call failed" in page
    assert ".." not in page.partition("</header>")[0].partition("<header>")[2]


QUICK_TRIALS = """\
from onellm_async.batch import health
from onellm_async.cli import main
health._TRIAL_WAIT = 0.2  # seconds instead of a quarter of a minute
raise SystemExit(main())
"""


async def test_half_of_a_run_failing_ends_it_with_exit_code_3_and_keep_going_makes_the_failures_outcomes(
    onellm, at, tmp_path, backend
):
    lines = prompts(tmp_path, 40)
    backend.failing = set(lines[::2])
    backend.status = 422  # is not retried, so nothing waits for a backoff
    command = [sys.executable, "-c", QUICK_TRIALS, "run", "in.txt", "-o", "out.jsonl", *map(str, FAST)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **at}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe)
    err = (await process.communicate())[1].decode()
    assert process.returncode == 3, err
    assert "failed alike: 422 It fails. Fix the cause and run the same command again" in err
    assert "20 answered, 0 failed" in err

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--keep-going", *FAST, **at)
    assert ended.code == 1
    assert "20 failed: 20 × 422 It fails." in ended.err


async def test_a_stall_tells_in_seconds_what_it_waited_for(start, at, tmp_path, backend):
    prompts(tmp_path, 1)
    backend.held = {"p0"}
    command = await start("run", "in.txt", "-o", "out.jsonl", "--stall-after", 1, *FAST, **at)
    await backend.until_asked(1)
    shown = b""
    while b"No answer for " not in shown:
        line = await command.process.stderr.readline()
        assert line, shown.decode()  # it has ended
        shown += line
    await backend.release()
    ended = await command.ended()

    assert "1 in flight, 0 waiting for a retry." in shown.decode() + ended.err
    assert "stopped early: No answer for " in ended.err


class Ends:
    """Echoes; the prompt tells the reason for its end, and whether there is any text."""

    async def complete(self, job):
        reason, _, text = job.request.messages[-1].content.partition(" ")
        return evolve(echo(job), content=text, finish_reason=reason)

    async def aclose(self):
        pass


async def test_answers_that_were_cut_off_filtered_or_are_empty_are_told_everywhere(onellm, tmp_path, page_of):
    lines = [*(f"length {n}" for n in range(3)), "content_filter", "content_filter  ", "stop all of it"]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = ServerSettings(requests_per_minute=60_000, burst=1000, keys={"good": 10.0})
    told = "Answers to check: 3 cut off at --max-tokens, 1 empty (content_filter), 1 filtered (content_filter)."
    async with LocalServer(settings, backend=Ends()) as server:
        at = {"ONELLM_BASE_URL": server.url, "ONELLM_API_KEY": "good"}
        ended = await onellm("run", "in.jsonl", "-o", "out.jsonl", *FAST, **at)
        again = await onellm("run", "in.jsonl", "-o", "out.jsonl", *FAST, **at)

    assert ended.code == 0, ended.err
    assert told in ended.err
    assert told in again.err
    assert told in (await onellm("status", "out.jsonl")).out
    assert told in await page_of("out.jsonl")


def found(**changes):
    counts = {
        "answered": 4, "failed": 1, "in_flight": 5, "deduplicated": 0, "possibly_billed": 3, "rate_limited": 0,
        "cost": 0.4, "unpriced": 0, "input_tokens": 1, "output_tokens": 2, "at_risk": 0.0, "at_risk_tokens": 0,
    }  # fmt: skip
    usual = {
        "input": "in.txt", "lines": 10, "samples": 1, "state": "running", "end_reason": None, "sessions": 1,
        "counts": counts,
        "failures": {"500 boom.": 1}, "sample": None, "bad_lines": 0, "first_bad_line": None,
    }  # fmt: skip
    return usual | changes


SAMPLE = {
    "progress": {"rate": 1.0, "eta": None, "failed": 4, "notable": {"empty": 2}},
    "snapshot": {"rate": 60.0, "paused": False, "bottleneck": "idle", "in_flight": 0, "backing_off": 5},
    "waits_for": "Circuit open since 09:30: 503 busy. Next attempt in 12 s.",
}


def test_status_of_a_running_run_tells_retries_from_what_is_in_flight_and_what_it_waits_for():
    text = _text(found(sample=SAMPLE))
    for line in (
        "  failed           4",
        "                   1 failed: 1 × 500 boom.",
        "                   Answers to check: 2 empty.",
        "  in flight        0",
        "  to be retried    5",
        "  possibly billed  3, about $0.30 at risk, as answers cost so far",
        "  bottleneck       Circuit open since 09:30: 503 busy. Next attempt in 12 s.",
    ):
        assert line in text.splitlines()


def test_status_of_an_interrupted_run_tells_how_many_attempts_are_at_risk_and_how_it_ended():
    text = _text(found(state="interrupted", end_reason="stopped: No answer for 8 s."))
    assert "  in flight        0\n  possibly billed  8 (5 in flight at its end), about $0.80 at risk" in text
    assert text.endswith("  ended            stopped: No answer for 8 s.")
    assert _text(found(state="interrupted")).endswith("ended            killed. Run its `run` command again to resume.")


async def test_status_of_a_complete_run_with_bad_lines_counts_them_and_tells_the_first(onellm, at, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"question": "a"}\n{"x": 1}\n{"question": "b"}\n{"y": 1}\n')
    ran = await onellm("run", "in.jsonl", "-o", "out.jsonl", "--field", "question", "--rpm", 6000, **at)
    status = await onellm("status", "out.jsonl")
    found = json.loads((await onellm("status", "out.jsonl", "--json")).out)

    assert (ran.code, status.code) == (1, 1)
    assert (
        "  bad lines        2\n                   in.jsonl:2: It has no field 'question' (fields: 'x').\n" in status.out
    )
    assert (found["state"], found["bad_lines"], found["first_bad_line"][:11]) == ("complete", 2, "in.jsonl:2:")
