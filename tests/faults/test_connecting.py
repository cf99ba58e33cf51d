# ruff: noqa: ASYNC110, SIM117  # polling a condition on real sockets; blocks that end one before the other
import asyncio
import datetime as dt
import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from fault_server import FaultServer, answers, answers_then_drops, at_connection, sends

from onellm_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AsyncOneLLM,
    Billing,
    Limits,
    RetryPolicy,
    Timeout,
)

FAST = RetryPolicy(backoff_base=0.0, breaker_failures=0)


def client_at(url: str, *, session: aiohttp.ClientSession | None = None, **timeout: float) -> AsyncOneLLM:
    return AsyncOneLLM(
        "key",
        base_url=url,
        session=session,
        limits=Limits.unlimited(max_concurrency=1),
        retry=FAST,
        timeout=Timeout(**{"connect": 5, "total": 5, **timeout}),
    )


async def failure_of(client: AsyncOneLLM) -> APIError:
    async with client:
        with pytest.raises(APIError) as caught:
            await client.chat("x", model="GPT-5")
    return caught.value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest_asyncio.fixture
async def trusting(authority: trustme.CA) -> AsyncIterator[aiohttp.ClientSession]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session
        assert not session.closed


async def test_a_refused_connection_was_never_sent_and_is_tried_again() -> None:
    error = await failure_of(client_at(f"http://127.0.0.1:{free_port()}/api"))
    assert type(error) is APIConnectionError
    assert (error.billing, error.retryable, error.attempts, error.possibly_billed) == (
        Billing.NOT_PROCESSED,
        True,
        4,
        0,
    )
    assert "No connection to 127.0.0.1" in error.message
    assert "Check base_url and the network." in str(error)
    assert "after 4 attempts" in str(error)


async def test_a_server_that_comes_up_meanwhile_gets_the_request_once() -> None:
    port = free_port()
    server = FaultServer(answers())
    client = AsyncOneLLM(
        "key",
        base_url=f"http://127.0.0.1:{port}/api",
        retry=RetryPolicy(backoff_base=0.2, max_attempts=9, breaker_failures=0),
        limits=Limits.unlimited(),
    )
    async with client:
        chat = asyncio.create_task(client.chat("x", model="GPT-5"))
        await asyncio.sleep(0)
        listener = await asyncio.start_server(server._serve, "127.0.0.1", port)
        try:
            response = await chat
        finally:
            listener.close()
    await listener.wait_closed()
    assert response.possibly_billed == 0
    assert server.posts == 1
    await asyncio.gather(*server._handlers)


async def test_a_trusted_certificate_is_served(authority: trustme.CA, trusting: aiohttp.ClientSession) -> None:
    tls = server_context(authority.issue_cert("127.0.0.1"))
    async with FaultServer(answers(), tls=tls) as server, client_at(server.url, session=trusting) as client:
        assert (await client.chat("x", model="GPT-5")).content == "Paris."


@pytest.mark.parametrize("flaw", ["of another host", "expired", "of an unknown authority"])
async def test_a_wrong_certificate_gets_no_request_and_no_second_try(
    flaw: str, authority: trustme.CA, trusting: aiohttp.ClientSession
) -> None:
    certificate = {
        "of another host": lambda: authority.issue_cert("other.example"),
        "expired": lambda: authority.issue_cert(
            "127.0.0.1",
            not_before=dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
            not_after=dt.datetime(2021, 1, 1, tzinfo=dt.UTC),
        ),
        "of an unknown authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
    }[flaw]()
    async with FaultServer(answers(), tls=server_context(certificate)) as server:
        error = await failure_of(client_at(server.url, session=trusting))
        assert type(error) is APIConnectionError
        assert (error.billing, error.retryable, error.attempts) == (Billing.NOT_PROCESSED, False, 1)
        assert "certificate of 127.0.0.1 was not accepted" in error.message
        assert {"of another host": "mismatch", "expired": "expired", "of an unknown authority": "unable to get"}[
            flaw
        ] in error.message
        assert "nothing was sent" in error.advice
        assert (server.posts, server.connections) == (0, 0)  # no handshake, no connection for the server to serve


async def test_the_clients_own_session_trusts_no_stranger(authority: trustme.CA) -> None:
    async with FaultServer(answers(), tls=server_context(authority.issue_cert("127.0.0.1"))) as server:
        error = await failure_of(client_at(server.url))
        assert "certificate of 127.0.0.1 was not accepted" in error.message
        assert server.posts == 0


async def test_a_certificate_failure_stops_a_fan_out_at_once(authority: trustme.CA) -> None:
    async with FaultServer(answers(), tls=server_context(authority.issue_cert("127.0.0.1"))) as server:
        async with client_at(server.url) as client:
            with pytest.raises(APIConnectionError, match="certificate") as caught:
                await client.gather_chats(["x"] * 50, model="GPT-5", return_exceptions=True)
        assert len(caught.value.partial_results) == 1


async def test_plain_http_on_the_https_port_is_an_unsent_request() -> None:
    async with FaultServer(at_connection(sends(b"HTTP/1.1 400 Bad Request\r\n\r\n"))) as server:
        error = await failure_of(client_at(server.url.replace("http:", "https:")))
        assert type(error) is APIConnectionError
        assert error.billing is Billing.NOT_PROCESSED
        assert server.posts == 0


class StubResolver(AbstractResolver):
    """Answers look-ups on this machine: with an error, or never."""

    def __init__(self, failure: OSError | None = None) -> None:
        self.failure = failure
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if self.failure is None:
            await asyncio.get_running_loop().create_future()
        assert self.failure is not None
        raise self.failure

    async def close(self) -> None:
        return None


async def test_a_name_that_is_not_found_was_never_sent_and_is_tried_again() -> None:
    resolver = StubResolver(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
        error = await failure_of(client_at("https://nowhere.invalid/api", session=session))
    assert type(error) is APIConnectionError
    assert (error.billing, error.attempts) == (Billing.NOT_PROCESSED, 4)
    assert error.message == "No connection to nowhere.invalid: Name or service not known."
    assert resolver.asked == ["nowhere.invalid"] * 4


async def test_a_look_up_that_hangs_counts_as_connecting() -> None:
    resolver = StubResolver()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
        error = await failure_of(client_at("https://nowhere.invalid/api", session=session, connect=0.05, total=60))
    assert type(error) is APITimeoutError
    assert (error.billing, error.possibly_billed, error.attempts) == (Billing.NOT_PROCESSED, 0, 4)
    assert "Timeout.connect" in error.message


async def test_a_server_that_never_accepts_is_a_timeout_while_connecting() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = []
        try:
            for _ in range(8):  # fills the backlog, so that further connections get no answer
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
                fillers.append(filler)
            error = await failure_of(client_at(f"http://127.0.0.1:{deaf.getsockname()[1]}/", connect=0.05, total=60))
        finally:
            for filler in fillers:
                filler.close()
    assert type(error) is APITimeoutError
    assert (error.billing, error.possibly_billed) == (Billing.NOT_PROCESSED, 0)


async def test_cancelling_while_connecting_frees_the_slot() -> None:
    resolver = StubResolver()
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with client_at("https://nowhere.invalid/api", session=session, connect=60, total=60) as client:
            for round_number in range(1, 4):
                chat = asyncio.create_task(client.chat("x", model="GPT-5"))
                while len(resolver.asked) < round_number:
                    await asyncio.sleep(0)
                chat.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await chat


async def test_a_redirect_elsewhere_is_not_followed_with_a_paid_prompt() -> None:
    async with FaultServer(answers()) as elsewhere:
        for status in ("301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"):
            async with FaultServer(answers(b"", status, Location=elsewhere.url)) as server:
                error = await failure_of(client_at(server.url))
                assert f"Redirected to {elsewhere.url}" in error.message
                assert "set base_url to the final address" in error.advice
                assert (error.retryable, server.posts) == (False, 1)
        assert (elsewhere.connections, elsewhere.posts) == (0, 0)


async def test_a_connection_dropped_between_two_uses_costs_one_repeat_that_is_counted() -> None:
    async with FaultServer(answers_then_drops(), answers()) as server, client_at(server.url) as client:
        assert (await client.chat("x", model="GPT-5")).attempts == 1
        second = await client.chat("y", model="GPT-5")
        assert (second.attempts, second.possibly_billed) == (2, 1)
        assert server.connections == 2


async def test_an_idle_connection_that_the_server_has_closed_is_not_used_again() -> None:
    async with FaultServer(sends(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"content":"x"}'), answers()) as server:
        async with client_at(server.url) as client:
            await client.chat("x", model="GPT-5")
            while server._handlers:  # closed over there …
                await asyncio.sleep(0)
            for _ in range(20):  # … and noticed here
                await asyncio.sleep(0.001)
            assert (await client.chat("y", model="GPT-5")).attempts == 1


async def test_connections_are_used_again() -> None:
    async with FaultServer(answers()) as server, client_at(server.url) as client:
        for _ in range(5):
            await client.chat("x", model="GPT-5")
        assert (server.posts, server.connections) == (5, 1)


async def test_the_request_is_what_the_documentation_asks_for() -> None:
    async with FaultServer(answers()) as server, client_at(server.url) as client:
        await client.chat("Hi", model="GPT-5")
        line, headers, body = server.requests[0]
        assert line == "POST /api HTTP/1.1"
        assert headers["authorization"] == "Bearer key"
        assert headers["content-type"] == "application/json"
        assert body == b'{"model":"GPT-5","messages":[{"role":"user","content":"Hi"}]}'


async def test_nothing_from_the_environment_goes_with_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with FaultServer(answers()) as proxy, FaultServer(answers(Set_Cookie="a=b; Path=/")) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login joe password hunter2\n", encoding="utf-8")
        monkeypatch.setenv("NETRC", str(netrc))
        async with client_at(server.url) as client:
            await client.chat("x", model="GPT-5")
            await client.chat("x", model="GPT-5")
        assert (proxy.connections, server.posts) == (0, 2)
        for _, headers, _ in server.requests:
            assert headers["authorization"] == "Bearer key"
            assert "cookie" not in headers


def test_without_file_descriptors_it_says_so_and_does_not_try_again() -> None:
    script = """
        import asyncio, resource, socket
        from onellm_async import APIConnectionError, AsyncOneLLM, Billing, Limits

        async def main():
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            async with AsyncOneLLM("key", base_url=f"http://127.0.0.1:{port}/", limits=Limits.unlimited()) as client:
                resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
                hogs = []
                try:
                    while True:
                        hogs.append(socket.socket())
                except OSError:
                    pass
                try:
                    await client.chat("x", model="GPT-5")
                except APIConnectionError as error:
                    assert error.billing is Billing.NOT_PROCESSED, error.billing
                    assert error.attempts == 0 and not error.retryable
                    print(error)
                finally:
                    for hog in hogs:
                        hog.close()
            server.close()

        asyncio.run(main())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "no file descriptor left" in run.stdout
    assert "ulimit -n" in run.stdout


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"content":"Paris.","usage":{"input_tokens":1,"output_tokens":1}}', "Paris. 1 True"),
        (b'\xef\xbb\xbf{"content":"Paris.","usage":{"input_tokens":1,"output_tokens":1}}', "Paris. 1 True"),
        (b'{"code":503,"output":null}', "InternalServerError 4"),
        (b'{"code":422,"output":{"error":"unknown variant `GPT-5-Mini`"}}', "UnprocessableEntityError 1"),
    ],
    ids=["answer", "answer with a BOM", "503", "422"],
)
def test_a_paid_answer_is_not_lost_because_no_file_can_be_opened(body: bytes, expected: str) -> None:
    script = f"""
        import asyncio, resource, socket
        from onellm_async import APIStatusError, AsyncOneLLM
        from onellm_async.testing import FakeTransport
        from onellm_async.transport import RawReply

        hogs = []

        def exhaust(request):
            resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
            try:
                while True:
                    hogs.append(socket.socket())
            except OSError:
                return RawReply(200, {{}}, {body!r})

        async def main():
            async with AsyncOneLLM(transport=FakeTransport(exhaust)) as client:
                try:
                    response = await client.chat("x", model="GPT-5")
                    print(response.content, response.attempts, response.cost > 0)
                except APIStatusError as error:
                    print(type(error).__name__, error.attempts)
                while hogs:
                    hogs.pop().close()

        asyncio.run(main())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() == expected
