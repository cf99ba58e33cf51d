import asyncio

import aiohttp
import pytest
from aiohttp import web

from onellm_async.errors import ConfigurationError
from onellm_async.server import Faults, LocalServer, Outcome, ServerSettings, UpstreamBackend

BODY = {"model": "any", "messages": [{"role": "user", "content": "Hello there"}]}
KEY = {"Authorization": "Bearer good"}


class Slow:
    """An upstream that answers nothing, and notes when it is cut off."""

    def __init__(self):
        self.asked = asyncio.Event()
        self.cut_off = asyncio.Event()

    async def respond(self, request):
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cut_off.set()


@pytest.fixture
async def slow():
    slow = Slow()
    app = web.Application()
    app.router.add_post("/{path:.*}", slow.respond)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    slow.origin = f"http://{host}:{port}"
    yield slow
    await runner.cleanup()


async def test_client_that_hangs_up_ends_the_work_of_the_upstream(slow, until):
    async with LocalServer(ServerSettings(any_model=True), backend=UpstreamBackend(slow.origin)) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await slow.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        await slow.cut_off.wait()
        await until(lambda: server.ledger.received)
        assert server.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}
        assert server.ledger.in_flight == 0


async def test_stopping_the_server_ends_the_work_of_the_upstream(slow, session):
    async with LocalServer(ServerSettings(any_model=True), backend=UpstreamBackend(slow.origin)) as server:
        asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
        await slow.asked.wait()
    with pytest.raises(aiohttp.ClientError):
        await asking
    await slow.cut_off.wait()
    assert server.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}


async def test_chat_that_is_cut_off_before_the_upstream_was_asked_costs_nothing(slow, until):
    settings = ServerSettings(any_model=True, faults=Faults(latency=1000))
    async with LocalServer(settings, backend=UpstreamBackend(slow.origin)) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await until(lambda: server.ledger.in_flight)
            asking.cancel()
            await asyncio.wait([asking])
        await until(lambda: server.ledger.received)
        assert server.ledger.outcomes == {Outcome.DROPPED: 1}
        assert not slow.asked.is_set()


@pytest.mark.parametrize("switch", ["reset_after_rate", "truncate_rate", "reset_before_rate"])
async def test_faults_before_an_upstream_leave_no_error_in_the_log(front, upstream, caplog, until, switch):
    asked = await front(faults=Faults(**{switch: 1}))
    for _ in range(2):
        with pytest.raises(aiohttp.ClientError):
            await asked.post()
    await until(lambda: asked.ledger.received == 2)
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0", "203.0.113.1", "::ffff:203.0.113.1"])
async def test_door_to_the_upstream_is_not_opened_to_everybody(host):
    server = LocalServer(backend=UpstreamBackend("http://127.0.0.1:9"), host=host)
    with pytest.raises(ConfigurationError) as refused:
        await server.__aenter__()
    assert "--key" in str(refused.value)
    with pytest.raises(RuntimeError):
        _ = server.url


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "::1", "::ffff:127.0.0.1"])
async def test_door_to_the_upstream_is_open_on_this_machine(host):
    try:
        async with LocalServer(backend=UpstreamBackend("http://127.0.0.1:9"), host=host):
            pass
    except OSError:
        pytest.skip("this machine has no such address")


async def test_door_to_the_upstream_is_open_to_those_who_have_a_key():
    settings = ServerSettings(keys={"alice": 1.0})
    async with LocalServer(settings, backend=UpstreamBackend("http://127.0.0.1:9"), host="0.0.0.0") as server:
        assert server.url.startswith("http://127.0.0.1:")


async def test_address_that_cannot_be_found_is_an_error_of_the_address():
    with pytest.raises(OSError, match=r".+"):
        await LocalServer(backend=UpstreamBackend("http://127.0.0.1:9"), host="no such host").__aenter__()
