"""What an error status means: which exception, what text, when to return."""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from html import unescape

from onellm_async import catalog
from onellm_async.chat import JSON
from onellm_async.errors import (
    APIError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InsufficientBalanceError,
    InternalServerError,
    MethodNotAllowedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
)
from onellm_async.validation import shown

__all__ = ["excerpt", "failure", "parse_retry_after"]

EXCERPT_CHARACTERS = 500
LONGEST_RETRY_AFTER = 300.0
"""Seconds; a service that asks for more is asked again after this long."""

_CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}
_ADVICE = {
    400: "Check the parameters of the request.",
    401: "Check the key in api_key=… or ONELLM_API_KEY.",
    403: "The key is valid, but has no access: check its account.",
    404: "Check base_url: requests are posted to exactly that address.",
    405: "Check base_url: requests are posted to exactly that address.",
    413: "Send fewer or shorter messages.",
    415: "Something between here and the service changes the content type.",
    429: "The limit is lower than Limits declares, or others use the same key.",
}
_DEEPEST_TEXT = 6
_UNKNOWN_MODEL = re.compile(r"unknown variant `([^`]*)`")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def excerpt(body: bytes) -> str:
    """The first 500 characters of a body."""
    return body[: EXCERPT_CHARACTERS * 4].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]


def failure(status: int, headers: Mapping[str, str], payload: JSON, body: bytes, *, model: str, now: float) -> APIError:
    """The error for a reply that is no success.

    Args:
        status: Of the envelope if there is one, else of HTTP.
        headers: HTTP headers.
        payload: The parsed body or the envelope's output; None if it is not JSON.
        body: The raw body.
        model: The model asked, for advice.
        now: Wall-clock seconds since 1970.
    """
    text = _error_text(payload, body)
    kind = _CLASSES.get(status, InternalServerError if status >= 500 else APIStatusError)
    advice = _ADVICE.get(status, "")
    if "insufficient balance" in text.casefold():
        kind, advice = InsufficientBalanceError, "Top up the balance of this key; at least $0.10 is needed."
    elif not 300 <= status < 600:
        return ResponseDecodeError(
            f"The service answered with status {shown(status)}, which means nothing.",
            status_code=status,
            body=excerpt(body),
        )
    elif status == 422:
        advice = _advice_on_422(text)
    elif status < 400:
        where = _header(headers, "Location") or "somewhere else"
        text = f"Redirected to {where[:EXCERPT_CHARACTERS]}"
        advice = "Redirects are not followed with a paid request: set base_url to the final address."
    error = kind(f"{status} {text}".rstrip() + _full_stop(text), status_code=status, body=excerpt(body), advice=advice)
    error.retry_after = parse_retry_after(_header(headers, "Retry-After"), now)
    return error


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait: a non-negative integer or an HTTP date, at most 300; None for anything else.

    Example:
        >>> [parse_retry_after(text, now=0.0) for text in ("7", "1e9", "-1", "120junk", "999999")]
        [7.0, None, None, None, 300.0]
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return LONGEST_RETRY_AFTER if len(value) > 9 else min(float(value), LONGEST_RETRY_AFTER)
    if "," not in value and "GMT" not in value:
        return None
    try:
        date = parsedate_to_datetime(value)
        moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, moment - now), LONGEST_RETRY_AFTER)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    folded = name.casefold()
    return next((value for key, value in headers.items() if key.casefold() == folded), None)


def _full_stop(text: str) -> str:
    return "" if text.endswith((".", "!", "?")) else "."


def _advice_on_422(text: str) -> str:
    if "missing field `endpoint`" in text:
        return 'This is a self-hosted backend: set dialect="backend".'
    unknown = _UNKNOWN_MODEL.search(text)
    if unknown is None:
        return ""
    asked = unknown.group(1)
    near = catalog.nearest(asked)
    entry = catalog.lookup(asked) or (catalog.lookup(near) if near is not None else None)
    if entry is None:
        return "`onellm-async models` lists the known ones."
    if entry.backend_name is None:
        return f"The self-hosted backend does not know {entry.name!r}."
    if asked == entry.name:
        return f'This is a self-hosted backend, which spells it {entry.backend_name!r}: set dialect="backend".'
    return f"Did you mean {entry.backend_name!r}?"


def _error_text(payload: JSON, body: bytes) -> str:
    text = _text_in(payload)
    if not text and payload is None:
        text = body[: EXCERPT_CHARACTERS * 4].decode("utf-8", "replace")
        title = _TITLE.search(text)
        if title:
            text = unescape(title.group(1))
        elif "<html" in text.casefold():
            text = ""
    return " ".join(text.split())[:EXCERPT_CHARACTERS]


def _text_in(value: JSON, depth: int = 0) -> str:
    """The first text in the places where services put one."""
    if isinstance(value, str):
        return value
    if depth == _DEEPEST_TEXT:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_text_in(item, depth + 1) for item in value[:5])))
    if isinstance(value, dict):
        for name in ("error", "detail", "message", "msg", "output"):
            text = _text_in(value.get(name), depth + 1)
            if text:
                return text
    return ""
