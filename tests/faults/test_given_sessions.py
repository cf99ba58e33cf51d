"""A session that the user gives works with any settings: each parameter of `aiohttp.ClientSession`, over sockets."""
# ruff: noqa: SIM117  # blocks that end one before the other

import asyncio
import gzip
import inspect
import json
import socket
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from fault_server import BODY, FaultServer, Script, answers

from onellm_async import (
    APIConnectionError,
    APITimeoutError,
    AsyncOneLLM,
    AuthenticationError,
    Billing,
    ClientClosedError,
    ConfigurationError,
    FailureKind,
    Limits,
    RetryPolicy,
    Timeout,
)
from onellm_async.transport.sessions import use_given_session


def client_at(url: str, session: aiohttp.ClientSession, **options) -> AsyncOneLLM:
    options.setdefault("limits", Limits.unlimited(max_concurrency=8))
    options.setdefault("retry", RetryPolicy(backoff_base=0.0, breaker_failures=0))
    return AsyncOneLLM("the-key-of-the-client", base_url=url, session=session, **options)


def slow(seconds: float) -> Script:
    async def script(exchange) -> bool:
        await asyncio.sleep(seconds)
        return await answers()(exchange)

    return script


async def refuse(response: aiohttp.ClientResponse) -> None:
    raise LookupError("raise_for_status of the session was called")


async def middleware(request: aiohttp.ClientRequest, handler):
    request.headers["X-Seen"] = request.headers["Authorization"]
    return await handler(request)


class FixedResolver(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        return None


def trace_config() -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()

    async def on_request_start(session, context, parameters) -> None:
        parameters.headers["X-Traced"] = "1"

    config.on_request_start.append(on_request_start)
    return config


class Response(aiohttp.ClientResponse):
    """A response class of the user."""


class Request(aiohttp.ClientRequest):
    """A request class of the user."""


Check = Callable[[dict[str, str]], bool]
SETTINGS: dict[str, tuple[Callable[[], dict[str, Any]], Check]] = {
    "auth": (lambda: {"auth": aiohttp.BasicAuth("joe", "pw")}, lambda sent: True),
    "auth for a base_url": (
        lambda: {"auth": aiohttp.BasicAuth("joe", "pw"), "base_url": "http://127.0.0.1/"},
        lambda sent: True,
    ),
    "auto_decompress": (lambda: {"auto_decompress": False}, lambda sent: True),
    "base_url": (lambda: {"base_url": "http://elsewhere.example/"}, lambda sent: sent["host"].startswith("127.0.0.1")),
    "connector": (lambda: {"connector": aiohttp.TCPConnector(limit=1, force_close=True)}, lambda sent: True),
    "connector_owner": (lambda: {"connector_owner": True}, lambda sent: True),
    "cookie_jar": (lambda: {"cookie_jar": aiohttp.CookieJar(unsafe=True)}, lambda sent: True),
    "cookies": (
        lambda: {"cookies": {"a": "b"}, "cookie_jar": aiohttp.CookieJar(unsafe=True)},
        lambda sent: True,
    ),
    "fallback_charset_resolver": (lambda: {"fallback_charset_resolver": lambda _, __: "utf-16"}, lambda sent: True),
    "headers": (
        lambda: {
            "headers": [
                ("authorization", "Basic xyz"),
                ("Authorization", "Digest xyz"),
                ("content-type", "text/plain"),
                ("Accept", "text/html"),
                ("X-Mine", "1"),
            ]
        },
        lambda sent: (sent["x-mine"], sent["accept"]) == ("1", "application/json"),
    ),
    "json_serialize": (lambda: {"json_serialize": repr}, lambda sent: True),
    "json_serialize_bytes": (lambda: {"json_serialize_bytes": lambda _: b"?"}, lambda sent: True),
    "max_field_size": (lambda: {"max_field_size": 100_000}, lambda sent: True),
    "max_headers": (lambda: {"max_headers": 1000}, lambda sent: True),
    "max_line_size": (lambda: {"max_line_size": 100_000}, lambda sent: True),
    "middlewares": (
        lambda: {"middlewares": [middleware]},
        lambda sent: sent["x-seen"] == "Bearer the-key-of-the-client",
    ),
    "raise_for_status": (lambda: {"raise_for_status": True}, lambda sent: True),
    "raise_for_status that is a function": (lambda: {"raise_for_status": refuse}, lambda sent: True),
    "read_bufsize": (lambda: {"read_bufsize": 1}, lambda sent: True),
    "request_class": (lambda: {"request_class": Request}, lambda sent: True),
    "requote_redirect_url": (lambda: {"requote_redirect_url": False}, lambda sent: True),
    "response_class": (lambda: {"response_class": Response}, lambda sent: True),
    "skip_auto_headers": (
        lambda: {"skip_auto_headers": ["Content-Type", "User-Agent", "Accept", "Accept-Encoding"]},
        lambda sent: "user-agent" not in sent and sent["accept"] == "application/json",
    ),
    "timeout": (
        lambda: {"timeout": aiohttp.ClientTimeout(total=1e-6, connect=1e-6, sock_read=1e-6, sock_connect=1e-6)},
        lambda sent: True,
    ),
    "trace_configs": (lambda: {"trace_configs": [trace_config()]}, lambda sent: sent["x-traced"] == "1"),
    "trust_env": (lambda: {"trust_env": True}, lambda sent: True),
    "version": (lambda: {"version": aiohttp.HttpVersion10}, lambda sent: sent["connection"] == "keep-alive"),
}
ELSEWHERE = {
    "conn_timeout": "deprecated, and `timeout` in other words",
    "loop": "another loop has a test of its own",
    "proxy": "test_proxies.py",
    "proxy_auth": "test_proxies.py",
    "read_timeout": "deprecated, and `timeout` in other words",
    "ssl_shutdown_timeout": "deprecated, and about closing the session",
    "ws_response_class": "no websocket is opened",
}


def test_each_parameter_of_a_session_has_its_test() -> None:
    parameters = set(inspect.signature(aiohttp.ClientSession.__init__).parameters) - {"self"}
    assert parameters == {name.split(" ")[0] for name in SETTINGS} | set(ELSEWHERE)


@pytest.fixture(autouse=True)
def _deprecated_parameters_of_aiohttp_are_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login joe password hunter2\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def session_with(settings: Callable[[], dict[str, Any]]) -> aiohttp.ClientSession:
    with warnings.catch_warnings():  # that auth= of a session will go some day is known
        warnings.simplefilter("ignore", DeprecationWarning)
        return aiohttp.ClientSession(**settings())


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_session_with_any_settings_sends_the_same_request_and_reads_the_reply(name: str) -> None:
    settings, check = SETTINGS[name]
    packed = answers(gzip.compress(BODY), Content_Encoding="gzip")
    async with FaultServer(answers(Set_Cookie="c=d"), packed) as server, session_with(settings) as session:
        async with client_at(server.url, session) as client:
            for _ in range(3):
                response = await client.chat("x", model="GPT-5")
                assert (response.content, response.attempts, response.possibly_billed) == ("Paris.", 1, 0)
        assert not session.closed
    for line, headers, body in server.requests:
        assert line.startswith("POST /api HTTP/1.")
        assert headers["authorization"] == "Bearer the-key-of-the-client"
        assert headers["content-type"] == "application/json"
        assert json.loads(body)["model"] == "GPT-5"
        assert check(headers)


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_session_with_any_settings_keeps_what_a_status_means(name: str) -> None:
    settings, _ = SETTINGS[name]
    rate_limit = answers(b"", "429 Too Many", Retry_After="0")
    script = [rate_limit, answers(), answers(b'{"error":"no"}', "401 No")]
    async with FaultServer(*script) as server, session_with(settings) as session:
        async with client_at(server.url, session, random=Random(3)) as client:
            response = await client.chat("x", model="GPT-5")
            assert (response.attempts, response.rate_limited, response.possibly_billed) == (1, 1, 0)
            assert server.posts == 2
        async with client_at(server.url, session) as client:
            with pytest.raises(AuthenticationError, match="401 no") as caught:
                await client.chat("x", model="GPT-5")
            assert (caught.value.attempts, caught.value.possibly_billed, server.posts) == (1, 0, 3)


async def test_cookies_of_a_session_go_along() -> None:
    async with FaultServer(answers(Set_Cookie="c=d; Path=/"), answers()) as server:
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookies={"a": "b"}, cookie_jar=jar) as session:
            async with client_at(server.url, session) as client:
                await client.chat("x", model="GPT-5")
                await client.chat("x", model="GPT-5")
    assert [headers["cookie"] for _, headers, _ in server.requests] == ["a=b", "a=b; c=d"]


async def test_the_user_agent_is_the_clients_unless_the_session_has_its_own() -> None:
    async with FaultServer(answers()) as server:
        async with aiohttp.ClientSession() as session, client_at(server.url, session) as client:
            await client.chat("x", model="GPT-5")
        async with aiohttp.ClientSession(headers={"user-agent": "mine/1"}) as session:
            async with client_at(server.url, session) as client:
                await client.chat("x", model="GPT-5")
        async with AsyncOneLLM("key", base_url=server.url) as client:
            await client.chat("x", model="GPT-5")
    agents = [headers["user-agent"] for _, headers, _ in server.requests]
    assert agents[0].startswith("onellm-async/0.1.0 (aiohttp/")
    assert agents[1:] == ["mine/1", agents[0]]


CONNECTORS: dict[str, Callable[[], aiohttp.BaseConnector]] = {
    "limit": lambda: aiohttp.TCPConnector(limit=2),
    "limit_per_host": lambda: aiohttp.TCPConnector(limit_per_host=2),
    "force_close": lambda: aiohttp.TCPConnector(limit=3, force_close=True),
    "resolver": lambda: aiohttp.TCPConnector(resolver=FixedResolver()),
    "no DNS cache": lambda: aiohttp.TCPConnector(resolver=FixedResolver(), use_dns_cache=False, limit=2),
    "local_addr": lambda: aiohttp.TCPConnector(local_addr=("127.0.0.1", 0)),
    "family": lambda: aiohttp.TCPConnector(family=socket.AF_INET),
    "without happy eyeballs": lambda: aiohttp.TCPConnector(happy_eyeballs_delay=None, resolver=FixedResolver()),
    "keepalive_timeout": lambda: aiohttp.TCPConnector(keepalive_timeout=60),
}


@pytest.mark.parametrize("name", CONNECTORS)
async def test_any_connector_answers_all_chats(name: str) -> None:
    async with FaultServer(slow(0.01)) as server, aiohttp.ClientSession(connector=CONNECTORS[name]()) as session:
        url = server.url.replace("127.0.0.1", "localhost") if "resolver" in name else server.url
        async with client_at(url, session) as client:
            replies = await client.gather_chats(["x"] * 12, model="GPT-5")
        assert [(reply.attempts, reply.possibly_billed) for reply in replies] == [(1, 0)] * 12
        assert server.posts == 12


async def test_a_unix_socket_is_posted_to_like_any_other(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    server = FaultServer(answers())
    listening = await asyncio.start_unix_server(server._serve, path)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
        async with client_at("http://localhost/api", session) as client:
            assert (await client.chat("x", model="GPT-5")).content == "Paris."
    listening.close()
    await asyncio.gather(*server._handlers)
    await listening.wait_closed()


async def test_a_fingerprint_that_is_another_is_not_trusted() -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(b"x" * 32))
    async with FaultServer(answers(), tls=tls) as server, aiohttp.ClientSession(connector=connector) as session:
        async with client_at(server.url, session) as client:
            with pytest.raises(APIConnectionError, match="certificate of 127") as caught:
                await client.chat("x", model="GPT-5")
        assert (caught.value.kind, server.posts) == (FailureKind.NOT_TRUSTED, 0)


@pytest.mark.parametrize("size", [100, 100_000, 3_000_000])
@pytest.mark.parametrize("given", [True, False])
async def test_a_long_prompt_arrives_whole_and_without_a_warning(size: int, *, given: bool) -> None:
    async with FaultServer(answers()) as server, aiohttp.ClientSession() as session:
        async with AsyncOneLLM("key", base_url=server.url, session=session if given else None) as client:
            await client.chat("x" * size, model="GPT-5")
    assert len(json.loads(server.requests[0][2])["messages"][0]["content"]) == size


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Content-Encoding"])
async def test_a_session_that_describes_every_body_wrongly_is_refused_unsent(name: str) -> None:
    async with FaultServer(answers()) as server, aiohttp.ClientSession(headers={name: "5"}) as session:
        async with client_at(server.url, session) as client:
            with pytest.raises(ConfigurationError, match=f"(?i)sends the header {name} with every request") as caught:
                await client.chat("x", model="GPT-5")
        assert (caught.value.attempts, server.connections) == (0, 0)


async def test_a_session_of_another_loop_is_refused_unsent() -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    other = asyncio.new_event_loop()
    session = await asyncio.to_thread(other.run_until_complete, make())
    try:
        async with client_at("http://127.0.0.1:9/", session) as client:
            with pytest.raises(ConfigurationError, match="belongs to another event loop"):
                await client.chat("x", model="GPT-5")
    finally:
        await asyncio.to_thread(other.run_until_complete, session.close())
        other.close()


async def test_a_version_of_aiohttp_without_these_private_parts_still_sends_the_key() -> None:
    async with aiohttp.ClientSession() as session:
        post = client_at("http://127.0.0.1:9/", session)._sender._transport._post
        opened = use_given_session(post, session)
        assert "Authorization" not in opened.options["headers"]
        del session._middlewares
        opened = use_given_session(post, session)
        assert opened.options["headers"]["Authorization"] == "Bearer the-key-of-the-client"
        assert opened.middlewares is None


# The pool.


@pytest.mark.parametrize("connector", [{"limit": 2}, {"limit_per_host": 2}], ids=str)
async def test_waiting_for_a_place_in_the_pool_is_no_failure(
    connector: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultServer(slow(0.15)) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**connector)) as session:
            timeout = Timeout(connect=0.5, total=0.8)  # less than the last chat waits
            async with client_at(server.url, session, timeout=timeout, limits=Limits.unlimited(16)) as client:
                replies = await asyncio.gather(*(client.chat("x", model="GPT-5") for _ in range(16)))
        assert [(reply.attempts, reply.possibly_billed) for reply in replies] == [(1, 0)] * 16
        assert (server.posts, server.connections) == (16, 2)
    [told] = [record.getMessage() for record in caplog.records if record.name == "onellm_async"]
    assert "the session given to the client has at most 2" in told
    assert "Limits.max_concurrency" in told


async def test_a_pool_that_others_use_up_is_waited_for() -> None:
    async with FaultServer(slow(0.6), answers()) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            async with client_at(server.url, session, timeout=Timeout(connect=0.25, total=0.4)) as client:
                others = asyncio.create_task(session.post(server.url, data=b"{}"))
                await server.asked.wait()
                chat = asyncio.create_task(client.chat("x", model="GPT-5"))
                (await others).release()
                assert (await chat).attempts == 1


def test_the_most_connections_of_a_session_can_be_asked_for() -> None:
    async def found() -> list[int | None]:
        most = []
        for limits in ({}, {"limit": 4}, {"limit": 0}, {"limit": 9, "limit_per_host": 3}, {"limit_per_host": 300}):
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**limits)) as session:
                async with client_at("http://127.0.0.1:9/", session) as client:
                    most.append(client._sender._transport.max_connections)
        return most

    assert asyncio.run(found()) == [100, 4, None, 3, 100]
    assert AsyncOneLLM("key")._sender._transport.max_connections is None


async def test_connecting_has_its_own_time_even_in_a_pool() -> None:
    class Deaf(FixedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            await asyncio.get_running_loop().create_future()
            return []

    connector = aiohttp.TCPConnector(limit=1, resolver=Deaf())
    async with aiohttp.ClientSession(connector=connector) as session:
        async with client_at("https://a.example/", session, timeout=Timeout(connect=0.05, total=60)) as client:
            outcomes = await asyncio.gather(
                *(client.chat("x", model="GPT-5") for _ in range(3)), return_exceptions=True
            )
    for error in outcomes:
        assert isinstance(error, APITimeoutError)
        assert (error.kind, error.attempts, error.possibly_billed) == (FailureKind.CANNOT_CONNECT, 4, 0)
        assert "Timeout.connect" in error.message


async def test_a_server_that_does_not_answer_in_time_is_a_timeout_of_the_request() -> None:
    async with FaultServer(slow(60)) as server, aiohttp.ClientSession() as session:
        retry = RetryPolicy(ambiguous="never")
        async with client_at(server.url, session, timeout=Timeout(connect=5, total=0.1), retry=retry) as client:
            with pytest.raises(APITimeoutError, match=r"Timeout\.total") as caught:
                await client.chat("x", model="GPT-5")
        assert (caught.value.billing, caught.value.possibly_billed) == (Billing.POSSIBLY_BILLED, 1)


# Its end.


async def in_flight_queued_and_closed(close: Callable[[AsyncOneLLM, aiohttp.ClientSession], Any]):
    async with FaultServer(slow(60)) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            async with client_at(server.url, session) as client:
                chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(4)]
                await server.asked.wait()
                await close(client, session)
                outcomes = await asyncio.wait_for(asyncio.gather(*chats, return_exceptions=True), 5)
        assert server.posts == 1
    assert all(chat.done() and not chat.cancelled() for chat in chats)
    return outcomes


async def test_a_session_that_its_owner_closes_ends_the_chats_that_wait_for_its_pool() -> None:
    in_flight, *queued = await in_flight_queued_and_closed(lambda client, session: session.close())
    assert isinstance(in_flight, APIConnectionError | ClientClosedError)
    assert in_flight.possibly_billed == 1
    for error in queued:
        assert isinstance(error, ClientClosedError)
        assert (error.message, error.possibly_billed) == ("The session given to the client is closed.", 0)


async def test_closing_the_client_ends_its_chats_in_a_given_session() -> None:
    in_flight, *queued = await in_flight_queued_and_closed(lambda client, session: client.aclose())
    assert isinstance(in_flight, APIConnectionError)
    assert "The client was closed before the answer was there" in in_flight.message
    assert in_flight.possibly_billed == 1
    for error in queued:
        assert isinstance(error, ClientClosedError)
        assert (error.message, error.possibly_billed) == ("The client was closed before this request was sent.", 0)


async def test_cancelling_a_chat_that_waits_for_the_pool_is_a_cancellation() -> None:
    async with FaultServer(slow(0.2)) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            async with client_at(server.url, session) as client:
                first = asyncio.create_task(client.chat("x", model="GPT-5"))
                await server.asked.wait()
                second = asyncio.create_task(client.chat("x", model="GPT-5"))
                await asyncio.sleep(0.05)
                second.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await second
                assert (await first).content == "Paris."
        assert server.posts == 1


async def test_an_error_of_a_middleware_of_the_session_is_raised_as_it_is() -> None:
    async def broken(request: aiohttp.ClientRequest, handler):
        raise RuntimeError("a bug in a middleware")

    async with FaultServer(answers()) as server, aiohttp.ClientSession(middlewares=[broken]) as session:
        async with client_at(server.url, session) as client:
            with pytest.raises(RuntimeError, match="a bug in a middleware"):
                await client.chat("x", model="GPT-5")
        assert server.posts == 0
