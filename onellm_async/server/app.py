"""The aiohttp host of the local OneLLM: waits, calls the backend, writes bytes."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from aiohttp import web
from attrs import evolve

from onellm_async.errors import ConfigurationError
from onellm_async.failure_kinds import Billing
from onellm_async.server.backends import Backend, BackendError, EchoBackend
from onellm_async.server.connection_wait import wait_for_connection
from onellm_async.server.jobs import Completion, Job, ServerReply
from onellm_async.server.ledger import Ledger
from onellm_async.server.openapi import openapi_document
from onellm_async.server.request_validation import MAX_BODY_BYTES
from onellm_async.server.service import PATH, Service
from onellm_async.server.service_limits import ServiceLimit
from onellm_async.server.settings import ServerSettings
from onellm_async.transport import RawReply
from onellm_async.validation import check_port
from onellm_async.wire import dump_json

_log = logging.getLogger(__name__)

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing the socket sends RST."""
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not listened on
"""From the addresses that mean "all interfaces" to addresses that a client on this machine can connect to."""
_SHUTDOWN_TIMEOUT: Final = 0.1
"""Seconds that requests in flight get to finish when the server stops. aiohttp applies it twice."""
_MAX_CANCELLATION: Final = 5.0
"""Seconds to wait for a cancelled backend. After that it is left running."""


class LocalServer:
    """A local OneLLM server that runs inside an ``async with`` block.

    Beside the API it answers ``GET /openapi.json``, ``GET /healthz`` and ``GET /ledger`` (the counters).

    Args:
        settings: Limits, keys and faults. Default the documented API with the published limit.
        backend: Answers the chats. Default an echo. The server closes it.
        host: Address to listen on. Default loopback only.
        port: Port to listen on; 0 takes any free one.

    Raises:
        ConfigurationError: If the port cannot be.

    Example:
        ::

            async with LocalServer() as server, AsyncOneLLM("any key", base_url=server.url) as client:
                print((await client.chat("Hello?", model="GPT-5-Nano")).content)  # Hello?
                print(server.ledger.billed)  # 1
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        backend: Backend | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        check_port(port)
        self._backend: Backend = backend if backend is not None else EchoBackend()
        self._forwards: bool = getattr(self._backend, "forwards", False) is True
        settings = settings if settings is not None else ServerSettings()
        if settings.list_prices is None:
            settings = evolve(settings, list_prices=not self._forwards)
        self._has_pool = settings.faults.database_places is not None
        self.service: Service = Service(settings, epoch=time.time() - time.monotonic())
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Task[object]] = set()

    @property
    def ledger(self) -> Ledger:
        """Ledger of what was processed and billed."""
        return self.service.ledger

    @property
    def url(self) -> str:
        """``base_url`` for clients.

        Raises:
            RuntimeError: If the server is not running.
        """
        return f"{self.origin}{PATH}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, for the pages beside the API.

        Raises:
            RuntimeError: If the server is not running.
        """
        if self._runner is None or not self._runner.addresses:
            raise RuntimeError("The local server is not running; use it inside `async with`.")
        host, port = self._runner.addresses[0][:2]
        host = _LOOPBACK.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def revoke(self, key: str) -> None:
        """Makes `key` unknown from now on. Requests in flight are answered."""
        self.service.revoke(key)

    def change_limits(self, limits: Sequence[ServiceLimit]) -> None:
        """Replaces the limits of every key from now on; without any, every request is admitted.

        A limit of the same kind as one before keeps what that one has counted. Call it in the server's event loop.
        """
        self.service.change_limits(limits, asyncio.get_running_loop().time())

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError("The local server is running already; make another LocalServer for another port.")
        if self._forwards and self.service.settings.keys is None:
            await _check_host(self._host)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/openapi.json", self._show_openapi)
        app.router.add_get("/healthz", self._show_health)
        app.router.add_get("/ledger", self._show_ledger)
        for page in ("/openapi.json", "/healthz", "/ledger"):
            app.router.add_route("*", page, _reject_method)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
            auto_decompress=False,  # the service decompresses, within a size limit
            handler_cancellation=self._forwards,
        )
        try:
            await runner.setup()
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # bounded by _MAX_CANCELLATION, and leaves no socket open
            raise

    async def _close(self) -> None:
        runner, self._runner = self._runner, None
        try:
            if runner is not None:
                await runner.cleanup()
            for connection in self._connections:  # aiohttp drops connections whose client has disconnected
                connection.cancel()
            if self._connections:
                await asyncio.wait(self._connections, timeout=_MAX_CANCELLATION)
        finally:
            await self._backend.aclose()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        clock = asyncio.get_running_loop().time
        if request.task not in self._connections:
            self._connections.add(request.task)
            request.task.add_done_callback(self._connections.discard)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _build_response(self.service.reject_too_long(clock()))
        except (ConnectionError, web.RequestPayloadError):  # the body is incomplete, so there is no request to count
            return web.Response(status=400)
        received = self.service.receive(request.method, request.path, request.headers, body, clock())
        if isinstance(received, RawReply):
            return _build_response(received)
        written = await self._process(received, request)
        if written.reply is None:
            return _reset_connection(request)
        if written.truncated:
            return await _write_half(request, written.reply)
        return _build_response(written.reply)

    async def _process(self, job: Job, request: web.Request) -> ServerReply:
        billing = Billing.NOT_BILLED
        try:
            timed_out = await wait_for_connection(self.service, job) if self._has_pool else None
            if timed_out is not None:
                return timed_out
            if job.plan.latency > 0:
                await asyncio.sleep(job.plan.latency)
            fault = self.service.apply_fault(job)
            if fault is not None:
                return fault
            if self._forwards:  # from here on the upstream may bill it
                billing = Billing.POSSIBLY_BILLED
            completion = await self._complete(job)
        except BackendError as error:
            return self.service.fail(
                job, str(error), status=error.status, retry_after=error.retry_after, billing=error.billing
            )
        except Exception as error:  # a bug in a user's backend is a 500 for the client
            _log.exception("The backend failed on request %d", job.number)
            return self.service.fail(job, f"The backend raised {type(error).__name__}.", billing=billing)
        except asyncio.CancelledError:  # the server stops, or the client of a forwarded chat disconnected
            self.service.abandon(job, billing=billing)
            raise
        # A client that disconnects while the model works is billed all the same, as by the published service.
        disconnected = request.transport is None or request.transport.is_closing()
        return self.service.complete(job, completion, disconnected=disconnected)

    async def _complete(self, job: Job) -> Completion:
        completion = await self._backend.complete(job)
        if not isinstance(completion, Completion):
            raise TypeError(f"The backend returned a {type(completion).__name__}; it must return a Completion.")
        return completion

    async def _show_openapi(self, request: web.Request) -> web.Response:
        settings = self.service.settings
        return _json(openapi_document(settings.dialect, any_model=settings.any_model))

    async def _show_health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _show_ledger(self, request: web.Request) -> web.Response:
        return _json(self.ledger.summary())


async def serve(
    settings: ServerSettings,
    *,
    backend: Backend | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    on_ready: Callable[[LocalServer], None] | None = None,
) -> None:
    """Runs a local server until it is cancelled, then closes it.

    Args:
        settings: Limits, keys and faults.
        backend: Answers the chats. Default an echo. The server closes it.
        host: Address to listen on.
        port: Port to listen on; 0 takes any free one.
        on_ready: Called with the server when it listens.

    Raises:
        OSError: If the server cannot listen on the address.
    """
    async with LocalServer(settings, backend=backend, host=host, port=port) as server:
        if on_ready is not None:
            on_ready(server)
        await asyncio.get_running_loop().create_future()


async def _check_host(host: str) -> None:
    """Checks that a forwarding server without keys listens on loopback only, because each answer costs its operator.

    Raises:
        ConfigurationError: If other machines can reach `host`.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)
        local = all(_is_loopback(address[0]) for *_, address in found)
    except OSError:  # an unknown host: the attempt to listen raises the error
        return
    if not local:
        raise ConfigurationError(
            f"Listening on {host!r} without keys lets any machine that reaches it send requests at your expense.",
            advice="Set keys (on the command line: --key KEY), or listen on 127.0.0.1.",
        )


def _is_loopback(address: str | int) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


async def _reject_method(request: web.Request) -> web.Response:
    raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])


def _json(value: object) -> web.Response:
    return web.Response(body=dump_json(value), content_type="application/json")


def _build_response(reply: RawReply) -> web.Response:
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


async def _write_half(request: web.Request, reply: RawReply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_length = len(reply.body)
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(reply.body[: len(reply.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


def _reset_connection(request: web.Request) -> web.Response:
    transport = request.transport
    if transport is not None and not transport.is_closing():
        connection = transport.get_extra_info("socket")
        # The socket object of a transport is limited on some event loops. A duplicate of its descriptor is not.
        with socket.fromfd(connection.fileno(), connection.family, connection.type) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    return web.Response()  # never written: the connection is closed
