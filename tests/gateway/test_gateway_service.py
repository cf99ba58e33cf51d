"""The gateway over real sockets."""

import asyncio
import base64
import gzip
import json

import aiohttp
import pytest
from visitors import FAST, QUESTION

from onellm_async import AsyncOneLLM, ConfigurationError, Limits
from onellm_async.gateway import GatewaySettings, serve_gateway
from onellm_async.gateway.app import MAX_BODY_BYTES
from onellm_async.gateway.keys import InboundKey, hash_key, render_key
from onellm_async.gateway.spending import read_spending
from onellm_async.testing import FakeTransport, answer, hang

ONE_A_MINUTE = Limits(requests_per_minute=1, burst=1)
SINGLE = {**QUESTION, "messages": [{"role": "user", "content": "single"}]}
CAPPED = {**QUESTION, "max_tokens": 10}


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # of others, who set no event
            await asyncio.sleep(0.002)


async def test_a_chat_is_answered_and_its_ignored_fields_are_named(serving):
    async with serving() as visitor:
        found = await visitor.ask({**QUESTION, "store": True, "naïve\r\nx": 1})
    assert (found.status, found.body["choices"][0]["message"]["content"]) == (200, "Hello")
    assert found.headers["x-onellm-ignored"] == "store, na%C3%AFve%0D%0Ax"
    assert found.headers["x-request-id"] == found.body["id"]


async def test_a_stream_comes_in_one_chunk(serving):
    async with serving() as visitor:
        found = await visitor.ask({**QUESTION, "stream": True})
    assert (found.status, found.headers["Content-Type"]) == (200, "text/event-stream")
    assert found.body.count("data: ") == 3
    assert found.body.endswith("data: [DONE]\n\n")


async def test_the_status_line_of_a_stream_waits_for_the_answer(serving):
    async with serving(FakeTransport(422)) as visitor:
        found = await visitor.ask({**QUESTION, "stream": True})
    assert (found.status, found.error["code"]) == (422, "rejected_by_service")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"x" * (MAX_BODY_BYTES + 1), {}, 413),
        (b'{"a":' * 5000, {}, 400),
        (None, {"x_onellm_lane": "fast"}, 400),
        (None, {"x_onellm_lane": ""}, 400),
    ],
)
async def test_an_unusable_request_is_refused_unsent_in_the_shape_of_openai(serving, body, headers, status):
    transport = FakeTransport()
    async with serving(transport) as visitor:
        found = await visitor.ask(body, **headers)
    assert (found.status, transport.requests) == (status, [])
    assert set(found.error) == {"message", "type", "param", "code"}
    assert found.headers["x-should-retry"] == "false"


async def test_a_body_that_does_not_arrive_is_not_waited_for(serving, monkeypatch):
    monkeypatch.setattr("onellm_async.gateway.app._BODY_TIMEOUT", 0.05)
    async with serving() as visitor:
        host, port = visitor.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n".encode())
        writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_a_packed_body_is_read_within_the_same_bound(serving):
    async with serving() as visitor:
        small = await visitor.ask(gzip.compress(json.dumps(QUESTION).encode()), Content_Encoding="gzip")
        bomb = await visitor.ask(gzip.compress(b" " * (64 * 2**20)), Content_Encoding="gzip")
        broken = await visitor.ask(b"not gzip", Content_Encoding="gzip")
    assert (small.status, bomb.status, broken.status) == (200, 413, 400)


async def test_a_request_without_max_tokens_and_with_a_huge_one_are_counted(serving, key_file):
    path = key_file(alice={})
    async with serving(settings=GatewaySettings(keys=path)) as visitor:
        for extra in ({}, {"max_tokens": 2**62}, {"model": "my-model"}):
            assert (await visitor.ask({**QUESTION, **extra}, key="key-of-alice")).status == 200
    assert read_spending(path.with_name("keys.spent.sqlite3"))["alice"].answered == 3


async def test_the_other_paths_have_answers_of_the_same_shape(serving):
    async with serving() as visitor:
        models = await visitor.get("/v1/models")
        one = await visitor.get("/v1/models/GPT-5-Nano")
        unknown = await visitor.get("/v1/models/GPT-9")
        health = await visitor.get("/healthz")
        wrong = await visitor.get("/v1/responses")
        method = await visitor.get("/v1/chat/completions")
    assert [each.status for each in (models, one, unknown, health, wrong, method)] == [200, 200, 404, 200, 404, 405]
    assert '"id":"GPT-5-Mini"' in models.body
    assert "POST /v1/chat/completions" in wrong.body
    assert method.headers["Allow"] == "POST"


async def test_a_429_of_the_service_is_waited_for_and_never_passed_on(serving):
    async with serving(FakeTransport([429, 429, "Hi"]), limits=Limits(requests_per_minute=60_000)) as visitor:
        found = await visitor.ask()
    assert (found.status, found.body["onellm"]["rate_limited"]) == (200, 2)


async def test_a_full_queue_sheds_with_a_truthful_retry_after(serving):
    limits = Limits(requests_per_minute=2, burst=1, max_pending=1)
    async with serving(limits=limits) as visitor:
        assert (await visitor.ask()).status == 200
        waiting = asyncio.create_task(visitor.ask())
        await until(lambda: visitor.client.snapshot().queued["default"] == 1)
        shed = await visitor.ask()
        waiting.cancel()
        await asyncio.wait({waiting})
    assert (shed.status, shed.error["code"], shed.headers["x-should-retry"]) == (503, "queue_full", "false")
    assert 55 <= int(shed.headers["Retry-After"]) <= 61


async def test_a_request_that_cannot_be_sent_in_time_is_shed_at_once(serving):
    async with serving(limits=ONE_A_MINUTE, settings=GatewaySettings(max_wait=20)) as visitor:
        assert (await visitor.ask()).status == 200
        shed = await visitor.ask()
    assert shed.status == 503
    assert 35 <= int(shed.headers["Retry-After"]) <= 60


async def test_a_visitor_who_leaves_the_queue_is_not_paid_for(serving, tmp_path):
    transport, settings = FakeTransport(), GatewaySettings(ledger=tmp_path / "spent")
    async with serving(transport, limits=ONE_A_MINUTE, settings=settings) as visitor:
        await visitor.ask()
        waiting = asyncio.create_task(visitor.ask())
        await until(lambda: visitor.client.snapshot().queued["default"] == 1)
        waiting.cancel()
        await until(lambda: visitor.client.snapshot().queued["default"] == 0)
    assert len(transport.requests) == 1
    assert read_spending(tmp_path / "spent")["local"].requests == 1


async def test_a_visitor_who_leaves_in_flight_frees_the_place_and_counts_as_at_risk(serving, tmp_path):
    settings = GatewaySettings(ledger=tmp_path / "spent", max_cost=1)
    transport = FakeTransport([hang(), "Hi"])
    async with serving(transport, limits=Limits(max_concurrency=1), settings=settings) as visitor:
        waiting = asyncio.create_task(visitor.ask(CAPPED))
        await until(lambda: transport.in_flight == 1)
        waiting.cancel()
        assert (await visitor.ask(CAPPED)).status == 200
    found = read_spending(tmp_path / "spent")["local"]
    assert (found.answered, found.possibly_billed, found.reserved) == (1, 1, 0)
    assert found.at_risk > found.billed > 0


async def test_requests_take_the_lane_of_their_key_or_a_lower_one(serving, key_file):
    keys = key_file(fast={"lane": "interactive"}, slow={"lane": "batch"})
    async with serving(limits=ONE_A_MINUTE, settings=GatewaySettings(keys=keys)) as visitor:
        assert (await visitor.ask(key="key-of-fast")).status == 200
        waiting = [
            asyncio.create_task(visitor.ask(key="key-of-fast")),
            asyncio.create_task(visitor.ask(key="key-of-slow")),
            asyncio.create_task(visitor.ask(key="key-of-fast", x_onellm_lane="default")),
        ]
        queued = {"interactive": 1, "default": 1, "batch": 1}
        await until(lambda: visitor.client.snapshot().queued == queued)
        refused = await visitor.ask(key="key-of-slow", x_onellm_lane="interactive")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert refused.status == 400
    assert "can only lower it" in refused.error["message"]


async def test_keys_of_a_lane_take_turns(serving, key_file):
    transport, settings = FakeTransport(), GatewaySettings(keys=key_file(flood={}, single={}))
    async with serving(transport, limits=Limits(requests_per_minute=6000, burst=1), settings=settings) as visitor:
        visitor.client.pause()
        asked = [asyncio.create_task(visitor.ask(key="key-of-flood")) for _ in range(9)]
        await until(lambda: visitor.client.snapshot().queued["default"] == 9)
        asked.append(asyncio.create_task(visitor.ask(SINGLE, key="key-of-single")))
        await until(lambda: visitor.client.snapshot().queued["default"] == 10)
        visitor.client.resume()
        await asyncio.gather(*asked)
    assert transport.prompts.index("single") == 1


async def test_only_listed_keys_are_let_in_and_none_is_repeated(serving, key_file, caplog):
    transport = FakeTransport()
    async with serving(transport, settings=GatewaySettings(keys=key_file(alice={}))) as visitor:
        none, wrong = await visitor.ask(), await visitor.ask(key="key-of-mallory")
        basic = await visitor.ask(Authorization="Basic " + base64.b64encode(b"x:key-of-alice").decode())
        models = await visitor.get("/v1/models")
        right = await visitor.ask(key="key-of-alice")
    assert [each.status for each in (none, wrong, basic, models, right)] == [401, 401, 401, 401, 200]
    assert wrong.error["code"] == "invalid_api_key"
    assert "mallory" not in str(wrong.body) + caplog.text
    assert len(transport.requests) == 1


async def test_a_key_added_while_it_runs_is_let_in(serving, key_file, monkeypatch):
    monkeypatch.setattr("onellm_async.gateway.key_file._CHECK_INTERVAL", 0.0)
    path = key_file(alice={})
    async with serving(settings=GatewaySettings(keys=path)) as visitor:
        assert (await visitor.ask(key="key-of-bob")).status == 401
        path.write_text(path.read_text() + "\n" + render_key(InboundKey(name="bob", sha256=hash_key("key-of-bob"))))
        assert (await visitor.ask(key="key-of-bob")).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "127.0.0.1.evil.example", "10.0.0.1", "", "a b"])
async def test_without_keys_a_page_of_another_site_reaches_nothing(serving, host):
    transport = FakeTransport()
    async with serving(transport) as visitor:
        found = await visitor.ask(Host=host)
        page = await visitor.get("/", Host=host)
    assert {found.status, page.status} <= {400, 403}
    assert transport.requests == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8787", "127.0.0.1", "[::1]:8787", "gateway.localhost"])
async def test_without_keys_this_machine_is_served(serving, host):
    async with serving() as visitor:
        assert (await visitor.ask(Host=host)).status == 200


# Money.


async def test_a_key_spends_to_its_cap_and_not_beyond(serving, key_file):
    path = key_file(alice={"max_cost": 0.00002}, bob={})
    async with serving(settings=GatewaySettings(keys=path)) as visitor:
        found = await asyncio.gather(*(visitor.ask(CAPPED, key="key-of-alice") for _ in range(60)))
        bob = await visitor.ask(key="key-of-bob")
    statuses = [each.status for each in found]
    assert set(statuses) == {200, 402}
    assert bob.status == 200
    refused = next(each for each in found if each.status == 402)
    assert (refused.error["type"], refused.error["code"]) == ("insufficient_quota", "max_cost_reached")
    assert "Cost cap of key alice reached" in refused.error["message"]
    row = read_spending(path.with_name("keys.spent.sqlite3"))["alice"]
    assert row.answered == statuses.count(200)
    assert 0.000015 < row.billed / 1e10 <= 0.00002


async def test_a_cap_outlives_the_gateway_and_holds_over_all_keys(serving, key_file):
    settings = GatewaySettings(keys=key_file(alice={}, bob={}), max_cost=0.00001, max_tokens=10)
    async with serving(settings=settings) as visitor:
        while (await visitor.ask(key="key-of-alice")).status == 200:
            pass
    async with serving(settings=settings) as visitor:
        refused = await visitor.ask(key="key-of-bob")
    assert (refused.status, "all keys" in refused.error["message"]) == (402, True)


async def test_a_capped_key_needs_a_bound_and_a_price(serving, key_file):
    settings = GatewaySettings(keys=key_file(alice={"max_cost": 1.0}))
    async with serving(settings=settings) as visitor:
        unbounded = await visitor.ask(key="key-of-alice")
        unpriced = await visitor.ask({**CAPPED, "model": "my-model"}, key="key-of-alice")
    assert (unbounded.status, unbounded.error["param"]) == (400, "max_tokens")
    assert (unpriced.status, unpriced.error["param"]) == (400, "model")


async def test_attempts_that_may_be_billed_count_and_those_that_are_not_do_not(serving, key_file):
    path = key_file(alice={"max_cost": 1.0})
    transport = FakeTransport([429, 502, "Hi"])
    async with serving(transport, settings=GatewaySettings(keys=path)) as visitor:
        found = await visitor.ask(CAPPED, key="key-of-alice")
    row = read_spending(path.with_name("keys.spent.sqlite3"))["alice"]
    assert (found.status, found.body["onellm"]["possibly_billed"]) == (200, 1)
    assert (row.requests, row.answered, row.possibly_billed, row.reserved) == (2, 1, 1, 0)


async def test_nothing_is_sent_while_the_ledger_cannot_be_written(serving, tmp_path, monkeypatch):
    transport = FakeTransport()
    async with serving(transport, settings=GatewaySettings(ledger=tmp_path / "spent")) as visitor:
        with monkeypatch.context() as patch:
            patch.setattr(
                "onellm_async.gateway.spending.SpendingLedger._intend",
                lambda *_: (_ for _ in ()).throw(OSError("disk full")),
            )
            broken = await visitor.ask()
        assert (await visitor.ask()).status == 200
    assert (broken.status, "disk full" in broken.error["message"]) == (503, True)
    assert len(transport.requests) == 1


# Its end.


async def test_a_stop_answers_what_is_in_flight_and_sends_the_queue_away(tmp_path):
    transport = FakeTransport(lambda request: answer("Hi", delay=0.3))
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = GatewaySettings(ledger=tmp_path / "spent")
    async with AsyncOneLLM(transport=transport, limits=ONE_A_MINUTE) as client:
        serving = asyncio.create_task(serve_gateway(client, settings, port=0, stop=stop, on_ready=ready.set_result))
        url = await ready
        async with aiohttp.ClientSession() as session:

            async def ask():
                async with session.post(f"{url}/chat/completions", json=QUESTION) as reply:
                    return reply.status, reply.headers.get("x-should-retry")

            asked = [asyncio.create_task(ask()) for _ in range(3)]
            await until(lambda: transport.in_flight == 1 and client.snapshot().queued["default"] == 2)
            stop.set()
            found = await asyncio.gather(*asked)
            await serving
            with pytest.raises(aiohttp.ClientError):
                await ask()
    assert sorted(found, key=str) == [(200, None), (503, "true"), (503, "true")]
    row = read_spending(tmp_path / "spent")["local"]
    assert (row.answered, row.reserved, row.at_risk) == (1, 0, 0)


async def test_without_keys_it_listens_on_this_machine_alone():
    async with AsyncOneLLM(transport=FakeTransport(), limits=FAST) as client:
        for host in ("0.0.0.0", "::", "", "no.such.host.invalid"):
            with pytest.raises(ConfigurationError, match=r"keys|resolved"):
                await serve_gateway(client, GatewaySettings(), host=host, port=0, stop=asyncio.Event())
