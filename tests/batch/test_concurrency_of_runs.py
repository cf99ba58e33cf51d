"""`max_concurrency="auto"` of a run: its workers follow the number that is found out."""

import asyncio
from random import Random

from virtual_runs import run

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeTransport


def test_a_run_has_as_many_workers_as_are_found_out():
    limits = Limits(max_concurrency="auto", requests_per_minute=600_000, burst=10_000)
    ran = run([str(number) for number in range(508)], lambda prompt, at: None, limits=limits, latency=1.0)
    assert ran.report.complete
    assert ran.seconds < 10, "4, 8, 16, … at once"
    each_second = [sum(int(at) == second for at, _ in ran.service.sent) for second in range(3)]
    assert each_second == [4, 8, 16]


async def test_a_resumed_run_counts_what_its_earlier_sessions_have_sent_in_a_declared_window(tmp_path):
    limits = Limits(requests_per_minute=None, requests_per_day=5)
    for session, sent in enumerate((5, 0)):
        transport = FakeTransport()
        async with AsyncOneLLM(transport=transport, limits=limits, random=Random(session)) as client:
            prompts = [str(number) for number in range(8)]
            running = asyncio.create_task(client.run(prompts, tmp_path / "answers.jsonl", model="GPT-5"))
            # The last one has its permit before it is in the journal, and is posted after that.
            while len(transport.requests) < sent or not client.snapshot().window_wait:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.01)
            waits = client.snapshot().window_wait
            assert 86_000 < waits < 86_500
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert len(transport.requests) == sent
