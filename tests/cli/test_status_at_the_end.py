"""`status --json` is true at the end of a run, however it ended."""

import asyncio
import json

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.cli.status import status
from onellm_async.testing import FakeTransport, failure

PROMPTS = [f"p{number}" for number in range(12)]


async def answer(request):
    await asyncio.sleep(0.002)
    if request.prompt == "p3":
        return failure(422, "no")
    return {"content": "x", "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, "complete"),
        ({"samples": 2}, "complete"),
        ({"deduplicate": True}, "complete"),
        ({"limit": 5}, "interrupted"),
        ({"max_tokens_total": 60, "max_tokens": 5}, "interrupted"),
        ({"max_time": 0.012}, "interrupted"),
    ],
    ids=str,
)
async def test_what_it_says_is_what_the_run_reported(tmp_path, capsys, options, state):
    output = tmp_path / "out.jsonl"
    async with AsyncOneLLM(transport=FakeTransport(answer), limits=Limits.unlimited(2)) as client:
        report = await client.run([*PROMPTS, "p0", {"prompt": 5}], output, **options)
    code = status(str(output), json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == state
    assert code == 1  # something failed, or is left
    assert said["counts"] == report.counts.to_dict()
    assert (said["counts"]["in_flight"], said["sample"]["snapshot"]["in_flight"]) == (0, 0)
    assert sum(said["sample"]["snapshot"]["queued"].values()) == 0
    progress = said["sample"]["progress"]
    assert progress["completed"] == report.progress.completed == report.counts.completed
    assert progress["failed"] == report.counts.failed == sum(said["failures"].values())
    assert progress["bad_lines"] == said["bad_lines"] == report.bad_lines
    assert progress["in_flight"] == 0
    assert progress.get("total") == report.progress.total
    assert progress["counts"]["cost"] == said["counts"]["cost"]
