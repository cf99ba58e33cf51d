import asyncio
import gzip
import io
import json
import logging
import re

import pytest

from onellm_async import AsyncOneLLM, Dialect, Usage
from onellm_async.server import Completion, Faults, LocalServer, Outcome, ServerSettings
from onellm_async.server.request_validation import MAX_BODY_BYTES

BODY = {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}
KEY = {"Authorization": "Bearer good"}


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
        assert 1 < server.ledger.max_in_flight <= 100  # aiohttp's client opens 100 connections


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
        body = io.BytesIO(b" " * (MAX_BODY_BYTES + 1))
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
        assert {"200", "400", "401", "403", "413", "415", "422", "429", "500", "502", "504"} == chat["responses"].keys()
        assert "GPT-5-Mini" in json.dumps(chat["requestBody"])


async def test_document_of_the_backend_dialect_tells_of_its_envelope_and_models(session):
    async with LocalServer(ServerSettings(dialect="backend")) as server:
        chat = (await (await session.get(f"{server.origin}/openapi.json")).json())["paths"]["/api"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert {"endpoint", "max_tokens", "top_p"} < set(schema["required"])
    assert "GPT-5-mini" in schema["properties"]["model"]["enum"]
    assert "Mistral-7B" not in schema["properties"]["model"]["enum"]
    assert "oneOf" in chat["responses"]["200"]["content"]["application/json"]["schema"]
