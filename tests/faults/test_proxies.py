# ruff: noqa: SIM117  # blocks that end one before the other
import asyncio
import os
import ssl
import subprocess
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import trustme
from fault_server import FaultServer, answers
from proxy_server import ProxyServer

from onellm_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AsyncOneLLM,
    ConfigurationError,
    FailureKind,
    Limits,
    RetryPolicy,
    Timeout,
)
from tests.forks import start_command

FAST = RetryPolicy(backoff_base=0.0, breaker_failures=0)
KEY = "sk-canary-of-the-client"
PASSWORD = "hunter2-5b1c"


@pytest.fixture(autouse=True)
def _no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return authority


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest_asyncio.fixture(params=["http", "https"])
async def server(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> AsyncIterator[FaultServer]:
    async with FaultServer(answers(), tls=tls if request.param == "https" else None) as server:
        yield server


def client_at(url: str, **options) -> AsyncOneLLM:
    options.setdefault("limits", Limits.unlimited(max_concurrency=4))
    return AsyncOneLLM(KEY, base_url=url, retry=FAST, **options)


async def error_of(client: AsyncOneLLM) -> APIError:
    async with client:
        with pytest.raises(APIError) as caught:
            await client.chat("x", model="GPT-5")
    return caught.value


def check_seen(proxy: ProxyServer, server: FaultServer, *, posts: int) -> None:
    """Each request went through the proxy, and what is for the service alone was not said to the proxy."""
    assert server.posts == posts
    if server.url.startswith("https"):
        assert {line for line, _ in proxy.requests} == {f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"}
        assert proxy.connections == server.connections > 0
        assert KEY.encode() not in proxy.seen
        assert b"authorization: bearer" not in proxy.seen.lower()
    else:
        assert [line for line, _ in proxy.requests] == [f"POST {server.url} HTTP/1.1"] * posts
    for _, headers, _ in server.requests:
        assert headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("how", ["argument", "environment", "HTTPS_PROXY with trust_env", "a given session"])
async def test_requests_go_through_the_proxy(
    how: str, server: FaultServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ProxyServer() as proxy, aiohttp.ClientSession() as session:
        options: dict[str, object] = {"ssl": trusting}
        if how == "argument":
            options["proxy"] = proxy.url
        elif how == "environment":
            monkeypatch.setenv("ONELLM_PROXY", proxy.address)
        elif how == "a given session":
            options |= {"proxy": proxy.url, "session": session}
        else:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            monkeypatch.setenv("http_proxy", proxy.url)
            options["trust_env"] = True
        async with client_at(server.url, **options) as client:
            replies = await client.gather_chats(["x"] * 5, model="GPT-5")
        assert [(reply.attempts, reply.possibly_billed) for reply in replies] == [(1, 0)] * 5
        check_seen(proxy, server, posts=5)


async def test_a_proxy_of_a_given_session_is_used_with_its_credentials(
    server: FaultServer, trusting: ssl.SSLContext
) -> None:
    async with ProxyServer() as proxy:
        url = proxy.url.replace("://", f"://joe:{PASSWORD}@")
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with aiohttp.ClientSession(proxy=url, connector=connector) as session:
            async with client_at(server.url, session=session) as client:
                await client.chat("x", model="GPT-5")
        check_seen(proxy, server, posts=1)
        assert proxy.requests[0][1]["proxy-authorization"].startswith("Basic ")


async def test_the_password_of_a_proxy_of_a_given_session_is_shown_nowhere(tls: ssl.SSLContext) -> None:
    async with FaultServer(answers(), tls=tls) as server, ProxyServer() as proxy:
        url = proxy.url.replace("://", f"://joe:{PASSWORD}@")
        async with aiohttp.ClientSession(proxy=url) as session:
            error = await error_of(client_at(server.url, session=session))
    assert error.kind is FailureKind.NOT_TRUSTED
    everything = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert PASSWORD not in f"{error!s} {error!r} {error.__cause__!r} {everything.replace(repr(url), '')}"


async def test_the_flag_goes_before_the_own_variable_and_that_before_the_usual_one(
    server: FaultServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ProxyServer() as flag, ProxyServer() as own, ProxyServer() as usual:
        monkeypatch.setenv("ONELLM_PROXY", own.url)
        monkeypatch.setenv("HTTPS_PROXY", usual.url)
        monkeypatch.setenv("http_proxy", usual.url)
        for options in ({"proxy": flag.url}, {}, {"trust_env": True}, {"proxy": ""}):
            async with (
                client_at(server.url, ssl=trusting, trust_env=True, **options)
                if ("trust_env" not in options)
                else client_at(server.url, ssl=trusting, **options) as client
            ):
                await client.chat("x", model="GPT-5")
        monkeypatch.setenv("ONELLM_PROXY", "")
        async with client_at(server.url, ssl=trusting, trust_env=True) as client:
            await client.chat("x", model="GPT-5")
        async with client_at(server.url, ssl=trusting) as client:
            await client.chat("x", model="GPT-5")
        assert (flag.connections, own.connections, usual.connections) == (1, 2, 1)
        assert server.posts == 6


async def test_a_session_with_a_proxy_of_its_own_keeps_it_unless_an_argument_names_another(
    server: FaultServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ProxyServer() as own, ProxyServer() as other, aiohttp.ClientSession(proxy=own.url) as session:
        monkeypatch.setenv("ONELLM_PROXY", other.url)
        async with client_at(server.url, session=session, ssl=trusting) as client:
            await client.chat("x", model="GPT-5")
        assert (own.connections, other.connections) == (1, 0)
        async with client_at(server.url, session=session, ssl=trusting, proxy=other.url) as client:
            await client.chat("x", model="GPT-5")
        assert (own.connections, other.connections) == (1, 1)
        async with aiohttp.ClientSession() as plain:
            async with client_at(server.url, session=plain, ssl=trusting) as client:
                await client.chat("x", model="GPT-5")
        assert (own.connections, other.connections) == (1, 2)


async def test_no_proxy_is_heeded_with_trust_env(
    server: FaultServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ProxyServer() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        for value in ("127.0.0.1", f"a.example, 127.0.0.1:{server.port}", "*"):
            monkeypatch.setenv("NO_PROXY", value)
            async with client_at(server.url, ssl=trusting, trust_env=True) as client:
                await client.chat("x", model="GPT-5")
        assert (proxy.connections, server.posts) == (0, 3)


async def test_no_netrc_is_read_with_trust_env(
    server: FaultServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"default login joe password {PASSWORD}\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    async with client_at(server.url, ssl=trusting, trust_env=True) as client:
        await client.chat("x", model="GPT-5")
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"


async def test_the_password_is_sent_to_the_proxy_and_shown_nowhere(
    server: FaultServer, trusting: ssl.SSLContext
) -> None:
    async with ProxyServer(always="407 Proxy Authentication Required") as proxy:
        url = proxy.url.replace("://", f"://joe:{PASSWORD}%40@")
        client, shown = client_at(server.url, ssl=trusting, proxy=url), proxy.url
        error = await error_of(client)
        assert proxy.requests[0][1]["proxy-authorization"] == "Basic am9lOmh1bnRlcjItNWIxY0A="
    assert server.posts == 0
    assert (error.kind, error.attempts, error.possibly_billed) == (FailureKind.NOT_TRUSTED, 1, 0)
    assert f"The proxy {shown} (proxy) refused: 407" in error.message
    everything = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    for secret in (PASSWORD, "am9lOmh1bnRlcjItNWIxY0A=", KEY):
        assert secret not in f"{error!s} {error!r} {error.__cause__!r} {vars(client._sender._transport)!r} {everything}"


async def test_a_connect_that_fails_is_not_the_end(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async with FaultServer(answers(), tls=tls) as server, ProxyServer("503 Busy", "hang up", "502 Bad") as proxy:
        async with client_at(server.url, ssl=trusting, proxy=proxy.url) as client:
            replies = await client.gather_chats(["x"] * 30, model="GPT-5", return_exceptions=True)
        assert [reply.possibly_billed for reply in replies] == [0] * 30
        assert server.posts == 30


@pytest.mark.parametrize("status", ["503 Service Unavailable", "502 Bad Gateway", "hang up"])
async def test_a_proxy_that_never_lets_through_is_told_after_the_usual_attempts(
    status: str, tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with FaultServer(answers(), tls=tls) as server, ProxyServer(always=status) as proxy:
        error = await error_of(client_at(server.url, ssl=trusting, proxy=proxy.url))
        assert (error.kind, error.attempts, error.possibly_billed) == (FailureKind.CANNOT_CONNECT, 4, 0)
        assert (server.connections, len(proxy.requests)) == (0, 4)


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required"])
async def test_a_proxy_that_refuses_this_client_ends_a_fan_out(
    status: str, tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with FaultServer(answers(), tls=tls) as server, ProxyServer(always=status) as proxy:
        async with client_at(server.url, ssl=trusting, proxy=proxy.url, limits=Limits.unlimited(1)) as client:
            with pytest.raises(APIConnectionError, match=f"refused: {status}") as caught:
                await client.gather_chats(["x"] * 30, model="GPT-5", return_exceptions=True)
        assert (caught.value.kind, server.connections, len(proxy.requests)) == (FailureKind.NOT_TRUSTED, 0, 1)


async def test_a_proxy_that_never_answers_a_connect_is_a_timeout_while_connecting(
    tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with FaultServer(answers(), tls=tls) as server, ProxyServer(always="hang") as proxy:
        timeout = Timeout(connect=0.1, total=60)
        error = await error_of(client_at(server.url, ssl=trusting, proxy=proxy.url, timeout=timeout))
        assert isinstance(error, APITimeoutError)
        assert (error.kind, error.attempts, error.possibly_billed) == (FailureKind.CANNOT_CONNECT, 4, 0)


async def test_a_proxy_that_is_not_there_is_named(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONELLM_PROXY", "http://127.0.0.1:1")
    error = await error_of(client_at(server.url))
    assert (error.kind, error.attempts, server.connections) == (FailureKind.CANNOT_CONNECT, 4, 0)
    assert error.message.startswith("No connection to the proxy http://127.0.0.1:1 (ONELLM_PROXY): Connect")


async def test_a_proxy_whose_name_is_not_found_is_named(server: FaultServer) -> None:
    error = await error_of(client_at(server.url, proxy="http://proxy.invalid:3128"))
    assert error.kind is FailureKind.CANNOT_CONNECT
    assert "No connection to the proxy http://proxy.invalid:3128 (proxy): " in error.message


async def test_a_proxy_with_tls_is_used(tls: ssl.SSLContext, trusting: ssl.SSLContext, server: FaultServer) -> None:
    async with ProxyServer(tls=tls) as proxy:
        async with client_at(server.url, ssl=trusting, proxy=proxy.url) as client:
            assert (await client.chat("x", model="GPT-5")).attempts == 1
        assert proxy.connections == 1


async def test_an_untrusted_certificate_behind_a_proxy_gets_no_request(tls: ssl.SSLContext) -> None:
    async with FaultServer(answers(), tls=tls) as server, ProxyServer() as proxy:
        error = await error_of(client_at(server.url, proxy=proxy.url))
        assert (error.kind, error.attempts, server.posts) == (FailureKind.NOT_TRUSTED, 1, 0)
        assert "certificate of 127.0.0.1" in error.message
        assert "ONELLM_CA_FILE" in error.advice


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
async def test_a_proxy_variable_that_is_not_used_is_a_hint_where_there_is_no_connection(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://joe:{PASSWORD}@proxy.example:3128")
    error = await error_of(client_at("https://127.0.0.1:1/api"))
    assert error.advice.startswith(f"{variable} is not used")
    assert "ONELLM_PROXY" in error.advice
    assert "trust_env=True" in error.advice
    assert PASSWORD not in str(error)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert (await error_of(client_at("https://127.0.0.1:1/api"))).advice == "Check base_url and the network."


async def test_the_name_of_the_hosted_service_tells_that_it_is_gone() -> None:
    from aiohttp.abc import AbstractResolver

    class Nowhere(AbstractResolver):
        async def resolve(self, host, port=0, family=0):
            raise OSError(-2, "Name or service not known")

        async def close(self) -> None:
            return None

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Nowhere())) as session:
        error = await error_of(AsyncOneLLM(KEY, session=session, retry=FAST))
    assert error.message == "No connection to onellm.dev: Name or service not known."
    assert "has been shut down" in error.advice
    assert "ONELLM_BASE_URL" in error.advice


@pytest.mark.parametrize("how", ["argument", "variable"])
async def test_certificates_of_ones_own_are_trusted(
    how: str, tls: ssl.SSLContext, trusting: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv("ONELLM_CA_FILE", str(tmp_path / "ca.pem"))
    async with FaultServer(answers(), tls=tls) as server:
        async with client_at(server.url, ssl=trusting if how == "argument" else None) as client:
            assert (await client.chat("x", model="GPT-5")).content == "Paris."
        async with aiohttp.ClientSession() as session:
            context = trusting if how == "argument" else None
            async with client_at(server.url, ssl=context, session=session) as client:
                assert (await client.chat("x", model="GPT-5")).content == "Paris."


async def test_the_certificates_that_a_given_session_trusts_go_before_the_file(
    tls: ssl.SSLContext, trusting: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = trustme.CA()
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("ONELLM_CA_FILE", str(tmp_path / "other.pem"))
    strict = ssl.create_default_context()
    async with FaultServer(answers(), tls=tls) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
            async with client_at(server.url, session=session) as client:
                assert (await client.chat("x", model="GPT-5")).content == "Paris."
            error = await error_of(client_at(server.url, session=session, ssl=strict))
            assert error.kind is FailureKind.NOT_TRUSTED


async def test_a_file_of_certificates_replaces_those_of_the_system(
    tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("ONELLM_CA_FILE", str(tmp_path / "other.pem"))
    async with FaultServer(answers(), tls=tls) as server:
        assert (await error_of(client_at(server.url))).kind is FailureKind.NOT_TRUSTED


async def command(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    process = await start_command(
        *arguments,
        env=os.environ | {"ONELLM_API_KEY": KEY} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("how", ["flags", "own variables", "usual variables"])
async def test_the_command_line_goes_through_a_proxy_with_certificates_of_ones_own(
    how: str, server: FaultServer, tmp_path: Path
) -> None:
    ca = str(tmp_path / "ca.pem")
    async with ProxyServer() as proxy:
        flags, environment = {
            "flags": (["--proxy", proxy.url, "--ca-file", ca], {}),
            "own variables": ([], {"ONELLM_PROXY": proxy.url, "ONELLM_CA_FILE": ca}),
            "usual variables": (
                ["--trust-env"],
                {"HTTPS_PROXY": proxy.url, "HTTP_PROXY": proxy.url, "ONELLM_CA_FILE": ca},
            ),
        }[how]
        code, out, err = await command("chat", "hi", "--base-url", server.url, *flags, **environment)
        assert (code, out.strip()) == (0, "Paris."), err
        check_seen(proxy, server, posts=1)


async def test_a_command_with_a_local_server_asks_it_directly() -> None:
    code, out, err = await command("chat", "hi", "--local", ONELLM_PROXY="http://127.0.0.1:1")
    assert (code, out.strip()) == (0, "hi"), err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--proxy", f"http://joe:{PASSWORD}@h:x"], "proxy '…@h:x' is not a URL"),
        (["--proxy", "socks5://127.0.0.1:1"], "only HTTP proxies are supported"),
        (["--ca-file", "/nowhere.pem"], "--ca-file '/nowhere.pem' cannot be used: No such file or directory"),
    ],
    ids=["no URL", "SOCKS", "no file"],
)
async def test_an_unusable_flag_is_refused_before_anything_is_sent(flags: list[str], message: str) -> None:
    code, _, err = await command("chat", "hi", "--base-url", "http://127.0.0.1:1/", *flags)
    assert code == 2
    assert message in " ".join(err.split())
    assert PASSWORD not in err


@pytest.mark.parametrize(
    "options",
    [
        {"session": "x"},
        {"ssl": False},
        {"ssl": "ca.pem"},
        {"proxy": 5},
        {"proxy": "ftp://h"},
        {"proxy": "http://h/path"},
    ],
    ids=str,
)
def test_an_unusable_argument_is_refused_when_the_client_is_made(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        AsyncOneLLM(KEY, **options)  # type: ignore[arg-type]
