"""The bottlenecks of a run: the arithmetic, and the real client in virtual time."""

import asyncio
import json
from random import Random

import pytest

from onellm_async import (
    APIConnectionError,
    AsyncOneLLM,
    ConfigurationError,
    FailureKind,
    Limits,
    RetryPolicy,
    Snapshot,
    analyze_bottlenecks,
)
from onellm_async.limits.permit import RequestGroup
from onellm_async.testing import FakeTransport, failure

pytestmark = pytest.mark.virtual_time

ANSWER = {"content": "x"}
UNREACHABLE = APIConnectionError("refused", kind=FailureKind.CANNOT_CONNECT)


def at(seconds, **values):
    return Snapshot(at=seconds, max_concurrency=48, **values)


def test_each_snapshot_speaks_for_the_time_half_way_to_its_neighbours():
    spent = analyze_bottlenecks([at(0, bottleneck="rate", rate=40.0), at(2, in_flight=3), at(10), at(12)])
    assert spent.elapsed == 12
    assert spent.shares == pytest.approx({"idle": 6 / 12, "service": 5 / 12, "rate": 1 / 12})
    assert list(spent.shares) == ["idle", "service", "rate"]


@pytest.mark.parametrize("samples", [[], [at(5.0)], [at(5.0), at(5.0)]], ids=["none", "one", "no time"])
def test_too_few_snapshots_tell_nothing_and_say_so(samples):
    spent = analyze_bottlenecks(samples)
    assert (spent.elapsed, spent.shares) == (0.0, {})
    assert spent.summary == "There are too few snapshots to find a bottleneck."


def test_snapshots_out_of_order_are_refused():
    with pytest.raises(ConfigurationError, match="The snapshot of 1 s comes after that of 2 s"):
        analyze_bottlenecks([at(2.0), at(1.0)])


def test_refusals_and_repeats_are_shares_of_what_was_sent_meanwhile():
    spent = analyze_bottlenecks(
        [
            at(0, answered=100, rate_limited=50, retried=7),
            at(1, answered=180, rate_limited=60, unanswered=10, retried=27),
        ]
    )
    assert (spent.rate_limited_share, spent.retried_share) == (0.1, 0.2)
    assert spent.summary.endswith(" 20 % of the requests were retries.")


def test_slots_that_an_overloaded_service_takes_away_are_told_from_those_declared():
    spent = analyze_bottlenecks(
        [at(0, in_flight=5, concurrency=5), at(9, in_flight=5, concurrency=5, bottleneck="concurrency")]
    )
    assert spent.shares == {"concurrency": 1.0}
    assert "all 5 slots that the service left were in use: it said that it was overloaded" in spent.summary
    assert "A higher max_concurrency" in analyze_bottlenecks([at(0, in_flight=48), at(9, in_flight=48)]).summary


async def watched(client, prompts=200, pace=0.0, meanwhile=None):
    """Runs `prompts` through `client`, taking `pace` seconds over each answer; returns where the time went."""
    samples = []

    async def watch():
        while True:
            samples.append(client.snapshot())
            await asyncio.sleep(1.0)

    tasks = [asyncio.create_task(watch())]
    if meanwhile is not None:
        tasks.append(asyncio.create_task(meanwhile()))
    async for _ in client.iter_chats((f"prompt {i}" for i in range(prompts)), model="GPT-5"):
        await asyncio.sleep(pace)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return analyze_bottlenecks(samples)


async def test_a_run_at_its_rate_wants_more_requests_per_minute():
    async with AsyncOneLLM(transport=FakeTransport(ANSWER, delay=6.0), limits=Limits()) as client:
        spent = await watched(client)
    assert spent.shares["rate"] > 0.9
    assert spent.summary.endswith(
        " % of the time the rate limit of 40.0 requests per minute was the bottleneck. More requests per minute"
        " would make this run shorter; more concurrency would not."
    )


@pytest.mark.parametrize("others_wait", [False, True])
async def test_a_run_whose_slots_are_all_in_use_wants_more_concurrency(others_wait):
    async def others():
        await client.gather_chats(["x"] * 100, model="GPT-5")

    async with AsyncOneLLM(
        transport=FakeTransport(ANSWER, delay=6.0), limits=Limits.unlimited(max_concurrency=10)
    ) as client:
        spent = await watched(client, meanwhile=others if others_wait else None)
    assert spent.shares["concurrency"] > 0.9
    assert "all 10 slots were in use. A higher max_concurrency would" in spent.summary


async def test_a_run_that_waits_for_a_few_long_answers_wants_a_faster_service():
    async with AsyncOneLLM(transport=FakeTransport(ANSWER, delay=60.0), limits=Limits.unlimited()) as client:
        spent = await watched(client, prompts=20)
    assert spent.shares["service"] > 0.9
    assert "the service was busy answering" in spent.summary


async def test_a_run_that_waits_for_tokens_wants_more_tokens():
    async with AsyncOneLLM(transport=FakeTransport(ANSWER, delay=1.0), limits=Limits(tokens_per_minute=300)) as client:
        spent = await watched(client, prompts=100)
    assert spent.shares["tokens"] > 0.6
    assert "the limit of 300 tokens per minute was the bottleneck" in spent.summary


async def test_a_slow_consumer_leaves_the_client_idle():
    async with AsyncOneLLM(
        transport=FakeTransport(ANSWER, delay=1.0), limits=Limits.unlimited(max_concurrency=4)
    ) as client:
        spent = await watched(client, prompts=20, pace=30.0)
    assert spent.shares["idle"] > 0.8
    assert "a faster consumer of the answers" in spent.summary


async def test_a_long_retry_after_is_named():
    service = FakeTransport(failure(429, headers={"Retry-After": "250"}))

    async def relents():
        await asyncio.sleep(200)
        service.set_replies(ANSWER)

    async with AsyncOneLLM(transport=service, limits=Limits()) as client:
        spent = await watched(client, prompts=30, meanwhile=relents)
    assert spent.shares["retry_after"] > 0.7
    assert "(Retry-After)" in spent.summary
    assert spent.rate_limited_share > 0


async def test_a_service_that_is_down_is_named():
    service = FakeTransport(UNREACHABLE)

    async def returns():
        await asyncio.sleep(600)
        service.set_replies(ANSWER)

    async with AsyncOneLLM(transport=service, limits=Limits(), random=Random(1)) as client:
        client._sender.join(RequestGroup(answered=True))
        spent = await watched(client, prompts=30, meanwhile=returns)
    assert spent.shares["circuit_open"] > 0.7
    assert "the circuit was open" in spent.summary
    assert "of the requests were retries" in spent.summary


async def test_a_pause_is_named():
    async def pauses():
        client.pause()
        await asyncio.sleep(1000)
        client.resume()

    async with AsyncOneLLM(transport=FakeTransport(ANSWER, delay=1.0), limits=Limits()) as client:
        spent = await watched(client, prompts=60, meanwhile=pauses)
    assert spent.shares["paused"] > 0.9
    assert "Resuming sooner" in spent.summary


async def test_waiting_to_try_again_is_told_from_idling():
    service = FakeTransport(503)
    retry = RetryPolicy(backoff_base=100, backoff_cap=1000, breaker_failures=0)

    async def recovers():
        await asyncio.sleep(1)
        service.set_replies(ANSWER)

    async with AsyncOneLLM(transport=service, limits=Limits(), retry=retry, random=Random(1)) as client:
        spent = await watched(client, prompts=3, meanwhile=recovers)
    assert spent.shares["backoff"] > 0.8
    assert "to retry after failures" in spent.summary


def test_an_analysis_is_json():
    found = analyze_bottlenecks([at(0, in_flight=48), at(9, in_flight=48)]).to_dict()
    assert json.loads(json.dumps(found))["shares"] == {"concurrency": 1.0}
