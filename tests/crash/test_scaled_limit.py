"""A whole run at sixty times the published limit, killed twice and resumed twice.

In the environment ``SCALE=1319`` asks as many prompts, and ``GSM8K=PATH`` takes those of such a file.
"""

import json
import os
import re
from pathlib import Path

import pytest
from killing import Left, at_rest, billed_by_prompt, finish, kill_after, quick_server, start_run

from onellm_async.server import Faults
from tests.forks import start_command

LIMITS = ("--rpm", "2400", "--burst", "40", "--concurrency", "16")


def questions(folder):
    path, count = folder / "questions.jsonl", int(os.environ.get("SCALE", "90"))
    if given := os.environ.get("GSM8K"):
        with Path(given).open() as lines:
            asked = [json.loads(line)["question"] for line in lines][:count]
    else:
        asked = [f"How many apples are {n} apples and {n * 7} apples?" for n in range(count)]
    path.write_text("".join(json.dumps({"question": question}) + "\n" for question in asked))
    return path, asked


async def asked_of(command, output, *flags):
    process = await start_command(command, str(output), *flags)
    out, err = await process.communicate()
    assert not err or process.returncode in (0, 1), err
    return out.decode()


async def test_killed_twice_at_the_scaled_limit_and_its_report_tells_the_truth(tmp_path):
    source, asked = questions(tmp_path)
    output, in_flight = tmp_path / "answers.jsonl", 0
    flags = ("--field", "question", "--max-tokens", "500", "--max-cost", "50")
    faults = Faults(latency=0.1, latency_sigma=0.5)
    async with quick_server(requests_per_minute=2400, burst=40, faults=faults) as server:
        for part in (3, 2):
            process = await start_run(source, output, server, *flags, limits=LIMITS)
            target = server.ledger.received + (len(asked) - server.ledger.received) // part
            killed = await kill_after(process, server, target, 0.005)
            assert killed, (await finish(process))[1]
            await at_rest(server)
            left = Left.by(output)
            in_flight += len(left.sent)
            status = json.loads(await asked_of("status", output, "--json"))
            assert (status["state"], status["counts"]["in_flight"]) == ("interrupted", len(left.sent))
            assert status["counts"]["answered"] == len(left.answered)
        code, told = await finish(await start_run(source, output, server, *flags, limits=LIMITS))
        assert code == 0, told
        billed, ledger = billed_by_prompt(server), server.ledger
    assert sum(billed.values()) <= len(asked) + in_flight
    assert [json.loads(line)["response"]["content"] for line in output.read_bytes().splitlines()] == asked

    status = json.loads(await asked_of("status", output, "--json"))
    counts = status["counts"]
    assert (status["state"], status["sessions"], counts["answered"], counts["in_flight"]) == (
        "complete",
        3,
        len(asked),
        0,
    )
    assert counts["possibly_billed"] == in_flight
    assert counts["cost"] <= ledger.billed_usd + 1e-9 <= counts["cost"] + counts["at_risk"] + 2e-9
    repeated = sum(row.cost for row in ledger.rows) / sum(billed.values()) * (sum(billed.values()) - len(asked))
    print(f"{len(asked)} prompts, {sum(billed.values())} billed, {in_flight} in flight at the kills; {counts}")
    print(f"ledger ${ledger.billed_usd:.6f}, journal ${counts['cost']:.6f} + ${repeated:.6f} repeated")

    page = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", await asked_of("report", output, "-o", "-"), flags=re.DOTALL)
    told = " ".join(page.split())
    assert f"Answered {len(asked):,} of {len(asked):,} prompts" in told
    assert f"Possibly billed {in_flight} attempt" in told
    assert "in 3 sessions" in told
    shown = re.search(r"Cost \$([0-9.]+)", told)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(counts["cost"], rel=0.02)
