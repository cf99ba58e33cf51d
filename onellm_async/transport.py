"""The way to the service: bytes out, (status, headers, bytes) back. The only room that knows aiohttp's client."""

import asyncio
import errno
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Final, NoReturn, Protocol

import aiohttp
from attrs import frozen
from multidict import CIMultiDict
from yarl import URL

from onellm_async.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    ClientClosedError,
    ConfigurationError,
    Fate,
    ResponseDecodeError,
)
from onellm_async.settings import ApiKey, Timeout

__all__ = ["MOST_REPLY_BYTES", "AiohttpTransport", "RawReply", "Transport", "translated"]

MOST_REPLY_BYTES: Final = 32 * 1024 * 1024
"""A longer reply, counted after decompression, is cut off and refused: no chat answer is that long."""

_KEEP_ALIVE = 15.0
"""Seconds that an idle connection is kept; servers and proxies in between forget older ones silently."""

_DESCRIPTORS_USED_UP = {errno.EMFILE, errno.ENFILE}


@frozen
class RawReply:
    """An HTTP answer as it came, decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries a request body to the service."""

    async def post(self, body: bytes) -> RawReply:
        """Posts `body` and reads the whole answer.

        Raises:
            APIError: If no complete answer arrived; its ``fate`` tells whether it may have been billed.
        """
        ...

    async def aclose(self) -> None:
        """Closes what it opened. It may be used again afterwards."""
        ...


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
        # `sock_connect` alone does not cover the look-up of the name.
        self._timeout = aiohttp.ClientTimeout(
            total=timeout.total, connect=timeout.connect, sock_connect=timeout.connect
        )
        self._given = session
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifetime: AsyncGenerator[aiohttp.ClientSession, None] | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client is not pickled, as its key would be: make one in each process.")

    async def post(self, body: bytes) -> RawReply:
        """Posts `body` and reads the whole answer. Safe to cancel: the connection is closed, not reused.

        Raises:
            APIError: If no complete answer arrived.
            ClientClosedError: If the given session is closed.
        """
        session = self._session
        if session is None or self._loop is not asyncio.get_running_loop():
            session = await self._open()
        try:
            async with session.post(
                self._url, data=body, headers=self._headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                return RawReply(response.status, response.headers, await _read(response))
        except (aiohttp.ClientError, OSError) as error:
            failure = translated(error, self._url.host or "")
            # The repr of these shows the headers of the request, and with them the key.
            cause = None if isinstance(error, aiohttp.ClientResponseError) else error
        raise failure from cause

    async def _open(self) -> aiohttp.ClientSession:
        if self._given is not None:
            if self._given.closed:
                raise ClientClosedError("The session given to the client is closed.", advice="Give it an open one.")
            return self._given
        self._loop = asyncio.get_running_loop()
        self._lifetime = _session_lifetime()
        self._session = await anext(self._lifetime)
        return self._session

    async def aclose(self) -> None:
        """Closes the session that was opened here; a given one stays open."""
        lifetime, self._lifetime, self._session = self._lifetime, None, None
        if lifetime is not None and self._loop is asyncio.get_running_loop():
            await lifetime.aclose()


async def _session_lifetime() -> AsyncGenerator[aiohttp.ClientSession, None]:
    # asyncio.run closes the async generators that are still open before it closes the loop, and with this one the
    # session, in the loop it belongs to: nothing is left over even if nobody called aclose.
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
    try:
        yield session
    finally:
        await session.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    first = await response.content.readany()
    chunk = await response.content.readany() if first else b""
    if not chunk:
        return first
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


def translated(error: Exception, host: str) -> APIError | ConfigurationError:
    """Our error for one of aiohttp's (or the operating system's). The only place where foreign errors are known.

    Args:
        error: What was raised while posting.
        host: For the message.
    """
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return ConfigurationError(f"base_url is not a usable URL: {error}.")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
        return APIConnectionError(
            f"The certificate of {host} was not accepted: {_words(error)}.",
            fate=Fate.NOT_PROCESSED,
            retryable=False,
            advice="Check base_url and the certificates of this machine; nothing was sent.",
        )
    if isinstance(error, OSError) and error.errno in _DESCRIPTORS_USED_UP:
        return APIConnectionError(
            "This process has no file descriptor left for another connection.",
            fate=Fate.NOT_PROCESSED,
            retryable=False,
            advice="Raise `ulimit -n` or lower Limits.max_concurrency.",
        )
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return APITimeoutError(f"No connection to {host} in time (Timeout.connect).", fate=Fate.NOT_PROCESSED)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientProxyConnectionError):
        return APIConnectionError(
            f"No connection to {host}: {_words(error)}.",
            fate=Fate.NOT_PROCESSED,
            advice="Check base_url and the network.",
        )
    if isinstance(error, TimeoutError):
        return APITimeoutError(
            f"No complete answer from {host} in time (Timeout.total).",
            fate=Fate.AMBIGUOUS,
            advice="It may still be billed. Raise Timeout.total if answers usually take that long.",
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return APIConnectionError(f"The proxy refused: {_words(error)}.", fate=Fate.NOT_PROCESSED, retryable=False)
    return APIConnectionError(f"The connection to {host} broke: {_words(error)}.", fate=Fate.AMBIGUOUS)


def _words(error: BaseException) -> str:
    reason = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return reason.verify_message
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason).rstrip(".")[:300] or type(error).__name__
