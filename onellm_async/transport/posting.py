"""Posting over aiohttp: one session for each event loop, one timeout for all attempts, one reading of the reply."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NoReturn

import aiohttp
from attrs import frozen
from multidict import CIMultiDict
from yarl import URL

from onellm_async.errors import ClientClosedError, ConfigurationError, ResponseDecodeError
from onellm_async.settings import ApiKey, Timeout
from onellm_async.transport.failures import translated
from onellm_async.transport.prepared import prepared_post
from onellm_async.transport.protocol import RawReply
from onellm_async.transport.timeouts import CommonTimeout

__all__ = ["MOST_REPLY_BYTES", "AiohttpTransport"]

MOST_REPLY_BYTES: Final = 32 * 1024 * 1024
"""A longer reply, counted after decompression, is cut off and refused: no chat answer is that long."""

_KEEP_ALIVE = 15.0
"""Seconds that an idle connection is kept; servers and proxies in between forget older ones silently."""

_TRIED = "3.14."
"""Versions of aiohttp whose requests `prepared_post` is known to copy well; with others, aiohttp makes each anew."""


@frozen
class _Way:
    """An open session and what goes with each request through it."""

    session: aiohttp.ClientSession
    timeout: AbstractContextManager[object]
    options: Mapping[str, Any]


class AiohttpTransport:
    """Posts over aiohttp, through a session of its own or one that was given.

    Its own session is opened on first use in an event loop and closed by `aclose` or, at the latest, when
    ``asyncio.run`` winds up that loop; so a client may be made before any loop runs, and used in several.

    Args:
        url: Where to post.
        key: The key, which only goes into the header.
        timeout: For one attempt.
        session: A session to use; it is never closed here, and its cookies, headers and proxies apply.
        headers: Further headers of each request.
    """

    def __init__(
        self,
        url: str,
        key: ApiKey,
        timeout: Timeout,
        session: aiohttp.ClientSession | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            self._url = URL(url)
        except ValueError as error:
            raise ConfigurationError(f"base_url is not a usable URL: {error}") from None
        self._headers = CIMultiDict({**(headers or {}), "Authorization": key.authorization()})
        self._timeout = timeout
        self._given = session
        self._way: _Way | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifetime: AsyncGenerator[_Way, None] | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client is not pickled, as its key would be: make one in each process.")

    async def post(self, body: bytes) -> RawReply:
        """Posts `body` and reads the whole answer. Safe to cancel: the connection is closed, not reused.

        Raises:
            APIError: If no complete answer arrived.
            ClientClosedError: If the given session is closed.
        """
        way = self._way
        if way is None or self._loop is not asyncio.get_running_loop():
            way = await self._open()
        try:
            with way.timeout:
                async with way.session.post(self._url, data=body, allow_redirects=False, **way.options) as response:
                    return RawReply(response.status, response.headers, await _read(response))
        except (aiohttp.ClientError, OSError) as error:
            failure = translated(error, self._url.host or "")
            # The repr of these shows the headers of the request, and with them the key.
            cause = None if isinstance(error, aiohttp.ClientResponseError) else error
        raise failure from cause

    async def _open(self) -> _Way:
        if self._given is not None:
            if self._given.closed:
                raise ClientClosedError("The session given to the client is closed.", advice="Give it an open one.")
            options = {"headers": self._headers, "timeout": _client_timeout(self._timeout, self._timeout.total)}
            return _Way(self._given, nullcontext(), options)
        self._loop = asyncio.get_running_loop()
        self._lifetime = _own_way(self._url, self._headers, self._timeout)
        self._way = await anext(self._lifetime)
        return self._way

    async def aclose(self) -> None:
        """Closes the session that was opened here; a given one stays open."""
        lifetime, self._lifetime, self._way = self._lifetime, None, None
        if lifetime is not None and self._loop is asyncio.get_running_loop():
            await lifetime.aclose()


def _client_timeout(timeout: Timeout, total: float | None) -> aiohttp.ClientTimeout:
    # `sock_connect` alone does not cover the look-up of the name.
    return aiohttp.ClientTimeout(total=total, connect=timeout.connect, sock_connect=timeout.connect)


async def _own_way(url: URL, headers: CIMultiDict[str], timeout: Timeout) -> AsyncGenerator[_Way, None]:
    # asyncio.run closes the async generators that are still open before it closes the loop, and with this one the
    # session, in the loop it belongs to: nothing is left over even if nobody called aclose.
    tried = aiohttp.__version__.startswith(_TRIED)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=None if tried else headers,
        request_class=prepared_post(url, headers) if tried else aiohttp.ClientRequest,
        timeout=_client_timeout(timeout, None),
        trust_env=False,
    )
    total = CommonTimeout(timeout.total)
    try:
        yield _Way(session, total, {})
    finally:
        total.close()
        await session.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    first = await response.content.readany()
    if response.content.at_eof():
        return first  # as nearly always: the whole reply came in one piece
    chunk = await response.content.readany()
    size = len(first) + len(chunk)
    chunks = [first, chunk]
    while chunk:
        if size > MOST_REPLY_BYTES:
            response.close()
            raise ResponseDecodeError(
                f"The reply is longer than {MOST_REPLY_BYTES // 1024 // 1024} MiB.",
                status_code=response.status,
                body=first[:500].decode("utf-8", "replace"),
                advice="No chat answer is that long: check base_url.",
            )
        chunk = await response.content.readany()
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)
