"""A POST of which everything but the body is computed once per session.

To aiohttp every request is a new one: it merges headers, looks for cookies, credentials and encodings, and starts a
task that writes the body. All of ours go to one address with the same headers and a body of bytes. So aiohttp works out
one request, and all others are copies that bring their own body. It saves a quarter of what a request costs.

This rests on private parts of aiohttp. So it is done only with the versions that the tests have seen, and only where
aiohttp writes the same bytes; otherwise aiohttp makes each request itself.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, Final

import aiohttp
from aiohttp import ClientConnectionResetError, ClientRequest, ClientResponse, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from onellm_async.transport.shared_timeout import Attempt, SharedTimeout

if TYPE_CHECKING:
    from aiohttp.connector import Connection

TESTED_VERSIONS: Final = frozenset({"3.14.3", "3.14.4", "3.14.5"})
"""Versions of aiohttp whose requests are known to be copied well."""

_MAX_AT_ONCE = 64 * 1024
"""Bytes; a longer body is left to aiohttp, which waits while the connection's buffer is full."""

_log = logging.getLogger("onellm_async")


def prepare_post(url: URL, headers: CIMultiDict[str], timeout: SharedTimeout) -> type[ClientRequest] | None:
    """The class of requests that post to `url` with `headers`, for ``ClientSession(request_class=…)``.

    Neither the session nor its user may ask for anything else: cookies, proxies, credentials and options of single
    requests are ignored. It belongs to the running event loop.

    Args:
        url: Where to post.
        headers: All that aiohttp does not add itself.
        timeout: Each request is sent within an attempt of it, and marks that as sent.

    Returns:
        None if the installed aiohttp is not known to work with it.
    """
    if aiohttp.__version__ not in TESTED_VERSIONS:
        _report(f"aiohttp {aiohttp.__version__} is not one of the versions it was tested with")
        return None
    made = _prepared(url, headers, timeout)
    if made is None:
        _report("aiohttp writes its requests differently")
    return made


@cache
def _report(reason: str) -> None:
    _log.info("Each request is built by aiohttp, which takes a little more CPU, because %s.", reason)


def _prepared(url: URL, headers: CIMultiDict[str], timeout: SharedTimeout) -> type[ClientRequest] | None:
    worked_out = ClientRequest("POST", url, headers=headers, loop=asyncio.get_running_loop())
    try:
        own, by_aiohttp = _class_of(worked_out, timeout), _written(worked_out)
        with Attempt(timeout):
            copied = _written(own("POST", url, data=b"", timer=None, session=None))
        if copied == by_aiohttp:
            return own
    except Exception as error:  # any, because a new aiohttp may raise any
        _log.debug("A prepared request could not be made: %s", type(error).__name__)
    return None


def _class_of(worked_out: ClientRequest, timeout: SharedTimeout) -> type[ClientRequest]:
    lines = (f"{name}: {value!s}\r\n" for name, value in worked_out.headers.items() if name != "Content-Length")
    head = f"POST {worked_out.url.raw_path_qs} HTTP/1.1\r\n{''.join(lines)}Content-Length: ".encode()
    own = {
        "head": head,
        "head_size": len(head),
        "timeout": timeout,
        # Errors and their tracebacks show it, so it does not hold the headers with the key.
        "shown": RequestInfo(worked_out.url, "POST", CIMultiDictProxy(CIMultiDict()), worked_out.url),
        "connection_key": worked_out.connection_key,
        "headers": CIMultiDict(item for item in worked_out.headers.items() if item[0] != "Content-Length"),
    }
    return type("PreparedPost", (_PreparedRequest,), vars(worked_out) | own)


class _PreparedRequest(ClientRequest):
    head: ClassVar[bytes]
    head_size: ClassVar[int]
    shown: ClassVar[RequestInfo]
    timeout: ClassVar[SharedTimeout]

    def __init__(self, method: str, url: URL, *, data: bytes, timer: Any, session: Any, **_: object) -> None:
        # What aiohttp's own would set are attributes of the class.
        self._sent = data
        self._timer = timer
        self._session = session

    async def send(self, conn: "Connection") -> ClientResponse:
        """Writes head and body in one piece, and returns the response that is to come."""
        body, protocol = self._sent, conn.protocol
        connection = protocol.transport if protocol is not None else None
        if protocol is None or connection is None or connection.is_closing():
            raise ClientConnectionResetError("Cannot write to closing transport")
        try:
            attempt = self.timeout.running[asyncio.current_task()]
        except KeyError:
            raise ClientConnectionResetError("The attempt has been ended") from None
        attempt.sent = True
        if len(body) > _MAX_AT_ONCE or protocol.writing_paused:
            self.headers = CIMultiDict((*self.headers.items(), *_decoded(attempt.headers)))
            self.update_body_from_data(aiohttp.BytesIOPayload(BytesIO(body)))
            return await super().send(conn)
        connection.write(b"%b%d\r\n%b\r\n%b" % (self.head, len(body), attempt.headers, body))
        self.output_size = self.head_size + len(attempt.headers) + len(body)
        return ClientResponse(
            "POST",
            self.url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.shown,
            traces=self._traces,
            loop=self.loop,
            session=self._session,
            stream_writer=self,  # type: ignore[arg-type]  # only its output_size is read
        )


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Encodes headers of one request, each with its line end.

    Raises:
        ValueError: If one holds a line end, which would begin another header.
    """
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if text.count("\r") + text.count("\n") != 2 * len(headers):
        raise ValueError("A header must not hold a line end.")
    return text.encode()


def _decoded(headers: bytes) -> Iterator[tuple[str, str]]:
    for line in headers.decode().splitlines():
        name, _, value = line.partition(": ")
        yield name, value


class _Recorder:
    """What a request needs of a connection in order to be written; keeps the bytes."""

    def __init__(self) -> None:
        self.written = b""
        self.protocol = self.transport = self._connector = self
        self.writing_paused = self.force_close = self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)

    def is_closing(self) -> bool:
        return self.closing

    def start_timeout(self) -> None:
        """Nothing comes back."""


def _written(request: ClientRequest) -> bytes:
    """What `request`, which has no body, writes. It is written at once, without an event loop."""
    recorder = _Recorder()
    sending = request.send(recorder)  # type: ignore[arg-type]
    try:
        sending.send(None)
    except StopIteration:
        return recorder.written
    finally:
        sending.close()
    raise RuntimeError("Writing a request without a body waits for something.")
