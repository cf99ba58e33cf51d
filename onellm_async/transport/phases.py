"""What an attempt waits for, by aiohttp's tracing: the pool, a connection, or the answer.

A session that was given may have few connections. Waiting for one of them is no failure, however long it takes, and
opening one has a time limit of its own. aiohttp's ``ClientTimeout.connect`` covers both together.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp import tracing

from onellm_async.settings import Timeout

_Handler = Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]


class PhasedAttempt:
    """One attempt through aiohttp's own machinery, for as long as ``async with attempt.limit`` lasts.

    Args:
        timeout: For opening a connection, and for everything else.
        on_queued: Called when it has to wait for a place in the pool.

    Attributes:
        limit: Ends it; set anew with each phase.
        sent: Whether anything may have been written to a connection.
        ended: Whether the client was closed meanwhile.
    """

    def __init__(self, timeout: Timeout, on_queued: Callable[[], None]) -> None:
        self._timeout = timeout
        self._on_queued = on_queued
        self.limit: asyncio.Timeout = asyncio.timeout(timeout.total)
        self.sent: bool = True  # until tracing begins
        self.ended: bool = False

    def begin_tracing(self) -> None:
        """Starts to follow aiohttp's own events, which show when the request is sent."""
        self.sent = False

    def wait_for_pool(self) -> None:
        """The attempt waits for the pool."""
        self._on_queued()
        self._restart(None)

    def leave_pool(self) -> None:
        """The pool has granted a connection."""
        self._restart(self._timeout.total)

    def connect(self) -> None:
        """A new connection is being opened."""
        self._restart(min(self._timeout.connect, self._timeout.total))

    def connected(self) -> None:
        """The connection is open."""
        self._restart(self._timeout.total)

    def send(self) -> None:
        """The request is about to be written."""
        self.sent = True

    def end(self) -> None:
        """Ends it, because the client is closed."""
        self._restart(0)
        self.ended = True

    def _restart(self, seconds: float | None) -> None:
        if not self.ended and not self.limit.expired():
            self.limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


def _event(step: Callable[[PhasedAttempt], None]) -> Any:
    async def on_event(session: aiohttp.ClientSession, context: SimpleNamespace, parameters: object) -> None:
        step(context.trace_request_ctx)

    return on_event


def _trace_config() -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()
    config.on_connection_queued_start.append(_event(PhasedAttempt.wait_for_pool))
    config.on_connection_queued_end.append(_event(PhasedAttempt.leave_pool))
    config.on_connection_create_start.append(_event(PhasedAttempt.connect))
    config.on_connection_create_end.append(_event(PhasedAttempt.connected))
    config.on_request_headers_sent.append(_event(PhasedAttempt.send))
    config.freeze()
    return config


_CONFIG = _trace_config()


def middleware_for(attempt: PhasedAttempt, headers: Mapping[str, str]) -> Any:
    """A middleware of aiohttp that puts `headers` on the request and reports its progress to `attempt`.

    Args:
        attempt: Hears of it.
        headers: Replace those of the session. As arguments of the request, credentials of the session would not
            combine with ``Authorization``.
    """

    async def middleware(request: aiohttp.ClientRequest, handler: _Handler) -> aiohttp.ClientResponse:
        request.headers.update(headers)
        traces = getattr(request, "_traces", None)
        trace = getattr(tracing, "Trace", None)
        if isinstance(traces, list) and trace is not None:
            context = _CONFIG.trace_config_ctx(trace_request_ctx=attempt)
            traces.append(trace(request.session, _CONFIG, context))
            attempt.begin_tracing()
        return await handler(request)

    return middleware
