import asyncio
import gzip
import io
import json
import logging
import re
import socket
from collections import Counter

import aiohttp
import pytest

from onellm_async import AsyncOneLLM, Dialect, Usage
from onellm_async.chat import ChatRequest
from onellm_async.server import Completion, Faults, LocalServer, Outcome, ServerSettings, echo, serve
from onellm_async.server.service import MOST_BODY_BYTES
from onellm_async.wire import encode_request

BODY = {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}
KEY = {"Authorization": "Bearer good"}


class HeldBackend:
    """Answers when it is released, and tells what it was asked."""

    def __init__(self):
        self.asked = asyncio.Event()
        self.released = asyncio.Event()
        self.closed = False

    async def complete(self, job):
        self.asked.set()
        await self.released.wait()
        return echo(job)

    async def aclose(self):
        self.closed = True


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def until(condition):
    while not condition():  # noqa: ASYNC110  # a few turns of the loop; the server has no event for it
        await asyncio.sleep(0)


async def test_answers_over_http(session):
    async with LocalServer() as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/api", server.url)
        async with session.post(server.url, json=BODY, headers=KEY) as reply:
            assert reply.status == 200
            assert reply.content_type == "application/json"
            assert (await reply.json())["content"] == "Hello there"
        assert server.ledger.billed == 1


async def test_every_answer_belongs_to_its_prompt_under_concurrency(session):
    settings = ServerSettings(requests_per_minute=1e6, burst=1000, faults=Faults(latency=0.01, latency_sigma=1))
    async with LocalServer(settings) as server:

        async def ask(text):
            body = BODY | {"messages": [{"role": "user", "content": text}]}
            async with session.post(server.url, json=body, headers=KEY) as reply:
                return (await reply.json())["content"]

        prompts = [f"{number} naïve 日本 🎉" for number in range(300)]
        assert await asyncio.gather(*map(ask, prompts)) == prompts
        assert server.ledger.billed == 300
        assert 1 < server.ledger.most_under_way <= 100  # aiohttp's client opens 100 connections


@pytest.mark.parametrize("dialect", list(Dialect))
async def test_client_and_server_understand_each_other_in_both_dialects(dialect):
    settings = ServerSettings(dialect=dialect, keys={"good": 1.0})
    async with (
        LocalServer(settings) as server,
        AsyncOneLLM("good", base_url=server.url, dialect=dialect) as client,
    ):
        response = await client.chat("Hello \ud800", model="Sonnet-4")
        assert (response.content, response.provider) == ("Hello \ud800", "Claude")
        assert response.cost == pytest.approx(server.ledger.billed_usd)


async def test_time_is_the_loops():
    async with LocalServer() as server, AsyncOneLLM("k", base_url=server.url) as client:
        before = asyncio.get_running_loop().time()
        await client.chat("x", model="GPT-5")
        (row,) = server.ledger.rows
        assert before <= row.received_at <= asyncio.get_running_loop().time()


async def test_refusals_are_refused_over_http_with_retry_after(session):
    settings = ServerSettings(burst=2, requests_per_minute=0, faults=Faults(retry_after=3))
    async with LocalServer(settings) as server:
        replies = [await session.post(server.url, json=BODY, headers=KEY) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        assert [reply.headers.get("Retry-After") for reply in replies] == [None, None, "3"]
        assert await replies[2].json() == {"error": "Rate limit exceeded."}


@pytest.mark.parametrize(
    ("asked", "body", "headers", "status"),
    [
        ("POST /api", b"{}", {"Content-Type": "text/plain"}, 415),
        ("POST /api", b"{", {"Content-Type": "application/json"}, 400),
        ("POST /api", b"{}", {"Content-Type": "application/json"}, 422),
        ("GET /api", b"", {}, 405),
        ("DELETE /api?x=1", b"", {}, 405),
        ("POST /api/", b"{}", {"Content-Type": "application/json"}, 404),
        ("POST /", b"{}", {"Content-Type": "application/json"}, 404),
        ("POST /ledger", b"{}", {"Content-Type": "application/json"}, 405),
        ("DELETE /healthz", b"", {}, 405),
    ],
)
async def test_http_statuses_of_what_is_no_chat(session, asked, body, headers, status):
    method, path = asked.split()
    async with (
        LocalServer() as server,
        session.request(method, server.origin + path, data=body, headers=KEY | headers) as reply,
    ):
        assert reply.status == status
        if status == 405:
            assert "POST" in reply.headers["Allow"] or "GET" in reply.headers["Allow"]


async def test_body_beyond_32_mib_is_refused_with_413_and_entered(session):
    async with LocalServer() as server:
        body = io.BytesIO(b" " * (MOST_BODY_BYTES + 1))
        async with session.post(server.url, data=body, headers=KEY | {"Content-Type": "application/json"}) as reply:
            assert reply.status == 413
            assert "error" in await reply.json()
        assert server.ledger.outcomes == {Outcome.REJECTED: 1}


async def test_compressed_body_is_read_and_a_broken_one_refused_with_400(session):
    headers = KEY | {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with LocalServer() as server:
        async with session.post(server.url, data=gzip.compress(json.dumps(BODY).encode()), headers=headers) as reply:
            assert reply.status == 200
        async with session.post(server.url, data=b"no gzip at all", headers=headers) as reply:
            assert reply.status == 400


def settings_with(**switches):
    return ServerSettings(faults=Faults(**switches))


@pytest.mark.parametrize(("switch", "billed"), [("reset_before_rate", 0), ("reset_after_rate", 1)])
async def test_reset_is_a_real_reset(switch, billed):
    async with LocalServer(settings_with(**{switch: 1})) as server:
        host, port = server.origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(BODY).encode()
        head = f"POST /api HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert server.ledger.billed == billed
        assert server.ledger.received == 1


async def test_truncated_reply_announces_more_than_it_sends_and_is_billed(session):
    async with LocalServer(settings_with(truncate_rate=1)) as server:
        async with session.post(server.url, json=BODY, headers=KEY) as reply:
            assert reply.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await reply.read()
        assert server.ledger.outcomes == {Outcome.LOST: 1}


async def test_gateway_error_is_a_502_page(session):
    async with LocalServer(settings_with(html_502_rate=1)) as server:
        async with session.post(server.url, json=BODY, headers=KEY) as reply:
            assert (reply.status, reply.content_type) == (502, "text/html")
        assert server.ledger.outcomes == {Outcome.FAILED: 1}


async def test_server_error_is_enveloped_in_the_backend_dialect(session):
    settings = ServerSettings(dialect="backend", faults=Faults(server_error_rate=1))
    body = encode_request(ChatRequest("GPT-5", "x"), Dialect.BACKEND)
    async with LocalServer(settings) as server:
        async with session.post(server.url, data=body, headers=KEY | {"Content-Type": "application/json"}) as reply:
            assert reply.status == 200
            assert await reply.json() == {"code": 500, "output": {"output": "missing field `id` at line 1 column 42"}}
        assert server.ledger.billed == 0


async def test_same_seed_breaks_the_same_requests(session):
    async def story(seed):
        faults = Faults(seed=seed, reset_before_rate=0.2, server_error_rate=0.2, truncate_rate=0.2)
        async with LocalServer(ServerSettings(burst=100, faults=faults)) as server:
            for _ in range(30):
                try:
                    async with session.post(server.url, json=BODY, headers=KEY) as reply:
                        await reply.read()
                except aiohttp.ClientError:
                    pass
            return [row.outcome for row in server.ledger.rows]

    first = await story(4)
    assert len(first) == 30
    assert first == await story(4)
    assert len(set(first)) == 4


async def test_reader_who_hangs_up_is_billed_and_the_reply_lost():
    backend = HeldBackend()
    async with LocalServer(backend=backend) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await backend.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        async with aiohttp.ClientSession() as other, other.get(f"{server.origin}/healthz"):
            pass  # by now the server has seen the connection close
        backend.released.set()
        await until(lambda: server.ledger.received)
        assert server.ledger.outcomes == {Outcome.LOST: 1}
        assert server.ledger.billed_usd > 0


async def test_reset_after_a_reader_who_hung_up_harms_nobody():
    backend = HeldBackend()
    async with LocalServer(settings_with(reset_after_rate=1), backend=backend) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await backend.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        async with aiohttp.ClientSession() as other, other.get(f"{server.origin}/healthz") as reply:
            assert await reply.json() == {"status": "ok"}
        backend.released.set()
        await until(lambda: server.ledger.received)
        assert server.ledger.billed == 1


async def test_truncation_after_a_reader_who_hung_up_harms_nobody():
    backend = HeldBackend()
    async with LocalServer(settings_with(truncate_rate=1), backend=backend) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await backend.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        async with aiohttp.ClientSession() as other, other.get(f"{server.origin}/healthz"):
            pass
        backend.released.set()
        await until(lambda: server.ledger.received)
        assert server.ledger.outcomes == {Outcome.LOST: 1}


async def test_stopping_cuts_off_what_is_under_way_unbilled_and_closes_the_backend(session):
    backend = HeldBackend()
    async with LocalServer(backend=backend) as server:
        asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
        await backend.asked.wait()
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert backend.closed
    assert server.ledger.outcomes == {Outcome.DROPPED: 1}
    assert server.ledger.under_way == 0
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


async def test_stopping_leaves_no_task_behind_even_for_a_reader_who_hung_up():
    before = asyncio.all_tasks()
    backend = HeldBackend()
    async with LocalServer(backend=backend) as server, aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
        await backend.asked.wait()
        asking.cancel()
        await asyncio.wait([asking])
    assert asyncio.all_tasks() == before
    assert server.ledger.outcomes == {Outcome.DROPPED: 1}


async def test_cancelling_the_stop_still_frees_the_port(session):
    backend = HeldBackend()
    entered, leave = asyncio.Event(), asyncio.Event()
    server = LocalServer(backend=backend)

    async def run():
        async with server:
            entered.set()
            await leave.wait()

    running = asyncio.create_task(run())
    await entered.wait()
    origin = server.origin
    asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
    await backend.asked.wait()
    leave.set()
    await until(lambda: server._runner is None)  # it is closing, and waits for the request under way
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert backend.closed
    with pytest.raises(aiohttp.ClientError):
        await asking
    with pytest.raises(aiohttp.ClientConnectorError):
        await session.get(f"{origin}/healthz")


async def test_bug_in_a_backend_is_a_500_in_the_log_and_unbilled(session, caplog):
    class Buggy:
        async def complete(self, job):
            raise ZeroDivisionError("secret detail")

        async def aclose(self):
            pass

    with caplog.at_level(logging.ERROR, "onellm_async.server"):
        async with LocalServer(backend=Buggy()) as server:
            async with session.post(server.url, json=BODY, headers=KEY) as reply:
                assert reply.status == 500
                assert await reply.json() == {"error": "The backend raised ZeroDivisionError."}
            assert server.ledger.outcomes == {Outcome.FAILED: 1}
    assert "request 1" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_backend_of_ones_own_is_billed_by_its_usage(session):
    class Oracle:
        async def complete(self, job):
            return Completion("42", Usage(1_000_000, 1_000_000, 2_000_000), None, "deep-thought")

        async def aclose(self):
            pass

    async with LocalServer(backend=Oracle()) as server:
        async with session.post(server.url, json=BODY, headers=KEY) as reply:
            value = await reply.json()
        assert (value["content"], value["model"], value["finish_reason"]) == ("42", "deep-thought", None)
        assert server.ledger.billed_usd == pytest.approx(0.26 + 2.08)


async def test_pages_beside_the_api_show_counters_and_no_keys(session):
    async with LocalServer(ServerSettings(keys={"good": 5.0})) as server:
        await (await session.post(server.url, json=BODY, headers=KEY)).read()
        async with session.get(f"{server.origin}/ledger") as reply:
            text = await reply.text()
        counters = json.loads(text)
        assert (counters["answered"], counters["billed"], counters["received"]) == (1, 1, 1)
        assert "good" not in text
        async with session.get(f"{server.origin}/openapi.json") as reply:
            document = await reply.json()
        chat = document["paths"]["/api"]["post"]
        assert {"200", "400", "401", "403", "413", "415", "422", "429", "500", "502"} == chat["responses"].keys()
        assert "GPT-5-Mini" in json.dumps(chat["requestBody"])


async def test_document_of_the_backend_dialect_tells_of_its_envelope_and_models(session):
    async with LocalServer(ServerSettings(dialect="backend")) as server:
        chat = (await (await session.get(f"{server.origin}/openapi.json")).json())["paths"]["/api"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert {"endpoint", "max_tokens", "top_p"} < set(schema["required"])
    assert "GPT-5-mini" in schema["properties"]["model"]["enum"]
    assert "Mistral-7B" not in schema["properties"]["model"]["enum"]
    assert "oneOf" in chat["responses"]["200"]["content"]["application/json"]["schema"]


async def test_serve_runs_until_cancelled_and_frees_its_port(session):
    ready = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(ServerSettings(), port=0, on_ready=ready.set_result))
    server = await ready
    origin = server.origin
    async with session.get(f"{origin}/healthz") as reply:
        assert reply.status == 200
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(aiohttp.ClientConnectorError):
        await session.get(f"{origin}/healthz")


async def test_serve_needs_nobody_to_tell(session):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serving = asyncio.create_task(serve(ServerSettings(), port=port))
    status = None
    while status is None:
        assert not serving.done()
        try:
            async with session.get(f"http://127.0.0.1:{port}/healthz") as reply:
                status = reply.status
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0)
    assert status == 200
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_port_in_use_is_an_error_that_leaves_nothing_open():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="address already in use"):
        async with LocalServer(port=taken.getsockname()[1]):
            pass


async def test_server_can_listen_on_ipv6():
    try:
        async with LocalServer(host="::1") as server:
            assert server.origin.startswith("http://[::1]:")
            async with AsyncOneLLM("k", base_url=server.url) as client:
                assert (await client.chat("six", model="GPT-5")).content == "six"
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


def test_address_is_unknown_before_the_start():
    with pytest.raises(RuntimeError, match="async with"):
        _ = LocalServer().url


async def test_server_comes_through_a_storm_of_every_fault(session):
    faults = Faults(
        reset_before_rate=0.1, server_error_rate=0.1, html_502_rate=0.1, reset_after_rate=0.1, truncate_rate=0.1
    )
    async with LocalServer(ServerSettings(faults=faults, requests_per_minute=1e6, burst=1e6)) as server:

        async def ask():
            try:
                async with session.post(server.url, json=BODY, headers=KEY) as reply:
                    await reply.read()
                    return reply.status
            except aiohttp.ClientPayloadError:
                return "truncated"
            except aiohttp.ClientError:
                return "reset"

        seen = Counter(await asyncio.gather(*(ask() for _ in range(500))))
        assert set(seen) == {200, 500, 502, "truncated", "reset"}
        outcomes = server.ledger.outcomes
        assert outcomes[Outcome.ANSWERED] == seen[200]
        assert outcomes[Outcome.FAILED] == seen[500] + seen[502]
        assert outcomes[Outcome.DROPPED] + outcomes[Outcome.LOST] == seen["reset"] + seen["truncated"]
        assert seen["truncated"] < outcomes[Outcome.LOST]
        assert (server.ledger.received, server.ledger.under_way) == (500, 0)
