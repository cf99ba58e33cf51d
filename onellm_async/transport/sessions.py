"""HTTP sessions: the client's own for each event loop, or a given one."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping
from ssl import SSLContext
from typing import Any, Final

import aiohttp
from attrs import field, frozen
from multidict import CIMultiDict
from yarl import URL

from onellm_async.errors import ConfigurationError
from onellm_async.settings import Proxy, Timeout
from onellm_async.transport.prepared_request import prepare_post
from onellm_async.transport.redaction import HiddenValue
from onellm_async.transport.shared_timeout import SharedTimeout
from onellm_async.transport.sockets import keep_alive_socket
from onellm_async.version import __version__

USER_AGENT: Final = (
    f"onellm-async/{__version__} (aiohttp/{aiohttp.__version__}; "
    f"Python/{sys.version_info.major}.{sys.version_info.minor})"
)
_KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept. Common servers close theirs after five."""
_UNUSABLE_DEFAULTS = ("Content-Encoding", "Content-Length", "Transfer-Encoding")
"""Default headers of a session that would describe the body wrongly."""


@frozen(kw_only=True)
class PostSettings:
    """What all requests of a client have in common.

    Attributes:
        url: Where to post.
        headers: Headers that may be shown.
        secret_headers: Headers that may not.
        timeout: For one attempt.
        proxy: A proxy to go through.
        ssl: How certificates are verified; None as the session or the system says.
        ssl_is_default: Whether a given session that verifies certificates in its own way keeps it.
    """

    url: URL = field(repr=False)
    headers: Mapping[str, str]
    secret_headers: Mapping[str, str] = field(repr=False)
    timeout: Timeout
    proxy: Proxy | None
    ssl: SSLContext | None
    ssl_is_default: bool


@frozen
class OpenSession:
    """An open session and what goes with each request through it.

    Attributes:
        session: aiohttp's.
        timeout: Of the attempts, where requests are prepared; None where aiohttp makes each request itself.
        options: Of each request that aiohttp makes.
        middlewares: Those of the session; None where aiohttp knows none.
    """

    session: aiohttp.ClientSession
    timeout: SharedTimeout | None
    options: Mapping[str, Any] = field(factory=dict, repr=False)
    middlewares: tuple[Any, ...] | None = None


def use_given_session(post: PostSettings, session: aiohttp.ClientSession) -> OpenSession:
    """Returns a session of the caller, with the options that each request needs.

    Raises:
        ConfigurationError: If it belongs to another event loop, or sends headers that fit no request of ours.
    """
    if getattr(session, "_loop", None) not in {None, asyncio.get_running_loop()}:
        raise ConfigurationError(
            "The session given to the client belongs to another event loop.",
            advice="Make it in the loop in which the client is used, or let the client make its own.",
        )
    if unusable := [name for name in _UNUSABLE_DEFAULTS if name in session.headers]:
        raise ConfigurationError(
            f"The session given to the client sends the header {unusable[0]} with every request, "
            "which would describe its body wrongly.",
            advice="Leave it out of the session's headers.",
        )
    return _unprepared_session(post, session)


def open_own_session(post: PostSettings) -> OpenSession:
    """Opens a session for the running event loop. `session_lifetime` closes it."""
    connector = aiohttp.TCPConnector(
        limit=0,
        keepalive_timeout=_KEEP_ALIVE,
        socket_factory=keep_alive_socket,
        ssl=post.ssl if post.ssl is not None else True,
    )
    prepared, timeout = None, SharedTimeout(post.timeout.total)
    if post.proxy is None:
        headers = CIMultiDict({**post.headers, **post.secret_headers})
        prepared = prepare_post(post.url, headers, timeout)
    session = _session(post, connector, prepared or aiohttp.ClientRequest)
    if prepared is not None and not session.trace_configs and not getattr(session, "_middlewares", ()):
        return OpenSession(session, timeout)
    # An instrumentation that sees all sessions of aiohttp wants to see the requests, too.
    session.detach()
    return _unprepared_session(post, _session(post, connector, aiohttp.ClientRequest))


async def session_lifetime(opened: OpenSession) -> AsyncGenerator[OpenSession, None]:
    """Yields `opened`, whose session is the client's own, and closes it at the end.

    ``asyncio.run`` closes the async generators that are still open before it closes the loop, and with this one the
    session, in the loop it belongs to: nothing is left over even if the client is never closed.
    """
    try:
        yield opened
    finally:
        if opened.timeout is not None:
            opened.timeout.end_unsent()
            opened.timeout.close()
        await opened.session.close()


def _session(
    post: PostSettings, connector: aiohttp.TCPConnector, request_class: type[aiohttp.ClientRequest]
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        request_class=request_class,
        timeout=aiohttp.ClientTimeout(connect=post.timeout.connect, sock_connect=post.timeout.connect),
        trust_env=False,
    )


def _unprepared_session(post: PostSettings, session: aiohttp.ClientSession) -> OpenSession:
    """Passes every option with each request, so that settings of the session have no effect."""
    headers = dict(post.headers)
    middlewares = getattr(session, "_middlewares", None)
    if middlewares is None:  # of another version of aiohttp; the key is then an ordinary header
        headers |= post.secret_headers
    if "User-Agent" in session.headers or "User-Agent" in session.skip_auto_headers:
        headers.pop("User-Agent", None)
    options: dict[str, Any] = {
        "headers": headers,
        "allow_redirects": False,
        "raise_for_status": False,
        "auto_decompress": True,
        "timeout": aiohttp.ClientTimeout(sock_connect=post.timeout.connect),
    }
    own_proxy = getattr(session, "_default_proxy", None) is not None
    if post.proxy is not None and (post.proxy.source == "proxy" or not own_proxy):
        options["proxy"] = post.proxy.url
        if post.proxy.authorization is not None:
            options["proxy_headers"] = {"Proxy-Authorization": HiddenValue(post.proxy.authorization)}
    verifies_itself = getattr(session.connector, "_ssl", True) is not True
    if post.ssl is not None and not (post.ssl_is_default and verifies_itself):
        options["ssl"] = post.ssl
    return OpenSession(session, None, options, None if middlewares is None else tuple(middlewares))
