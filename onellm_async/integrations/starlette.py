"""Starlette, and what FastAPI shares with it: one client for the process, errors as statuses, users who leave.

::

    app = Starlette(routes=[...])
    install(app, lambda: AsyncOneLLM(limits=Limits(max_pending=15)))

It needs no extra, as an application on Starlette has Starlette.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from onellm_async import AsyncOneLLM, ConfigurationError, OneLLMError
from onellm_async.integrations.web import drain, readiness, to_http

__all__ = ["cancel_on_disconnect", "get_client", "install"]

_log = logging.getLogger("onellm_async.integrations")
_STATE = "onellm_client"

_SignalHandler: TypeAlias = Callable[[int, FrameType | None], object]


def install(
    app: Starlette,
    make_client: Callable[[], AsyncOneLLM] = AsyncOneLLM,
    *,
    ready_path: str | None = "/readyz",
    drain_seconds: float = 30.0,
) -> None:
    """Gives `app` one client for its whole life, a status for each error, and a readiness page.

    - The client is opened when the app starts and closed when it stops, inside of a lifespan that the app already has.
      SIGTERM and SIGINT drain it: requests in flight finish, queued ones are answered 503 at once, unsent.
    - An `OneLLMError` that a handler does not catch becomes the answer of `to_http`, as ``{"detail": …}``.
    - `ready_path` answers 200, or 503 with the reason while the circuit is open, the client paused or its queue full.

    Args:
        app: A Starlette or FastAPI application that has not started yet; of several mounted in each other, the
            outermost, as only its lifespan runs.
        make_client: Called when the app starts; default is a client from the environment.
        ready_path: Path of the readiness page; None for none.
        drain_seconds: How long requests in flight may take to finish when the app stops.
    """
    lifespan_before = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: Starlette) -> AsyncIterator[Mapping[str, Any] | None]:
        async with make_client() as client:
            app.state.onellm_client = client
            try:
                async with _DrainOnSignal(client):
                    async with lifespan_before(running) as state:
                        yield state
                    await drain(client, drain_seconds)
            finally:
                del app.state.onellm_client

    app.router.lifespan_context = lifespan  # type: ignore[assignment]  # None and a mapping are both allowed
    app.add_exception_handler(OneLLMError, _answer_error)
    app.add_exception_handler(ClientDisconnect, _answer_left)
    if ready_path is not None:

        async def ready(request: Request) -> JSONResponse:
            is_ready, reason = readiness(app.state.onellm_client)
            return JSONResponse({"ready": is_ready, "reason": reason}, status_code=200 if is_ready else 503)

        app.add_route(ready_path, ready, methods=["GET"], include_in_schema=False)


def get_client(request: HTTPConnection) -> AsyncOneLLM:
    """Returns the client of the application; for ``Depends`` in FastAPI.

    Args:
        request: A request or a websocket.

    Raises:
        ConfigurationError: If `install` was not called for this app, or the app was not started.
    """
    client = getattr(request.app.state, _STATE, None)
    if not isinstance(client, AsyncOneLLM):
        raise ConfigurationError(
            "This application has no OneLLM client.",
            advice="Call install(app) before it starts, and run its lifespan. "
            f"In a mounted application, set mounted.state.{_STATE} to that of the outer one.",
        )
    return client


@asynccontextmanager
async def cancel_on_disconnect(request: Request) -> AsyncGenerator[None, None]:
    """Cancels what runs inside of it when the user disconnects: a queued chat is then never sent and never billed.

    Enter it after the body of the request was read, as it reads what follows the body.

    Args:
        request: The request of the user.

    Raises:
        ClientDisconnect: Of Starlette, if the user disconnected. With `install` it needs no handler.

    Example:
        ::

            async with cancel_on_disconnect(request):
                reply = await client.chat(prompt, model="GPT-5-Mini", lane="interactive", deadline=30)
    """
    handler = asyncio.current_task()
    assert handler is not None  # noqa: S101  # ASGI applications run in tasks
    disconnected = inside = False

    async def watch() -> None:
        nonlocal disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if inside:
            disconnected = True
            handler.cancel()

    watching = asyncio.create_task(watch())
    inside = True
    try:
        yield
    except asyncio.CancelledError:
        # The server may have canceled the handler, too; then it is not ours to go on.
        if disconnected and not handler.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        inside = False
        watching.cancel()
        await asyncio.wait({watching})


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, OneLLMError)  # noqa: S101  # it is registered for these
    found = to_http(error)
    return JSONResponse({"detail": found.detail}, status_code=found.status, headers=dict(found.headers))


async def _answer_left(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's "client closed request"; it reaches no one but the access log


class _DrainOnSignal:
    """Drains a client as soon as the process is told to stop, before the server waits for its handlers.

    Servers run the end of a lifespan only when the last handler has returned, and handlers wait for the queue. So this
    stands before the server's own signal handler, and calls it.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, client: AsyncOneLLM) -> None:
        self._client = client
        self._before: dict[signal.Signals, _SignalHandler] = {}
        self._draining: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals: a test client runs the app in another one

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._start)
            self._before[signal.Signals(number)](number, frame)

        for each in self._SIGNALS:
            before = signal.getsignal(each)
            if callable(before):  # a server that handles the signal; the default action ends the process at once
                self._before[each] = before
                signal.signal(each, handle)

    async def __aexit__(self, *_: object) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait({self._draining})

    def _start(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._client.drain())
