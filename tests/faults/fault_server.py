"""A server that misbehaves as told: raw streams, a script for each request (or connection), the last repeating."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeAlias

RESET = struct.pack("ii", 1, 0)
REPLY = {
    "provider": "OpenAI",
    "model": "gpt-5-mini",
    "role": "assistant",
    "content": "Paris.",
    "usage": {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12},
    "finish_reason": "stop",
}
BODY = json.dumps(REPLY).encode()


class Exchange:
    """One connection, and the request read from it last."""

    def __init__(self, server: "FaultServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def request(self) -> bool:
        """Reads a whole request; False when the client has closed the connection instead."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.casefold(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        self.server.requests.append((lines[0], headers, body))
        self.server.asked.set()
        return True

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    async def until_client_closes(self) -> None:
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.server.client_closed.set()


Script: TypeAlias = Callable[[Exchange], Awaitable[bool | None]]
"""Returns True to keep the connection for the next request; otherwise it is closed."""


class FaultServer:
    """Listens on a free port of the loopback for as long as the ``async with`` block lasts."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self._scripts = list(scripts)
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.asked = asyncio.Event()
        self.client_closed = asyncio.Event()
        self.bytes_sent = 0

    @property
    def posts(self) -> int:
        return sum(line.startswith("POST ") for line, _, _ in self.requests)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/api"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    def _next_script(self) -> Script:
        return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        self.connections += 1
        exchange = Exchange(self, reader, writer)
        try:
            if getattr(self._scripts[0], "at_connection", False):
                await self._next_script()(exchange)
                return
            while await exchange.request():
                if not await self._next_script()(exchange):
                    return
            self.client_closed.set()
        except ConnectionError:
            self.client_closed.set()
        finally:
            writer.close()


def head(status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}"]
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if length is not None:
        headers["Content-Length"] = str(length)
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")


def answers(body: bytes = BODY, status: str = "200 OK", **headers: str) -> Script:
    async def script(exchange: Exchange) -> bool:
        await exchange.send(head(status, len(body), **headers) + body)
        return True

    return script


def sends(data: bytes, then: str = "close") -> Script:
    """Sends raw bytes, and then closes, resets, stalls or half-closes."""

    async def script(exchange: Exchange) -> None:
        if data:
            await exchange.send(data)
        if then == "reset":
            exchange.reset()
        elif then == "stall":
            await exchange.until_client_closes()
        elif then == "half_close":
            exchange.writer.write_eof()
            await exchange.until_client_closes()
        else:
            assert then == "close"

    return script


def drips(data: bytes, seconds: float) -> Script:
    """Sends one byte at a time."""

    async def script(exchange: Exchange) -> None:
        for byte in data:
            await exchange.send(bytes([byte]))
            await asyncio.sleep(seconds)
        await exchange.until_client_closes()

    return script


def answers_then_drops() -> Script:
    """Answers, promises to keep the connection, and resets it when the next request is there."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(head(length=len(BODY)) + BODY)
        await exchange.reader.readuntil(b"\r\n\r\n")
        exchange.reset()

    return script


def floods(declared: int) -> Script:
    """Declares a length and sends until nobody listens."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(head(length=declared) + b'{"content":"')
        chunk = b"x" * 65536
        while exchange.server.bytes_sent < declared:
            await exchange.send(chunk)
            exchange.server.bytes_sent += len(chunk)

    return script


def at_connection(script: Script) -> Script:
    """Runs `script` when the connection is there, before any request is read."""
    script.at_connection = True  # type: ignore[attr-defined]
    return script


def resets_at_connection() -> Script:
    return at_connection(sends(b"", then="reset"))


def resets_during_the_request() -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.reader.read(20)
        exchange.reset()

    return at_connection(script)
