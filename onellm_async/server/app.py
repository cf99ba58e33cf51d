"""The HTTP host of the local OneLLM: waits, calls the backend, writes bytes."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable
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
from onellm_async.server.settings import ServerSettings
from onellm_async.transport import RawReply
from onellm_async.wire import dump_json

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_log = logging.getLogger(__name__)
_REACHABLE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not listened on
"""Listening everywhere is no address to connect to; from this machine, loopback is."""
_SHUTDOWN: Final = 0.1
"""Seconds that requests under way get when the server stops; aiohttp grants it twice."""
_LONGEST_ENDING: Final = 5.0
"""Seconds after which a backend that ignores its cancellation is left behind."""


class LocalServer:
    """A OneLLM on this machine, for as long as the ``async with`` block lasts.

    Beside the API it answers ``GET /openapi.json``, ``GET /healthz`` and ``GET /ledger`` (the counters).

    Args:
        settings: What it pretends to be; default the documented API with the published limit.
        backend: Who answers; default an echo. It is closed with the server.
        host: Default loopback only.
        port: 0 takes any free one.

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
        self._backend: Backend = backend if backend is not None else EchoBackend()
        self._forwards: bool = getattr(self._backend, "forwards", False) is True
        settings = settings if settings is not None else ServerSettings()
        if settings.list_prices is None:
            settings = evolve(settings, list_prices=not self._forwards)
        self._has_pool = settings.faults.database_places is not None
        self.service: Service = Service(settings)
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Task[object]] = set()

    @property
    def ledger(self) -> Ledger:
        """What has been processed and billed."""
        return self.service.ledger

    @property
    def url(self) -> str:
        """The ``base_url`` for clients.

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
        host = _REACHABLE.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def revoke(self, key: str) -> None:
        """Makes `key` unknown from now on, as a user may do at any time; requests in flight are answered."""
        self.service.revoke(key)

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError("The local server is running already; make another LocalServer for another port.")
        if self._forwards and self.service.settings.keys is None:
            await _check_host(self._host)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/ledger", self._counters)
        for page in ("/openapi.json", "/healthz", "/ledger"):
            app.router.add_route("*", page, _only_get)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN,
            auto_decompress=False,  # the service does it, within bounds
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
            await closing  # is quick, and no socket stays behind
            raise

    async def _close(self) -> None:
        runner, self._runner = self._runner, None
        try:
            if runner is not None:
                await runner.cleanup()
            for connection in self._connections:  # aiohttp forgets those whose client has hung up
                connection.cancel()
            if self._connections:
                await asyncio.wait(self._connections, timeout=_LONGEST_ENDING)
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
            return _whole(self.service.reject_too_long(clock()))
        except (ConnectionError, web.RequestPayloadError):  # the whole body never came: nothing has been asked
            return web.Response(status=400)
        received = self.service.receive(request.method, request.path, request.headers, body, clock())
        if isinstance(received, RawReply):
            return _whole(received)
        delivery = await self._processed(received, request)
        if delivery.reply is None:
            return _reset(request)
        return await _half(request, delivery.reply) if delivery.truncated else _whole(delivery.reply)

    async def _processed(self, job: Job, request: web.Request) -> ServerReply:
        billing = Billing.NOT_BILLED
        try:
            late = await wait_for_connection(self.service, job) if self._has_pool else None
            if late is not None:
                return late
            if job.plan.latency > 0:
                await asyncio.sleep(job.plan.latency)
            doom = self.service.apply_fault(job)
            if doom is not None:
                return doom
            if self._forwards:  # from here on it is at work elsewhere
                billing = Billing.POSSIBLY_BILLED
            completion = await self._completion(job)
        except BackendError as error:
            return self.service.fail(
                job, str(error), status=error.status, retry_after=error.retry_after, billing=error.billing
            )
        except Exception as error:  # a user's backend has a bug: the client hears of it as of any failure
            _log.exception("The backend failed on request %d", job.number)
            return self.service.fail(job, f"The backend raised {type(error).__name__}.", billing=billing)
        except asyncio.CancelledError:  # the server is being stopped, or the client has hung up on a forwarded chat
            self.service.abandon(job, billing=billing)
            raise
        # A client that hangs up while the model works is billed all the same, as by the published service.
        gone = request.transport is None or request.transport.is_closing()
        return self.service.complete(job, completion, disconnected=gone)

    async def _completion(self, job: Job) -> Completion:
        completion = await self._backend.complete(job)
        if not isinstance(completion, Completion):
            raise TypeError(f"The backend returned a {type(completion).__name__}; it must return a Completion.")
        return completion

    async def _openapi(self, request: web.Request) -> web.Response:
        settings = self.service.settings
        return _json(openapi_document(settings.dialect, any_model=settings.any_model))

    async def _health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _counters(self, request: web.Request) -> web.Response:
        return _json(self.ledger.summary())


async def serve(
    settings: ServerSettings,
    *,
    backend: Backend | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    on_ready: Callable[[LocalServer], None] | None = None,
) -> None:
    """Runs a local server until cancelled, and then closes it cleanly.

    Args:
        settings: What it pretends to be.
        backend: Who answers; default an echo.
        host: Where to listen.
        port: Where to listen; 0 takes any free port.
        on_ready: Called once it listens.

    Raises:
        OSError: If the address cannot be listened on.
    """
    async with LocalServer(settings, backend=backend, host=host, port=port) as server:
        if on_ready is not None:
            on_ready(server)
        await asyncio.get_running_loop().create_future()


async def _check_host(host: str) -> None:
    """Refuses to listen for other machines without keys, where each answer costs the owner of the upstream's key.

    Raises:
        ConfigurationError: If `host` is anything but this machine's loopback.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)
        local = all(_is_loopback(address[0]) for *_, address in found)
    except OSError:  # not found, so that nothing listens there; the attempt to do so tells why
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


async def _only_get(request: web.Request) -> web.Response:
    raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])


def _json(value: object) -> web.Response:
    return web.Response(body=dump_json(value), content_type="application/json")


def _whole(reply: RawReply) -> web.Response:
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


async def _half(request: web.Request, reply: RawReply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_length = len(reply.body)
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(reply.body[: len(reply.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


def _reset(request: web.Request) -> web.Response:
    transport = request.transport
    if transport is not None and not transport.is_closing():
        connection = transport.get_extra_info("socket")
        with socket.fromfd(connection.fileno(), connection.family, connection.type) as same:  # any loop's socket
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    return web.Response()  # the connection is gone
