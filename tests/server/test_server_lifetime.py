import asyncio
import socket

import aiohttp
import pytest

from onellm_async import AsyncOneLLM
from onellm_async.server import LocalServer, Outcome, ServerSettings, serve

BODY = {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}
KEY = {"Authorization": "Bearer good"}


async def test_stopping_cuts_off_requests_in_flight_unbilled_and_closes_the_backend(session, held):
    async with LocalServer(backend=held) as server:
        asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
        await held.asked.wait()
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert held.closed
    assert server.ledger.outcomes == {Outcome.DROPPED: 1}
    assert server.ledger.in_flight == 0
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


async def test_stopping_leaves_no_task_behind_even_for_a_reader_who_hung_up(held):
    before = asyncio.all_tasks()
    async with LocalServer(backend=held) as server, aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
        await held.asked.wait()
        asking.cancel()
        await asyncio.wait([asking])
    assert asyncio.all_tasks() == before
    assert server.ledger.outcomes == {Outcome.DROPPED: 1}


async def test_cancelling_the_stop_still_frees_the_port(session, held, until):
    entered, leave = asyncio.Event(), asyncio.Event()
    server = LocalServer(backend=held)

    async def run():
        async with server:
            entered.set()
            await leave.wait()

    running = asyncio.create_task(run())
    await entered.wait()
    origin = server.origin
    asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
    await held.asked.wait()
    leave.set()
    await until(lambda: server._runner is None)  # it is closing, and waits for the request under way
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert held.closed
    with pytest.raises(aiohttp.ClientError):
        await asking
    with pytest.raises(aiohttp.ClientConnectorError):
        await session.get(f"{origin}/healthz")


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


async def test_server_that_runs_is_not_started_a_second_time(session):
    async with LocalServer() as server:
        with pytest.raises(RuntimeError, match="running already"):
            await server.__aenter__()
        async with session.get(f"{server.origin}/healthz") as reply:
            assert reply.status == 200


async def test_stopped_server_can_be_started_again_and_remembers_its_ledger(session):
    server = LocalServer()
    for billed in (1, 2):
        async with server, session.post(server.url, json=BODY, headers=KEY) as reply:
            assert reply.status == 200
            assert server.ledger.billed == billed


@pytest.mark.parametrize(("host", "origin"), [("0.0.0.0", "http://127.0.0.1:"), ("::", "http://[::1]:")])
async def test_server_that_listens_everywhere_is_reached_over_loopback(host, origin):
    try:
        async with LocalServer(host=host) as server:
            assert server.url.startswith(origin)
            async with AsyncOneLLM("k", base_url=server.url) as client:  # which refuses to send a key elsewhere
                assert (await client.chat("here", model="GPT-5")).content == "here"
    except OSError:
        pytest.skip("this machine has no such address")
