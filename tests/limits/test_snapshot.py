"""What a snapshot tells, with the real client in virtual time."""

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
    RateState,
    RetryPolicy,
)
from onellm_async.limits.limiter import Limiter
from onellm_async.testing import FakeTransport, failure

pytestmark = pytest.mark.virtual_time

ANSWER = {"content": "x"}
UNREACHABLE = APIConnectionError("refused", kind=FailureKind.CANNOT_CONNECT)


def slow_service():
    return FakeTransport(ANSWER, delay=5.0)


def chats(client, number, **options):
    return [asyncio.create_task(client.chat("x", model="GPT-5", **options)) for _ in range(number)]


async def test_a_snapshot_says_who_waits_where_for_what_and_how_long():
    async with AsyncOneLLM(transport=slow_service(), limits=Limits(requests_per_minute=60, burst=1)) as client:
        tasks = chats(client, 3) + chats(client, 2, lane="batch")
        await asyncio.sleep(0.5)
        now = client.snapshot()
        assert now.queued == {"interactive": 0, "default": 2, "batch": 2}
        assert now.waiting_for == {"interactive": "idle", "default": "rate", "batch": "rate"}
        assert now.longest_wait == {"interactive": 0.0, "default": 0.5, "batch": 0.5}
        assert (now.at, now.bottleneck, now.in_flight, now.level, now.sent) == (0.5, "rate", 1, 0, 1)
        assert (now.mode, now.declared_rate, now.burst) == ("correct", 60, 1)
        assert now.next_in == pytest.approx(0.55)
        await asyncio.gather(*tasks)
        later = client.snapshot()
        assert (later.answered, later.sent, later.bottleneck) == (5, 5, "idle")


async def test_full_slots_are_told_from_the_rate():
    async with AsyncOneLLM(transport=slow_service(), limits=Limits(max_concurrency=2)) as client:
        tasks = chats(client, 4)
        await asyncio.sleep(1)
        assert client.snapshot().bottleneck == "concurrency"
        await asyncio.gather(*tasks)


async def test_a_large_request_waits_for_tokens_and_a_small_one_of_another_lane_for_its_turn():
    slots = Limiter(Limits(requests_per_minute=6000, tokens_per_minute=600), random=Random(0))
    (await slots.acquire(tokens=600)).answered(600)
    large = asyncio.create_task(slots.acquire(tokens=500, lane="interactive"))
    await asyncio.sleep(1)
    small = asyncio.create_task(slots.acquire(tokens=1, lane="batch"))
    await asyncio.sleep(0)
    now = slots.snapshot()
    assert now.waiting_for == {"interactive": "tokens", "default": "idle", "batch": "lane"}
    assert now.tokens_level == pytest.approx(10)
    (await large).answered(500)
    (await small).answered(1)


async def test_a_pause_a_retry_after_and_a_service_that_is_down_are_told_apart():
    service = FakeTransport(failure(429, headers={"Retry-After": "20"}))
    limits = Limits(requests_per_minute=6000)
    async with AsyncOneLLM(transport=service, limits=limits, retry=RetryPolicy(), random=Random(1)) as client:
        run = asyncio.create_task(client.gather_chats(["a", "b", "c"], model="GPT-5"))
        await asyncio.sleep(1)
        assert client.snapshot().bottleneck == "retry_after"
        assert client.snapshot().retry_after == pytest.approx(19, abs=0.1)
        client.pause()
        assert (client.snapshot().bottleneck, client.snapshot().paused) == ("paused", True)
        service.set_replies(UNREACHABLE)
        client.resume()
        await asyncio.sleep(28)
        assert client.snapshot().bottleneck == "circuit_open"
        assert client.snapshot().trial_in > 0
        assert client.snapshot().retried > 0
        service.set_replies(ANSWER)
        await run
        ended = client.snapshot()
        assert (ended.retry_after, ended.trial_in, ended.backing_off) == (None, None, 0)


async def test_chats_that_wait_to_be_repeated_are_counted_and_forgotten_when_cancelled():
    service = FakeTransport(503)
    retry = RetryPolicy(backoff_base=100, breaker_failures=0, backoff_cap=1000)
    async with AsyncOneLLM(transport=service, retry=retry, random=Random(1)) as client:
        tasks = chats(client, 3)
        await asyncio.sleep(1)
        assert (client.snapshot().backing_off, client.snapshot().in_flight) == (3, 0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert client.snapshot().backing_off == 0


async def test_a_snapshot_is_json_and_looking_changes_nothing():
    async with AsyncOneLLM(transport=slow_service(), limits=Limits(tokens_per_minute=100)) as client:
        tasks = chats(client, 60)
        await asyncio.sleep(1)
        assert client.snapshot() == client.snapshot()
        assert json.loads(json.dumps(client.snapshot().to_dict(), allow_nan=False))["max_concurrency"] == 48
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert client.snapshot().at_rest


def test_a_client_that_was_never_used_has_a_snapshot_too():
    client = AsyncOneLLM(transport=slow_service(), limits=Limits(requests_per_minute="auto", max_concurrency=3))
    client.pause()
    now = client.snapshot()
    assert (now.paused, now.mode, now.max_concurrency, now.at_rest) == (True, "discover", 3, True)
    client.retune(Limits.unlimited())
    assert (client.snapshot().mode, client.limits) == ("unlimited", Limits.unlimited())


async def test_without_a_limit_there_is_no_level():
    async with AsyncOneLLM(transport=slow_service(), limits=Limits.unlimited()) as client:
        await client.chat("x", model="GPT-5")
        now = client.snapshot()
    assert (now.rate, now.level, now.confidence, now.burst) == (None, None, None, None)


async def test_retuning_a_client_counts_tokens_from_then_on():
    async with AsyncOneLLM(transport=FakeTransport(ANSWER), limits=Limits.unlimited()) as client:
        await client.chat("x", model="GPT-5")
        client.retune(Limits(tokens_per_minute=1000))
        await client.chat("x" * 2000, model="GPT-5", max_tokens=100)
        assert client.snapshot().tokens_level < 1000
        client.retune(Limits())
        await client.chat("x", model="GPT-5")
        assert client.snapshot().tokens_level is None


async def test_a_paused_client_sends_no_repeat_either():
    service = FakeTransport(503)
    async with AsyncOneLLM(transport=service, retry=RetryPolicy(backoff_base=0.1)) as client:
        (task,) = chats(client, 1)
        await asyncio.sleep(0)
        client.pause()
        service.set_replies(ANSWER)
        await asyncio.sleep(60)
        assert client.snapshot().queued["default"] == 1
        client.resume()
        assert (await task).attempts == 2


@pytest.mark.parametrize("limits", [None, 40, "fast"])
def test_retuning_with_what_is_no_limits_is_refused_by_value(limits):
    with pytest.raises(ConfigurationError, match=r"limits is .*; it must be a Limits"):
        AsyncOneLLM(transport=slow_service()).retune(limits)


def test_a_rate_state_of_another_kind_is_refused_by_value():
    with pytest.raises(ConfigurationError, match=r"rate_state is .*; it must be a RateState"):
        AsyncOneLLM(transport=slow_service(), rate_state={"rate": 1})


async def test_what_was_learned_is_given_on_before_the_loop_runs():
    state = RateState(rate=2.0, burst=7)
    client = AsyncOneLLM(transport=slow_service(), limits=Limits(requests_per_minute="auto"), rate_state=state)
    assert client.rate_state == state
