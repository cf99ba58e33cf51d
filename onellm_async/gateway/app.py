"""The aiohttp host of the gateway: reads, sends through the client, writes."""

import asyncio
import base64
import binascii
import contextlib
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, NoReturn
from urllib.parse import quote
from uuid import uuid4

from aiohttp import web

from onellm_async import catalog
from onellm_async.chat import JSON, ChatResponse
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import ConfigurationError, DeadlineExceededError, OneLLMError
from onellm_async.gateway.budget import Account, bound_cost, to_units
from onellm_async.gateway.budget_queue import BudgetQueue
from onellm_async.gateway.completions import ReplyHead, completion_chunks, to_completion
from onellm_async.gateway.error_replies import ErrorReply, RequestRejectedError, translate_error
from onellm_async.gateway.key_file import NO_KEYS, KeyFile
from onellm_async.gateway.keys import InboundKey, choose_lane, hash_key
from onellm_async.gateway.metrics import CONTENT_TYPE, Metrics, render_metrics
from onellm_async.gateway.paid_request import PaidRequest
from onellm_async.gateway.settings import GatewaySettings
from onellm_async.gateway.spending import KeySpending, SpendingLedger
from onellm_async.gateway.status_page import GatewayStatus, render_status
from onellm_async.gateway.translation import InboundChat, to_chat_request
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import LANES, Lane
from onellm_async.validation import check_port
from onellm_async.wire import dump_json, parse_json

_log = logging.getLogger("onellm_async")

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""A million tokens of text, the largest context of a listed model. All queued requests are in memory."""
_BODY_TIMEOUT: Final = 60.0
"""Seconds in which the body of a request must arrive."""
_MAX_WAITING: Final = 1000
"""Requests that may wait for a cost cap, where the client's own queue has no bound."""
_WRITE_TIMEOUT: Final = 5.0
"""Seconds that the last replies get to be written after all of them are there."""
_ANONYMOUS: Final = InboundKey(name="local", sha256="0" * 64, admin=True)
"""Whose requests a gateway without keys counts."""
_LOOPBACK_NAMES: Final = {"localhost", "ip6-localhost"}
_MAX_IGNORED: Final = 20
"""Names in ``x-onellm-ignored``."""
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """An OpenAI-compatible endpoint in front of one client.

    Args:
        client: Sends the requests. Its limits are those of all users together; it stays yours to close.
        settings: Who may use it, and for how much.

    Raises:
        ConfigurationError: If the key file or the ledger cannot be used.
    """

    def __init__(self, client: AsyncOneLLM, settings: GatewaySettings) -> None:
        self._client = client
        self._settings = settings
        self._keys = None if settings.keys is None else KeyFile(settings.keys, time.monotonic)
        path = settings.ledger_path
        self._ledger = None if path is None else SpendingLedger(path)
        self._total_cap = None if settings.max_cost is None else to_units(settings.max_cost)
        self._caps: dict[str, int | None] = {}
        self._groups: dict[str, RequestGroup] = {}
        pending = client.limits.max_pending
        self._budget = BudgetQueue(self._accounts, max_waiting=_MAX_WAITING if pending is None else pending)
        self._metrics = Metrics()
        self._started_at = time.monotonic()
        self._chats: set[asyncio.Task[object]] = set()
        self.draining: bool = False
        """Whether new requests are rejected, because the gateway is about to stop."""

    def application(self) -> web.Application:
        """Returns the application, which closes the ledger when it is cleaned up."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_in_shape])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_get("/", self._show_status)
        app.on_cleanup.append(self._cleanup)
        return app

    async def _cleanup(self, app: web.Application) -> None:
        await self.aclose()

    def abort(self) -> None:
        """Ends all chats at once; requests in flight may be billed."""
        for task in self._chats:
            task.cancel()

    async def aclose(self) -> None:
        """Writes the ledger and closes it."""
        if self._ledger is not None:
            ledger, self._ledger = self._ledger, None
            await ledger.aclose()

    # Who it is.

    def _accounts(self, name: str) -> tuple[Account, Account]:
        ledger = self._ledger
        spent, total = (0, 0) if ledger is None else (ledger.spent(name), ledger.total_spent)
        return Account(self._caps.get(name), spent), Account(self._total_cap, total)

    def _listed(self) -> Mapping[str, InboundKey]:
        return NO_KEYS if self._keys is None else self._keys.keys

    def _authorize(self, request: web.Request, *, admin: bool = False) -> InboundKey:
        """Returns the key of a request.

        Args:
            request: The request.
            admin: Whether it is for a page of the operator, which a browser opens with a password.

        Raises:
            RequestRejectedError: If it has none, or one that may not do this.
        """
        if self._keys is None:
            if not _is_for_this_machine(request):
                _reject(403, f"Host {request.host!r} is not this machine. A gateway without keys serves it alone.")
            return _ANONYMOUS
        given = _given_key(request.headers.get("Authorization", ""), basic=admin)
        key = None if given is None else self._listed().get(hash_key(given))
        if key is None:
            what = "No API key was given" if given is None else "The API key is not known here"
            scheme = 'Basic realm="onellm-async gateway", charset="UTF-8"' if admin else "Bearer"
            _reject(
                401,
                f"{what}. The gateway has keys of its own: Authorization: Bearer {'sk-onellm-…'}",
                code="invalid_api_key",
                headers={"WWW-Authenticate": scheme},
            )
        if admin and not key.admin:
            _reject(403, f"Key {key.name} is no admin key; it may not see this page.", code="no_admin_key")
        return key

    # Chats.

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        task = request.task
        self._chats.add(task)
        try:
            return await self._reply(request)
        finally:
            self._chats.discard(task)

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        started, name, status = time.monotonic(), "unknown", 0
        try:
            key = self._authorize(request)
            name = key.name
            chat = to_chat_request(await _body(request), max_tokens=self._settings.max_tokens)
            response = await self._answer(chat, key, _lane(request, key, self._settings, any_lane=self._keys is None))
            reply = _completed(chat, response)
            status = reply.status
        except RequestRejectedError as error:
            reply, status = _error(error.reply), error.reply.status
        except OneLLMError as error:
            translated = translate_error(error, self._client.snapshot(), max_wait=self._settings.max_wait)
            if translated.status >= 500:
                _log.info("Gateway, key %s: %d. %s", name, translated.status, error)
            reply, status = _error(translated), translated.status
        except asyncio.CancelledError:
            self._metrics.disconnected += 1
            raise
        self._metrics.record(name, status, time.monotonic() - started)
        if self.draining:
            reply.force_close()
        return reply

    async def _answer(self, chat: InboundChat, key: InboundKey, lane: Lane) -> ChatResponse:
        if self.draining:
            raise RequestRejectedError(_SHUTTING_DOWN)
        wait, ledger, group = self._settings.max_wait, self._ledger, self._group(key)
        if ledger is None:
            return await self._client.send(chat.request, lane=lane, deadline=wait, group=group)
        cap = None if key.max_cost is None else to_units(key.max_cost)
        self._caps[key.name] = cap
        capped = cap is not None or self._total_cap is not None
        worst = bound_cost(
            chat.request, capped=capped, factor=ledger.factors.get(chat.request.model, 1.0), prices=self._client.prices
        )
        started = time.monotonic()
        if capped:
            await self._reserve(key.name, worst.units)
        try:
            left = wait - (time.monotonic() - started)
            paid = PaidRequest(
                ledger, key.name, chat.request, worst, cap=cap, total_cap=self._total_cap, clock=time.time
            )
            try:
                response = await self._client.send(
                    chat.request, lane=lane, deadline=max(left, 0.001), group=group, attempt_hooks=paid
                )
            except BaseException as error:
                paid.failed(error)
                raise
            paid.answered(response)
            return response
        finally:
            if capped:
                ledger.call_after_writes(partial(self._budget.release, key.name, worst.units))

    def _group(self, key: InboundKey) -> RequestGroup | None:
        """Makes the keys of a lane take turns; None without keys."""
        if self._keys is None:
            return None
        group = self._groups.get(key.name)
        if group is None:
            group = self._groups[key.name] = RequestGroup(wait_for_ready=False, take_turns=True)
        return group

    async def _reserve(self, name: str, units: int) -> None:
        try:
            async with asyncio.timeout(self._settings.max_wait):
                await self._budget.reserve(name, units)
        except TimeoutError as error:
            if isinstance(error, OneLLMError):
                raise
            raise DeadlineExceededError("The rest of the cost cap stayed reserved for requests in flight.") from None

    # Everything else.

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request)
        return _json({"object": "list", "data": [_describe(entry) for entry in catalog.entries()]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request)
        entry = catalog.lookup(request.match_info["model"])
        if entry is None:
            _reject(404, f"Model {request.match_info['model']!r} is not listed. Others can be requested, too.")
        return _json(_describe(entry))

    async def _health(self, request: web.Request) -> web.StreamResponse:
        if self.draining:
            return _json({"status": "shutting down"}, status=503)
        return _json({"status": "ok"})

    async def _show_metrics(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request, admin=True)
        text = render_metrics(self._metrics, self._client.snapshot(), await self._spending())
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    async def _show_status(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request, admin=True)
        status = GatewayStatus(
            snapshot=self._client.snapshot(),
            metrics=self._metrics,
            keys=sorted(self._listed().values(), key=lambda key: key.name),
            spending=await self._spending(),
            max_cost=self._settings.max_cost,
            uptime=time.monotonic() - self._started_at,
            waiting_for_budget=self._budget.waiting,
        )
        return web.Response(text=render_status(status), content_type="text/html", headers=_PAGE_HEADERS)

    async def _spending(self) -> Mapping[str, KeySpending]:
        return {} if self._ledger is None else await self._ledger.read()


def gateway_app(client: AsyncOneLLM, settings: GatewaySettings | None = None) -> web.Application:
    """An OpenAI-compatible endpoint in front of a client, as an application to run or to mount.

    Run it with ``handler_cancellation=True``, so that a client that leaves frees its place.

    Args:
        client: Sends the requests; it stays yours to close.
        settings: Who may use it, and for how much. None serves every program of this machine.

    Raises:
        ConfigurationError: If the key file or the ledger cannot be used.

    Example:
        ::

            client = AsyncOneLLM(limits=Limits(max_pending=1000))
            web.run_app(gateway_app(client), host="127.0.0.1", port=8787, handler_cancellation=True)
    """
    return Gateway(client, settings or GatewaySettings()).application()


async def serve_gateway(
    client: AsyncOneLLM,
    settings: GatewaySettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    stop: asyncio.Event,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves until `stop` is set, then gracefully stops: queued requests get a 503, those in flight their answer.

    Cancelling it ends all requests at once; those in flight may be billed.

    Args:
        client: Sends the requests; it stays yours to close.
        settings: Who may use it, and for how much.
        host: Address to listen on.
        port: Port to listen on; 0 takes any free one.
        stop: Set it to stop.
        on_ready: Called with the URL when it listens.

    Raises:
        ConfigurationError: If the port cannot be, the key file or the ledger cannot be used, or other machines could
            spend without a key.
        OSError: If it cannot listen on the address.
    """
    check_port(port)
    if settings.keys is None:
        await _check_host(host)
    gateway = Gateway(client, settings)
    runner = web.AppRunner(
        gateway.application(),
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=_WRITE_TIMEOUT,
    )
    try:
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        await site.start()
        if on_ready is not None:
            on_ready(_url(runner))
        await stop.wait()
        gateway.draining = True
        await client.drain()
    except asyncio.CancelledError:
        gateway.abort()
        raise
    finally:
        await runner.cleanup()
        await gateway.aclose()


_SHUTTING_DOWN: Final = ErrorReply(
    status=503,
    message="The gateway is about to stop; nothing was sent.",
    type="server_error",
    code="shutting_down",
    retry_after=1.0,
    retry=True,
)


def _is_loopback(host: str) -> bool:
    name = host.strip("[]").rstrip(".").lower()
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _is_for_this_machine(request: web.Request) -> bool:
    """Whether a request was addressed to this machine.

    A web page of another site may reach a port of this machine under a name of its own (DNS rebinding).
    """
    try:
        host = request.url.host
    except ValueError:
        return False
    return host is not None and _is_loopback(host)


async def _check_host(host: str) -> None:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or None, None)
    except OSError as error:
        raise ConfigurationError(f"Host {host!r} cannot be resolved: {error.strerror or error}.") from None
    if not host or not all(_is_loopback(str(address[4][0])) for address in found):
        raise ConfigurationError(
            f"Listening on {host!r} without keys lets any machine that reaches it send requests at your expense.",
            advice="Add a key (onellm-async gateway keys add NAME --keys FILE) and pass --keys FILE, or listen on "
            "127.0.0.1.",
        )


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared with, not listened on
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _given_key(header: str, *, basic: bool) -> str | None:
    scheme, _, value = header.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if basic and scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            return password or user or None
    return None


async def _body(request: web.Request) -> JSON:
    if request.content_type != "application/json":
        # A page of another site can post anything else without asking the browser first.
        _reject(415, f"Content-Type is {request.headers.get('Content-Type')!r}; it must be application/json.")
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            body = await request.read()
        return parse_json(body)
    except TimeoutError:
        _reject(408, f"The body did not arrive within {_BODY_TIMEOUT:.0f} s.", code="body_too_slow")
    except (ConnectionError, web.RequestPayloadError):
        _reject(400, "The body ended too early.")
    except ValueError as error:
        _reject(400, f"The body is not JSON: {error}.", code="invalid_json")


def _lane(request: web.Request, key: InboundKey, settings: GatewaySettings, *, any_lane: bool) -> Lane:
    wanted = request.headers.get("x-onellm-lane")
    base = settings.lane if any_lane else key.lane
    lane = choose_lane(base, wanted, any_lane=any_lane)
    if lane is None:
        known = ", ".join(LANES)
        why = f"the lane of key {key.name} is {base}, and a request can only lower it" if wanted in LANES else known
        _reject(400, f"x-onellm-lane is {wanted!r}; {why if wanted in LANES else f'the lanes are {known}'}.")
    return lane


def _reject(
    status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
) -> NoReturn:
    raise RequestRejectedError(ErrorReply(status=status, message=message, code=code, headers=headers or {}))


def _completed(chat: InboundChat, response: ChatResponse) -> web.Response:
    head = ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), chat.request.model)
    headers = {"x-request-id": head.id}
    if chat.ignored:
        headers["x-onellm-ignored"] = ", ".join(quote(name[:64], safe="[]._-") for name in chat.ignored[:_MAX_IGNORED])
    if not chat.stream:
        return _json(to_completion(response, head), headers=headers)
    events = b"".join(completion_chunks(response, head, include_usage=chat.include_usage))
    headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return web.Response(body=events, content_type="text/event-stream", headers=headers)


def _describe(entry: catalog.CatalogEntry) -> dict[str, JSON]:
    return {"id": entry.name, "object": "model", "created": 0, "owned_by": entry.provider}


def _json(value: JSON, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=dump_json(value), content_type="application/json", status=status, headers=headers)


def _error(reply: ErrorReply) -> web.Response:
    return _json(reply.body(), status=reply.status, headers=reply.all_headers())


@web.middleware
async def _errors_in_shape(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Errors of every route in OpenAI's shape."""
    try:
        return await handler(request)
    except RequestRejectedError as error:
        return _error(error.reply)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        message = {
            404: f"There is no {request.method} {request.path} here; the endpoint is POST /v1/chat/completions.",
            405: f"{request.path} does not take {request.method}.",
            413: f"The body has more than {MAX_BODY_BYTES} bytes.",
        }.get(error.status, error.reason)
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
        return _error(ErrorReply(status=error.status, message=message, code="unknown_url", headers=headers))
    except Exception:
        _log.exception("Gateway: %s %s failed", request.method, request.path)
        return _error(ErrorReply(status=500, message="The gateway failed; see its log.", type="server_error"))
