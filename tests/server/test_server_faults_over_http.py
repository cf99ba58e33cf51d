import asyncio
import json
from collections import Counter

import aiohttp
import pytest

from onellm_async import Dialect
from onellm_async.chat import ChatRequest
from onellm_async.server import Faults, LocalServer, Outcome, ServerSettings
from onellm_async.wire import encode_request

BODY = {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}
KEY = {"Authorization": "Bearer good"}


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


async def test_reader_who_hangs_up_is_billed_and_the_reply_lost(held, until):
    async with LocalServer(backend=held) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await held.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        async with aiohttp.ClientSession() as other, other.get(f"{server.origin}/healthz"):
            pass  # by now the server has seen the connection close
        held.released.set()
        await until(lambda: server.ledger.received)
        assert server.ledger.outcomes == {Outcome.LOST: 1}
        assert server.ledger.billed_usd > 0


async def test_reset_after_a_reader_who_hung_up_harms_nobody(held, until):
    async with LocalServer(settings_with(reset_after_rate=1), backend=held) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await held.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        async with aiohttp.ClientSession() as other, other.get(f"{server.origin}/healthz") as reply:
            assert await reply.json() == {"status": "ok"}
        held.released.set()
        await until(lambda: server.ledger.received)
        assert server.ledger.billed == 1


async def test_truncation_after_a_reader_who_hung_up_harms_nobody(held, until):
    async with LocalServer(settings_with(truncate_rate=1), backend=held) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await held.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        async with aiohttp.ClientSession() as other, other.get(f"{server.origin}/healthz"):
            pass
        held.released.set()
        await until(lambda: server.ledger.received)
        assert server.ledger.outcomes == {Outcome.LOST: 1}


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
        assert (server.ledger.received, server.ledger.in_flight) == (500, 0)
