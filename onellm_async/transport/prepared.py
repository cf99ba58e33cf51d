"""A POST of which everything but the body is worked out once for each session.

To aiohttp every request is a new one: it merges headers, looks for cookies, credentials and encodings, and starts a
task that writes the body. All of ours go to one address with the same headers and a body of bytes. So aiohttp works out
one request, and all others are copies that bring their own body. It saves a quarter of what a request costs.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from aiohttp import ClientConnectionResetError, ClientRequest, ClientResponse, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

if TYPE_CHECKING:
    from aiohttp.connector import Connection

__all__ = ["prepared_post"]

_LONGEST_AT_ONCE = 64 * 1024
"""Bytes; a longer body is left to aiohttp, which waits while the connection's buffer is full."""


def prepared_post(url: URL, headers: CIMultiDict[str]) -> type[ClientRequest]:
    """The class of requests that post to `url` with `headers`, for ``ClientSession(request_class=…)``.

    Neither the session nor its user may ask for anything else: cookies, proxies, credentials and options of single
    requests are ignored. It belongs to the running event loop.
    """
    worked_out = ClientRequest("POST", url, headers=headers, data=b"-")
    del worked_out.headers["Content-Length"]
    lines = (f"{name}: {value}\r\n" for name, value in worked_out.headers.items())
    own = {
        "head": f"POST {url.raw_path_qs} HTTP/1.1\r\n{''.join(lines)}Content-Length: ".encode(),
        # Errors and their tracebacks show it, so it does not hold the headers with the key.
        "shown": RequestInfo(url, "POST", CIMultiDictProxy(CIMultiDict()), url),
        "connection_key": worked_out.connection_key,
        "_body": None,
    }
    return type("PreparedPost", (_Copy,), vars(worked_out) | own)


class _Copy(ClientRequest):
    head: ClassVar[bytes]
    shown: ClassVar[RequestInfo]

    def __init__(self, method: str, url: URL, *, data: bytes, timer: Any, session: Any, **_: object) -> None:
        # What aiohttp's own would set are attributes of the class.
        self._sent = data
        self._timer = timer
        self._session = session

    async def send(self, conn: "Connection") -> ClientResponse:
        """Writes head and body in one piece, and returns the response that is to come."""
        body, protocol = self._sent, conn.protocol
        if len(body) > _LONGEST_AT_ONCE or protocol is None or protocol.writing_paused:
            self.headers = self.headers.copy()
            self.update_body_from_data(body)
            return await super().send(conn)
        connection = protocol.transport
        if connection is None or connection.is_closing():
            raise ClientConnectionResetError("Cannot write to closing transport")
        message = b"%b%d\r\n\r\n%b" % (self.head, len(body), body)
        connection.write(message)
        self.output_size = len(message)
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
            stream_writer=self,  # type: ignore[arg-type]  # only its output_size is asked for
        )
