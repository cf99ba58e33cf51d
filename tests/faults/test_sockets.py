import asyncio
import socket

import pytest
from fault_server import FaultServer, answers

from onellm_async.settings import ApiKey, Timeout
from onellm_async.transport import AiohttpTransport
from onellm_async.transport.sockets import keep_alive_socket

EXPECTED = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}


def options_of(found: socket.socket) -> dict[str, int]:
    return {
        name: found.getsockopt(socket.IPPROTO_TCP, option)
        for name in EXPECTED
        if (option := getattr(socket, name, None)) is not None
    }


def live_socket(transport: AiohttpTransport) -> socket.socket:
    assert transport._open_session is not None
    connector = transport._open_session.session.connector
    assert connector is not None
    [connections] = connector._conns.values()
    [(protocol, _)] = connections
    assert protocol.transport is not None
    return protocol.transport.get_extra_info("socket")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HOSTS = [
    "127.0.0.1",
    "localhost",
    pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")),
]


@pytest.mark.parametrize("host", HOSTS)
async def test_a_live_connection_notices_within_a_minute_that_the_other_side_is_gone(host: str) -> None:
    server = FaultServer(answers())
    listening = await asyncio.start_server(server._serve, "127.0.0.1" if host == "localhost" else host, 0)
    port = listening.sockets[0].getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    transport = AiohttpTransport(f"http://{name}:{port}/api", ApiKey("key"), Timeout(connect=5, total=5))
    assert (await transport.post(b"{}")).status == 200
    found = live_socket(transport)
    assert found.family is (socket.AF_INET6 if ":" in host else socket.AF_INET)
    assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    options = options_of(found)
    assert options.items() <= EXPECTED.items()
    assert "TCP_KEEPIDLE" in options or not hasattr(socket, "TCP_KEEPIDLE")
    await transport.aclose()
    listening.close()
    await asyncio.gather(*server._handlers)
    await listening.wait_closed()


async def test_one_address_of_two_that_does_not_listen_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two_addresses(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.3", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two_addresses)
    async with FaultServer(answers()) as server:
        transport = AiohttpTransport(f"http://localhost:{server.port}/api", ApiKey("key"), Timeout(connect=5, total=5))
        assert (await transport.post(b"{}")).status == 200
        assert options_of(live_socket(transport)).items() <= EXPECTED.items()
        await transport.aclose()


def test_a_platform_without_these_options_has_plain_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*EXPECTED, "TCP_KEEPALIVE"):
        monkeypatch.delattr(socket, name, raising=False)
    with keep_alive_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_system_that_refuses_an_option_has_plain_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "TCP_KEEPIDLE", 9999, raising=False)
    with keep_alive_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
