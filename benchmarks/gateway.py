"""What the gateway adds: latency of one request at a time, and requests per second with many at once.

Three processes on loopback: a service that answers at once, the gateway, and this one, which asks. Service and asker
are written on bare sockets, so that they take little of the machine. ``python -m benchmarks.gateway``
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUESTION = json.dumps(
    {
        "model": "GPT-5-Nano",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 20,
    }
).encode()
ANSWER = json.dumps(
    {
        "provider": "OpenAI",
        "model": "gpt-5-nano",
        "role": "assistant",
        "content": "Paris.",
        "usage": {"input_tokens": 14, "output_tokens": 2, "total_tokens": 16},
        "finish_reason": "stop",
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Messages(asyncio.Protocol):
    """Cuts what arrives into HTTP messages."""

    def __init__(self) -> None:
        self._received = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Handles the messages that are complete."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            found = LENGTH.search(head)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(self._received) < size:
                return
            del self._received[:size]
            self.message(head)

    def message(self, head: bytes) -> None:
        """Handles one."""


class Service(Messages):
    """Answers at once, whatever it is asked."""

    def message(self, head: bytes) -> None:
        """Answers."""
        assert self.transport is not None
        self.transport.write(REPLY)


class Asker(Messages):
    """Asks the same again and again over one connection."""

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self._request = request
        self._reply: asyncio.Future[bytes] | None = None

    async def ask(self) -> None:
        """Returns when it is answered."""
        assert self.transport is not None
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(self._request)
        head = await self._reply
        assert head.startswith(b"HTTP/1.1 200"), head

    def message(self, head: bytes) -> None:
        """Ends the wait."""
        assert self._reply is not None
        self._reply.set_result(head)


def request_to(port: int, path: str, key: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(QUESTION)}\r\n\r\n".encode() + QUESTION


async def connected(port: int, path: str, key: str) -> Asker:
    request = request_to(port, path, key)
    _, asker = await asyncio.get_running_loop().create_connection(lambda: Asker(request), "127.0.0.1", port)
    return asker


async def latency(port: int, path: str, key: str, requests: int) -> float:
    """The median of seconds that one request takes, one at a time."""
    asker = await connected(port, path, key)
    times = []
    for _ in range(requests):
        started = time.perf_counter()
        await asker.ask()
        times.append(time.perf_counter() - started)
    assert asker.transport is not None
    asker.transport.close()
    return statistics.median(times[requests // 10 :])


async def throughput(port: int, path: str, key: str, requests: int, connections: int) -> float:
    """Requests per second, as many at once as there are connections."""
    askers = [await connected(port, path, key) for _ in range(connections)]
    left = iter(range(requests))

    async def work(asker: Asker) -> None:
        for _ in left:
            await asker.ask()

    await asyncio.gather(*(asker.ask() for asker in askers))
    started = time.perf_counter()
    await asyncio.gather(*map(work, askers))
    took = time.perf_counter() - started
    for asker in askers:
        assert asker.transport is not None
        asker.transport.close()
    return requests / took


async def serve() -> None:
    """The service, in a process of its own."""
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def started(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"(\d+)(/v1|$)", line.strip())
    assert found, line
    return process, int(found[1])


def measured(flags: list[str], key: str, service: int, requests: int, connections: int) -> tuple[float, float]:
    """Seconds that a gateway with these flags adds to a request, and its requests per second."""
    gateway, port = started(
        *("onellm_async", "gateway", "--port", "0", "--rpm", "60000000", "--burst", "1000000", "--concurrency", "1000"),
        *flags,
        ONELLM_API_KEY="any",
        ONELLM_BASE_URL=f"http://127.0.0.1:{service}/api",
    )
    try:
        path = "/v1/chat/completions"
        asyncio.run(latency(port, path, key, 200))
        rounds = [
            (
                asyncio.run(latency(service, "/api", key, requests // 4)),
                asyncio.run(latency(port, path, key, requests // 4)),
                asyncio.run(throughput(port, path, key, requests, connections)),
            )
            for _ in range(5)
        ]
    finally:
        gateway.terminate()
        gateway.wait()
    added = statistics.median(through - direct for direct, through, _ in rounds)
    return added, statistics.median(rate for _, _, rate in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--connections", type=int, default=64)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return
    service, port = started("benchmarks.gateway", "--serve")
    try:
        with tempfile.TemporaryDirectory() as folder:
            keys = str(Path(folder) / "keys.toml")
            made = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "onellm_async",
                    "gateway",
                    "keys",
                    "add",
                    "a",
                    "--keys",
                    keys,
                    "--max-cost",
                    "9",
                ],
                capture_output=True,
                text=True,
                check=True,
            )
            for name, flags, key in (
                ("without keys", [], "any"),
                ("with keys, a cost cap and the ledger", ["--keys", keys], made.stdout.strip()),
            ):
                added, rate = measured(flags, key, port, given.requests, given.connections)
                print(f"{name}: {added * 1000:.2f} ms added at the median, {rate:,.0f} requests/s", flush=True)
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main()
