"""aiohttp.web: one client for the application, and a status for each error.

::

    app = web.Application()
    install(app, lambda: AsyncOneLLM(limits=Limits(max_pending=15)))
    app.add_routes([web.post("/chat", chat)])
    web.run_app(app, handler_cancellation=True)

``handler_cancellation=True`` belongs to the server, so a library cannot set it. With it a user who disconnects cancels
the handler, and a queued chat is never sent and never billed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from onellm_async import AsyncOneLLM, OneLLMError
from onellm_async.integrations.web import drain, readiness, to_http

__all__ = ["CLIENT", "error_table", "install"]

CLIENT: web.AppKey[AsyncOneLLM] = web.AppKey("onellm_client", AsyncOneLLM)
"""Key of the client in the application: ``request.app[CLIENT]``, in a subapp ``request.config_dict[CLIENT]``."""


def install(
    app: web.Application,
    make_client: Callable[[], AsyncOneLLM] = AsyncOneLLM,
    *,
    ready_path: str | None = "/readyz",
    drain_seconds: float = 30.0,
) -> None:
    """Gives `app` one client for its whole life, a status for each error, and a readiness page.

    - The client is opened when the app starts and closed when it stops. When it begins to stop, the client is drained:
      requests in flight finish, queued ones are answered 503 at once, unsent.
    - An `OneLLMError` that a handler does not catch becomes the answer of `error_table`.
    - `ready_path` answers 200, or 503 with the reason while the circuit is open, the client paused or its queue full.

    Args:
        app: An application that has not started yet.
        make_client: Called when the app starts; default is a client from the environment.
        ready_path: Path of the readiness page; None for none.
        drain_seconds: How long requests in flight may take to finish when the app stops.
    """
    draining: list[asyncio.Task[None]] = []

    async def client_of_app(app: web.Application) -> AsyncIterator[None]:
        async with make_client() as client:
            app[CLIENT] = client
            yield
            # Started below, unless the application never got as far as a shutdown.
            await (draining.pop() if draining else drain(client, drain_seconds))

    async def start_draining(app: web.Application) -> None:
        # The server waits for its handlers between this and the clean-up, and they wait for the queue.
        draining.append(asyncio.create_task(drain(app[CLIENT], drain_seconds)))

    async def ready(request: web.Request) -> web.Response:
        is_ready, reason = readiness(app[CLIENT])
        return web.json_response({"ready": is_ready, "reason": reason}, status=200 if is_ready else 503)

    app.cleanup_ctx.append(client_of_app)
    app.on_shutdown.append(start_draining)
    app.middlewares.append(error_table)
    if ready_path is not None:
        app.router.add_get(ready_path, ready)


@web.middleware
async def _error_table(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except OneLLMError as error:
        found = to_http(error)
        return web.json_response({"detail": found.detail}, status=found.status, headers=found.headers)


error_table: Middleware = _error_table
"""Middleware: an `OneLLMError` becomes the answer of `onellm_async.integrations.web.to_http`, as ``{"detail": …}``."""
