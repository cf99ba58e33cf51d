import asyncio
import gc
import logging

import aiohttp
import pytest
from fault_server import FaultServer, answers

from onellm_async.settings import ApiKey, Timeout
from onellm_async.transport import AiohttpTransport
from onellm_async.transport.prepared_request import TESTED_VERSIONS, _report
from onellm_async.transport.shared_timeout import Attempt, SharedTimeout

HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


def transport_at(url: str, session: aiohttp.ClientSession | None = None) -> AiohttpTransport:
    return AiohttpTransport(url, ApiKey("key"), Timeout(connect=5, total=5), session, HEADERS)


@pytest.mark.parametrize("path", ["/api", "/", "", "/a%20b/ü?x=1&y=%26#part", "/a?b=c%2Fd&e=%3F&f=g+h&i=%E4"])
@pytest.mark.parametrize("size", [1, 300, 100_000, 2_000_000])
async def test_a_prepared_post_says_what_aiohttps_own_would_say(path: str, size: int) -> None:
    body = b"x" * size
    async with FaultServer(answers()) as server:
        url = server.url.removesuffix("/api") + path
        own = transport_at(url)
        for _ in range(2):  # over a new connection and over one that is there
            assert (await own.post(body)).status == 200
        await own.aclose()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            await transport_at(url, session).post(body)
    query = path.partition("?")[2].partition("#")[0]
    assert server.requests[0][0].endswith(f"{query} HTTP/1.1")
    first, second, by_aiohttp = server.requests
    assert first == second == by_aiohttp
    assert (len(first[2]), first[1]["authorization"]) == (size, "Bearer key")


def test_the_installed_aiohttp_is_one_whose_requests_can_be_prepared() -> None:
    assert aiohttp.__version__ in TESTED_VERSIONS, (
        f"aiohttp {aiohttp.__version__} is new: with it, requests are made in the slow way. Run tests/faults with it, "
        "compare aiohttp/client_reqrep.py with that of the last version, and add it to TESTED_VERSIONS."
    )


async def check_requests(*, prepared: bool) -> None:
    sizes = (10, 100_000, 2_000_000)
    async with FaultServer(answers()) as server:
        own = transport_at(server.url)
        for size in sizes:
            assert (await own.post(b"x" * size)).status == 200
        assert own._open_session is not None
        assert (own._open_session.timeout is not None) is prepared
        await own.aclose()
    for size, (line, headers, body) in zip(sizes, server.requests, strict=True):
        assert line == "POST /api HTTP/1.1"
        assert (headers["authorization"], headers["content-type"]) == ("Bearer key", "application/json")
        assert len(body) == size
    assert server.connections == 1


async def test_the_installed_version_prepares_its_requests() -> None:
    await check_requests(prepared=True)


async def test_a_version_of_aiohttp_that_was_not_tested_makes_each_request_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(aiohttp, "__version__", "3.99.0")
    _report.cache_clear()
    await check_requests(prepared=False)
    assert "aiohttp 3.99.0 is not one of the versions it was tested with" in caplog.text


async def send_more(self: aiohttp.ClientRequest, connection: object) -> aiohttp.ClientResponse:
    self.headers["X-New"] = "1"
    return await ORIGINAL_SEND(self, connection)  # type: ignore[arg-type]


ORIGINAL_SEND = aiohttp.ClientRequest.send


async def test_an_aiohttp_that_writes_requests_differently_makes_each_request_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aiohttp.ClientRequest, "send", send_more)
    await check_requests(prepared=False)


async def test_an_aiohttp_whose_responses_are_made_differently_makes_each_request_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Response(aiohttp.ClientResponse):
        def __init__(self, *arguments, loop, **others) -> None:
            super().__init__(*arguments, loop=loop, **others)
            assert "stream_writer" not in others or hasattr(others["stream_writer"], "transport"), "a new demand"

    monkeypatch.setattr("onellm_async.transport.prepared_request.ClientResponse", Response)
    await check_requests(prepared=False)


async def test_an_instrumentation_of_aiohttp_sees_the_requests_as_aiohttp_makes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = aiohttp.TraceConfig()

    async def on_request_start(session, context, parameters) -> None:
        parameters.headers["traceparent"] = "00-1-2-01"

    config.on_request_start.append(on_request_start)
    original = aiohttp.ClientSession.__init__

    def instrumented(self, *arguments, **options) -> None:  # as opentelemetry and others do it
        original(self, *arguments, **options, trace_configs=[config])

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", instrumented)
    async with FaultServer(answers()) as server:
        own = transport_at(server.url)
        await own.post(b"{}")
        await own.aclose()
    assert server.requests[0][1]["traceparent"] == "00-1-2-01"
    assert server.requests[0][1]["authorization"] == "Bearer key"


async def test_connections_are_kept_and_used_again() -> None:
    async with FaultServer(answers()) as server:
        own = transport_at(server.url)
        for _ in range(5):
            await own.post(b"{}")
        assert server.connections == 1
        await own.aclose()


@pytest.mark.virtual_time
class TestSharedTimeout:
    async def ten_seconds_at_most(self, seconds: float) -> None:
        with Attempt(SharedTimeout(10)):
            await asyncio.sleep(seconds)

    async def test_each_task_has_its_own_time(self) -> None:
        loop = asyncio.get_running_loop()
        timeout = SharedTimeout(10)
        ended = []

        async def wait(start: float, seconds: float) -> None:
            await asyncio.sleep(start)
            try:
                with Attempt(timeout):
                    await asyncio.sleep(seconds)
            except TimeoutError:
                ended.append((start, loop.time() - began))

        began = loop.time()
        await asyncio.gather(wait(0, 60), wait(3, 60), wait(4, 9), wait(30, 60), wait(3, 1))
        assert ended == [(0, pytest.approx(10)), (3, pytest.approx(13)), (30, pytest.approx(40))]

    async def test_a_task_can_enter_again_after_its_timeout(self) -> None:
        timeout = SharedTimeout(10)
        for _ in range(3):
            with pytest.raises(TimeoutError), Attempt(timeout):
                await asyncio.sleep(11)
            with Attempt(timeout):
                await asyncio.sleep(9)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_cancellation_from_outside_stays_a_cancellation(self) -> None:
        timeout = SharedTimeout(10)

        async def wait() -> None:
            with Attempt(timeout):
                await asyncio.sleep(60)

        for moment in (5, 10):  # well before, and in the same turn of the loop
            task = asyncio.create_task(wait())
            asyncio.get_running_loop().call_later(moment, task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_another_error_in_the_moment_of_the_timeout_is_not_hidden(self) -> None:
        async def wait() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError from None

        with pytest.raises(ValueError), Attempt(SharedTimeout(10)):  # noqa: PT011
            await wait()
        await asyncio.sleep(1)  # and the task is not left cancelled

    async def test_an_outer_timeout_that_ends_first_is_the_one_that_counts(self) -> None:
        outer = asyncio.timeout(5)
        with pytest.raises(TimeoutError):
            async with outer:
                await self.ten_seconds_at_most(60)
        assert outer.expired()

    async def test_it_sets_one_timer_for_all_and_none_once_it_is_closed(self) -> None:
        loop = asyncio.get_running_loop()
        timeout = SharedTimeout(600)
        before = len(loop._scheduled)  # type: ignore[attr-defined]
        for _ in range(100):
            with Attempt(timeout):
                pass
        assert len(loop._scheduled) == before + 1  # type: ignore[attr-defined]
        timeout.close()
        gc.collect()
        assert all(handle.cancelled() for handle in loop._scheduled[before:])  # type: ignore[attr-defined]
