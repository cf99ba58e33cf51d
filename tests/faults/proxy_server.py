"""A forward proxy for tests: forwards absolute-form requests, tunnels CONNECT, and keeps what it saw."""

import asyncio
import ssl
from contextlib import suppress
from types import TracebackType
from typing import Self


class ProxyServer:
    """Listens on a free port of the loopback.

    Args:
        refusals: Status lines such as ``"503 Busy"`` with which the next requests are refused.
        always: The same for all that follow.
        tls: To listen with TLS.
    """

    def __init__(self, *refusals: str, always: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._rate_limited = list(refusals)
        self._always = always
        self._tls = tls
        self._handlers: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        self.seen = b""
        """All bytes that clients sent in the clear."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        self.connections += 1
        self._writers.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen += head
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.casefold(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.requests.append((line, headers))
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.seen += body
        refusal = self._rate_limited.pop(0) if self._rate_limited else self._always
        if refusal == "hang up":
            return False
        if refusal == "hang":
            await reader.read()
            return False
        if refusal is not None:
            writer.write(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        method, target, _ = line.split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            there = await asyncio.open_connection(host, int(port))
            self._writers.append(there[1])
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await self._tunnel((reader, writer), there)
            return False
        _, _, address = target.partition("://")
        host, _, port = address.partition("/")[0].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers.append(far_writer)
        origin = f"{method} /{address.partition('/')[2]} HTTP/1.1\r\n"
        kept = (field for field in fields if not field.casefold().startswith("proxy-"))
        far_writer.write(origin.encode() + "\r\n".join(kept).encode("latin-1") + body)
        reply = await far_reader.readuntil(b"\r\n\r\n")
        length = reply.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        writer.write(reply + await far_reader.readexactly(int(length)))
        far_writer.close()
        return True

    @staticmethod
    async def _tunnel(
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter], far: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        await asyncio.gather(copy(near[0], far[1]), copy(far[0], near[1]))
