"""Posts over aiohttp, with one HTTP session for each event loop."""

import asyncio
import io
import logging
import sys
from collections.abc import AsyncGenerator, Mapping
from ssl import SSLContext
from typing import Final, NoReturn
from urllib.parse import urlsplit

import aiohttp
from attrs import evolve
from yarl import URL

from onellm_async.errors import (
    APIConnectionError,
    ClientClosedError,
    ConfigurationError,
    FailureKind,
    ResponseDecodeError,
)
from onellm_async.settings import ApiKey, Proxy, Timeout, unused_proxy_variable
from onellm_async.transport.addresses import parse_url, query_values
from onellm_async.transport.exceptions import error_of_proxy, translate_exception
from onellm_async.transport.phases import PhasedAttempt, middleware_for
from onellm_async.transport.prepared_request import encode_headers
from onellm_async.transport.protocol import RawReply
from onellm_async.transport.redaction import HiddenValue, Redactor, secrets_in, without_frames
from onellm_async.transport.sessions import (
    USER_AGENT,
    OpenSession,
    PostSettings,
    open_own_session,
    session_lifetime,
    use_given_session,
)
from onellm_async.transport.shared_timeout import Attempt, AttemptEndedError, catch_up
from onellm_async.validation import truncated_repr

MAX_REPLY_BYTES: Final = 32 * 1024 * 1024
"""A longer reply, counted after decompression, is cut off and refused: no chat answer is that long."""

_MAX_BYTES_AT_ONCE = 1024 * 1024
"""aiohttp warns of longer bodies that are plain bytes."""

_log = logging.getLogger("onellm_async")


class AiohttpTransport:
    """Posts over aiohttp, through a session of its own or one that was given.

    Its own session is opened on first use in an event loop and closed by `aclose` or, at the latest, when
    ``asyncio.run`` winds up that loop; so a client may be made before any loop runs, and used in several.

    Args:
        url: Where to post.
        key: The key, which is sent in the header only; None until `use_key`.
        timeout: For one attempt.
        session: A session to use. It is never closed here, and its cookies, headers and proxies apply.
        headers: Further headers of each request, which may be shown.
        secret_headers: Further headers of each request, which may not.
        proxy: A proxy to go through. One of the environment is not used with a session that has its own.
        ssl: How certificates are verified; None as the session or, without one, the system says.
        ssl_is_default: Whether a given session that verifies certificates in its own way keeps it.
    """

    def __init__(
        self,
        url: str,
        key: ApiKey | None,
        timeout: Timeout,
        session: aiohttp.ClientSession | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        secret_headers: Mapping[str, str] | None = None,
        proxy: Proxy | None = None,
        ssl: SSLContext | None = None,
        ssl_is_default: bool = False,
    ) -> None:
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise ConfigurationError(f"session is {truncated_repr(session)}; it must be an aiohttp.ClientSession.")
        hidden = {name: HiddenValue(value) for name, value in (secret_headers or {}).items()}
        own = {name.lower() for name in hidden}
        shown = {"User-Agent": USER_AGENT, "Content-Type": "application/json", **(headers or {})}
        secrets = {*query_values(url), *_session_secrets(session), *secrets_in(hidden)}
        if proxy is not None and proxy.authorization is not None:
            secrets |= proxy.secrets()
            if urlsplit(url).scheme == "http":  # aiohttp sends it with CONNECT only
                hidden["Proxy-Authorization"] = HiddenValue(proxy.authorization)
        self._post = PostSettings(
            url=parse_url(url),
            headers={name: value for name, value in shown.items() if name.lower() not in own},
            secret_headers=hidden,
            timeout=timeout,
            proxy=proxy,
            ssl=ssl,
            ssl_is_default=ssl_is_default,
        )
        self._url = self._post.url
        self._redactor = Redactor(secrets)
        self._given = session
        self._unused_proxy = unused_proxy_variable(url) if proxy is None and session is None else None
        self._warned_of_queueing = False
        self._open_session: OpenSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifetime: AsyncGenerator[OpenSession, None] | None = None
        self._retired: list[tuple[OpenSession, AsyncGenerator[OpenSession, None]]] = []
        self._phased: set[PhasedAttempt] = set()
        if key is not None:
            self.use_key(key)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client is not pickled, as its key would be: make one in each process.")

    def use_key(self, key: ApiKey) -> None:
        """Sends all further requests with `key`. Requests in flight continue.

        Args:
            key: The key. Replies still show none of the keys before.
        """
        authorization = key.authorization()
        self._redactor = self._redactor.hiding(authorization.removeprefix("Bearer "), authorization)
        headers = {**self._post.secret_headers, "Authorization": HiddenValue(authorization)}
        self._post = evolve(self._post, secret_headers=headers)
        if self._open_session is not None and self._lifetime is not None:
            self._retired.append((self._open_session, self._lifetime))
        self._open_session = self._lifetime = None

    @property
    def max_connections(self) -> int | None:
        """How many requests a given session can have in flight at once; None if it sets no limit.

        Further ones wait for a connection. That is no failure, but they have been admitted by then.
        """
        connector = getattr(self._given, "connector", None)
        limits = (getattr(connector, "limit", 0), getattr(connector, "limit_per_host", 0))
        return min((limit for limit in limits if limit), default=None)

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> RawReply:
        """Posts `body` and reads the whole answer. Safe to cancel: the connection is closed, not reused.

        Args:
            body: The encoded request.
            headers: Of this request alone.

        Raises:
            APIError: If no complete answer arrived.
            ClientClosedError: If the client or the given session is closed, and the request was not sent.
            ConfigurationError: If the URL or the given session is unusable.
        """
        opened = self._open_session
        if opened is None or self._loop is not asyncio.get_running_loop():
            opened = await self._open()
        if opened.timeout is None:
            return await self._post_by_aiohttp(opened, body, headers)
        attempt = Attempt(opened.timeout, b"" if headers is None else encode_headers(headers))
        response: aiohttp.ClientResponse | None = None
        try:
            with attempt:
                if attempt.after_pause:
                    await attempt.catch_up()
                async with opened.session.post(self._url, data=body, allow_redirects=False) as response:
                    return self._redactor.reply(response.status, response.headers, await _read(response))
        except _TRANSLATED as error:
            failed: BaseException = error
        finally:
            response = None  # it may show a key that the service echoes, and reports of errors show local variables
        failure = self._failure(failed, opened, sent=attempt.sent, ended=attempt.ended)
        del failed  # as above
        raise failure

    async def _post_by_aiohttp(self, opened: OpenSession, body: bytes, headers: Mapping[str, str] | None) -> RawReply:
        """Posts through a session whose requests aiohttp makes, and which may be shared and have few connections."""
        if opened.session.closed:
            raise self._closed()
        attempt = PhasedAttempt(self._post.timeout, self._warn_of_queueing)
        options = dict(opened.options)
        options["data"] = body if len(body) <= _MAX_BYTES_AT_ONCE else io.BytesIO(body)
        if headers:
            options["headers"] = {**(options.get("headers") or {}), **headers}
        if opened.middlewares is not None:
            options["middlewares"] = (middleware_for(attempt, self._post.secret_headers), *opened.middlewares)
        response: aiohttp.ClientResponse | None = None
        self._phased.add(attempt)
        try:
            async with attempt.limit:
                await catch_up()
                async with opened.session.post(self._url, **options) as response:
                    reply = self._redactor.reply(response.status, response.headers, await _read(response))
        except _TRANSLATED as error:
            failed: BaseException = error
        else:
            self._check_proxy(reply)
            return reply
        finally:
            self._phased.discard(attempt)
            response = None
        failure = self._failure(failed, opened, sent=attempt.sent, ended=attempt.ended)
        del failed  # as above
        raise failure

    def _warn_of_queueing(self) -> None:
        if not self._warned_of_queueing:
            self._warned_of_queueing = True
            _log.warning(
                "Requests wait for a connection: the session given to the client has at most %s. "
                "Lower Limits.max_concurrency, or raise the limit of the session's connector.",
                self.max_connections,
            )

    def _failure(self, error: BaseException, opened: OpenSession, *, sent: bool, ended: bool) -> BaseException:
        """Returns the error to raise instead of `error`."""
        ended = ended or opened.session.closed
        if isinstance(error, RuntimeError) and not ended:
            return error  # of a hook or a middleware of the session
        outer = sys.exception()
        without_frames(error, outer)
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                return error
        failure = self._error_for(error, sent=sent, ended=ended)
        # These hold parts of the reply, and the first the headers of the request.
        hidden = isinstance(error, aiohttp.ClientResponseError | _TooLongError) or self._redactor.shows_in(error, outer)
        failure.__cause__ = None if hidden else error
        return failure

    def _error_for(self, error: BaseException, *, sent: bool, ended: bool) -> BaseException:
        host = self._url.host or ""
        if ended:
            return self._closed(sent=sent)
        if isinstance(error, _TooLongError):
            return ResponseDecodeError(
                f"The reply is longer than {MAX_REPLY_BYTES // 1024 // 1024} MiB.",
                status_code=error.status,
                body=self._redactor.excerpt(error.start, 500),
                advice="No chat answer is that long: check base_url.",
            )
        if isinstance(error, Exception):
            return translate_exception(
                error,
                host,
                sent=sent,
                proxy=self._post.proxy,
                unused_proxy=self._unused_proxy,
                redact=self._redactor.text,
            )
        # This task was not cancelled: an operation within aiohttp was, such as the name lookup.
        if sent:
            return APIConnectionError(f"The connection to {host} was given up from within.")
        return APIConnectionError(f"No connection to {host}: it was given up.", kind=FailureKind.CANNOT_CONNECT)

    def _closed(self, *, sent: bool = False) -> APIConnectionError | ClientClosedError:
        who = "The client" if self._given is None or not self._given.closed else "The session given to the client"
        if sent:
            return APIConnectionError(
                f"{who} was closed before the answer was there.", advice="The request may be billed."
            )
        if self._given is None or not self._given.closed:
            return ClientClosedError("The client was closed before this request was sent.")
        return ClientClosedError(
            "The session given to the client is closed.", advice="Give it an open one.", kind=FailureKind.LOCAL
        )

    def _check_proxy(self, reply: RawReply) -> None:
        """A proxy answers plain http requests like a service. Only a 407 is certainly from the proxy."""
        if reply.status == 407 and (self._post.proxy is not None or self._given is not None):
            raise error_of_proxy(407, "Proxy Authentication Required", self._post.proxy)

    async def _open(self) -> OpenSession:
        loop = asyncio.get_running_loop()
        await self._close_retired(idle=True)
        if self._open_session is not None and self._loop is loop:
            return self._open_session  # another request has opened it meanwhile
        if self._given is None:
            self._lifetime = session_lifetime(open_own_session(self._post))
            opened = await anext(self._lifetime)
        elif self._given.closed:
            raise self._closed()
        else:
            opened = use_given_session(self._post, self._given)
        self._loop, self._open_session = loop, opened
        return opened

    async def _close_retired(self, *, idle: bool) -> None:
        """Closes the sessions of earlier keys; with `idle` only those without a request in flight."""
        loop = asyncio.get_running_loop()
        for retired in list(self._retired):
            opened, lifetime = retired
            other_loop = opened.timeout is None or opened.timeout.loop is not loop
            if other_loop or not (idle and opened.timeout is not None and opened.timeout.running):
                self._retired.remove(retired)
                if not other_loop:  # asyncio.run closes it with its own loop
                    await lifetime.aclose()

    async def aclose(self) -> None:
        """Closes the session that was opened here; a given one stays open. Ends the requests in flight."""
        lifetime, self._lifetime, self._open_session = self._lifetime, None, None
        await self._close_retired(idle=False)
        if self._loop is not asyncio.get_running_loop():
            return
        for attempt in list(self._phased):
            attempt.end()
        if lifetime is not None:
            await lifetime.aclose()


def _session_secrets(session: aiohttp.ClientSession | None) -> set[str]:
    """The password of the proxy of a session, which some of aiohttp's errors show."""
    proxy, credentials = getattr(session, "_default_proxy", None), getattr(session, "_default_proxy_auth", None)
    password = URL(proxy).password if proxy is not None else None
    return {secret for secret in (password, getattr(credentials, "password", None)) if secret}


class _TooLongError(Exception):
    """The reply is longer than `MAX_REPLY_BYTES`."""

    def __init__(self, status: int, start: bytes) -> None:
        super().__init__("too long")
        self.status = status
        self.start = start


_TRANSLATED = (aiohttp.ClientError, OSError, RuntimeError, AttemptEndedError, _TooLongError, asyncio.CancelledError)
"""Exceptions that end an attempt and are raised as errors of this package."""


async def _read(response: aiohttp.ClientResponse) -> bytes:
    first = await response.content.readany()
    if response.content.at_eof():
        return first  # as nearly always: the whole reply came in one piece
    chunk = await response.content.readany()
    size = len(first) + len(chunk)
    chunks = [first, chunk]
    while chunk:
        if size > MAX_REPLY_BYTES:
            response.close()
            raise _TooLongError(response.status, first)
        chunk = await response.content.readany()
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)
