"""A run ends when its time is over, and waits in the lane that it was given."""

import asyncio
import json

import pytest
from virtual_runs import run

from onellm_async import AsyncOneLLM, ConfigurationError, Limits
from onellm_async.batch import JournalReader, RunPolicy
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.run import exit_code
from onellm_async.cli.run_display import tell
from onellm_async.events import Queued
from onellm_async.testing import FakeTransport


def test_a_run_sends_nothing_after_its_time_and_waits_for_what_is_in_flight():
    ran = run([f"p{n}" for n in range(100)], lambda prompt, at: None, latency=2.0, policy=RunPolicy(max_time=70))
    assert ran.report.out_of_time
    assert not ran.report.complete
    assert max(at for at, _ in ran.service.sent) <= 70
    assert 70 <= ran.seconds <= 73
    assert ran.report.counts.answered == len(ran.service.sent) < 100


def test_a_run_that_ends_before_its_time_is_a_run_like_any_other():
    ran = run(["a", "b"], lambda prompt, at: None, policy=RunPolicy(max_time=70))
    assert ran.report.complete
    assert ran.seconds < 10


async def test_what_its_time_left_is_sent_by_the_same_run_again(tmp_path, capsys):
    async def slow(request):
        await asyncio.sleep(0 if request.prompt == "a" else 0.05)
        return request.prompt.upper()

    output, prompts = tmp_path / "out.jsonl", list("abcdef")
    async with AsyncOneLLM(transport=FakeTransport(slow), limits=Limits.unlimited(1)) as client:
        report = await client.run(prompts, output, max_time=0.04)
        assert exit_code(report, None) == ExitCode.TIME_OVER
        tell(report, str(output))
        assert "the time of --max-time is over" in (said := capsys.readouterr().err)
        assert "Run the same command again to resume." in said
        with JournalReader.open(output) as journal:
            assert journal.sessions()[-1].end_reason == "stopped when its time was over (max_time)"
        assert (await client.run(prompts, output)).complete
    answers = [json.loads(line)["response"]["content"] for line in output.read_text().splitlines()]
    assert answers == list("ABCDEF")


@pytest.mark.parametrize("lane", ["interactive", "default", "batch"])
async def test_the_requests_of_a_run_wait_in_its_lane(tmp_path, lane):
    events = []
    async with AsyncOneLLM(transport=FakeTransport("x"), hooks=[events.append]) as client:
        await client.run(["a", "b"], tmp_path / "out.jsonl", lane=lane)
    assert {event.lane for event in events if isinstance(event, Queued)} == {lane}


@pytest.mark.parametrize(
    "options", [{"lane": "fast"}, {"max_time": 0}, {"max_time": "10m"}, {"max_time": float("nan")}]
)
async def test_a_value_out_of_range_is_refused_before_anything_is_sent(tmp_path, options):
    service = FakeTransport("x")
    async with AsyncOneLLM(transport=service) as client:
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            await client.run(["a"], tmp_path / "out.jsonl", **options)
    assert service.prompts == []
