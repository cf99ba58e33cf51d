"""How each dialect says no, and how it says yes. Pure."""

from html import escape

from onellm_async.chat import JSON
from onellm_async.transport import RawReply
from onellm_async.wire import Dialect, dump_json

__all__ = ["answer", "framework_rejection", "gateway_error", "handler_error"]

_JSON = {"Content-Type": "application/json"}
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_HTML = {"Content-Type": "text/html"}

NO_KEY = "No Authorization header provided."
NO_BEARER = "Invalid authorization scheme. Expected Bearer token."
UNKNOWN_KEY = "Custom error: No such user was found"
RATE_LIMITED = "Rate limit exceeded."
NO_BALANCE = "Insufficient balance, please topup your balance to continue using OneLLM"


def answer(dialect: Dialect, flat: dict[str, JSON]) -> RawReply:
    """A success: flat as documented, or in the backend's envelope."""
    body = flat if dialect is Dialect.DOCUMENTED else {"code": 200, "output": flat}
    return RawReply(200, _JSON, dump_json(body))


def handler_error(dialect: Dialect, status: int, text: str, headers: dict[str, str] | None = None) -> RawReply:
    """An error of the service proper.

    The documentation gives statuses and leaves the body open; the published backend answers HTTP 200 around an
    envelope, with the text under ``error``, or under ``output`` for its catch-all 500.
    """
    if dialect is Dialect.DOCUMENTED:
        return RawReply(status, _JSON | (headers or {}), dump_json({"error": text}))
    output = {"output": text} if status == 500 else {"error": text}
    return RawReply(200, _JSON | (headers or {}), dump_json({"code": status, "output": output}))


def framework_rejection(
    dialect: Dialect, status: int, text: str = "", headers: dict[str, str] | None = None
) -> RawReply:
    """A request that does not get as far as the service: real HTTP statuses in both dialects, plain text in one."""
    if dialect is Dialect.DOCUMENTED:
        return handler_error(dialect, status, text or "No such endpoint or method.", headers)
    return RawReply(status, _TEXT | (headers or {}), text.encode())


def gateway_error() -> RawReply:
    """What a reverse proxy says when the service behind it is gone."""
    title = escape("502 Bad Gateway")
    page = f"<html><head><title>{title}</title></head><body><center><h1>{title}</h1></center></body></html>"
    return RawReply(502, _HTML, page.encode())
