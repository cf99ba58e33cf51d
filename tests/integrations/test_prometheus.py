import asyncio
import threading
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from onellm_async import AsyncOneLLM, Limits
from onellm_async.integrations.prometheus import OneLLMCollector
from onellm_async.server import LocalServer, ServerSettings
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeTransport, answer, failure

MODEL = "GPT-5-Nano"


def samples(registry, **labels):
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sorted(value for key, value in sample.labels.items() if key not in {"client", *labels})): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    }


async def test_the_counters_agree_with_the_ledger_of_the_service():
    registry = CollectorRegistry()
    async with LocalServer(ServerSettings(requests_per_minute=60_000, burst=1000)) as server:
        limits = Limits.unlimited(8)
        async with AsyncOneLLM("local", base_url=server.url, limits=limits) as client:
            registry.register(OneLLMCollector(client))
            replies = await client.gather_chats([f"Prompt {n}" for n in range(20)], model=MODEL)
            await client.gather_chats(["one more"], model="a-model-of-mine", return_exceptions=True)
            seen = samples(registry)
        assert seen["onellm_requests_total", MODEL, "answered"] == 20
        assert seen["onellm_tokens_total", MODEL, "input"] == sum(reply.usage.input_tokens for reply in replies)
        assert seen["onellm_cost_usd_total", MODEL] == pytest.approx(sum(reply.cost for reply in replies))
        assert seen["onellm_request_seconds_count",] == server.ledger.received == 21
        assert {key for key in seen if key[0] == "onellm_requests_total"} <= {
            ("onellm_requests_total", MODEL, "answered"),
            ("onellm_requests_total", "answered", "other"),
            ("onellm_requests_total", "failed", "other"),
        }


def test_failures_429s_retries_cancellations_and_possible_bills_are_counted_and_counters_only_grow():
    async def measured():
        registry, seen = CollectorRegistry(), []
        replies = iter([429, failure(503), answer("a"), failure(422), answer("b", delay=100)])
        transport = FakeTransport(lambda request: next(replies))
        async with AsyncOneLLM(transport=transport) as client:
            registry.register(OneLLMCollector({"web": client}))
            for _ in range(2):
                await asyncio.wait({asyncio.ensure_future(client.chat("x", model=MODEL))})
                seen.append(samples(registry, client="web"))
            chat = asyncio.ensure_future(client.chat("x", model=MODEL, lane="interactive"))
            await asyncio.sleep(40)
            seen.append(samples(registry, client="web"))
            chat.cancel()
            await asyncio.wait({chat})
            seen.append(samples(registry, client="web"))
        return seen

    seen = run_in_virtual_time(measured())
    end = seen[-1]
    assert [end["onellm_requests_total", MODEL, outcome] for outcome in ("answered", "cancelled", "failed")] == [
        1,
        1,
        1,
    ]
    assert (end["onellm_rate_limited_total",], end["onellm_retries_total",]) == (1, 1)
    assert end["onellm_possibly_billed_total",] == 2
    assert [state["onellm_in_flight",] for state in seen] == [0, 0, 1, 0]
    assert seen[2]["onellm_bottleneck", "service"] + seen[2]["onellm_bottleneck", "idle"] == 1
    for earlier, later in pairwise(seen):
        for key, value in earlier.items():
            if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                assert later[key] >= value, key


def test_what_is_shed_is_no_failure():
    async def measured():
        registry = CollectorRegistry()
        limits = Limits(requests_per_minute=1, burst=1, max_pending=0)
        async with AsyncOneLLM(transport=FakeTransport(), limits=limits) as client:
            registry.register(OneLLMCollector(client))
            chats = [client.chat("x", model=MODEL, deadline=30), client.chat("y", model=MODEL)]
            await asyncio.gather(*chats, return_exceptions=True)
            return samples(registry)

    seen = run_in_virtual_time(measured())
    assert (seen["onellm_requests_total", MODEL, "answered"], seen["onellm_requests_total", MODEL, "shed"]) == (1, 1)


def test_two_clients_have_labels_of_their_own_in_one_registry():
    async def both():
        registry = CollectorRegistry()
        async with (
            AsyncOneLLM(transport=FakeTransport()) as web,
            AsyncOneLLM(transport=FakeTransport(), limits=Limits.unlimited()) as batch,
        ):
            registry.register(OneLLMCollector({"web": web, "batch": batch}))
            second = OneLLMCollector(web)
            with pytest.raises(ValueError, match="Duplicated"):
                registry.register(second)
            await web.chat("x", model=MODEL)
            return samples(registry, client="web"), samples(registry, client="batch")

    web, batch = run_in_virtual_time(both())
    assert web["onellm_rate_per_minute",] == 40
    assert ("onellm_rate_per_minute",) not in batch
    assert web["onellm_requests_total", MODEL, "answered"] == 1
    assert not any(key[0] == "onellm_requests_total" for key in batch)


async def test_another_thread_gets_the_counters_alone_and_that_is_logged_once(caplog):
    async with AsyncOneLLM(transport=FakeTransport()) as client:
        collector = OneLLMCollector(client)
        registry = CollectorRegistry()
        registry.register(collector)
        await client.chat("x", model=MODEL)
        read = []
        thread = threading.Thread(target=lambda: read.extend(samples(registry) for _ in range(2)))
        thread.start()
        await asyncio.to_thread(thread.join)
        collector.close()
        await client.chat("y", model=MODEL)
        assert samples(registry)["onellm_requests_total", MODEL, "answered"] == 1
    assert read[0]["onellm_requests_total", MODEL, "answered"] == 1
    assert ("onellm_in_flight",) not in read[0]
    assert caplog.text.count("gauges are left out") == 1
