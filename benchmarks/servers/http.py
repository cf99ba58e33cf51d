"""The least HTTP/1.1 that keeps connections alive: a request in, `Connection.respond` out."""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping

_REASONS = {200: b"OK", 404: b"Not Found", 429: b"Too Many Requests"}


def encode(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole response."""
    head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()).encode()
    return head % (status, _REASONS[status], len(body), more) + body


class Connection(asyncio.Protocol):
    """One connection. Pipelined requests are understood, so that its capacity can be measured."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # always one for TCP
        """Keeps the way back."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers each request that has come completely."""
        data = self._received + data
        start = 0
        while (end := data.find(b"\r\n\r\n", start)) >= 0:
            head = data[start:end]
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
            after = end + 4 + int(length or 0)
            if after > len(data):
                break
            self.respond(head.split(b" ", 2)[1].decode())
            start = after
        self._received = data[start:]

    def send(self, response: bytes) -> None:
        """Writes a response unless the client has gone."""
        if not self.transport.is_closing():
            self.transport.write(response)

    def respond(self, path: str) -> None:
        """Answers a request for `path`."""
        raise NotImplementedError


def serve(connection: Callable[[], Connection]) -> None:
    """Serves on a free loopback port, printed as a JSON line, until the process is ended. Uses uvloop if there is."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(connection, "127.0.0.1", 0, family=socket.AF_INET, backlog=1024)
        print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        await server.serve_forever()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
