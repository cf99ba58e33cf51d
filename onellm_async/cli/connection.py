"""From flags to a client: the one place where the command line makes `AsyncOneLLM`."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from attrs import evolve

from onellm_async.batch import RequestDefaults
from onellm_async.cli.options import ConnectionFlags, RequestFlags
from onellm_async.cli.request_log import log_request
from onellm_async.client import AsyncOneLLM
from onellm_async.events import Hook
from onellm_async.limits.rate_state import RateState
from onellm_async.retry import RetryPolicy
from onellm_async.settings import Timeout, trust_only
from onellm_async.structured_output import shape_of

__all__ = ["connected", "defaults_from"]

_log = logging.getLogger("onellm_async")
_LOCAL_KEY = "local"
_LOCAL_LATENCY = 0.25
"""Median seconds of an answer with --local."""
_HIDDEN_RATE = 2400.0
"""Requests per minute of the server, to be discovered with ``--local --rpm auto``."""

if TYPE_CHECKING:
    from onellm_async.server import LocalServer


def defaults_from(asking: RequestFlags) -> RequestDefaults:
    """What the flags ask of every prompt.

    Raises:
        InvalidRequestError: If a value is out of range.
    """
    schema = asking.response_model
    return RequestDefaults(
        model=asking.model,
        fallback_model=asking.fallback_model(),
        system=asking.system,
        max_tokens=asking.max_tokens,
        temperature=asking.temperature,
        more=asking.further_fields(),
        shape=None if schema is None else shape_of(schema),
    )


def _local_server(connecting: ConnectionFlags) -> "LocalServer":
    """A server with the limits that the client keeps to, and answers quick enough to look at and slow enough to see."""
    from onellm_async.server import BucketLimit, Faults, LocalServer, ServerSettings, WindowLimit

    limits = connecting.limits()
    kept = [
        WindowLimit(rate.capacity, rate.per, sliding=True)
        if rate.is_window
        else BucketLimit(rate.per_minute, rate.capacity)
        for rate in limits.declared_rates
    ]
    if limits.mode == "discover":
        kept.append(BucketLimit(_HIDDEN_RATE, limits.burst))
    return LocalServer(
        ServerSettings(
            dialect=connecting.dialect_name,
            limits=kept,
            faults=Faults(latency=_LOCAL_LATENCY, latency_sigma=0.5),
        )
    )


@asynccontextmanager
async def connected(
    connecting: ConnectionFlags,
    *,
    hooks: Iterable[Hook] = (),
    retry: RetryPolicy | None = None,
    rate_state: RateState | None = None,
    max_pending: int | None = None,
) -> AsyncIterator[AsyncOneLLM]:
    """A client as the flags say; with ``--local`` also the server that it asks.

    Args:
        connecting: The flags.
        hooks: Hear of every event.
        retry: When failed attempts are repeated.
        rate_state: What an earlier client learned about the rate.
        max_pending: Most requests that may wait; None for no bound.

    Raises:
        ConfigurationError: If the key, the address or a limit is missing or unusable.
    """
    async with AsyncExitStack() as stack:
        api_key, base_url, quota = None, connecting.base_url, connecting.quota
        if connecting.local:
            server = await stack.enter_async_context(_local_server(connecting))
            api_key, base_url = _LOCAL_KEY, server.url
            quota = quota or "off"  # no other process uses this server
        client = AsyncOneLLM(
            api_key,
            base_url=base_url,
            timeout=Timeout(total=connecting.timeout),
            limits=evolve(connecting.limits(), max_pending=max_pending),
            dialect=connecting.dialect_name,
            endpoints=connecting.endpoints,
            allow_insecure=connecting.allow_insecure,
            proxy="" if connecting.local else connecting.proxy,
            ssl=None if connecting.ca_file is None else trust_only(connecting.ca_file, "--ca-file"),
            trust_env=connecting.trust_env,
            headers=connecting.headers,
            hooks=(log_request, *hooks) if _log.isEnabledFor(logging.DEBUG) else hooks,
            retry=retry,
            rate_state=rate_state,
            quota=quota,
            prices=connecting.prices,
        )
        if client.snapshot().quota != "off" and (
            connecting.rpm is not None or connecting.burst is not None or connecting.rate
        ):
            client.retune(client.limits)  # flags are a declaration, even if they name the default
        if connecting.local:
            # A run is bound to the URL of its service, and each local server has another port.
            client._base_url = "local"  # noqa: SLF001
        yield await stack.enter_async_context(client)
